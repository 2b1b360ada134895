"""Scores without any network: patches at every scale of a pyramid, and how much samples resemble each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.errors import UserError
from gentrain.evaluation.metric import SORTED, Work, check_images
from gentrain.evaluation.subject import Subject, split_of
from gentrain.objectives.similarity import WEIGHTS, most_scales

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

BLOCK, DIRECTIONS = 256, 16
"""Images whose pyramids, and directions whose projections, are in memory at a time."""

PIXELS = 2**21
"""Numbers of one side of the pairs that are compared at a time."""

FLAT = 1e-3
"""Grey levels: a channel that varies less is flat up to rounding, and is not blown up to unit variance."""


def levels(size: int, smallest: int) -> tuple[int, ...]:
    """Sides of the pyramid's levels in pixels, finest first: halved, rounded up, as long as at least ``smallest``."""
    found = [size] if size >= smallest else []
    while found and (found[-1] + 1) // 2 >= max(smallest, 2):
        found.append((found[-1] + 1) // 2)
    return tuple(found)


def pyramid(x: Tensor, sides: tuple[int, ...]) -> list[Tensor]:
    """Laplacian pyramid of x [B C H W] (Burt and Adelson 1983): at each of ``sides`` what is lost in going on to the
    next, and at the last what remains. Its levels, widened again and added up, are x."""
    found = []
    for _ in sides[1:]:
        low = smoothed(x)[..., ::2, ::2]
        found.append(x - widened(low, x.shape[-1]))
        x = low
    return [*found, x]


def smoothed(x: Tensor, gain: float = 1.0) -> Tensor:
    """x [B C H W] under the 5x5 binomial filter, mirrored at the border."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16.0
    channels = x.shape[1]
    for kernel in (row.view(1, 1, 1, 5), row.view(1, 1, 5, 1)):
        high, wide = kernel.shape[2] // 2, kernel.shape[3] // 2
        padded = F.pad(x, (wide, wide, high, high), mode="reflect")
        x = F.conv2d(padded, kernel.expand(channels, -1, -1, -1), groups=channels)
    return x * gain


def widened(x: Tensor, side: int) -> Tensor:
    """x [B C h w] at twice the size, cut to ``side``: zeros between the pixels, smoothed, of the same mean."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[..., ::2, ::2] = x
    return smoothed(wide[..., :side, :side], gain=4.0)


def patches(x: Tensor, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` squares of ``size`` pixels at random places of each image x [B C H W]: [B*count C size size]."""
    b, _, high, wide = x.shape
    windows = x.unfold(2, size, 1).unfold(3, size, 1)  # [B C h w size size], no copy
    top, left = (torch.randint(0, side - size + 1, (b, count), generator=generator) for side in (high, wide))
    return windows[torch.arange(b)[:, None], :, top, left].flatten(0, 1)


def normalised(x: Tensor) -> Tensor:
    """Patches [N C s s] as vectors [N D], each channel of the whole set at mean 0 and variance 1. In place."""
    for channel in range(x.shape[1]):
        values = x[:, channel]
        values -= values.mean(dtype=torch.float64).to(x.dtype)
        values /= max(float(values.double().square().mean().sqrt()), FLAT)
    return x.flatten(1)


def sliced_distance(x: Tensor, y: Tensor, directions: Tensor) -> float:
    """Sliced 1-Wasserstein distance of two sets [N D] of equal size: mean, over ``directions`` [P D] of any length, of
    the absolute differences between the sorted projections."""
    total = 0.0
    for some in torch.split(directions, DIRECTIONS):
        along = (some / some.norm(dim=1, keepdim=True)).to(x.dtype)
        first, second = ((along @ points.T).sort(dim=1).values for points in (x, y))  # [P N]
        total += float((first - second).abs().mean(dim=1, dtype=torch.float64).sum())
    return total / len(directions)


@dataclass(frozen=True)
class SlicedWassersteinImages:
    """Sliced Wasserstein distance of patches at the scales of a Laplacian pyramid (config target), as of Karras et al.
    2018 (arXiv 1710.10196, section 5): keys ``swd_16``, ``swd_32`` ... for the sides of the levels in pixels, and their
    mean ``swd_mean``. Times 1000, as the paper prints them. Small where the patches of both
    sets are alike in look and variety.

    From each level of each image ``patches`` squares of ``patch`` pixels, from samples and reference at the same random
    places; each channel of a level at mean 0 and variance 1 in either set, which takes no notice of its brightness and
    contrast; ``directions`` random projections. ``smallest``: side of the coarsest level, at least ``patch``; images
    that are smaller themselves are refused rather than cut into smaller patches, whose distances are others. 28-pixel
    images have one level, ``swd_28``, unless ``smallest`` is 14 or 7. ``split``: the reference; ``images``: at most so
    many of its images and of the samples; as many are used as the smaller set has. Compare values of equal counts only:
    two real sets are apart too, the more the fewer they are. At the paper's counts the patches take 2.5 GB.
    """

    split: str = "test"
    images: int = 16384
    patches: int = 128
    patch: int = 7
    directions: int = 512
    smallest: int = 16

    def __post_init__(self) -> None:
        for name, least in (("images", 2), ("patches", 1), ("patch", 1), ("directions", 1), ("smallest", self.patch)):
            if getattr(self, name) < least:
                why = ", the side of a patch" if name == "smallest" else ""
                raise UserError(f"metrics.scores.swd_images.{name}={getattr(self, name)}: at least {least}{why}")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return (*(f"swd_{side}" for side in levels(data.spec.size, self.smallest)), "swd_mean")

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        if not levels(data.spec.size, self.smallest):
            raise UserError(
                f"metrics: swd of patches has no level for images of {data.spec.size} pixels with "
                f"smallest={self.smallest}: set metrics.scores.swd_images.smallest={data.spec.size}"
                + ("" if self.patch <= data.spec.size else f" and patch={data.spec.size}")
            )
        count = len(split_of(data, self.split))
        for what, there in (("samples", n), (f"images of data {data.name!r} split={self.split}", count)):
            if there is not None and there < 2:
                raise UserError(f"metrics: {there} {what}: swd of patches needs at least 2")

    def work(self, data: DataSet, n: int) -> Work:
        count = min(len(split_of(data, self.split)), n, self.images)
        dim = data.spec.channels * self.patch**2
        along = 2 * count * self.patches * self.directions * (dim + SORTED)
        return Work(products=along * len(levels(data.spec.size, self.smallest)))

    def measure(self, subject: Subject) -> dict[str, float]:
        self.check(subject.data, subject.n)
        count = min(len(split_of(subject.data, self.split)), subject.n, self.images)
        fake, real = subject.samples(count), subject.reference(self.split, count)
        sides = levels(subject.data.spec.size, self.smallest)
        found = {}
        for place, side in enumerate(sides):
            generator = torch.Generator().manual_seed(subject.seed)
            directions = torch.randn(self.directions, fake.shape[1] * self.patch**2, generator=generator)
            x, y = (self._described(images, sides, place, subject.seed) for images in (fake, real))
            found[f"swd_{side}"] = 1000.0 * sliced_distance(x, y, directions)
        return found | {"swd_mean": sum(found.values()) / len(found)}

    def _described(self, images: Tensor, sides: tuple[int, ...], place: int, seed: int) -> Tensor:
        """Normalised patches of one level, [N D] float32: only one level of both sets is in memory."""
        generator = torch.Generator().manual_seed(seed)
        found = torch.empty(len(images) * self.patches, images.shape[1], self.patch, self.patch)
        rows = BLOCK * self.patches
        for part, into in zip(torch.split(images, BLOCK), torch.split(found, rows), strict=True):
            level = pyramid(part.float(), sides[: place + 2])[place]
            into.copy_(patches(level, self.patch, self.patches, generator))
        return normalised(found)


@dataclass(frozen=True)
class MultiScaleSimilarity:
    """Mean multi-scale structural similarity (MS-SSIM) of random pairs of samples (config target), as of Odena et al.
    2017 (arXiv 1610.09585, section 4.2): ``ms_ssim``, and beside it ``ms_ssim_real`` of pairs of real images, both 0
    to 1. Far above the real one is a sign of collapse; 1 is one image over and over. It says nothing of quality.

    Where samples were asked for by class (and the data have labels) pairs are of one class, equally many of each class
    that has two samples and two real images: those values compare with each other only.
    ``pairs``: of either kind. ``scales``: 1 to 5, each half the size of the one before; None: as many as fit.
    ``window``: side of the Gaussian window in pixels, odd; None: 11 as published, or the largest that fits. A scale
    fits while the window does: five from 176 pixels on, 28 pixels have 2, 8 pixels 1 with a window of 7.
    ``split``: of the real images.
    """

    split: str = "test"
    pairs: int = 1000
    scales: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError(f"metrics.scores.ms_ssim.pairs={self.pairs}: at least 1")
        if self.scales is not None and not 1 <= self.scales <= len(WEIGHTS):
            raise UserError(
                f"metrics.scores.ms_ssim.scales={self.scales}: 1 to {len(WEIGHTS)}, or null for all that fit"
            )
        if self.window is not None and (self.window < 3 or self.window % 2 == 0):
            raise UserError(f"metrics.scores.ms_ssim.window={self.window}: odd and at least 3, or null")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("ms_ssim", "ms_ssim_real")

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        window, most = self._window(data), most_scales(data.spec.size, self._window(data))
        if most < max(self.scales or 1, 1):
            raise UserError(
                f"metrics: ms_ssim: {data.spec.size} pixels hold {most} scales of a window of {window}: "
                "set metrics.scores.ms_ssim." + (f"scales={most} or null" if most else "window=null")
            )
        count = len(split_of(data, self.split))
        for what, there in (("samples", n), (f"images of data {data.name!r} split={self.split}", count)):
            if there is not None and there < 2:
                raise UserError(f"metrics: {there} {what}: ms_ssim compares pairs")

    def work(self, data: DataSet, n: int) -> Work:
        return Work(products=2 * self.pairs * data.spec.numel * 5 * self._window(data) ** 2)  # five smoothed maps

    def measure(self, subject: Subject) -> dict[str, float]:
        self.check(subject.data, subject.n)
        rows = split_of(subject.data, self.split)
        places = subject.reference_index(self.split)
        asked, known = subject.labels, rows.y
        if asked is None or known is None or known.ndim != 1:
            asked = known = None
        samples = subject.samples()
        generator = torch.Generator().manual_seed(subject.seed)
        own = random_pairs(len(samples), asked, known, self.pairs, generator)
        real = random_pairs(len(places), known, asked, self.pairs, generator)
        return {
            "ms_ssim": self._mean([samples[part] for part in own], subject.data),
            "ms_ssim_real": self._mean([rows.take(part).x for part in real], subject.data),
        }

    def _window(self, data: DataSet) -> int:
        return self.window or min(11, data.spec.size - 1 + data.spec.size % 2)

    def _mean(self, sides: list[Tensor], data: DataSet) -> float:
        window = self._window(data)
        scales = self.scales or most_scales(data.spec.size, window)
        block = max(1, PIXELS // data.spec.numel)
        parts = zip(*(torch.split(side, block) for side in sides), strict=True)
        return float(torch.cat([similarity(x, y, scales=scales, window=window) for x, y in parts]).mean())


def random_pairs(
    n: int, labels: Tensor | None, others: Tensor | None, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Places int64 of about ``count`` pairs of two different of ``n`` images. With ``labels`` int64 [n], of one class
    each, equally many of each class that is there twice here and in ``others``; UserError if there is none."""
    groups = [torch.arange(n)]
    if labels is not None and others is not None:
        twice = [set((of.bincount() > 1).nonzero()[:, 0].tolist()) for of in (labels, others)]
        groups = [(labels == c).nonzero()[:, 0] for c in sorted(twice[0] & twice[1])]
        if not groups:
            raise UserError("metrics: ms_ssim: no class has two samples and two real images: raise metrics.samples")
    each = -(-count // len(groups))
    first, second = [], []
    for group in groups:
        i = torch.randint(len(group), (each,), generator=generator)
        j = (i + 1 + torch.randint(len(group) - 1, (each,), generator=generator)) % len(group)
        first.append(group[i])
        second.append(group[j])
    return torch.cat(first), torch.cat(second)


def similarity(x: Tensor, y: Tensor, *, scales: int, window: int) -> Tensor:
    """Multi-scale structural similarity of each pair (Wang et al. 2003, eq. 7), float64 [N] of 0 to 1, of uint8 images
    [N C H W]. ``scales``: halvings plus one, with the first so many of the published exponents, scaled to sum 1.
    ``window``: side of the Gaussian window in pixels, odd; 11 with sigma 1.5 as published, smaller ones in proportion.
    A scale whose mean similarity is negative counts as 0. The coarsest scale is mirrored at the border
    (torchmetrics)."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    total = sum(WEIGHTS[:scales])
    return multiscale_structural_similarity_index_measure(
        x.double(),
        y.double(),
        sigma=1.5 * window / 11,
        kernel_size=window,
        reduction="none",
        data_range=255.0,
        betas=tuple(weight / total for weight in WEIGHTS[:scales]),
        normalize="relu",
    )
