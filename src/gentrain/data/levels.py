"""Numbers of any type to bytes 0..255, by the range that is said, or a one-line error.

Only ``uint8`` speaks for itself. The same floats in -0.5..0.5, 0..1 or -1..1 are three sets of pictures, so floats and
wider integers are never guessed: the range must be said, and what lies outside of it is refused, not clipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gentrain.errors import UserError

RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
SLACK = 1e-5
"""Of the range: rounding of 16 and 32 bits, a hundredth of what would change a level."""


class Levels:
    """Turns blocks of one set of pictures into bytes, and remembers the least and the largest number of all of them.

    ``said``: a key of ``RANGES``, or None. ``dtype``: of every block. ``where`` begins every message. Raises UserError
    for a type that is no picture, and for one that needs a range where none is said.
    """

    def __init__(self, dtype: np.dtype[Any], said: str | None, where: str) -> None:
        if dtype.kind not in "uif":
            raise UserError(f"{where}: {dtype} is no type for pictures; save uint8 in 0..255")
        self.dtype, self.where = dtype, where
        self.said = "0..255" if said is None and dtype == np.uint8 else said
        self.alone = said is None
        self.least, self.largest = np.inf, -np.inf

    def bytes_of(self, block: NDArray[Any]) -> NDArray[np.uint8]:
        """uint8, each number at its nearest level. Raises UserError for nan, inf and what is outside the range."""
        if self.dtype.kind == "f":
            broken = int((~np.isfinite(block)).reshape(len(block), -1).any(axis=1).sum())
            if broken:
                raise UserError(
                    f"{self.where}: nan or inf in {broken} of {len(block)} pictures looked at; leave them out"
                )
        least, largest = float(block.min()), float(block.max())
        if self.said is None:
            raise UserError(
                f"{self.where}: {self.dtype} from {least:.4g} to {largest:.4g} in the first {len(block)} pictures: "
                f"what is black and what is white must be said: range={'|'.join(RANGES)}, or save uint8"
            )
        low, high = RANGES[self.said]
        slack = SLACK * (high - low) if self.dtype.kind == "f" else 0.0
        if least < low - slack or largest > high + slack:
            raise UserError(
                f"{self.where}: values from {least:.6g} to {largest:.6g} lie outside range={self.said}; say the right "
                "one, or clip them where they are made"
            )
        self.least, self.largest = min(self.least, least), max(self.largest, largest)
        if self.dtype == np.uint8 and self.said == "0..255":
            return block
        levels = np.rint((block.astype(np.float64) - low) * (255.0 / (high - low)))
        return levels.clip(0, 255).astype(np.uint8)  # of the slack alone

    def finish(self) -> str:
        """The range, once all blocks are through. Raises UserError where the whole set belies it."""
        assert self.said is not None
        found = f"they go from {self.least:.4g} to {self.largest:.4g}"
        # A network without bounds strays a little below 0 and above 1: one such value does not make another range.
        if self.said == "-1..1" and self.least > -0.5:
            below = "no value is below 0" if self.least >= 0 else "hardly a value is below 0"
            raise UserError(
                f"{self.where}: {below} ({found}), so that range=-1..1 would leave the darker half unused; say "
                "range=0..1, or save uint8 if it is meant"
            )
        if self.said == "0..255" and self.dtype.kind == "f" and 1 < self.largest < 32:
            raise UserError(
                f"{self.where}: no value is above an eighth of range=0..255 ({found}), which would be all but black; "
                "say the right one, or save uint8 if it is meant"
            )
        if self.said == "0..255" and self.largest <= 1 and (self.alone or self.dtype.kind == "f"):
            raise UserError(
                f"{self.where}: no value is above 1, which as a byte is black; say range=0..1 (or range=0..255 if the "
                "pictures are black), or save them in 0..255"
                if self.alone
                else f"{self.where}: no value is above 1, so that range=0..255 would make all black; say range=0..1"
            )
        return self.said


def check_range(said: str | None) -> None:
    """Raises UserError for a range that is not on offer."""
    if said is not None and said not in RANGES:
        raise UserError(f"range={said}: choose from {', '.join(RANGES)}")
