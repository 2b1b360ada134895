"""What bits/dim of a data set are worth: the figures of means that know little of its pictures.

    python scripts/yardsticks.py [--data fashion_mnist] [--out docs/measured]

Writes OUT/yardsticks.json: bits for each 8-bit number of the test split. ``uniform``: all levels alike.
``independent``: each number by how often the training images have its level at its place, with half a count more for
each level. ``lzma``: the test split's bytes, image after image (xz, preset 9 extreme). ``webp``: the images one below
the other, in pictures as tall as the format allows, without loss at the highest effort, minutes (grey or colour images
alone; needs Pillow).
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import build
from gentrain.report.canvas import write_atomically

TALLEST = 16383
"""Pixels that a side of a WebP picture can have."""


def independent(train: Tensor, test: Tensor) -> float:
    """Bits per number of ``test`` uint8 [N ...] under the levels' frequencies in ``train`` at each place."""
    places, counted = train[0].numel(), train.flatten(1).T.long()
    counts = torch.full((places, 256), 0.5, dtype=torch.float64)
    counts.scatter_add_(1, counted, torch.ones(counted.shape, dtype=torch.float64))
    bits = -(counts / counts.sum(1, keepdim=True)).log2()
    return float(bits.gather(1, test.flatten(1).T.long()).mean())


def packed(test: Tensor) -> float:
    return 8.0 * len(lzma.compress(test.contiguous().numpy().tobytes(), preset=9 | lzma.PRESET_EXTREME)) / test.numel()


def webp(test: Tensor) -> float | None:
    """Of uint8 [N C H W]; None for other data, and without Pillow."""
    if test.ndim != 4 or test.shape[1] not in (1, 3):
        return None
    try:
        from PIL import Image
    except ImportError:
        return None
    size = 0
    for part in test.split(TALLEST // test.shape[2]):
        column = part.permute(0, 2, 3, 1).flatten(0, 1).squeeze(2)  # [n*H W] or [n*H W 3]
        file = io.BytesIO()
        Image.fromarray(column.contiguous().numpy()).save(file, "WEBP", lossless=True, quality=100, method=6)
        size += len(file.getvalue())
    return 8.0 * size / test.numel()


def measure(train: Tensor, test: Tensor) -> dict[str, float]:
    found = {"uniform": 8.0, "independent": independent(train, test), "webp": webp(test), "lzma": packed(test)}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split(":", 1)[0])
    parser.add_argument("--data", default="fashion_mnist", help="of 8-bit images (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs") / "measured", help="(default: %(default)s)")
    chosen = parser.parse_args(argv)
    data = build(compose(["model=pixelcnn", f"data={chosen.data}"]).config["data"], where="data")
    train, test = data.train.all().x, data.test.all().x
    found = {"data": chosen.data, "test_images": len(test), "bits_per_dim": measure(train, test)}
    write_atomically(chosen.out / "yardsticks.json", json.dumps(found, indent=2).encode() + b"\n")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
