"""Scenes of flat objects, drawn row by row when they are asked for: pixels, and all that is known beside them.

A row's numbers are a hash of (key, row), and its pixels whole-number arithmetic of those: nothing depends on what was
read before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gentrain.data.raster import REACH, SHAPES, TURN, UNIT, Whole, paint
from gentrain.errors import UserError
from gentrain.types import Factor

PALETTES: dict[int, dict[str, tuple[int, ...]]] = {
    1: {"dark": (96,), "grey": (149,), "light": (202,), "white": (255,)},
    3: {
        "red": (230, 40, 40), "green": (50, 190, 60), "blue": (60, 90, 240), "yellow": (240, 210, 40),
        "magenta": (220, 60, 210), "cyan": (50, 205, 215), "orange": (245, 140, 30), "white": (255, 255, 255),
    },
}  # fmt: skip
"""Colours by the number of channels."""

FACTORS = ("shape", "colour", "size", "x", "y", "angle")
TOP_SPEED = UNIT // 16
"""Of moving objects along each axis, per frame."""
SPARE = 1
"""Units between an object and the border, at least."""


def random_bits(key: int, *places: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
    """64 random bits for each combination of places: the finaliser of SplitMix64 (Steele et al. 2014) over each."""
    state = np.zeros(1, dtype=np.uint64) + np.uint64(key)
    for place in places:
        state = state + np.asarray(place, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def below(count: NDArray[np.int64] | int, bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Whole numbers 0 .. count - 1, each as likely to one part in 2^32 / count."""
    wide = (bits >> np.uint64(32)) * np.asarray(count, dtype=np.uint64)
    return (wide >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True)
class Look:
    """What an image is like: ``side`` pixels, ``channels``, at most ``objects``, sizes in units of ``raster.UNIT``."""

    side: int
    channels: int
    objects: int
    smallest: int
    largest: int

    @property
    def margin(self) -> int:
        """From the border to where centres may lie: no object is cut off, whatever its shape, size and angle."""
        return (max(REACH) * self.largest >> 16) + 1 + SPARE

    @property
    def palette(self) -> dict[str, tuple[int, ...]]:
        return PALETTES[self.channels]

    @property
    def counts(self) -> tuple[int, ...]:
        """Values that each factor can take."""
        span = UNIT - 2 * self.margin + 1
        return (len(SHAPES), len(self.palette), self.largest - self.smallest + 1, span, span, TURN)

    @property
    def lowest(self) -> tuple[int, ...]:
        return (0, 0, self.smallest, self.margin, self.margin, 0)

    @property
    def factors(self) -> tuple[Factor, ...]:
        near, far = self.margin / UNIT, 1 - self.margin / UNIT
        return (
            Factor("shape", names=SHAPES),
            Factor("colour", names=tuple(self.palette)),
            Factor("size", self.smallest / UNIT, self.largest / UNIT),
            Factor("x", near, far),
            Factor("y", near, far),
            Factor("angle", 0.0, 360.0, circular=True),
        )


@dataclass(frozen=True, eq=False)
class Scenes:
    """The rows of a split and the truth about them.

    ``table``: whole numbers [N M 6] in the order of ``FACTORS``, M objects at most, each drawn over those before it.
    ``present``: how many are there [N]. ``kept_bytes``: images are kept up to so many bytes once they are drawn, in
    each process that reads them.
    """

    look: Look
    key: int
    table: Whole
    present: NDArray[np.int64]
    kept_bytes: int
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Names and ranges of the columns of ``values``. ``size``: side of a square of the object's area; ``x``, ``y``:
        its centroid from the upper left corner; all in parts of the image's side. ``angle``: degrees clockwise; a
        square looks the same every 90, an ellipse every 180."""
        return self.look.factors

    def values(self, index: Tensor) -> Tensor:
        """float32 [B M F]: the factors of each object, classes by their number; NaN where there is no object."""
        rows = index.numpy()
        found = self.table[rows].astype(np.float64)
        found[..., 2:5] /= UNIT
        found[..., 5] *= 360 / TURN
        found[np.arange(self.look.objects) >= self.present[rows][:, None]] = np.nan
        return torch.from_numpy(found).float()

    def masks(self, index: Tensor) -> Tensor:
        """uint8 [B H W]: 0 background, else 1 + the shape of the uppermost object that covers half of the pixel."""
        return torch.from_numpy(np.stack([self._paint(row)[1] for row in index.tolist()]))

    def captions(self, index: Tensor) -> list[str]:
        """One English phrase for each image, its uppermost object first: "a large red heart at the upper left and a
        small blue square in the centre". Sizes are named by thirds of their range, places by thirds of both axes."""
        return [" and ".join(self._words(thing) for thing in self._objects(row)[::-1]) for row in index.tolist()]

    def clips(self, index: Tensor, frames: int) -> Tensor:
        """uint8 [B T C H W]: from the still image on, each object moves at a constant velocity of its own, at most a
        sixteenth of the side per frame along each axis, and bounces off where its centre may not go. Raises UserError
        for fewer than one frame."""
        if frames < 1:
            raise UserError(f"frames={frames}: a clip has at least 1")
        return torch.stack([torch.stack([self._frame(row, t) for t in range(frames)]) for row in index.tolist()])

    def take(self, index: Tensor) -> Tensor:
        """uint8 [B C H W]."""
        shape = (len(self), self.look.channels, self.look.side, self.look.side)
        if int(np.prod(shape)) > self.kept_bytes:
            return torch.stack([torch.from_numpy(self._paint(row)[0]) for row in index.tolist()])
        if not self._kept:
            # Untouched pages of an empty tensor take no memory.
            self._kept.update(x=torch.empty(shape, dtype=torch.uint8), drawn=torch.zeros(len(self), dtype=torch.bool))
        x, drawn = self._kept["x"], self._kept["drawn"]
        for row in index[~drawn[index]].tolist():
            x[row] = torch.from_numpy(self._paint(row)[0])
            drawn[row] = True
        return x.index_select(0, index)

    def _objects(self, row: int) -> Whole:
        return self.table[row, : self.present[row]]

    def _paint(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self._painted(self._objects(row))

    def _painted(self, objects: Whole) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return paint(objects, np.array(tuple(self.look.palette.values()), dtype=np.int32), self.look.side)

    def _frame(self, row: int, time: int) -> Tensor:
        moved = self._objects(row).copy()
        numbers = np.arange(len(moved), dtype=np.uint64)
        for axis, column in enumerate((3, 4)):
            speed = below(2 * TOP_SPEED + 1, random_bits(self.key, row, numbers, 100 + axis)) - TOP_SPEED
            span = self.look.counts[column] - 1
            place = (moved[:, column] - self.look.margin + time * speed) % (2 * span)  # there and back again
            moved[:, column] = self.look.margin + np.minimum(place, 2 * span - place)
        return torch.from_numpy(self._painted(moved)[0])

    def _words(self, thing: Whole) -> str:
        shape, colour, *numbers, _ = thing.tolist()
        thirds = zip(numbers, self.look.lowest[2:5], self.look.counts[2:5], strict=True)
        size, x, y = (3 * (value - low) // count for value, low, count in thirds)
        across, down = ("left", "", "right")[x], ("upper", "", "lower")[y]
        edge = {"upper": "top", "lower": "bottom", "": "centre"}[down]
        place = f"{down} {across}".strip() if across else edge
        where = "in" if place == "centre" else "at"
        kind = ("small", "medium-sized", "large")[size]
        return f"a {kind} {tuple(self.look.palette)[colour]} {SHAPES[shape]} {where} the {place}"
