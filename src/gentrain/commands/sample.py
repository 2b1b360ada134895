"""``gentrain sample run=DIR n=64``: a PNG grid and single files from a trained run; ``class=shirt,7`` of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gentrain.commands.words import above_zero, options, whole_number, yes
from gentrain.config import nearest
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from gentrain.engine.system import System

NUMBERED = re.compile(r"[0-9]{6}\.png")
KEYS = {
    "run": None,
    "n": "64",
    "checkpoint": "last",
    "weights": "ema",
    "seed": "0",
    "out": "",
    "files": "true",
    "truncation": "",
    "class": "",
    "temperature": "",
    "device": "auto",
    "trust": "false",
}


def run(arguments: Sequence[str]) -> int:
    given = options(arguments, KEYS, "sample")
    folder = RunFolder.open(Path(given["run"]))
    n, seed = whole_number(given["n"], "n", least=1), whole_number(given["seed"], "seed")
    truncation = above_zero(given["truncation"], "truncation")
    temperature = above_zero(given["temperature"], "temperature")
    if given["weights"] not in ("ema", "raw"):
        raise UserError(f"weights={given['weights']}: ema or raw")
    from gentrain.config import build
    from gentrain.engine.fit import check_config
    from gentrain.engine.progress import Steps
    from gentrain.engine.restore import load_system
    from gentrain.engine.sampling import draw
    from gentrain.engine.validation import can, true_density
    from gentrain.report import pictures
    from gentrain.types import to_bytes

    trusted = yes(given["trust"], "trust")
    check_config(folder.config(), trusted=trusted)
    system = load_system(folder, given["checkpoint"], device=given["device"], trusted=trusted)
    if not can(system, "sample"):
        raise UserError(f"run={folder.path}: {type(system).__name__} has no sampler")
    labels = _labels(given["class"], system, n)
    with Steps("sample") as steps:
        drawn = draw(
            system,
            n,
            seed=seed,
            weights=given["weights"],
            labels=labels,
            truncation=truncation,
            temperature=temperature,
            watch=steps,
        )
    cut = "" if truncation is None else f"-truncated-{truncation:g}"
    cut += "" if temperature is None else f"-temperature-{temperature:g}"
    cut += "" if labels is None else "-class-" + "-".join(dict.fromkeys(map(str, labels.tolist())))
    out = Path(given["out"]) if given["out"] else folder.samples / f"drawn-{given['checkpoint']}-{seed}{cut}"
    out.mkdir(parents=True, exist_ok=True)
    if not system.spec.is_image:
        data = build(folder.config()["data"], trusted=trusted, where="data")
        pictures.scatter(data.test.all(n).x, drawn, out / "scatter.png", density=true_density(data))
        print(f"{n} points: {out / 'scatter.png'}")
        return OK
    for old in out.iterdir():
        if NUMBERED.fullmatch(old.name):  # of an earlier draw, which may have been a longer one
            old.unlink()
    images = to_bytes(drawn)
    pictures.grid(images, out / "grid.png")
    if yes(given["files"], "files"):
        for i, image in enumerate(images):
            pictures.single(image, out / f"{i:06d}.png")
    print(f"{n} images: {out}\ngrid: {out / 'grid.png'}")
    return OK


def _labels(asked: str, system: System, n: int) -> Tensor | None:
    """int64 [n]: the classes of ``class=``, names or numbers, one after the other and again; None for those of
    training. UserError for others, and for a system that is not asked by class."""
    if not asked:
        return None
    import torch

    names = list(system.spec.class_names)
    if not names or not getattr(system, "conditional", False):
        raise UserError(f"class={asked}: {type(system).__name__} is not asked by class here")
    chosen = []
    for part in asked.strip("[]").split(","):
        if part not in names and not (part.isdecimal() and int(part) < len(names)):
            raise UserError(f"class={part}: no class of these data{nearest(part, names)}")
        chosen.append(names.index(part) if part in names else int(part))
    return torch.tensor(chosen)[torch.arange(n) % len(chosen)]
