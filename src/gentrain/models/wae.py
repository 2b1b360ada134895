"""Wasserstein autoencoder: an autoencoder whose codes, taken together, are held against a prior.

Paper: Tolstikhin, Bousquet, Gelly, Schoelkopf 2018, Wasserstein Auto-Encoders, arXiv 1711.01558: eq. 4 (the objective),
Algorithm 2 (WAE-MMD), section 4 (kernel, costs); the authors' code (tolstikhin/wae) for the estimator and the scales.
Adds to the autoencoder family: the maximum mean discrepancy between codes and prior, two kernels, noise on the
encoder's input, the authors' falling learning rates. WAE-GAN (Algorithm 1) is the family of adversarial autoencoders
with ``joint``, and needs nothing from here but the noise and the rates.
Departs: the encoder is not trained alone before; DCGAN's networks (the authors' decoder starts at 8x8 and ends with a
convolution of stride 1); no priors on a sphere or a cube, nor their scales of the kernel.
Checked by: tests/test_wae.py (a double loop, the closed form for Gaussians, the mean over draws),
tests/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.objectives.autoencoding import Pass
from gentrain.objectives.priors import Prior


class Kernel(Protocol):
    def __call__(self, squares: Tensor, latent: int) -> Tensor:
        """k of squared distances, any shape, between codes of ``latent`` dimensions."""
        ...

    def fitted(self, spread: float) -> Kernel:
        """The kernel for a prior of this standard deviation, unless it has a spread of its own."""
        ...


@dataclass(frozen=True)
class _Scaled:
    """``spread``: None for that of the prior, and 1 where there is none."""

    spread: float | None = None
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        if self.spread is not None and not self.spread > 0:
            raise UserError(f"model.regularisers.mmd.kernel.spread={self.spread}: above 0, or null for the prior's")
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise UserError(f"model.regularisers.mmd.kernel.scales={list(self.scales)}: one or more, each above 0")

    def fitted(self, spread: float) -> Self:
        return self if self.spread is not None else replace(self, spread=spread)

    def units(self, latent: int) -> list[float]:
        """C of each scale."""
        return [2.0 * latent * (1.0 if self.spread is None else self.spread) ** 2 * scale for scale in self.scales]


@dataclass(frozen=True)
class InverseMultiquadratic(_Scaled):
    """k(a, b) = sum over scales s of C / (C + |a - b|^2), C = 2 Z spread^2 s: with s = 1, C is the expected squared
    distance of two draws from N(0, spread^2 I) (section 4; scales of the authors' code). Its tails are heavy, so codes
    far from the prior are still pulled."""

    scales: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

    def __call__(self, squares: Tensor, latent: int) -> Tensor:
        total = torch.zeros_like(squares)
        for c in self.units(latent):
            total = total + c / (c + squares)
        return total


@dataclass(frozen=True)
class RBF(_Scaled):
    """k(a, b) = sum over scales s of exp(-|a - b|^2 / C), C as in ``InverseMultiquadratic``: the Gaussian kernel."""

    def __call__(self, squares: Tensor, latent: int) -> Tensor:
        total = torch.zeros_like(squares)
        for c in self.units(latent):
            total = total + torch.exp(-squares / c)
        return total


def mmd2(a: Tensor, b: Tensor, kernel: Kernel) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy between the laws of a [N Z] and b [M Z]: a scalar
    (Gretton et al. 2012, JMLR 13, lemma 6; Algorithm 2 of the paper).

    Pairs of a sample with itself are left out of the same-set means, all N M pairs count in the cross term. Unbiased,
    so its mean is 0 where the laws are equal, and single values are negative: there is no root of it.
    """
    a, b = a.float(), b.float()
    latent = a.shape[1]
    return _off_diagonal(a, kernel) + _off_diagonal(b, kernel) - 2.0 * kernel(_squares(a, b), latent).mean()


def _off_diagonal(x: Tensor, kernel: Kernel) -> Tensor:
    n, latent = x.shape
    k = kernel(_squares(x, x), latent)
    return (k.sum() - k.diagonal().sum()) / (n * (n - 1))


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 [N M] by the binomial, a product of matrices; what rounding makes negative is 0."""
    with torch.autocast(a.device.type, enabled=False):  # in bfloat16 the difference would be noise
        norms = a.square().sum(1, keepdim=True) + b.square().sum(1)
        return torch.addmm(norms, a, b.T, alpha=-2.0).clamp_min(0.0)


@dataclass(frozen=True)
class MMD:
    """``weight`` (lambda of eq. 4) times ``mmd2`` of the batch's codes and as many draws from ``prior``.

    Estimated on what one backward pass sees: under several ranks, or with train.accumulate, each part makes its own
    unbiased estimate of its n codes and the gradients are averaged. The mean is right, the variance larger than that of
    the whole batch. UserError for a part of one code, which has no pairs.
    """

    kernel: Kernel
    prior: Prior
    weight: float

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"model.regularisers.mmd.weight={self.weight}: 0 or more")

    def __call__(self, way: Pass) -> Tensor:
        n, latent = way.z.shape
        if n < 2:
            raise UserError(
                "train.batch_size: the MMD compares codes in pairs, so each part of a batch needs 2 or more"
            )
        draws = self.prior.draw(n, latent, way.z.device, None)
        return self.weight * mmd2(way.z, draws, self.kernel.fitted(self.prior.spread))


@dataclass(frozen=True)
class TruncatedNoise:
    """A corruption: adds N(0, scale^2), redrawn beyond two deviations, to data in [-1, 1] (the authors' ``add_noise``).

    An encoder that sees it is random without saying how, and the decoder's neighbourhoods are filled.
    """

    scale: float

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise UserError(f"model.corruption.scale={self.scale}: 0 or more")

    def __call__(self, x: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        return x + self.scale * nn.init.trunc_normal_(noise, a=-2.0, b=2.0)


@dataclass(frozen=True)
class Exponential:
    """Learning-rate factor that falls from 1 to ``end`` over the run, by one ratio per iteration."""

    end: float

    def __post_init__(self) -> None:
        if not 0.0 < self.end <= 1.0:
            raise UserError(f"model.players: schedule.end={self.end}: above 0, at most 1")

    def __call__(self, iteration: int, total: int) -> float:
        return float(self.end ** min((iteration - 1) / max(total, 1), 1.0))
