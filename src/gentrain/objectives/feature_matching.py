"""Feature matching: a generator whose samples are to give a critic's features the mean that real samples give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gentrain.errors import UserError
from gentrain.game import Round
from gentrain.types import Spec, Terms


def feature_distance(real: Tensor, fake: Tensor, *, squared: bool = True) -> Tensor:
    """Mean over features of (mean real - mean fake)^2, or of its absolute value, of features [B F], in float32.

    Salimans et al. 2016 (arXiv 1606.03498, section 3.1) write ||E f(x) - E f(G(z))||_2^2, a sum; their code takes the
    mean of squares for MNIST and of absolute values for CIFAR-10 and SVHN.
    """
    gap = real.float().mean(0) - fake.float().mean(0)  # [F]
    return gap.square().mean() if squared else gap.abs().mean()


@dataclass(frozen=True)
class FeatureMatching:
    """An ``Aim``: ``weight`` times the distance of the means of ``Verdict.features``, for the generator; the critic is
    not concerned. With ``model.weights.generator=0`` it is all that the generator minimises. UserError for a weight
    below 0."""

    weight: float = 1.0
    squared: bool = True
    needs_real: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"model.aims: feature matching: weight={self.weight}: 0 or more")

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        return {}

    def generator(self, seen: Round) -> Terms:
        real, fake = seen.real_verdict.features, seen.on_fake.features
        return {"feature_matching": self.weight * feature_distance(real, fake, squared=self.squared)}
