"""Nearest neighbours between two sets of vectors: exact, in blocks, so that neither memory nor rounding decides.

Squared distances as |x|^2 + |y|^2 - 2 x.y are quick and round: two equal points may come out a little apart, and an
image and its copy would then lie outside each other's neighbourhood. So the product, in float64, only proposes
candidates, and their distances are computed again from differences: equal points are at distance 0, and at no other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.errors import UserError

QUERIES, POINTS = 1024, 4096
"""Rows of the two sets that meet at a time; with 2048 features in float64 about 130 MB are in use."""

SPARE = 4
"""Candidates beside the k asked for: as many may be tied with the k-th up to the rounding of a product."""


def neighbours(samples: Tensor, train: Tensor, k: int = 1, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest rows of ``train`` for each of ``samples``: places int64 [N k], Euclidean distances float64 [N k],
    nearest first, of (a few) equal distances the lower place first.

    ``samples`` [N ...] and ``train`` [M ...], of any real type and the same shape but for the first dimension.
    ``exclude``: int64 [N], a row of ``train`` that is no neighbour of that sample: for samples that are rows of
    ``train`` themselves, where they came from. An equal row elsewhere is a neighbour at distance 0.
    Raises UserError for non-finite values or fewer than k candidates.
    """
    x, y = samples.flatten(1), train.flatten(1)
    there = len(y) - (exclude is not None)
    if k < 1 or there < k:
        raise UserError(f"metrics: {k} nearest neighbours among {max(there, 0)} points: there are not so many")
    for values, whose in ((x, "samples"), (y, "reference points")):
        refuse_non_finite(values, whose)
    count = min(k + SPARE, there)
    centre = y[:POINTS].double().mean(dim=0)  # distances stay, and smaller numbers lose fewer digits
    squared = torch.full((len(x), count), torch.inf, dtype=torch.float64)
    place = torch.zeros(len(x), count, dtype=torch.int64)
    for start in range(0, len(y), POINTS):
        block = y[start : start + POINTS].double() - centre
        for first in range(0, len(x), QUERIES):
            rows = slice(first, first + QUERIES)
            found = squared_distances(x[rows].double() - centre, block)
            if exclude is not None:
                _leave_out(found, exclude[rows] - start)
            near, at = found.topk(min(count, len(block)), largest=False)
            squared[rows], order = torch.cat([squared[rows], near], dim=1).topk(count, largest=False)
            place[rows] = torch.cat([place[rows], at + start], dim=1).gather(1, order)
    return _exactly(x, y, place, k)


@dataclass(frozen=True, eq=False)
class Known:
    """The training images as points [M ...], and how a sample's nearest one is found: with ``shift`` above 0, of the
    distances with the sample [C H W] moved by up to so many pixels either way, the smallest counts. Compared is what
    the moved image and the other have in common, scaled to the whole area."""

    points: Tensor
    shift: int = 0

    def nearest(self, x: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Place of the nearest point int64 [N] and the distance to it float64 [N]; ``exclude`` as in ``neighbours``."""
        if self.shift == 0:
            place, distance = neighbours(x, self.points, exclude=exclude)
            return place[:, 0], distance[:, 0]
        best, at = torch.full((len(x),), torch.inf, dtype=torch.float64), torch.zeros(len(x), dtype=torch.int64)
        for down, right in product(range(-self.shift, self.shift + 1), repeat=2):
            part = moved(x, down, right)
            place, distance = neighbours(part, moved(self.points, -down, -right), exclude=exclude)
            scaled = distance[:, 0] * math.sqrt(x[0].numel() / part[0].numel())
            at, best = torch.where(scaled < best, place[:, 0], at), torch.minimum(scaled, best)
        return at, best


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """What is left of images [N C H W] whose first ``down`` rows and ``right`` columns (the last, below 0) are off."""
    high, wide = x.shape[-2:]
    return x[..., max(down, 0) : high + min(down, 0), max(right, 0) : wide + min(right, 0)]


def averaged(x: Tensor, size: int) -> Tensor:
    """uint8 [N C H W], images of more than ``size`` pixels a side averaged to ``size``."""
    if max(x.shape[2:]) <= size:
        return x
    return torch.cat([F.adaptive_avg_pool2d(part.float(), size).round().byte() for part in torch.split(x, QUERIES)])


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[N M] for float64 [N D] and [M D], right up to ``rounding`` of them; may be a little below 0."""
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2.0)


def rounding(x: Tensor, y: Tensor) -> Tensor:
    """[N M]: by how much ``squared_distances`` may be wrong, from the error bound of a sum of D products."""
    unit = 2.0 * (x.shape[1] + 2) * torch.finfo(torch.float64).eps
    return unit * (x.square().sum(1)[:, None] + y.square().sum(1))


def refuse_non_finite(values: Tensor, whose: str) -> None:
    """UserError if a row of ``values`` [N D] holds nan or inf."""
    if values.is_floating_point():
        bad = sum(int((~part.isfinite()).any(dim=1).sum()) for part in torch.split(values, POINTS))
        if bad:
            raise UserError(f"metrics: {bad} of {len(values)} {whose} are nan or inf: they have no neighbours")


def _leave_out(found: Tensor, column: Tensor) -> None:
    here = ((column >= 0) & (column < found.shape[1])).nonzero()[:, 0]
    found[here, column[here]] = torch.inf


def _exactly(x: Tensor, y: Tensor, place: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the candidates ``place`` [N K], by distances that are 0 for equal rows."""
    place = place.sort(dim=1).values  # a stable sort by distance then keeps the lower place first
    rows = max(1, QUERIES * POINTS // (place.shape[1] * x.shape[1]))
    distance = torch.cat(
        [
            (a.double()[:, None] - y[at].double()).norm(dim=2)
            for a, at in zip(torch.split(x, rows), torch.split(place, rows), strict=True)
        ]
    )
    order = distance.sort(dim=1, stable=True).indices[:, :k]
    return place.gather(1, order), distance.gather(1, order)
