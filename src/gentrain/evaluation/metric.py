"""The contract of a metric, and the guards that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource, Features

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet
    from gentrain.evaluation.subject import Subject  # which stands on the guards below


class Metric(Protocol):
    """A named group of scores; concrete ones are frozen dataclasses and config targets."""

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities asked of the system, names of ``gentrain.capabilities.CAPABILITIES``."""
        ...

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        """The keys that ``measure`` will return for this system and these data."""
        ...

    def check(self, data: DataSet, n: int | None = None) -> None:
        """Raise UserError if the metric cannot work on these data, or with ``n`` samples. Called at start-up."""
        ...

    def measure(self, subject: Subject) -> dict[str, float]: ...


@dataclass(frozen=True)
class Work:
    """What a metric does beside drawing samples and passing them through its extractor, so that its time can be told
    beforehand. ``passes``: real images through the extractor, by split. ``products``: multiplications of float64
    matrices, other arithmetic in proportion (``SORTED``)."""

    passes: Mapping[str, int] = field(default_factory=dict)
    products: float = 0.0


SORTED = 64
"""What comparing, sorting and copying a number costs, in multiplications."""

EIGEN = 12
"""Eigenvalues of a symmetric [D D] matrix take about so many times D^3 multiplications."""


class Given(nn.Module):
    """The extractor of torchmetrics' classes where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def logits_of(features: Features) -> Tensor:
    if features.logits is None:
        raise ValueError("the extractor's keys promise a classifier, and it gave no logits")
    return features.logits


def check_images(data: DataSet) -> None:
    if not data.spec.is_image:
        raise UserError(f"metrics: data {data.name!r} are vectors, not images: use metrics=modes or metrics=none")


def check_enough(
    extractor: ExtractorSource, data: DataSet, split: str, reference: int, n: int | None, *, allow_few: bool, name: str
) -> None:
    """Raise UserError unless there are more images of the ``split`` (``reference`` of them) and more samples (``n``, if
    known) than features: a covariance of fewer cannot have full rank. With ``allow_few`` two are enough. ``name``: the
    metric's in the config."""
    dim = extractor.num_features(data)
    for what, count, remedy in (
        ("samples", n, "raise metrics.samples"),
        (f"images of data {data.name!r} split={split}", reference, "use another split or more data"),
    ):
        if count is not None and count <= dim and not (allow_few and count > 1):
            raise UserError(
                f"metrics: {count} {what} for {dim} features: {extractor.keys.distance} needs more than {dim}: "
                f"{remedy}, or set metrics.scores.{name}.allow_few=true"
            )


def refuse_broken(values: Tensor, whose: str) -> None:
    """Raise UserError if any of [N D] is nan or inf: eigenvalues of a matrix with nan would be nan without a word."""
    bad = int((~values.isfinite()).any(dim=1).sum())
    if bad:
        raise UserError(f"metrics: features of {bad} of {len(values)} {whose} are nan or inf: no distance can be given")


def finite(values: Tensor, whose: str) -> Tensor:
    """float64, or UserError by ``refuse_broken``."""
    refuse_broken(values, whose)
    return values.double()
