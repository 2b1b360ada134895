"""Scores of images: distances between sets of features, the Inception score, and the classes that appear.

torchmetrics does the arithmetic, on features that were computed once. What is added are the guards it lacks: too few
samples and non-finite features are refused, random subsets follow the seed and leave the global generators alone,
and nothing is reduced over processes behind the caller's back.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.gaussian import Gaussian, frechet
from gentrain.evaluation.metric import EIGEN, SORTED, Given, Work, check_enough, check_images, finite, logits_of
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.subject import Subject, counted

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y/D + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401, section 4), mean
    and standard deviation over random subsets of min(N, M, ``subset_size``). features: [N D] and [M D]. Unbiased: may
    be below 0. Raises UserError for non-finite features or fewer than two samples on a side."""
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = finite(real, "reference"), finite(fake, "samples")
    size = min(len(real), len(fake), subset_size)
    if size < 2:
        raise UserError(f"metrics: kid needs at least 2 samples on each side, there are {len(fake)} and {len(real)}")
    with warnings.catch_warnings(), isolated_rng(seed):
        warnings.simplefilter("ignore", UserWarning)  # "will save all features": they are in memory already
        metric = KernelInceptionDistance(Given(real.shape[1]), subsets, size, sync_on_compute=False)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, spread = metric.compute()
        return float(mean), float(spread)


def subset_size_of(real: int, fake: int, wanted: int) -> int:
    """``wanted``, or half the smaller set where that is less: subsets that share most of their rows would all say the
    same, and their spread nothing."""
    return min(wanted, max(min(real, fake) // 2, 2))


def inception_score(logits: Tensor, *, splits: int, seed: int) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)) (Salimans et al. 2016, arXiv 1606.03498, section 4), mean and
    standard deviation over ``splits`` random parts of equal size (0 for a single one; the up to ``splits`` - 1 samples
    that are over are left out). logits: [N K]. Between 1 and K. Raises UserError for non-finite logits, N < splits."""
    from torchmetrics.image.inception import InceptionScore

    logits = finite(logits, "samples")
    if len(logits) < splits:
        raise UserError(f"metrics: {len(logits)} samples cannot be cut into splits={splits} parts: lower splits")
    # exp(-700) is the edge of float64: below it a class that no sample shows would give 0 * inf.
    logits = logits.log_softmax(dim=1).clamp(min=-700.0)
    with warnings.catch_warnings(), isolated_rng(seed):
        warnings.simplefilter("ignore", UserWarning)  # "will save all features", and the spread of a single split
        metric = InceptionScore(Given(logits.shape[1]), splits=splits, sync_on_compute=False)
        over = len(logits) % splits  # torchmetrics would make the last part smaller, or leave one out
        metric.update(logits[torch.randperm(len(logits))[over:]] if over else logits)
        mean, spread = metric.compute()
        return float(mean), float(spread) if splits > 1 else 0.0


@dataclass(frozen=True)
class Distances:
    """Fréchet distance, kernel distance and Inception score under one extractor, the latter two with their standard
    deviation over subsets and parts (config target).

    ``split``: the reference, test by default; ``reference``: at most so many of its images, None for all.
    ``subsets``, ``subset_size``: of the kernel distance (half the smaller set, where that is less). ``splits``: of the
    Inception score. ``allow_few``: compute the Fréchet distance although a covariance cannot have full rank; the value
    is then far too large and only comparable at the same counts.
    """

    extractor: ExtractorSource
    split: str = "test"
    reference: int | None = None
    subsets: int = 100
    subset_size: int = 1000
    splits: int = 10
    allow_few: bool = False

    def __post_init__(self) -> None:
        for name, least in (("subsets", 1), ("subset_size", 2), ("splits", 1)):
            if getattr(self, name) < least:
                raise UserError(f"metrics.scores.distances.{name}={getattr(self, name)}: at least {least}")
        if self.reference is not None and self.reference < 1:
            raise UserError(f"metrics.scores.distances.reference={self.reference}: at least 1, or null for all")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        keys = self.extractor.keys
        names = [keys.distance, keys.kernel, f"{keys.kernel}_sd"]
        if keys.score is not None:
            names += [keys.score] + [f"{keys.score}_sd"] * (self.splits > 1)
        return tuple(names)

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        self.extractor.check(data)
        self._enough(self._count(data), n, data)

    def work(self, data: DataSet, n: int) -> Work:
        count, dim = self._count(data), self.extractor.num_features(data)
        kernels = 3 * self.subsets * subset_size_of(count, n, self.subset_size) ** 2 * (dim + SORTED)
        return Work({self.split: count}, kernels + (n + EIGEN * dim) * dim**2)

    def measure(self, subject: Subject) -> dict[str, float]:
        real = subject.reference_features(self.extractor, self.split, self.reference)
        fake = subject.sample_features(self.extractor)
        self._enough(len(real), len(fake), subject.data)
        keys = self.extractor.keys
        gaussian = subject.reference_gaussian(self.extractor, self.split, self.reference)
        found = {keys.distance: frechet(gaussian, Gaussian.of(fake.features, "samples"))}
        size = subset_size_of(len(real), len(fake), self.subset_size)
        found[keys.kernel], found[f"{keys.kernel}_sd"] = kernel_distance(
            real.features, fake.features, subsets=self.subsets, subset_size=size, seed=subject.seed
        )
        if keys.score is not None:
            found[keys.score], spread = inception_score(logits_of(fake), splits=self.splits, seed=subject.seed)
            if self.splits > 1:
                found[f"{keys.score}_sd"] = spread
        return found

    def _count(self, data: DataSet) -> int:
        return counted(data, self.split, self.reference)

    def _enough(self, reference: int, n: int | None, data: DataSet) -> None:
        check_enough(self.extractor, data, self.split, reference, n, allow_few=self.allow_few, name="distances")
