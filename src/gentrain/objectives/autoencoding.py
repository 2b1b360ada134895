"""What autoencoders are made of, as seen by the terms that a paper adds: reconstruction errors, codes, one pass through
the networks, bounds on the likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from gentrain.types import Images, LikelihoodOn, Spec, Terms


class Reconstruction(Protocol):
    """How far a decoder's output is from the data: the pixel likelihoods, and errors that are no likelihood."""

    def require(self, spec: Spec) -> None:
        """UserError for data that it is not made for."""
        ...

    def channels(self, c: int) -> int:
        """Channels that the decoder must make for data of ``c`` channels."""
        ...

    def head(self) -> nn.Module:
        """What goes behind the decoder: holds parameters of its own, or does nothing."""
        ...

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        """Data (uint8 [B C H W], or float [B D]) to the float32 target that ``error`` takes; ``fixed``: where the
        target is drawn, a sample always gets the same draw."""
        ...

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """[B] per sample, summed over C H W; nats where it is minus a log-likelihood."""
        ...

    def mean(self, output: Tensor) -> Tensor:
        """The picture to show: [B C H W] in [-1, 1], or the vectors [B D]."""
        ...


class Code(Protocol):
    """What the encoder's output [B outputs] says of the code z [B Z]."""

    @property
    def outputs(self) -> int:
        """Numbers the encoder must give."""
        ...

    def mean(self, output: Tensor) -> Tensor:
        """The code to show and to probe: [B Z]."""
        ...

    def draw(self, output: Tensor) -> Tensor:
        """The code that the decoder sees in training, drawn with the reparameterisation where it is random: [B Z]."""
        ...


@dataclass(frozen=True, eq=False)
class Pass:
    """One way through an autoencoder in training: what a regulariser may look at.

    ``batch``: the data. ``x``: clean, float in [-1, 1]; ``seen``: corrupted, what the encoder was given. ``output``:
    the encoder's [B outputs]; ``z``: the code drawn from it [B Z]; ``decoded``: the decoder's raw output. ``encoder``,
    ``decoder``: the networks; ``code``: what the encoder's output means; ``error``: reconstruction error [B].
    """

    batch: Images
    x: Tensor
    seen: Tensor
    output: Tensor
    z: Tensor
    decoded: Tensor
    error: Tensor
    encoder: nn.Module
    decoder: nn.Module
    code: Code


Regulariser = Callable[[Pass], Tensor]
"""A scalar, its weight included, that is added to the reconstruction error. One that has a true ``per_sample`` needs an
encoder that treats the samples of a batch one by one: batch normalisation is refused with it."""

Corruption = Callable[[Tensor], Tensor]
"""Float data in [-1, 1] to data of the same shape, drawn anew at each call; in training only."""


class SeededCorruption(Protocol):
    """A ``Corruption`` that can also be drawn with random numbers of one's own."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor: ...


class Chain(Protocol):
    """How a denoiser is walked from noise to samples."""

    def __call__(self, x: Tensor, corrupt: Callable[[Tensor], Tensor], restore: Callable[[Tensor], Tensor]) -> Tensor:
        """The last state [n *] of chains that begin at ``x`` [n *]; ``restore``: corrupted data to clean ones."""
        ...


class DataLikelihood(Reconstruction, Protocol):
    """A reconstruction error that is minus the log-likelihood of the data, in nats."""

    @property
    def likelihood_on(self) -> LikelihoodOn:
        """What it is the likelihood of."""
        ...


class Posterior(Protocol):
    """q(z|x) and the prior p(z) of the code, and of whatever else is latent beside it.

    ``draw`` gives all that is latent as one row [B J]; the decoder reads ``decoded`` of it [B Z]. An ``nn.Module``
    (a prior with networks of its own) is trained with the encoder and the decoder.
    """

    @property
    def outputs(self) -> int: ...

    def mean(self, output: Tensor) -> Tensor: ...

    def draw(self, output: Tensor) -> Tensor: ...

    def decoded(self, latents: Tensor) -> Tensor:
        """[B Z] of the latents [B J]."""
        ...

    def divergences(self, output: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """By name, nats of each dimension [B *]: their sum over names and dimensions is KL(q(.|x) || p(.)), in closed
        form where there is one, else estimated by the draw."""
        ...

    def log_weight(self, output: Tensor, latents: Tensor) -> Tensor:
        """log p(latents) - log q(latents|x) [B] nats."""
        ...

    def prior(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """z ~ p(z) [n Z]."""
        ...


class Mixture(Posterior, Protocol):
    """A posterior whose prior is a mixture of K components."""

    def probabilities(self, output: Tensor) -> Tensor:
        """Of each component, given the data [B K]."""
        ...

    def responsibilities(self, latents: Tensor) -> Tensor:
        """Of each component, given the latents [B K]."""
        ...

    def of_each(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Draws from each component [K n Z]; the n-th of all share the rest of the noise."""
        ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a bound is made of, for K draws of each of B images.

    ``error``: -log p(x|z) [K B] nats. ``output``: the encoder's [K*B outputs] and ``latents`` [K*B J], draw by draw;
    ``posterior``: what they mean. ``iteration``: 1 is the first.
    """

    error: Tensor
    output: Tensor
    latents: Tensor
    posterior: Posterior
    iteration: int

    @cached_property
    def divergences(self) -> dict[str, Tensor]:
        """``Posterior.divergences`` of all K draws of all images, [K*B *] each."""
        return self.posterior.divergences(self.output, self.latents)

    @cached_property
    def elbo(self) -> Tensor:
        """Mean over draws and images, nats."""
        return -(self.error.mean() + summed(self.divergences).mean())


class Bound(Protocol):
    """What is minimised, from ``draws`` draws of the latents per image."""

    @property
    def draws(self) -> int: ...

    def __call__(self, evidence: Evidence) -> Terms: ...


class Coupling(Protocol):
    """Ties the codes of a batch to each other before any is drawn, in training only."""

    def __call__(self, output: Tensor, batch: Images) -> tuple[Tensor, Terms]:
        """The encoder's output [B outputs] as it is used from here on, and terms that are minimised with the bound."""
        ...


def summed(divergences: dict[str, Tensor]) -> Tensor:
    """[B] nats over all names and dimensions."""
    return torch.stack([nats.sum(1) for nats in divergences.values()]).sum(0)
