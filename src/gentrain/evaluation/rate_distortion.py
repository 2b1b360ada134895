"""What a compressor needs for held-out images, and what they look like afterwards; JPEG and WebP to hold it against."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gentrain import coding
from gentrain.capabilities import Compressor
from gentrain.errors import UserError
from gentrain.evaluation.diversity import similarity
from gentrain.evaluation.metric import check_images
from gentrain.evaluation.subject import Subject, counted, split_of
from gentrain.objectives.similarity import window_and_scales
from gentrain.types import to_bytes

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

BLOCK = 16
"""Tiles of a sheet begin at multiples of it: the largest block of JPEG (with chroma at half the size) and of WebP."""
FORMATS = ("JPEG", "WEBP")


@dataclass(frozen=True)
class RateDistortion:
    """Held-out images to codes and back (config target).

    ``rate_estimated_bpp``: bits per pixel (of H W) by the system's density at the rounded latents. ``rate_bpp``: of the
    range-coded strings, without any file's head; only where the coder's library is installed. ``compressed_psnr``: dB,
    mean over images of 10 log10(255^2 / MSE), each at most 100. ``compressed_ms_ssim``: 0 to 1, with as many scales as
    fit (``MultiScaleSimilarity``). A rate says nothing without a distortion beside it.

    ``split``; ``limit``: so many images spread over it, None for all; ``batch``: per call, without influence.
    """

    split: str = "test"
    limit: int | None = None
    batch: int = 250

    needs: ClassVar[frozenset[str]] = frozenset({"encode", "decode", "compress"})

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"metrics.scores.compression.batch={self.batch}: at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"metrics.scores.compression.limit={self.limit}: at least 1, or null for all")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        real = ("rate_bpp",) if coding.has_library() else ()
        return ("rate_estimated_bpp", *real, "compressed_psnr", "compressed_ms_ssim")

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        split_of(data, self.split)

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return counted(data, self.split, self.limit, limit)

    def probe(self, system: object, x: Tensor) -> None:
        self._one(system, x.to(getattr(system, "device", "cpu")))

    def facts(self, system: object, data: DataSet) -> dict[str, Any]:
        window, scales = window_and_scales(data.spec.size)
        return {"range_coder": coding.has_library(), "ms_ssim_scales": scales, "ms_ssim_window": window}

    def measure(self, subject: Subject) -> dict[str, float]:
        rows = split_of(subject.data, self.split)
        places = subject.reference_index(self.split, self.looks_at(subject.data, subject.limit))
        estimated, real, psnrs, alike = [], 0, [], []
        for index in torch.split(places, self.batch):
            x = rows.take(index).x
            bits, written, back = self._one(subject.system, x.to(subject.device))
            estimated.append(bits.cpu())
            real += written
            psnrs.append(psnr(x, back.cpu()))
            alike.append(ms_ssim(x, back.cpu()))
        if not bool(torch.cat(estimated).isfinite().all()):
            raise UserError(f"metrics: rates of split={self.split} are not finite: the model has diverged")
        pixels = subject.data.spec.shape[1] * subject.data.spec.shape[2]
        found = {"rate_estimated_bpp": float(torch.cat(estimated).mean()) / pixels}
        if coding.has_library():
            found["rate_bpp"] = 8.0 * real / (len(places) * pixels)
        means = {"compressed_psnr": torch.cat(psnrs), "compressed_ms_ssim": torch.cat(alike)}
        return found | {key: float(values.mean()) for key, values in means.items()}

    def _one(self, system: object, x: Tensor) -> tuple[Tensor, int, Tensor]:
        """Bits [B] by the density, bytes written (0 without the library), uint8 [B C H W] that come back."""
        if not isinstance(system, Compressor):
            raise UserError(f"metrics: {type(system).__name__} does not compress")
        written = sum(map(len, system.compress(x))) if coding.has_library() else 0
        return system.code_bits(x), written, to_bytes(system.decode(system.encode(x)))  # type: ignore[attr-defined]


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """dB [B] of uint8 images [B C H W], at most 100."""
    mse = (x.double() - y.double()).square().flatten(1).mean(1)
    return (10.0 * torch.log10(255.0**2 / mse)).clamp_max(100.0)


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """[B] of uint8 images [B C H W]."""
    window, scales = window_and_scales(x.shape[-1])
    return similarity(x, y, scales=scales, window=window)


# ---------------------------------------------------------------- the codecs that everyone has


@dataclass(frozen=True)
class CodecPoint:
    """``bpp``: bits per pixel (H W) of files with ``layout`` ``single`` (one file for each image) or ``sheet`` (all in
    one, the head paid once); ``psnr`` in dB and ``ms_ssim``, means over images."""

    codec: str
    quality: int
    layout: str
    bpp: float
    psnr: float
    ms_ssim: float


def codec_points(x: Tensor, qualities: Sequence[int]) -> Iterator[CodecPoint]:
    """JPEG and WebP by Pillow of uint8 [N C H W], one file each and all on one sheet. A file of a small image is mostly
    head (JPEG: tables); a sheet shows the codec without it, with tiles repeated at their border up to whole blocks."""
    for codec in FORMATS:
        for quality in qualities:
            singles = [_through(image, codec, quality) for image in x]
            yield _point(codec, quality, "single", x, torch.stack([b for _, b in singles]), sum(n for n, _ in singles))
            size, back = _through(_sheet(x), codec, quality)
            yield _point(codec, quality, "sheet", x, _cut(back, x), size)


def _point(codec: str, quality: int, layout: str, x: Tensor, back: Tensor, size: int) -> CodecPoint:
    bpp = 8.0 * size / (len(x) * x.shape[2] * x.shape[3])
    return CodecPoint(codec, quality, layout, bpp, float(psnr(x, back).mean()), float(ms_ssim(x, back).mean()))


def _through(image: Tensor, codec: str, quality: int) -> tuple[int, Tensor]:
    """Bytes of the file of uint8 [C H W], and what is read from it."""
    grey = image.shape[0] == 1
    pixels = image[0].numpy() if grey else image.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    more: dict[str, Any] = {"optimize": True} if codec == FORMATS[0] else {"method": 6}
    Image.fromarray(pixels).save(file, format=codec, quality=quality, **more)
    back = np.asarray(Image.open(file).convert("L" if grey else "RGB"))
    planes = back[None] if grey else back.transpose(2, 0, 1)
    return len(file.getvalue()), torch.from_numpy(planes.copy())


def _tiles(x: Tensor) -> tuple[int, int, int]:
    """(columns, rows, side of a tile in pixels)."""
    columns = math.ceil(math.sqrt(len(x)))
    return columns, math.ceil(len(x) / columns), math.ceil(x.shape[-1] / BLOCK) * BLOCK


def _sheet(x: Tensor) -> Tensor:
    """uint8 [C rows*side columns*side]; places without an image are black."""
    columns, rows, side = _tiles(x)
    more = side - x.shape[-1]
    padded = torch.nn.functional.pad(x.float(), (0, more, 0, more), mode="replicate").to(torch.uint8)
    blank = torch.zeros(columns * rows - len(x), *padded.shape[1:], dtype=torch.uint8)
    grid = torch.cat([padded, blank]).view(rows, columns, x.shape[1], side, side)
    return grid.permute(2, 0, 3, 1, 4).reshape(x.shape[1], rows * side, columns * side)


def _cut(sheet: Tensor, x: Tensor) -> Tensor:
    """The images of a sheet again, [N C H W]."""
    columns, rows, side = _tiles(x)
    grid = sheet.view(x.shape[1], rows, side, columns, side).permute(1, 3, 0, 2, 4)
    return grid.reshape(-1, x.shape[1], side, side)[: len(x), :, : x.shape[2], : x.shape[3]].contiguous()
