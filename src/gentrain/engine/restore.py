"""A trained system back from its run folder, without its data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from gentrain.config import build
from gentrain.engine import checkpoint
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.folder import RunFolder
from gentrain.types import Spec


def load_system(folder: RunFolder, which: str = "last", *, device: str = "cpu", trusted: bool = False) -> System:
    """The system of a run with the weights of ``which`` (``last``, ``best`` or a file name).

    ``device``: auto, cpu or cuda (``device_called``). It computes in the precision that the run was trained in, so the
    same weights give the scores of the run's card. The stored config is not trusted unless the caller says so.
    """
    place = device_called(device)
    card = folder.card()
    if "spec" not in card or "precision" not in card:
        raise UserError(f"{folder.path}: the run has not started yet, there is nothing to load")
    spec = Spec(**{key: tuple(value) for key, value in card["spec"].items()})
    config = folder.config()
    state = _state(folder, which)
    system = build(config["model"], trusted=trusted, where="model", spec=spec)
    if not isinstance(system, System):
        raise UserError(f"model: {config['model'].get('_target_')} makes {type(system).__name__}, not a System")
    system.to(place)
    system.prepare(total=config["train"]["iterations"], precision=card["precision"])
    system.restore(state["system"])
    return system


def device_called(name: str) -> torch.device:
    """``auto``: the first CUDA device where there is one, else the CPU. UserError for an unknown or a missing one."""
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name}: auto, cpu or cuda")
    if name == "cuda" and not there:
        raise UserError("device=cuda: no CUDA device is visible here; use device=cpu")
    return torch.device("cuda", 0) if there and name != "cpu" else torch.device("cpu")


def _state(folder: RunFolder, which: str) -> dict[str, Any]:
    """A checkpoint by name; for ``last``, where that file is gone or damaged, the newest whole step."""
    try:
        return checkpoint.load(find(folder, which))
    except UserError as error:
        found = checkpoint.newest_whole(folder.checkpoints, folder.card().get("id")) if which == "last" else None
        if found is None:
            raise
        print(f"gentrain: {error}; taking {found[0].name}", file=sys.stderr)
        return found[1]


def find(folder: RunFolder, which: str) -> Path:
    """Path of a checkpoint by name. UserError if it is not there."""
    names = {"last": "last.ckpt", "best": "best.ckpt"}
    path = folder.checkpoints / names.get(which, which)
    if not path.is_file() or path.parent != folder.checkpoints:
        there = sorted(p.name for p in folder.checkpoints.glob("*.ckpt"))
        raise UserError(f"checkpoint={which}: not in {folder.checkpoints} (there are: {', '.join(there) or 'none'})")
    return path
