"""Gaussians with diagonal covariance: densities and Kullback-Leibler divergences, in nats.

Codes are [B Z]; spreads are log variances (log sigma^2), which any real number is a valid value of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.errors import UserError
from gentrain.objectives.autoencoding import Pass, summed

LOG_VARIANCE = 14.0
"""Bound on a log variance either way: a standard deviation of a thousandth or a thousand."""


def bounded_log_variance(raw: Tensor) -> Tensor:
    """Kept within ``LOG_VARIANCE`` of 0 by two soft steps: the identity between, fading gradients beyond. An encoder
    that overshoots would otherwise make a divergence infinite."""
    floored = F.softplus(raw.float() + LOG_VARIANCE, beta=4.0) - LOG_VARIANCE
    return LOG_VARIANCE - F.softplus(LOG_VARIANCE - floored, beta=4.0)


def kl_centred_normal_terms(mu: Tensor, log_variance: Tensor, scale: float = 1.0) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, scale^2)) of each latent dimension of each sample: [B Z] nats. A divergence does not
    change where both are divided by one number, so it is that of mu/scale and sigma/scale from N(0, 1)."""
    return kl_standard_normal_terms(mu.float() / scale, log_variance.float() - 2.0 * math.log(scale))


def kl_standard_normal_terms(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each latent dimension of each sample: [B Z] nats; summed over Z it is that of
    the code (Kingma and Welling 2014, arXiv 1312.6114, appendix B)."""
    mu, log_variance = mu.float(), log_variance.float()
    # expm1(d) - d, not exp(d) - 1 - d: the divergence is of order d^2 and rounding would eat it near d = 0.
    return 0.5 * (torch.expm1(log_variance) - log_variance + mu.square())  # [B Z]


def log_normal(z: Tensor, mu: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mu, diag(sigma^2)) [B] nats for z, mu, log sigma^2 [B Z]."""
    mu, log_variance = mu.float(), log_variance.float()
    terms = log_variance + (z.float() - mu).square() / log_variance.exp() + math.log(2.0 * math.pi)
    return -0.5 * terms.sum(-1)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) [B] nats for z [B Z]."""
    return -0.5 * (z.float().square() + math.log(2.0 * math.pi)).sum(-1)


@dataclass(frozen=True)
class CodeDivergence:
    """A regulariser: ``weight`` times KL(q(z|x) || p(z)), summed over Z, mean over the batch; nats at ``weight`` 1.
    p is the code's own: a model that samples from a prior hands its numbers to the code too.

    UserError for a weight below 0, and for a code that has no distribution.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"model.regularisers: weight={self.weight} of a divergence: 0 or more")

    def __call__(self, way: Pass) -> Tensor:
        return self.weight * summed(self.divergences(way.code, way.output, way.z)).mean()

    @staticmethod
    def divergences(code: object, output: Tensor, z: Tensor) -> dict[str, Tensor]:
        """What the code says of itself (``Posterior.divergences``)."""
        divergences: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = getattr(code, "divergences", None)
        if divergences is None:
            raise UserError(
                f"model.regularisers: {type(code).__name__} is a code without a distribution, which has no "
                "divergence: use model.code._target_=gentrain.models.vae.DiagonalGaussian"
            )
        return divergences(output, z)
