"""What is said about pictures from elsewhere, and how they come to the size and channels they are held against."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gentrain.data.decode import Recipe, fitted, one_of, planes
from gentrain.data.levels import check_range
from gentrain.errors import UserError

BYTES = 8 << 30
"""Of all pictures together, decoded: more than machines give to one evaluation."""
COLOUR = {True: "grey", False: "RGB"}


@dataclass(frozen=True)
class Said:
    """The user's words; None where nothing was said, and then nothing is changed.

    ``range``: of numbers in arrays (``levels.RANGES``). ``resize``: ``crop`` (the largest central square) or
    ``stretch``, antialiased with ``resample``. ``channels``: 1 makes luma of colours, 3 repeats grey. ``n``: so many
    pictures, spread evenly over all of them. Raises UserError for what is not on offer.
    """

    range: str | None = None
    resize: str | None = None
    resample: str = "bicubic"
    channels: int | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        check_range(self.range)
        if self.resize is not None:
            one_of("resize", self.resize, ("crop", "stretch"))
        if self.channels is not None:
            one_of("channels", self.channels, (1, 3))
        Recipe(8, resample=self.resample)


@dataclass(frozen=True)
class Fit:
    """``recipe``: the size and channels that pixels are brought to. ``equal``: they are taken in colour, and must be
    grey all the same; one channel is kept then. ``resize``, ``channels``: what is changed, for the record."""

    recipe: Recipe
    equal: bool
    resize: str
    channels: str

    def kept(self, x: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        """[B C H W] of the wanted channels from what the recipe gave. Raises UserError for colours among grey."""
        if not self.equal:
            return x
        coloured = int((x != x[:, :1]).reshape(len(x), -1).any(axis=1).sum())
        if coloured:
            raise UserError(
                f"{where}: pictures with colours, and they are held against grey ones; say channels=1 to take their "
                "luma, or choose data.channels=3"
            )
        return x[:, :1]

    def convert(self, block: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        """[B C H W] by the recipe of pixels [B H W c], c 1 or 3."""
        size, channels = self.recipe.size, self.recipe.channels
        if block.shape[1:] == (size, size, channels):
            return self.kept(block.transpose(0, 3, 1, 2), where)
        out = np.empty((len(block), channels, size, size), dtype=np.uint8)
        mode = "L" if channels == 1 else "RGB"
        for place, pixels in enumerate(block):
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))
            out[place] = planes(fitted(picture.convert(mode), where, self.recipe))
        return self.kept(out, where)


def fit(size: tuple[int, int], grey: AbstractSet[bool], said: Said, shape: tuple[int, ...] | None, key: str) -> Fit:
    """From pictures of ``size`` (width, height), grey, in colour or both, to ``shape`` [C S S]; None: as they are.

    Raises UserError, beginning with ``key``, for whatever would have to be changed and was not said to be.
    """
    found = f"{key}: {size[0]}x{size[1]} {' and '.join(sorted(COLOUR[one] for one in grey))} pictures"
    if shape is None:
        if size[0] != size[1]:
            raise UserError(
                f"{found}: they must be square; use data=folder data.root=... data.size=... data.resize=crop"
            )
        if len(grey) == 2 and said.channels is None:
            raise UserError(f"{found}: say channels=3 to take all as RGB, or channels=1 to take luma")
        channels = said.channels or (1 if True in grey else 3)
        changed = any(one != (channels == 1) for one in grey)
        return Fit(Recipe(size[0], channels, "none"), False, "none", _changed(channels) if changed else "none")
    channels, side = shape[0], shape[-1]
    against = f"{side}x{side} {COLOUR[channels == 1]}"
    if said.channels not in (None, channels):
        raise UserError(f"channels={said.channels}: {key} is held against {against} pictures")
    other_size = size != (side, side)
    words = ["resize=stretch (or crop)"] if other_size and said.resize is None else []
    if channels == 3 and True in grey and said.channels is None:
        words.append("channels=3")
    if words:
        more = " (and channels=1 if they show colours)" if channels == 1 and False in grey and not said.channels else ""
        raise UserError(
            f"{found}, held against {against}: say {' '.join(words)} to convert them{more}, or choose data.size and "
            "data.channels to match them"
        )
    equal = channels == 1 and False in grey and said.channels is None
    changed = any(one != (channels == 1) for one in grey)
    return Fit(
        Recipe(side, 3 if equal else channels, said.resize or "none", said.resample),
        equal,
        f"{said.resize} {said.resample} from {size[0]}x{size[1]}" if other_size else "none",
        "grey stored as RGB" if equal else _changed(channels) if changed else "none",
    )


def _changed(channels: int) -> str:
    return "luma" if channels == 1 else "grey repeated"


def check_bytes(count: int, recipe: Recipe, key: str) -> None:
    """Raise UserError for more pixels than fit into memory, before any is read."""
    each = 3 * recipe.size**2
    if count * each > BYTES:
        raise UserError(f"{key}: {count:,} pictures take {count * each / 1e9:,.0f} GB; say n={BYTES // each} or fewer")
