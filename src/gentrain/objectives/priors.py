"""Distributions of codes that autoencoders are held against: z [n Z]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.errors import UserError


def truncated_normal(n: int, latent: int, at: float, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """[n Z] from N(0, 1) given that each number lies in [-at, at]: what is left when numbers outside are drawn again
    until none is (Brock et al. 2019, arXiv 1809.11096, section 3.1), and not clipped, which would pile them up at the
    edges.

    By the inverse of the distribution function, which is the same in law and takes one pass: at a bound of 0.02 of 60
    draws 59 would be drawn again, and again. For one generator z grows with ``at``, number by number.
    """
    # float64: at a bound of 6 the probability of lying inside is 1 in float32.
    share = torch.rand(n, latent, device=device, generator=generator, dtype=torch.float64).mul_(2.0).sub_(1.0)
    z = torch.erfinv(share * math.erf(at / math.sqrt(2.0))).mul_(math.sqrt(2.0))
    return z.clamp_(-at, at).float()  # rounding alone


class Prior(Protocol):
    """p(z), known by draws."""

    @property
    def spread(self) -> float:
        """Standard deviation of a dimension, as the root of the mean variance over all of them."""
        ...

    def require(self, latent: int) -> None:
        """UserError for a number of latent dimensions that it does not have."""
        ...

    def draw(self, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """[n Z] on the device; the same generator gives the same draws."""
        ...


@runtime_checkable
class LabelledPrior(Prior, Protocol):
    """A prior that has a part for each class: a component of a mixture, a piece of a curve."""

    def require_classes(self, classes: int) -> None:
        """UserError for a number of classes that it has no parts for."""
        ...

    def draw_labelled(self, labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
        """[n Z] from the parts of ``labels`` int64 [n], on their device; a label of ``classes`` is none, and drawn from
        the whole."""
        ...


@runtime_checkable
class Dense(Protocol):
    """A prior whose density is known."""

    def log_prob(self, z: Tensor) -> Tensor:
        """[B] nats for z [B Z]."""
        ...


@dataclass(frozen=True)
class Normal:
    """N(0, scale^2 I)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError(f"model.prior.scale={self.scale}: above 0")

    @property
    def spread(self) -> float:
        return self.scale

    def require(self, latent: int) -> None:
        """Any number of dimensions will do."""

    def draw(self, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return self.scale * torch.randn(n, latent, device=device, generator=generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """[B] nats for z [B Z]."""
        squares = (z.float() / self.scale).square() + math.log(2.0 * math.pi * self.scale**2)
        return -0.5 * squares.sum(1)


def dense(prior: Prior, *, probabilistic: bool) -> Dense:
    """The prior, if its log-density can be added to the logits of a critic (``probabilistic``); else UserError."""
    if not isinstance(prior, Dense):
        raise UserError("model.known_prior: this prior's density is not known: choose another prior, or false")
    if not probabilistic:
        raise UserError("model.known_prior: this loss has no logits to add a log-density to: choose nonsaturating")
    return prior


def labelled(prior: Prior, classes: int) -> LabelledPrior:
    """The prior, if it has a part for each of so many classes; else UserError."""
    if not isinstance(prior, LabelledPrior):
        raise UserError("model.label_conditioned: this prior has no part for each class: choose a mixture or a roll")
    if classes < 2:
        raise UserError("model.label_conditioned: data= gives no classes: choose other data, or false")
    prior.require_classes(classes)
    return prior
