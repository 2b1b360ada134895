"""Parzen window estimate of a log-likelihood, for comparison with tables of the past only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.likelihood import nats_of, standard_error
from gentrain.evaluation.metric import SORTED, Work, finite
from gentrain.evaluation.subject import Subject, counted, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

BLOCK = 1 << 22
"""Distances in memory at a time: 32 MB in float64."""


@dataclass(frozen=True)
class ParzenWindow:
    """Log-likelihood under Gaussian kernels on the samples, as papers of 2014 to 2016 report it for models without a
    likelihood (Goodfellow et al. 2014, arXiv 1406.2661, section 5) (config target).

    ``parzen_nats_unreliable``: mean over the split, larger is better; ``parzen_nats_unreliable_se``: its standard
    error over the images of the split, which says nothing of that over samples. ``parzen_sigma``: width of the
    kernels, the best of a geometric grid of ``steps`` from ``sigma_low`` to ``sigma_high`` for ``validation`` images
    spread over the training split. Images are scaled to [0, 1] as in the tables and taken as points, not as levels: the
    nats are those of a density, without dequantisation, and may not be held against ``nll_nats`` or bits/dim. Vectors
    are taken as they are.

    Unreliable in name because it is (Theis et al. 2016, arXiv 1511.01844): already for small patches no affordable
    number of samples comes near the model's likelihood, the order of models is not that of their likelihoods, and the
    centres of k-means clusters score better than true images do. A model that copies training images is not found out:
    the validation images are among those that it was trained on, and only ``sigma_low`` bounds its kernels.

    ``limit``: so many images spread over the split, None for all.
    """

    split: str = "test"
    limit: int | None = None
    validation: int = 1000
    sigma_low: float = 0.01
    sigma_high: float = 10.0
    steps: int = 31

    def __post_init__(self) -> None:
        for name, least in (("validation", 1), ("steps", 2), ("limit", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"metrics.scores.parzen.{name}={value}: at least {least}")
        if not 0.0 < self.sigma_low < self.sigma_high < math.inf:
            raise UserError(
                f"metrics.scores.parzen: sigma_low={self.sigma_low} and sigma_high={self.sigma_high} must be above 0, "
                "the first the smaller"
            )

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("parzen_nats_unreliable", "parzen_nats_unreliable_se", "parzen_sigma")

    def check(self, data: DataSet, n: int | None = None) -> None:
        split_of(data, self.split)

    def work(self, data: DataSet, n: int) -> Work:
        held, dim = counted(data, "train", self.validation), data.spec.numel
        tested = counted(data, self.split, self.limit)
        return Work(products=n * (held * (dim + SORTED * self.steps) + tested * (dim + SORTED)))

    def measure(self, subject: Subject) -> dict[str, float]:
        centres = _points(subject.samples(), "samples")
        held = _points(subject.reference("train", self.validation), "training images")
        sigmas = torch.logspace(
            math.log10(self.sigma_low), math.log10(self.sigma_high), self.steps, dtype=torch.float64
        )
        best = int(parzen(held, centres, sigmas).mean(dim=1).argmax())
        if best == self.steps - 1:
            raise UserError(
                f"metrics: the widest kernel, sigma_high={self.sigma_high}, is the best for data {subject.data.name!r} "
                "and a wider one may be better: raise metrics.scores.parzen.sigma_high"
            )

        def log_density(x: Tensor) -> Tensor:
            return parzen(_points(x.cpu(), "images"), centres, sigmas[best : best + 1])[0]

        nats = nats_of(subject, self.split, self.limit, 1024, "Parzen window", log_density)
        return {
            "parzen_nats_unreliable": float(nats.mean()),
            "parzen_nats_unreliable_se": standard_error(nats),
            "parzen_sigma": float(sigmas[best]),
        }


def parzen(x: Tensor, centres: Tensor, sigmas: Tensor) -> Tensor:
    """[S N] nats of points x [N D] under the mean of the Gaussians N(centre, sigma^2 I) around centres [M D], for each
    width of sigmas [S]. All float64; exact but for rounding, however far the points are."""
    dim, count = x.shape[1], len(centres)
    origin = centres.mean(dim=0)  # sums of squares around it lose the fewest digits
    x, centres = x - origin, centres - origin
    norms = centres.square().sum(dim=1)  # [M]
    constants = math.log(count) + dim * (sigmas.log() + 0.5 * math.log(math.tau))  # [S]
    found = []
    for rows in torch.split(x, max(BLOCK // count, 1)):
        squares = (rows.square().sum(dim=1, keepdim=True) + norms - 2.0 * rows @ centres.T).clamp(min=0.0)  # [B M]
        found.append(torch.stack([torch.logsumexp(squares * (-0.5 / float(s) ** 2), dim=1) for s in sigmas]))
    return torch.cat(found, dim=1) - constants[:, None]


def _points(x: Tensor, whose: str) -> Tensor:
    """float64 [N D]: bytes scaled to [0, 1], vectors as they are; UserError for nan and inf."""
    flat = x.flatten(1)
    return finite(flat.double() / 255.0 if x.dtype == torch.uint8 else flat, whose)
