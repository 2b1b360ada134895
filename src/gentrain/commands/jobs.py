"""The jobs of a sweep, each known by its config: the same command again finds them and does what is missing."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from gentrain.commands.train import make_folder
from gentrain.commands.words import Words
from gentrain.config import Node
from gentrain.folder import RunFolder, new_path
from gentrain.masking import mask_words

NOT_STARTED, STOPPED, FINISHED = "not started", "stopped", "finished"

ELSEWHERE = ("sweep", "name", "output")
"""Keys that say how and where a sweep runs, not what its jobs are."""


@dataclass
class Job:
    name: str
    folder: RunFolder
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    code: int | None = None
    started: float = 0.0
    seconds: float = 0.0
    again: bool = False
    """Whether it was begun before: it goes on from its last checkpoint, if it has one."""
    tries: int = 0
    told: bool = False
    """Whether the sweep has told it to stop."""

    @property
    def status(self) -> str:
        if self.code is None:
            return NOT_STARTED
        if self.code == 0:
            return FINISHED
        # One that is told to stop before it listens, or that does not stop in time, ends by the signal itself.
        stopped = self.code in (130, 143) or (self.told and self.code < 0)
        return STOPPED if stopped else f"failed ({self.code})"

    @property
    def failed(self) -> bool:
        return self.status not in (FINISHED, STOPPED, NOT_STARTED)


def plan(words: Words, combinations: Sequence[list[str]], configs: Sequence[Node]) -> tuple[Path, list[Job]]:
    """The sweep's folder and its jobs; a finished one has its exit code 0 already.

    The folder is ``name``, or that of the same jobs before, or a new one.
    """
    keys = [key_of(config) for config in configs]
    root = _root(Path(configs[0]["output"]) / "sweeps", configs[0]["name"], keys)
    known = {card["key"]: folder for folder, card in _cards(root) if "key" in card}
    jobs = []
    number = 1 + max((int(folder.path.name[:3]) for folder in known.values()), default=-1)
    for overrides, config, key in zip(combinations, configs, keys, strict=True):
        name = " ".join(mask_words(sorted(set(overrides) - set(words.overrides)))) or "the only one"
        if key in known:
            jobs.append(_found(name, known[key]))
            continue
        job_words = replace(words, overrides=overrides, multirun=False, sweep=words.command())
        folder = make_folder(config, job_words, root / f"{number:03d}-{_plain(name)}")
        folder.update_card(key=key)
        jobs.append(Job(name, folder))
        number += 1
    return root, jobs


def key_of(config: Node) -> str:
    """What a job is known by: a digest of its resolved config."""
    kept = {key: value for key, value in config.items() if key not in ELSEWHERE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _root(parent: Path, name: str | None, keys: Sequence[str]) -> Path:
    if name is not None:
        return new_path(parent, name)
    mark = hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:8]
    earlier = sorted(parent.glob(f"*-{mark}"))
    return earlier[-1] if earlier else new_path(parent).with_name(f"{new_path(parent).name[:19]}-{mark}")


def _cards(root: Path) -> list[tuple[RunFolder, Mapping[str, object]]]:
    folders = [RunFolder(path.parent.absolute()) for path in sorted(root.glob("[0-9][0-9][0-9]-*/config.yaml"))]
    return [(folder, folder.card()) for folder in folders]


def _found(name: str, folder: RunFolder) -> Job:
    job = Job(name, folder, again=True)
    card = folder.card()
    if card.get("status") == FINISHED:
        job.code, job.seconds = 0, float(card.get("seconds", 0.0))
    return job


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "=.,_-" else "-" for c in name)[:80]
