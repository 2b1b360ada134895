"""Variational autoencoder: a latent-variable model trained by a reparameterised lower bound.

Paper: Kingma and Welling 2014, Auto-Encoding Variational Bayes, arXiv 1312.6114: eq. 3 (the bound), section 2.4 (the
reparameterisation), appendix B (the closed-form KL).
Adds to the autoencoder family: a code that is a distribution, and its divergence from the prior.
Departs: Adam for Adagrad; sizes, ReLU and batch as in PyTorch's MNIST example (400 hidden units, 20 latent dimensions);
no weight decay; images are binarised at half brightness, so that the Bernoulli is a likelihood.
Checked by: tests/test_likelihoods.py (the KL against torch.distributions), tests/test_contract.py (the ELBO against the
importance-weighted bound), tests/test_families.py (both bounds of one set of images).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.objectives.divergences import kl_standard_normal_terms


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x) = N(mu, diag(sigma^2)) against p(z) = N(0, I). The encoder gives mu and log sigma^2 [B 2Z]."""

    def outputs(self, latent: int) -> int:
        return 2 * latent

    def mean(self, code: Tensor) -> Tensor:
        return code.chunk(2, dim=1)[0]

    def draw(self, code: Tensor) -> Tensor:
        mu, log_variance = code.chunk(2, dim=1)
        return torch.addcmul(mu, torch.randn_like(mu), (0.5 * log_variance).exp())

    def kl(self, code: Tensor) -> Tensor:
        mu, log_variance = code.chunk(2, dim=1)
        return kl_standard_normal_terms(mu, log_variance)

    def log_weight(self, code: Tensor, z: Tensor) -> Tensor:
        mu, log_variance = code.chunk(2, dim=1)
        log_q = -0.5 * (log_variance + (z - mu).square() / log_variance.exp() + math.log(2 * math.pi))
        log_p = -0.5 * (z.square() + math.log(2 * math.pi))
        return (log_p - log_q).sum(1)

    def prior(self, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, latent, device=device, generator=generator)
