"""A run folder holds all there is to know about a run: config, run card, metrics, checkpoints, samples, log.

No heavy import: the command line reads and lists runs with it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gentrain.config import Node, load_yaml
from gentrain.errors import UserError
from gentrain.masking import mask_secrets
from gentrain.records import dumped, restored

SAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")

SECTIONS: dict[str, frozenset[str] | None] = {
    **dict.fromkeys(("seed", "precision", "trust", "name", "output", "logger")),
    **dict.fromkeys(("train", "metrics", "callbacks", "data", "model", "choices"), frozenset[str]()),
    "trainer": frozenset({"accelerator", "devices", "backend", "timeout", "threads", "workers", "deterministic"}),
}
"""What every stored config holds: its keys, and those of sections that are read key by key (None: no mapping)."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. ``config.yaml`` is frozen and resolved; ``run.json`` is the run card."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def card_file(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. UserError if the folder is not one."""
        folder = cls(path)
        if not folder.config_file.is_file():
            raise UserError(f"run={path}: not a run folder (no config.yaml in it)")
        return folder

    @classmethod
    def create(cls, path: Path, config: Node, card: dict[str, Any]) -> RunFolder:
        """Make the folder and freeze the config in it, without its secrets: who reads it, a rank or a job of a sweep
        or a checkpoint, never has them."""
        folder = cls(path.absolute())
        try:
            for place in (folder.path, folder.checkpoints, folder.samples):
                place.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(mask_secrets(config), sort_keys=False, allow_unicode=True, width=120)
            folder.config_file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{path}: the run folder cannot be made ({error.strerror}); choose another output="
            ) from None
        folder.write_card(mask_secrets(card))
        return folder

    def config(self) -> Node:
        """The stored config. Raises UserError if it cannot be read or has lost one of its sections."""
        config = load_yaml(self.config_file)
        for section, keys in SECTIONS.items():
            if section not in config:
                raise UserError(f"{self.config_file}: the key {section} is missing")
            if keys is None:
                continue
            if not isinstance(config[section], dict):
                raise UserError(f"{self.config_file}: {section} is no mapping")
            for key in sorted(keys - config[section].keys()):
                raise UserError(f"{self.config_file}: the key {section}.{key} is missing")
        return config

    def card(self) -> dict[str, Any]:
        try:
            content = json.loads(self.card_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return restored(content) if isinstance(content, dict) else {}

    def write_card(self, card: dict[str, Any]) -> None:
        temporary = self.card_file.with_name(f".run.json.{os.getpid()}.part")
        temporary.write_text(dumped(card), encoding="utf-8")
        temporary.replace(self.card_file)

    def update_card(self, **changes: Any) -> None:
        self.write_card({**self.card(), **changes})


def new_path(parent: Path, name: str | None = None) -> Path:
    """``<parent>/<name>``, or ``<parent>/<date>_<time>-<id>``: two launches within a second do not meet."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return parent / (safe_name(name, "name") if name is not None else f"{stamp}-{secrets.token_hex(2)}")


def safe_name(name: str, key: str) -> str:
    """A name that stays one folder under its parent. UserError for ``..``, separators and control characters."""
    cleaned = SAFE.sub("-", name).strip("-.")
    if not cleaned or "/" in name or "\\" in name or ".." in name or any(ord(c) < 32 for c in name):
        raise UserError(f"{key}={name!r}: a plain name is needed, without / or ..")
    return cleaned[:120]
