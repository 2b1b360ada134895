"""Scores of neighbourhoods: fidelity and diversity apart from each other, and whether samples are copies.

A Fréchet distance is one number for two failings, and it is at its best for a model that hands out its training
images. Balls around the points of one set, as wide as the distance to the k-th nearest of their own kind, tell how
much of the other set they hold; the nearest training image of each sample tells whether it was learnt by heart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.data.dataset import spread
from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.metric import SORTED, Work, check_images
from gentrain.evaluation.neighbours import (
    POINTS,
    QUERIES,
    Known,
    averaged,
    neighbours,
    refuse_non_finite,
    rounding,
    squared_distances,
)
from gentrain.evaluation.reference import BLOCK
from gentrain.evaluation.subject import Subject, counted

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


def manifold_scores(real: Tensor, fake: Tensor, *, k: int = 3, k_density: int = 5) -> dict[str, float]:
    """``precision`` and ``recall`` (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2) with balls that reach to
    the ``k``-th nearest neighbour, ``density`` and ``coverage`` (Naeem et al. 2020, arXiv 2002.09797)
    with ``k_density``.

    features: [N D] and [M D]. Balls are closed, as the papers write them: a point on the edge, and so a copy, is
    inside. Raises UserError for non-finite features, or no more points on a side than neighbours asked for.
    """
    for features, whose in ((real, "reference"), (fake, "samples")):
        refuse_non_finite(features, f"features of the {whose}")
    centre = real.mean(dim=0, dtype=torch.float64)  # a block at a time becomes float64: all would be much to hold
    at_real = neighbours(real, real, max(k, k_density), exclude=torch.arange(len(real)))[1].square()
    reach, reach_density = at_real[:, k - 1], at_real[:, k_density - 1]  # [N], squared
    reach_fake = neighbours(fake, fake, k, exclude=torch.arange(len(fake)))[1][:, -1].square()  # [M]
    precise, held = torch.zeros(len(fake), dtype=torch.bool), 0
    recalled, covered = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for first in range(0, len(fake), QUERIES):
        rows = slice(first, first + QUERIES)
        for start in range(0, len(real), POINTS):
            columns = slice(start, start + POINTS)
            x, y = fake[rows].double() - centre, real[columns].double() - centre
            least = squared_distances(x, y) - rounding(x, y)  # rounding puts nothing outside a ball
            precise[rows] |= (least <= reach[columns]).any(dim=1)
            recalled[columns] |= (least <= reach_fake[rows, None]).any(dim=0)
            inside = least <= reach_density[columns]
            covered[columns] |= inside.any(dim=0)
            held += int(inside.sum())
    return {
        "precision": float(precise.double().mean()),
        "recall": float(recalled.double().mean()),
        "density": held / (k_density * len(fake)),
        "coverage": float(covered.double().mean()),
    }


def expected_coverage(real: int, fake: int, k: int) -> float:
    """Coverage of ``real`` points by ``fake`` ones of the very same continuous distribution: what a perfect model gets.
    1 - (N-1)...(N-k) / ((N+M-1)...(N+M-k)) (Naeem et al. 2020, lemma 2, there for N = M). Of density it is 1."""
    return 1.0 - math.prod((real - i) / (real + fake - i) for i in range(1, k + 1))


@dataclass(frozen=True)
class Manifold:
    """Improved precision and recall, density and coverage under one extractor (config target).

    ``precision`` and ``density``: how many samples lie where real images lie; ``recall`` and ``coverage``: how much of
    the real images the samples reach. All are 0 or more and better when larger; density may pass 1.
    ``split``: the reference; ``reference``: at most so many of its images, None for all; ``k``: of precision and
    recall; ``k_density``: of density and coverage. All four depend on the counts, so that as many samples and
    reference images are used as the smaller set has: compare values of equal counts only.
    """

    extractor: ExtractorSource
    split: str = "test"
    reference: int | None = 10000
    k: int = 3
    k_density: int = 5

    def __post_init__(self) -> None:
        for name in ("k", "k_density"):
            if getattr(self, name) < 1:
                raise UserError(f"metrics.scores.manifold.{name}={getattr(self, name)}: at least 1")
        if self.reference is not None and self.reference < 1:
            raise UserError(f"metrics.scores.manifold.reference={self.reference}: at least 1, or null for all")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return tuple(self.extractor.keys.named(base) for base in ("precision", "recall", "density", "coverage"))

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        self.extractor.check(data)
        self._enough(self._count(data), n, data)

    def work(self, data: DataSet, n: int) -> Work:
        there = self._count(data)
        return Work({self.split: there}, 3 * min(there, n) ** 2 * (self.extractor.num_features(data) + SORTED))

    def measure(self, subject: Subject) -> dict[str, float]:
        real = subject.reference_features(self.extractor, self.split, self.reference).features
        fake = subject.sample_features(self.extractor).features
        self._enough(len(real), len(fake), subject.data)
        count = min(len(real), len(fake))
        found = manifold_scores(real[spread(len(real), count)], fake[:count], k=self.k, k_density=self.k_density)
        return {self.extractor.keys.named(base): value for base, value in found.items()}

    def _count(self, data: DataSet) -> int:
        return counted(data, self.split, self.reference)

    def _enough(self, reference: int, n: int | None, data: DataSet) -> None:
        most = max(self.k, self.k_density)
        for what, count, remedy in (
            ("samples", n, "raise metrics.samples"),
            (f"images of data {data.name!r} split={self.split}", reference, "raise metrics.scores.manifold.reference"),
        ):
            if count is not None and count <= most:
                raise UserError(
                    f"metrics: {count} {what} for {most} nearest neighbours: "
                    f"{self.extractor.keys.named('precision')} needs more than {most}: {remedy}, or lower "
                    "metrics.scores.manifold.k and k_density"
                )


@dataclass(frozen=True)
class Memorisation:
    """Whether samples are training images learnt by heart, in features and in pixels (config target).

    ``copy_rate``: share of samples whose nearest training image is at most a threshold away. The threshold depends on
    the data alone: half of the held-out (test) images set it, so that of images like them at most the share
    ``quantile`` is expected to fall under it; ``copy_rate_real``: the share of the other half that does. Equal to it
    is honest, far above it is copying. ``authenticity`` (Alaa et al. 2022, arXiv 2102.08921): share of samples that
    are farther from their nearest training image than that one is from its own nearest neighbour in the training
    images; ``authenticity_real``: the same of all held-out images, far below which a model copies.
    Names end in the extractor's suffix for distances of features (``copy_rate_domain``) and in ``_pixels`` for those
    of pixels. Read both: a little noise or a move by a pixel hides a copy from features first.

    ``quantile``: above. ``limit``: at most so many samples, and held-out images, None for all. ``reference``: at most
    so many training images, None for all: a copy of an image that is left out is not found. ``size``: larger images
    are averaged to so many pixels a side where pixels are compared. ``shift``: of the distances with the sample moved
    by up to so many pixels either way, the smallest counts; the cost is (2 ``shift`` + 1)^2.
    """

    extractor: ExtractorSource
    quantile: float = 0.01
    limit: int | None = 1000
    reference: int | None = None
    size: int = 32
    shift: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile < 1.0:
            raise UserError(f"metrics.scores.memorisation.quantile={self.quantile}: must lie in (0, 1)")
        for name, least in (("limit", 1), ("reference", 2), ("size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"metrics.scores.memorisation.{name}={value}: at least {least}")
        if not 0 <= self.shift < self.size:
            raise UserError(f"metrics.scores.memorisation.shift={self.shift}: 0 or more, below size={self.size}")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})
    bases: ClassVar[tuple[str, ...]] = ("copy_rate", "copy_rate_real", "authenticity", "authenticity_real")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return tuple(name(base) for base in self.bases for name in (self.extractor.keys.named, in_pixels))

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        self.extractor.check(data)
        held_out = len(data.test) if self.limit is None else min(len(data.test), self.limit)
        if math.floor(self.quantile * (held_out // 2 + 1)) < 1:
            raise UserError(
                f"metrics: {held_out // 2} of {held_out} held-out images set the threshold of copy_rate, and "
                f"quantile={self.quantile} needs {math.ceil(1 / self.quantile) - 1}: raise "
                "metrics.scores.memorisation.quantile or limit"
            )
        if len(data.train) < 2:
            raise UserError(f"metrics: data {data.name!r} has {len(data.train)} training image: authenticity needs 2")
        if self.shift >= min(self.size, data.spec.size):
            raise UserError(
                f"metrics.scores.memorisation.shift={self.shift}: must be below the {data.spec.size} pixels of an image"
            )

    def work(self, data: DataSet, n: int) -> Work:
        train, held_out = counted(data, "train", self.reference), counted(data, "test", self.limit)
        samples = n if self.limit is None else min(n, self.limit)
        side = min(self.size, data.spec.size)
        pixels = (2 * self.shift + 1) ** 2 * (data.spec.channels * side**2 + SORTED)
        # Samples and held-out images look for theirs, and those that were found for their own.
        pairs = 2 * (samples + held_out) * train
        return Work({"train": train, "test": held_out}, pairs * (self.extractor.num_features(data) + SORTED + pixels))

    def measure(self, subject: Subject) -> dict[str, float]:
        self.check(subject.data)
        found: dict[str, float] = {}
        for name, space in ((self.extractor.keys.named, self._features), (in_pixels, self._pixels)):
            measured = copying(*space(subject), quantile=self.quantile, seed=subject.seed)
            found |= {name(base): value for base, value in zip(self.bases, measured, strict=True)}
        return found

    def _features(self, subject: Subject) -> tuple[Known, Tensor, Tensor]:
        train = subject.reference_features(self.extractor, "train", self.reference).features
        held_out = subject.reference_features(self.extractor, "test", self.limit).features
        samples = subject.sample_features(self.extractor).features[: self.limit]
        return Known(train), samples, held_out

    def _pixels(self, subject: Subject) -> tuple[Known, Tensor, Tensor]:
        rows = subject.data.train
        places = subject.reference_index("train", self.reference)
        train = torch.cat([averaged(rows.take(part).x, self.size) for part in torch.split(places, BLOCK)])
        samples = subject.samples()[: self.limit]
        held_out = subject.reference("test", self.limit)
        return Known(train, self.shift), averaged(samples, self.size), averaged(held_out, self.size)


def in_pixels(base: str) -> str:
    return f"{base}_pixels"


def copying(
    train: Known, samples: Tensor, held_out: Tensor, *, quantile: float, seed: int
) -> tuple[float, float, float, float]:
    """``copy_rate``, ``copy_rate_real``, ``authenticity`` and ``authenticity_real`` of ``Memorisation``."""
    at, distance = train.nearest(samples)
    at_real, distance_real = train.nearest(held_out)
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))
    setting, judged = order[: len(order) // 2], order[len(order) // 2 :]
    # Of n + 1 exchangeable distances, the last is at most the r-th smallest of the others in r of n + 1 cases.
    rank = math.floor(quantile * (len(setting) + 1))
    threshold = distance_real[setting].sort().values[rank - 1]
    places, where = torch.unique(torch.cat([at, at_real]), return_inverse=True)
    reach = train.nearest(train.points[places], places)[1][where]
    authentic = torch.cat([distance, distance_real]) > reach
    shares = (
        distance <= threshold,
        distance_real[judged] <= threshold,
        authentic[: len(samples)],
        authentic[len(samples) :],
    )
    a, b, c, d = (float(share.double().mean()) for share in shares)
    return a, b, c, d
