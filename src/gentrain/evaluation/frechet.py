"""What is reported beside a Fréchet distance, so that the figure can be read: how far it would move with other samples,
what it would be with infinitely many, what it is against the training images, and what real images get.

An error bar and an extrapolation need the distance of many subsets. The samples are therefore put into ``GROUPS``
random groups whose sums of squares are taken once; a subset or a resample is then a weighted sum of those. At 50,000
samples of 2048 features that is three or four passes over the features in place of 35.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.data.order import hashed
from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.gaussian import Gaussian, frechet, frechet_distance
from gentrain.evaluation.metric import EIGEN, Work, check_enough, check_images, refuse_broken
from gentrain.evaluation.subject import Subject, counted

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

__all__ = ["FrechetDetails", "bootstrap_sd", "extrapolated", "frechet_distance"]

GROUPS = 64
LEAST = 10
"""Samples below which neither spread nor extrapolation says anything."""

SUMS = 512 << 20
"""Bytes of sums of squares in memory at a time."""

ROUGH = 1e-3
"""Relative error that does not matter within a spread or a line through noisy points."""


def bootstrap_sd(real: Gaussian, features: Tensor, *, replicates: int, generator: torch.Generator) -> float:
    """Standard deviation of the distance of ``features`` [N D] from ``real`` over other draws of the N samples.

    Bootstrap (Efron 1979) over random groups: each replicate draws as many groups as there are, with replacement. It
    covers the draw of the samples and nothing else: neither the reference's, nor another training, nor the bias of a
    finite N. With R replicates it is itself known to about sqrt(1/(2R) + 1/(2 GROUPS)) of its value, 18 % at R = 20.
    Where samples and reference are all but one distribution it is too large, up to about twice: what is left of the
    distance is then of second order, and a resample strays from a draw that has strayed itself.
    """
    groups = _groups(features, generator)
    count = len(groups)
    drawn = torch.randint(count, (replicates, count), generator=generator)
    weights = torch.stack([row.bincount(minlength=count) for row in drawn])  # [R G]
    found = [frechet(real, fake, rtol=ROUGH) for fake in _weighted(features, groups, weights)]
    # Resampled groups spread less than new ones would, by the same (G - 1) / G as any variance about its own mean.
    variance = float(torch.tensor(found, dtype=torch.float64).var()) * count / (count - 1)
    return math.sqrt(variance)


def extrapolated(real: Gaussian, features: Tensor, *, points: int, generator: torch.Generator) -> float:
    """The distance that infinitely many samples would have: the intercept of a least-squares line in 1/N through
    ``points`` random subsets (Chong and Forsyth 2020, arXiv 1911.07023), their sizes evenly spaced from N/10
    (but no fewer than the features, nor than N/2 where there are not twice as many) to all N. features: [N D].

    It takes away the bias of the samples' number, not that of the reference's, and it may be below 0.
    """
    groups = _groups(features, generator)
    count, (n, dim) = len(groups), features.shape
    least = max(0.1, min((dim + 1) / n, 0.5))
    weights = torch.zeros(points, count, dtype=torch.int64)  # [P G]
    for row, share in zip(weights, torch.linspace(least, 1.0, points).tolist(), strict=True):
        row[torch.randperm(count, generator=generator)[: max(2, round(share * count))]] = 1
    fitted = list(_weighted(features, groups, weights))
    inverse = torch.tensor([1.0 / subset.count for subset in fitted], dtype=torch.float64)
    found = torch.tensor([frechet(real, subset, rtol=ROUGH) for subset in fitted], dtype=torch.float64)
    from_mean = inverse - inverse.mean()
    slope = (from_mean * found).sum() / from_mean.square().sum()
    return float(found.mean() - slope * inverse.mean())


def _groups(features: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Places [N/G] of the samples of each group: nearly equal, random, as many as ``GROUPS`` or samples."""
    refuse_broken(features, "samples")
    return torch.randperm(len(features), generator=generator).tensor_split(min(GROUPS, len(features)))


def _weighted(features: Tensor, groups: tuple[Tensor, ...], weights: Tensor) -> Iterator[Gaussian]:
    """The Gaussian of each row of ``weights`` [R G]: every group taken so many times."""
    n, dim = features.shape
    if n <= dim:  # too few for sums of squares to be the smaller thing
        for row in weights.tolist():
            places = [part for part, times in zip(groups, row, strict=True) for _ in range(times)]
            yield Gaussian.of(features[torch.cat(places)], "samples")
        return
    centre = features.mean(dim=0, dtype=torch.float64)  # [D]
    for some in torch.split(weights, max(1, SUMS // (8 * dim * dim))):
        first = torch.zeros(len(some), dim, dtype=torch.float64)
        second = torch.zeros(len(some), dim, dim, dtype=torch.float64)
        for place, part in enumerate(groups):
            centred = features[part].double() - centre
            total, squares = centred.sum(dim=0), centred.T @ centred
            for row, times in enumerate(some[:, place].tolist()):
                if times:
                    first[row].add_(total, alpha=times)
                    second[row].add_(squares, alpha=times)
        counts = some @ torch.tensor([len(part) for part in groups])
        for row, count in enumerate(counts.tolist()):
            mean = first[row] / count
            covariance = second[row].sub_(torch.outer(mean, mean), alpha=count).div_(count - 1)
            yield Gaussian(mean + centre, covariance, count)


@dataclass(frozen=True)
class FrechetDetails:
    """What belongs to the Fréchet distance ``<fd>`` of ``metrics.Distances`` with the same settings (config target).

    ``<fd>_sd``: standard deviation over draws of the samples, by ``bootstrap`` replicates (0: none).
    ``<fd>_inf``: extrapolated to infinitely many samples through ``points`` subsets (0: none).
    ``<fd>_train``: against the training images; far below ``<fd>`` where the model has learnt them by heart. With
    split=train it would be ``<fd>`` itself, and is left out.
    ``<fd>_floor``: of as many real images as there are samples, drawn at random from the split that is not the
    reference: what samples no different from real images would get. Where there are fewer, all of them are taken, and
    the floor is a little high.
    ``split``: the reference; ``reference``: at most so many images of either split, None for all. ``allow_few``: as in
    ``metrics.Distances``; the extrapolation needs more samples than features all the same.
    """

    extractor: ExtractorSource
    split: str = "test"
    reference: int | None = None
    bootstrap: int = 20
    points: int = 15
    train: bool = True
    floor: bool = True
    allow_few: bool = False

    def __post_init__(self) -> None:
        for name, least in (("bootstrap", 2), ("points", 3)):
            if getattr(self, name) != 0 and getattr(self, name) < least:
                raise UserError(f"metrics.scores.frechet.{name}={getattr(self, name)}: at least {least}, or 0 for none")
        if self.reference is not None and self.reference < 1:
            raise UserError(f"metrics.scores.frechet.reference={self.reference}: at least 1, or null for all")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    @property
    def _other(self) -> str:
        return "test" if self.split == "train" else "train"

    @property
    def _against_train(self) -> bool:
        return self.train and self.split != "train"

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        wanted = {"sd": self.bootstrap, "inf": self.points, "train": self._against_train, "floor": self.floor}
        return tuple(f"{self.extractor.keys.distance}_{name}" for name, on in wanted.items() if on)

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        self.extractor.check(data)
        used = [self.split, *([self._other] if self._against_train or self.floor else [])]
        for split in used:
            count = self._count(data, split)
            check_enough(self.extractor, data, split, count, n, allow_few=self.allow_few, name="frechet")
        if n is None:
            return
        key, dim = self.extractor.keys.distance, self.extractor.num_features(data)
        if n < LEAST and (self.bootstrap or self.points):
            raise UserError(
                f"metrics: {n} samples: {key}_sd and {key}_inf need at least {LEAST}: raise metrics.samples, or set "
                "metrics.scores.frechet.bootstrap=0 metrics.scores.frechet.points=0"
            )
        if self.points and n <= dim:
            raise UserError(
                f"metrics: {n} samples for {dim} features: {key}_inf needs more than {dim}: raise metrics.samples, or "
                "set metrics.scores.frechet.points=0"
            )

    def work(self, data: DataSet, n: int) -> Work:
        used = [self.split, *([self._other] if self._against_train or self.floor else [])]
        dim, fits = self.extractor.num_features(data), self.bootstrap + self.points + 3
        return Work({split: self._count(data, split) for split in used}, fits * (n + EIGEN * dim) * dim**2)

    def measure(self, subject: Subject) -> dict[str, float]:
        self.check(subject.data, subject.n)
        fake = subject.sample_features(self.extractor).features
        real = subject.reference_gaussian(self.extractor, self.split, self.reference)
        found: dict[str, float] = {}
        if self.bootstrap:
            found["sd"] = bootstrap_sd(real, fake, replicates=self.bootstrap, generator=_generator(subject, "sd"))
        if self.points:
            found["inf"] = extrapolated(real, fake, points=self.points, generator=_generator(subject, "inf"))
        if self._against_train:
            train = subject.reference_gaussian(self.extractor, "train", self.reference)
            found["train"] = frechet(train, Gaussian.of(fake, "samples"))
        if self.floor:
            images = subject.reference_features(self.extractor, self._other, self.reference).features
            some = torch.randperm(len(images), generator=_generator(subject, "floor"))[: subject.n]
            found["floor"] = frechet(real, Gaussian.of(images[some], f"{self._other} images"))
        return {f"{self.extractor.keys.distance}_{name}": value for name, value in found.items()}

    def _count(self, data: DataSet, split: str) -> int:
        return counted(data, split, self.reference)


def _generator(subject: Subject, score: str) -> torch.Generator:
    """One for each score, so that one more or less of them changes none of the others."""
    return torch.Generator().manual_seed(hashed(subject.seed, score))
