"""Kullback-Leibler divergences between Gaussians with diagonal covariance, in nats.

Codes are [B Z]; spreads are log variances (log sigma^2), which any real number is a valid value of.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_standard_normal(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, I)) summed over Z: [B] nats (Kingma and Welling 2014, arXiv 1312.6114, appendix B)."""
    return kl_standard_normal_terms(mu, log_variance).sum(1)  # [B]


def kl_per_dimension(mu: Tensor, log_variance: Tensor) -> Tensor:
    """The same averaged over the batch instead of summed over Z: [Z] nats. A dimension near 0 carries nothing."""
    return kl_standard_normal_terms(mu, log_variance).mean(0)  # [Z]


def kl_gaussians(mu1: Tensor, log_variance1: Tensor, mu2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mu1, sigma1^2) || N(mu2, sigma2^2)) summed over Z: [B] nats. The arguments broadcast against each other."""
    mu1, log_variance1, mu2, log_variance2 = (t.float() for t in (mu1, log_variance1, mu2, log_variance2))
    difference = log_variance1 - log_variance2
    distance = (mu1 - mu2).square() * torch.exp(-log_variance2)
    # expm1(d) - d, not exp(d) - 1 - d: the divergence is of order d^2 and rounding would eat it near d = 0.
    return 0.5 * (torch.expm1(difference) - difference + distance).sum(1)  # [B]


def kl_standard_normal_terms(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each latent dimension of each sample: [B Z] nats."""
    mu, log_variance = mu.float(), log_variance.float()
    return 0.5 * (torch.expm1(log_variance) - log_variance + mu.square())  # [B Z]
