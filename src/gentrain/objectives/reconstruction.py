"""Reconstruction errors that are no likelihood of pixels: squared error, and the Gaussian density of vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.objectives.likelihoods import SharedScale, bounded
from gentrain.types import LikelihoodOn, Spec, to_signed


@dataclass(frozen=True)
class SquaredError:
    """``weight`` times the squared distance, summed over C H W (or D), of data in [-1, 1]; images leave the decoder
    through tanh. It is no likelihood: its scale means nothing beside nats."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"model.loss.weight={self.weight}: above 0")

    def require(self, spec: Spec) -> None:
        """Any data will do."""

    def channels(self, c: int) -> int:
        return c

    def head(self) -> nn.Module:
        return nn.Identity()

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        return to_signed(x)

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * (self.mean(output) - target).square().flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.tanh(output.float()) if output.ndim == 4 else output.float()


@dataclass(frozen=True)
class Density:
    """Vectors x ~ N(output, scale^2 I): a density, whose nats depend on the unit of the data.

    ``scale``: a number, or ``shared``: one learned number, held by ``head()``, kept between e^-6 and e^3.
    """

    scale: float | Literal["shared"] = "shared"
    likelihood_on: ClassVar[LikelihoodOn] = LikelihoodOn(bits=None, exact=False)

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale != "shared":
                raise UserError(f"model.loss.scale={self.scale!r}: a number, or shared")
        elif not self.scale > 0:
            raise UserError(f"model.loss.scale={self.scale}: above 0, or shared")

    def require(self, spec: Spec) -> None:
        """UserError for images: their levels have a probability, not a density."""
        if spec.is_image:
            raise UserError(
                "model.loss: this density is of vectors, and data= gives images: choose loss=gaussian, logistic or "
                "bernoulli"
            )

    def channels(self, c: int) -> int:
        return c

    def head(self) -> nn.Module:
        return SharedScale() if self.scale == "shared" else nn.Identity()

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        return x.float()

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        output = output.float()
        mu, log_scale = self.mean(output), self._log_scale(output)
        squares = ((target - mu) * torch.exp(-log_scale)).square()
        return (0.5 * squares + log_scale + 0.5 * math.log(2.0 * math.pi)).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return output[:, :-1].float() if self.scale == "shared" else output.float()

    @torch.no_grad()
    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ~ N(output, scale^2 I) [B D]; no gradient goes through it."""
        mu = self.mean(output)
        return mu + torch.exp(self._log_scale(output.float())) * torch.empty_like(mu).normal_(generator=generator)

    def _log_scale(self, output: Tensor) -> Tensor:
        """[B 1]."""
        if isinstance(self.scale, str):
            return bounded(output[:, -1:])
        return torch.full_like(output[:, :1], math.log(self.scale))
