"""Scores of vectors whose true density is known: which modes are found, how far the samples are from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.classes import reverse_kl
from gentrain.evaluation.subject import Subject, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class ModesCovered:
    """Modes of a mixture that the samples reach (config target), as counted by Metz et al. 2017 (arXiv 1611.02163).

    A sample is of high quality within ``deviations`` standard deviations of its nearest mode; a mode is covered by at
    least ``share`` of all samples, of high quality and nearest to it. In two dimensions 98.9 % of the true samples
    lie within three. A density without separate modes has nothing to count: the result is then empty.

    ``reverse_kl_nats``: KL(samples || data) of the modes' frequencies (as in Srivastava et al. 2017, arXiv 1705.07761)
    against the density's ``weights`` [M], equal ones where it has none. Only samples of high quality count, each for
    its nearest mode; where there is not one, as if all stood in the rarest mode, the worst there is. n samples of the
    data themselves score about (M - 1) / 2n.
    """

    deviations: float = 3.0
    share: float = 0.01

    def __post_init__(self) -> None:
        if not self.deviations > 0:
            raise UserError(f"metrics.scores.modes.deviations={self.deviations}: must be above 0")
        if not 0.0 <= self.share <= 1.0:
            raise UserError(f"metrics.scores.modes.share={self.share}: must lie in [0, 1]")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        has_modes = data.density is not None and data.density.modes is not None
        return ("modes_covered", "modes_total", "high_quality", "reverse_kl_nats") if has_modes else ()

    def check(self, data: DataSet, n: int | None = None) -> None:
        if data.density is None:
            raise UserError(f"metrics: the true density of data {data.name!r} is unknown: modes cannot be counted")

    def measure(self, subject: Subject) -> dict[str, float]:
        self.check(subject.data)
        density = subject.data.density
        if density is None or density.modes is None:
            return {}
        x = subject.samples().double()  # [n D]
        distance, nearest = torch.cdist(x, density.modes.double()).min(dim=1)  # [n]
        close = distance <= self.deviations * density.mode_std
        counts = nearest[close].bincount(minlength=len(density.modes))  # [M]
        return {
            "modes_covered": float((counts >= max(self.share * len(x), 1.0)).sum()),
            "modes_total": float(len(density.modes)),
            "high_quality": float(close.double().mean()),
            "reverse_kl_nats": _away(counts, getattr(density, "weights", None)),
        }


def _away(counts: Tensor, weights: Tensor | None) -> float:
    true = torch.ones(len(counts)) if weights is None else weights
    if int(counts.sum()) == 0:
        counts = torch.arange(len(counts)) == true.argmin()
    return reverse_kl(counts, true)


@dataclass(frozen=True)
class SlicedWasserstein:
    """Sliced 2-Wasserstein distance to a split (config target), key ``swd``, in the units of the data.

    Root of the mean, over ``directions`` random directions, of the squared distance between sorted projections
    (Bonneel et al. 2015). Of samples and data, as many are used as the smaller set has. Even the true density scores
    above 0: its draws are never evenly spread over the modes (8 Gaussians: 0.14 with 1000 of each, 0.07 with 10000).
    """

    directions: int = 128
    split: str = "test"

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise UserError(f"metrics.scores.swd.directions={self.directions}: at least 1")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("swd",)

    def check(self, data: DataSet, n: int | None = None) -> None:
        split_of(data, self.split)
        if data.spec.is_image:
            raise UserError(f"metrics: swd compares vectors, data {data.name!r} are images: use metrics=domain")

    def measure(self, subject: Subject) -> dict[str, float]:
        x = subject.samples().double()
        y = subject.reference(self.split, len(x)).double()
        generator = torch.Generator().manual_seed(subject.seed)
        directions = torch.randn(self.directions, x.shape[1], generator=generator, dtype=torch.float64)
        return {"swd": sliced_wasserstein(x[: len(y)], y, directions)}


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two sets [N D] of equal size along ``directions`` [P D] of any length."""
    unit = directions / directions.norm(dim=1, keepdim=True)
    along_x, along_y = (points @ unit.T for points in (x, y))  # [N P]
    return float((along_x.sort(dim=0).values - along_y.sort(dim=0).values).square().mean().sqrt())
