"""``gentrain sample run=DIR n=64``: a PNG grid and single files from a trained run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gentrain.commands.words import above_zero, options, whole_number, yes
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder

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
    drawn = draw(system, n, seed=seed, weights=given["weights"], truncation=truncation, temperature=temperature)
    cut = "" if truncation is None else f"-truncated-{truncation:g}"
    cut += "" if temperature is None else f"-temperature-{temperature:g}"
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
