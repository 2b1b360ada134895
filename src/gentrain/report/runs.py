"""Run folders as they are found on the disk: what a run was and what it scored, or why it cannot be compared.

Nothing in a run folder is trusted: files are read as plain data of bounded size, nothing is imported or executed, and
text reaches a terminal through ``shown`` only. A card in which a key is absent is an older one, not a broken one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentrain.config import Node, load_yaml, nearest
from gentrain.errors import UserError, one_line
from gentrain.folder import RunFolder
from gentrain.records import restored

LARGEST = 4_000_000
"""Bytes of a run card or config; ours have some thousand."""

LEVELS = 50
"""Of a run card; ours have five."""

SCORE = re.compile(r"[A-Za-z][A-Za-z0-9_.@/+-]{0,59}")
LETTERS = 80
"""Of a name in a table."""

UNFINISHED, FAILED, UNREADABLE, OTHER_DATA, NO_SCORES, TWICE = (
    *("unfinished", "failed", "unreadable", "other data", "no scores", "same config and seed as another run"),
)


@dataclass(frozen=True)
class Skipped:
    path: Path
    why: str
    detail: str = ""


@dataclass(frozen=True)
class Run:
    """A finished run. ``final`` and ``best``: scores by key, nan where the stored number is not finite."""

    path: Path
    model: str
    data: str
    seed: int
    created: str
    can: frozenset[str] | None
    """Capabilities, names of ``gentrain.capabilities.CAPABILITIES``; None: the config does not say."""
    is_image: bool | None
    conditional: bool | None
    """Whether its samples are asked by class; None: an older card, which does not say."""
    choices: Mapping[str, str]
    config: Node
    protocol: Mapping[str, Any]
    """Of the final scores; empty: unknown."""
    final: Mapping[str, float]
    best: Mapping[str, float]
    best_in_training: bool
    """Whether the scores of the best checkpoint are those seen in training, perhaps on fewer samples."""
    monitor: str | None
    facts: Mapping[str, float]
    published: Mapping[str, float]
    device: str
    world_size: int = 1
    remarks: tuple[str, ...] = field(default=())


def shown(text: object) -> str:
    """Text of unknown origin on one line, without control characters, of bounded length."""
    line = one_line(text)
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 3]}..."


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """A plain number as float; nan for one that is not finite or beyond all reason; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -1e100 < value < 1e100 else math.nan


def find(places: Sequence[Path]) -> tuple[list[Run], list[Skipped]]:
    """All runs in and below some folders, each once. UserError for a place that is no folder."""
    runs, skipped = list[Run](), list[Skipped]()
    seen: set[Path] = set()
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place}: no such folder{nearest(place.name, _beside(place))}")
        for path, unreadable in _folders(place):
            real = path.resolve()
            if real in seen:
                continue
            seen.add(real)
            found = unreadable or read(path)
            if isinstance(found, Skipped):
                skipped.append(found)
            else:
                runs.append(found)
    return runs, skipped


def _beside(place: Path) -> list[str]:
    try:
        return [path.name for path in place.parent.iterdir() if path.is_dir()]
    except OSError:
        return []


def _folders(place: Path) -> Iterator[tuple[Path, Skipped | None]]:
    errors: list[OSError] = []
    for root, names, files in os.walk(place, onerror=errors.append):
        if "config.yaml" in files and ("run.json" in files or "checkpoints" in names):
            names.clear()
            yield Path(root), None
        names[:] = sorted(name for name in names if not name.startswith("."))
    for error in errors:
        path = Path(str(error.filename))
        yield path, Skipped(path, UNREADABLE, error.strerror or "")


def read(path: Path) -> Run | Skipped:
    """The run in a folder, or why it is passed over."""
    folder = RunFolder(path)
    try:
        card = _card(folder.card_file)
        status = card.get("status")
        if status != "finished":
            why = FAILED if status == "failed" else UNFINISHED
            return Skipped(path, why, "" if why == FAILED else shown(status))
        _small(folder.config_file)
        run = _run(path, folder_config(folder), card)
    except (UserError, ValueError, OSError) as error:
        return Skipped(path, UNREADABLE, shown(str(error).removeprefix(f"{path}/")))
    return run if run.final else Skipped(path, NO_SCORES)


def folder_config(folder: RunFolder) -> Node:
    config = load_yaml(folder.config_file)
    for key in ("choices", "model", "data", "train"):
        if not isinstance(config.get(key), dict):
            raise ValueError(f"config.yaml: the section {key} is missing")
    return config


def _small(file: Path) -> None:
    if not file.is_file():  # a pipe or a device would block or never end
        raise ValueError(f"{file.name}: no such file")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file.name}: more than {LARGEST:,} bytes")


def _card(file: Path) -> Mapping[str, Any]:
    _small(file)
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{file.name}: not valid JSON") from None
    if not isinstance(card, dict):
        raise ValueError(f"{file.name}: no mapping")
    _shallow(card, LEVELS)
    return restored(card)


def _shallow(node: object, levels: int) -> None:
    if levels == 0:
        raise ValueError(f"run.json: more than {LEVELS} levels")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _shallow(child, levels - 1)


def _run(path: Path, config: Node, card: Mapping[str, Any]) -> Run:
    results = mapping(card.get("results")) or card
    choices = {shown(key): shown(value) for key, value in config["choices"].items() if value is not None}
    about = mapping(config.get("about")) or mapping(card.get("about"))
    can = about.get("can")
    seed = config.get("seed", card.get("seed"))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError("config.yaml: seed is no whole number")
    best = mapping(results.get("best"))
    anew = best.get("full") or best.get("at_end")
    monitor = best.get("monitor")
    shape = mapping(card.get("spec")).get("shape")
    conditional = card.get("conditional")
    kind = {"images": True, "vectors": False}.get(str(config.get("kind")))
    return Run(
        path=path,
        model=choices.get("model") or shown(about.get("name") or "unknown"),
        data=choices.get("data") or shown(mapping(card.get("data")).get("name") or "unknown"),
        seed=seed,
        created=str(card.get("created")),
        can=frozenset(map(str, can)) if isinstance(can, list) else None,
        is_image=len(shape) == 3 if isinstance(shape, list) else kind,
        conditional=conditional if isinstance(conditional, bool) else None,
        choices=choices,
        config=config,
        protocol=mapping(results.get("protocol")),
        final=_scores(results.get("final"), "final"),
        best=_scores(anew or best.get("scores"), "best"),
        best_in_training=not anew and _fewer(results, mapping(config.get("metrics"))),
        monitor=monitor if isinstance(monitor, str) and SCORE.fullmatch(monitor) else None,
        facts=_facts(card, results),
        published={k: v for k, v in _numbers(config.get("published")) if SCORE.fullmatch(k)},
        device=shown(card.get("device", "unknown")),
        world_size=int(number(card.get("world_size")) or 1),
        remarks=_remarks(results),
    )


def _fewer(results: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Whether scores in training were made otherwise than the final ones, or nobody knows."""
    if "during_samples" in metrics:
        return metrics["during_samples"] not in (None, metrics.get("samples")) or bool(metrics.get("at_end"))
    in_training = mapping(mapping(results.get("in_training")).get("protocol"))
    return not in_training or in_training != results.get("protocol")


def _scores(node: object, where: str) -> dict[str, float]:
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise ValueError(f"run.json: {where} is no mapping")
    found = {}
    for key, value in node.items():
        parsed = math.nan if value is None else number(value)  # JSON has no other word for it
        if parsed is None or not SCORE.fullmatch(key):
            raise ValueError(f"run.json: {where}: {key!r:.40} is no score")
        found[key] = parsed
    return found


def _numbers(node: object) -> Iterator[tuple[str, float]]:
    for key, value in mapping(node).items():
        parsed = number(value)
        if parsed is not None and math.isfinite(parsed):
            yield key, parsed


def _facts(card: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, float]:
    """What a run cost, by column; only what the card tells."""
    keys = ("iteration", "images", "seconds", "images_per_second", "samples_per_second")
    facts = dict(_numbers({key: results.get(key) for key in keys}))
    if "seconds" in facts:
        facts["minutes"] = facts["seconds"] / 60
    parameters = dict(_numbers(card.get("parameters")))
    if parameters:
        facts["parameters"] = sum(parameters.values())
    return facts


def _remarks(results: Mapping[str, Any]) -> tuple[str, ...]:
    at, end, why = number(results.get("scored_at")), number(results.get("iteration")), results.get("stopped_early")
    early = (f"stopped early at {shown(why)}",) if isinstance(why, str) else ()
    if at is None or end is None or at == end:
        return early
    return (*early, f"final scores are of iteration {at:.0f} of {end:.0f}")
