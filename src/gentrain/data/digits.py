"""Handwritten digits, 8x8: the 1797 of the UCI test set that scikit-learn carries. Nothing to download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gentrain.data.arrays import image_set
from gentrain.data.dataset import DataSet


def digits(size: int = 8, channels: int = 1, resample: str = "bicubic", leave_out: Sequence[str | int] = ()) -> DataSet:
    """Grey levels 0..16 become ``round(v * 255 / 16)``. Test: every fifth sample (index % 5 == 4), 359 of 1797."""
    from sklearn.datasets import load_digits  # a second to import

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [N 8 8]
    y = bunch.target.astype(np.uint8)  # [N]
    held_out = np.arange(len(x)) % 5 == 4
    names = tuple(str(digit) for digit in range(10))
    train, test = (x[~held_out], y[~held_out]), (x[held_out], y[held_out])
    return image_set("digits", names, train, test, size=size, channels=channels, resample=resample, leave_out=leave_out)
