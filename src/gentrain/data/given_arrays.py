"""Pictures in NumPy's files: which of their arrays, how the axes lie, which labels belong to them.

Read are ``arr_0`` with labels in ``arr_1`` (the batches of guided-diffusion) and arrays called samples, images or x;
[N H W C], [N C H W] or [N H W], with one or three channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gentrain.data.array_files import NAMED, StoredArray, arrays_in
from gentrain.data.dataset import spread
from gentrain.data.files import shown
from gentrain.data.fit import Said, check_bytes, fit
from gentrain.data.levels import Levels
from gentrain.errors import UserError

PICTURES = ("", "arr_0", "samples", "images", "x")
LABELS = ("arr_1", "labels", "y")
CLASSES = 100_000
"""Numbers of classes are below this; what is larger is no label."""
BLOCK = 1 << 24
"""Numbers that are turned into bytes at a time."""
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Stack:
    """One file's pictures. ``axes``: how they are stored, of N H W C."""

    array: StoredArray
    labels: StoredArray | None
    axes: str

    @property
    def layout(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        sides = dict(zip(self.axes, self.array.shape, strict=True))
        return sides["H"], sides["W"], sides.get("C", 1)

    def last(self, block: NDArray[Any]) -> NDArray[Any]:
        """[B H W C] of a block as it is stored."""
        if self.axes == "NHW":
            return block[..., None]
        return block if self.axes == "NHWC" else block.transpose(0, 2, 3, 1)


def read_arrays(
    paths: Sequence[Path], said: Said, shape: tuple[int, ...] | None, key: str
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """uint8 [N C H W], int64 [N] or None, and facts for the protocol. Raises UserError with a path or ``key``."""
    stacks = [_stack(path) for path in paths]
    first = stacks[0]
    for other in stacks[1:]:
        for what, mine, its in (
            ("size", first.layout, other.layout),
            ("type", first.array.dtype, other.array.dtype),
            ("labels", first.labels is not None, other.labels is not None),
        ):
            if mine != its:
                raise UserError(
                    f"{other.array.where}: its {what} is {its}, that of {first.array.where} is {mine}: one kind of "
                    "array is needed; move the others elsewhere"
                )
    height, width, channels = first.layout
    done = fit((width, height), {channels == 1}, said, shape, key)
    found = sum(stack.array.shape[0] for stack in stacks)
    if said.n is not None and said.n > found:
        raise UserError(f"n={said.n}: there are {found} pictures")
    used = found if said.n is None else said.n
    check_bytes(used, done.recipe, key)
    wanted = np.zeros(found, dtype=bool)
    wanted[spread(found, used).numpy()] = True
    out = torch.empty(
        used, 1 if done.equal else done.recipe.channels, done.recipe.size, done.recipe.size, dtype=torch.uint8
    )
    levels = Levels(first.array.dtype, said.range, first.array.where)
    at = begins = 0
    rows = max(1, BLOCK // (height * width * channels))
    for stack in stacks:
        levels.where = stack.array.where
        for block in stack.array.blocks(rows):
            some = stack.last(block)[wanted[begins : begins + len(block)]]
            begins += len(block)
            if len(some):
                made = done.convert(levels.bytes_of(some), stack.array.where)
                out[at : at + len(some)] = torch.from_numpy(np.ascontiguousarray(made))
                at += len(some)
    facts = {
        "found": found,
        "count": used,
        "stored": f"{first.array.dtype} {list(first.axes)} in {paths[0].suffix.lower()[1:]}".replace("'", ""),
        "range": levels.finish(),
        "resize": done.resize,
        "channels": done.channels,
    }
    return out, _labels(stacks, wanted), facts


def _stack(path: Path) -> Stack:
    arrays = arrays_in(path)
    names = [name for name in PICTURES if name in arrays]
    if len(names) != 1:
        inside = ", ".join(shown(name) for name in list(arrays)[:NAMED])
        said = f"both {' and '.join(names)} may be the pictures" if names else f"no pictures in it (but {inside})"
        raise UserError(f"{shown(path)}: {said}; one array called {', '.join(PICTURES[1:])} is read")
    array = arrays[names[0]]
    labels = [arrays[name] for name in LABELS if name in arrays]
    if len(labels) > 1:
        raise UserError(
            f"{shown(path)}: several arrays of labels ({', '.join(each.where for each in labels)}); keep one"
        )
    if array.shape and array.shape[0] == 0:
        raise UserError(f"{array.where}: no pictures in it, its shape is {list(array.shape)}")
    for each in labels:
        if each.dtype.kind not in "iu" or each.shape != array.shape[:1]:
            raise UserError(
                f"{each.where}: {each.dtype} {list(each.shape)}: labels are whole numbers [{array.shape[0]}], one a "
                "picture; leave it out, or give other pictures a file of their own"
            )
    return Stack(array, labels[0] if labels else None, _axes(array))


def _axes(array: StoredArray) -> str:
    """Raises UserError where the axes are not N, H, W and one or three channels."""
    sides = array.shape
    if len(sides) == 3:
        return "NHW"
    if len(sides) == 4:
        last, second = sides[3] in CHANNELS, sides[1] in CHANNELS
        if last and second:
            raise UserError(f"{array.where}: {list(sides)} may be [N H W C] or [N C H W]; save it as [N H W]")
        if last or second:
            return "NHWC" if last else "NCHW"
    raise UserError(
        f"{array.where}: shape {list(sides)}: pictures are [N H W C], [N C H W] or [N H W], with 1 or 3 channels"
    )


def _labels(stacks: Sequence[Stack], wanted: NDArray[np.bool_]) -> Tensor | None:
    if stacks[0].labels is None:
        return None
    numbers = np.concatenate([stack.labels.whole() for stack in stacks if stack.labels is not None])[wanted]
    if int(numbers.min()) < 0 or int(numbers.max()) >= CLASSES:
        where = stacks[0].labels.where
        raise UserError(f"{where}: labels from {numbers.min()} to {numbers.max()}: numbers of classes begin at 0")
    return torch.from_numpy(numbers.astype(np.int64))
