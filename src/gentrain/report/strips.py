"""Rows of images with words at their left: paths through codes, edits, members of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from gentrain.report.canvas import (
    CAPTION,
    PAPER,
    Bytes,
    as_images,
    below,
    beside,
    fitting_scale,
    magnify,
    save_png,
    sheet,
    standing,
    text_line,
)

MARGIN, HEADING = 128, 90
"""Width in pixels of the words beside a row, and of the shortest line of a heading."""

Row = tuple[str, Tensor | Bytes]
"""Words, and images uint8 [n C H W]."""


def strip_block(rows: Sequence[Row], heads: Sequence[str] | None = None, *, scale: int | None = None) -> Image.Image:
    """One row of images per element, words at its left; ``heads``: one line above each column. All rows are equally
    long. ValueError for another shape."""
    arrays = [as_images(x) for _, x in rows]
    if any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"rows of {[array.shape for array in arrays]}: they are to be of one shape")
    columns = len(arrays[0])
    scale = scale or fitting_scale(arrays[0], columns)
    parts = []
    for (words, _), array in zip(rows, arrays, strict=True):
        row = sheet(magnify(array, scale), columns)
        strip = Image.new("RGB", (MARGIN, row.height), PAPER)
        strip.paste(text_line(words, MARGIN), (0, (row.height - CAPTION) // 2))
        parts.append(beside([strip, row], gap=0))
    if heads is not None:
        width = arrays[0].shape[2] * scale + 1
        cells = [text_line(text, width) for text in heads]
        parts.insert(0, beside([text_line("", MARGIN), *cells], gap=0))
    return below(parts, gap=0)


def stack(blocks: Sequence[tuple[str, Image.Image]], path: Path) -> Path:
    """Write pictures below each other, each with a heading over it (none where it is empty)."""
    width = max(HEADING, *(block.width for _, block in blocks))
    parts = []
    for heading, block in blocks:
        parts += [text_line(heading, width), block] if heading else [block]
    return save_png(below(parts, gap=4), path, None)


def side_by_side_of(parts: Sequence[Image.Image], path: Path) -> Path:
    """Write pictures next to each other, their tops in line."""
    height = max(part.height for part in parts)
    return save_png(beside([standing(part, height) for part in parts], gap=8), path, None)
