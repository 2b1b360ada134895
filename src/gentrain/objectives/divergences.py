"""Kullback-Leibler divergence of Gaussians with diagonal covariance from the standard normal, in nats.

Codes are [B Z]; spreads are log variances (log sigma^2), which any real number is a valid value of.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_standard_normal_terms(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each latent dimension of each sample: [B Z] nats; summed over Z it is that of
    the code (Kingma and Welling 2014, arXiv 1312.6114, appendix B)."""
    mu, log_variance = mu.float(), log_variance.float()
    # expm1(d) - d, not exp(d) - 1 - d: the divergence is of order d^2 and rounding would eat it near d = 0.
    return 0.5 * (torch.expm1(log_variance) - log_variance + mu.square())  # [B Z]
