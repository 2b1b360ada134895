"""Pieces that pictures are put together from: arrays to tiles, tiles to sheets, sheets to files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

Bytes = npt.NDArray[np.uint8]

WIDTH = 512
"""Pixels that a grid is magnified to, about."""

PAPER, INK = (80, 84, 92), (245, 245, 245)
ACCENT, FRAME = (255, 170, 0), 3
"""Colour and width in pixels of the frame around what a row is about."""

CAPTION = 18
"""Height of a line of text in pixels."""


def as_array(x: Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def as_images(x: Tensor | Bytes) -> Bytes:
    """uint8 [n C H W] to [n H W 3]."""
    array = as_array(x)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.dtype != np.uint8 or len(array) == 0:
        raise ValueError(f"pictures are made of uint8 [n C H W] with C of 1 or 3, got {array.dtype} {array.shape}")
    moved = array.transpose(0, 2, 3, 1)
    return moved.repeat(3, axis=3) if moved.shape[3] == 1 else moved


def near_square(count: int) -> int:
    return math.ceil(math.sqrt(count))


def fitting_scale(images: Bytes, columns: int) -> int:
    return max(1, round((WIDTH - columns - 1) / (columns * int(images.shape[2]))))


def magnify(images: Bytes, scale: int) -> Bytes:
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def sheet(tiles: Bytes, columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Tiles [n H W 3] with a gap of one pixel around each, and a line of text under each if there are captions."""
    count, height, width, _ = tiles.shape
    if captions is not None and len(captions) != count:
        raise ValueError(f"{len(captions)} captions for {count} images")
    step = (width + 1, height + 1 + (0 if captions is None else CAPTION))
    rows = math.ceil(count / columns)
    canvas = Image.new("RGB", (columns * step[0] + 1, rows * step[1] + 1), PAPER)
    for i, tile in enumerate(tiles):
        left, top = i % columns * step[0] + 1, i // columns * step[1] + 1
        canvas.paste(Image.fromarray(np.ascontiguousarray(tile)), (left, top))
        if captions is not None:
            canvas.paste(text_line(captions[i], width), (left, top + height))
    return canvas


def text_line(text: str, width: int) -> Image.Image:
    """One line of text in a strip of ``width`` pixels; letters that do not fit are cut off."""
    font = ImageFont.load_default(size=12)
    strip = Image.new("RGB", (width, CAPTION), PAPER)
    while text and font.getlength(text) > width:
        text = text[:-1]
    ImageDraw.Draw(strip).text((width // 2, CAPTION // 2), text, fill=INK, font=font, anchor="mm")
    return strip


def titled(body: Image.Image, caption: str) -> Image.Image:
    return below([text_line(caption, body.width), body], gap=0)


def labelled(row: Image.Image, label: str) -> Image.Image:
    strip = Image.new("RGB", (64, row.height), PAPER)
    strip.paste(text_line(label, strip.width), (0, (row.height - CAPTION) // 2))
    return beside([strip, row], gap=0)


def framed(tile: Bytes) -> Image.Image:
    """A tile [H W 3] in a frame of ``FRAME`` pixels."""
    height, width, _ = tile.shape
    canvas = Image.new("RGB", (width + 2 * FRAME, height + 2 * FRAME), ACCENT)
    canvas.paste(Image.fromarray(np.ascontiguousarray(tile)), (FRAME, FRAME))
    return canvas


def standing(part: Image.Image, height: int) -> Image.Image:
    """At the top of a strip of ``height`` pixels."""
    canvas = Image.new("RGB", (part.width, height), PAPER)
    canvas.paste(part, (0, 0))
    return canvas


def beside(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    canvas = Image.new("RGB", (width, max(part.height for part in parts)), PAPER)
    left = 0
    for part in parts:
        canvas.paste(part, (left, 0))
        left += part.width + gap
    return canvas


def below(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    canvas = Image.new("RGB", (max(part.width for part in parts), height), PAPER)
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height + gap
    return canvas


def save_png(picture: Image.Image, path: Path, metadata: Mapping[str, object] | None) -> Path:
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        text.add_text(key, str(value))
    data = io.BytesIO()
    picture.save(data, format="PNG", pnginfo=text)
    return write_atomically(path, data.getvalue())


def save_figure(figure: Any, path: Path) -> Path:
    """A matplotlib figure as PNG, whole or not at all; the same bytes for the same figure."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return write_atomically(path, data.getvalue())


def write_atomically(path: Path, data: bytes) -> Path:
    """Write ``data`` beside ``path`` and rename; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
