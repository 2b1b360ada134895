"""Gaussians fitted to features, and the Fréchet distance between two of them.

The distance needs Tr((S_r S_f)^(1/2)). With S_r = L L^T the eigenvalues of S_r S_f are those of the symmetric
L^T S_f L, which are real, not negative, and cost a fraction of a matrix root; L belongs to the reference and is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.metric import refuse_broken

BLOCK = 4096
"""Rows of features in float64 at a time."""

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Gaussian:
    """``mean``: float64 [D]. ``covariance``: float64 [D D], with N - 1. ``count``: N, the samples it was fitted to.

    Raises ValueError for another type or shape, UserError for numbers that are not finite.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    def __post_init__(self) -> None:
        shapes = (tuple(self.mean.shape), tuple(self.covariance.shape))
        if {self.mean.dtype, self.covariance.dtype} != {torch.float64} or shapes[1] != (*shapes[0], *shapes[0]):
            raise ValueError(f"a Gaussian is float64 [D] and [D D], not {self.mean.dtype} {shapes[0]} and {shapes[1]}")
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise UserError("metrics: mean or covariance of the features is nan or inf: no distance can be given")

    @classmethod
    def of(cls, features: Tensor, whose: str = "features") -> Gaussian:
        """Fitted to features [N D] of any float type. ``whose``: their name in messages. Raises UserError for features
        that are not finite and for N < 2."""
        if features.ndim != 2:
            raise ValueError(f"features are [N D], not {list(features.shape)}")
        refuse_broken(features, whose)
        count, dim = features.shape
        if count < 2:
            raise UserError(f"metrics: {count} {whose}: a covariance needs at least 2")
        blocks = torch.split(features, BLOCK)
        mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / count
        if count <= dim:
            # Fewer samples than features: the centred samples are a factor as they stand, exact and narrow.
            factor = (features.double() - mean).T.div((count - 1) ** 0.5).contiguous()  # [D N]
            return cls(mean, factor @ factor.T, count).with_factor(factor)
        covariance = features.new_zeros(dim, dim, dtype=torch.float64)
        for block in blocks:  # centred before squares are summed: sums about 0 would lose the digits of a far mean
            centred = block.double() - mean
            covariance.addmm_(centred.T, centred)
        return cls(mean, covariance.div_(count - 1), count)

    def with_factor(self, factor: Tensor) -> Gaussian:
        """Itself, with a factor [D R] that is known already."""
        self.__dict__["factor"] = factor  # where cached_property keeps it
        return self

    @property
    def narrow(self) -> bool:
        """Whether there were too few samples for a covariance of full rank."""
        return self.count <= len(self.mean)

    @cached_property
    def factor(self) -> Tensor:
        """L [D R] with L L^T = covariance: Cholesky's, or of the eigenvectors within its rank where it is singular."""
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        if not failed:
            return lower
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > len(values) * EPS * values[-1].clamp(min=0)  # the rest are zeros that were rounded
        narrow: Tensor = vectors[:, kept] * values[kept].sqrt()
        return narrow


def frechet(real: Gaussian, fake: Gaussian, *, rtol: float = 1e-6) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, arXiv 1706.08500, eq. 6):
    |mu_r - mu_f|^2 + Tr(S_r + S_f - 2 (S_r S_f)^(1/2)), in the squared units of the features, 0 or more. The factor
    of ``real`` is computed once and kept with it. Where rounding may reach ``rtol`` of the distance, a way that is
    about three times as dear is taken. Raises ValueError for different D."""
    if real.mean.shape != fake.mean.shape:
        raise ValueError(f"Gaussians of {len(real.mean)} and of {len(fake.mean)} features have no distance")
    traces = float(real.covariance.trace() + fake.covariance.trace())
    apart = float((real.mean - fake.mean).square().sum()) + traces
    if real.narrow and fake.narrow:
        return max(apart - 2.0 * _by_singular_values(real, fake), 0.0)
    base, other = (fake, real) if fake.narrow else (real, fake)
    values = torch.linalg.eigvalsh(base.factor.T @ other.covariance @ base.factor).clamp(min=0.0)  # [R], rising
    distance = apart - 2.0 * float(values.sqrt().sum())
    if 2.0 * _doubt(values) > rtol * abs(distance) + 1e-10 * traces:
        distance = apart - 2.0 * _by_singular_values(real, fake)
    return max(distance, 0.0)  # below 0 by rounding only


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """``frechet`` of the Gaussians fitted to two sets of features [N D] and [M D], float64 throughout. Raises UserError
    for features that are not finite and for fewer than two samples on a side."""
    return frechet(Gaussian.of(real, "reference"), Gaussian.of(fake, "samples"))


def _by_singular_values(real: Gaussian, fake: Gaussian) -> float:
    """Tr((S_r S_f)^(1/2)) as the sum of the singular values of L_r^T L_f: dearer, and right to the last digits where
    eigenvalues near 0 would be lost, because no root is taken of a rounded number."""
    return float(torch.linalg.svdvals(real.factor.T @ fake.factor).sum())


def _doubt(values: Tensor) -> float:
    """How far rounding may have moved the sum of the roots of these eigenvalues: each is known to some ``slack``, and
    the root of one near 0 to no more than the root of that. Tens of times what is seen, as errors cancel."""
    slack = 4.0 * EPS * float(values[-1]) if len(values) else 0.0
    if slack == 0.0:
        return 0.0
    return float((slack / values.sqrt().clamp(min=slack**0.5)).sum())
