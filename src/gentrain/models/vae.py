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
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.objectives.autoencoding import Evidence
from gentrain.objectives.divergences import (
    bounded_log_variance,
    kl_centred_normal_terms,
    log_normal,
    log_standard_normal,
)
from gentrain.types import Terms


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z|x) = N(mu, diag(sigma^2)) against p(z) = N(0, prior_scale^2 I) of ``latent`` dimensions. The encoder gives mu
    and log sigma^2 [B 2Z]; nothing else is latent."""

    latent: int
    prior_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.prior_scale > 0:
            raise UserError(f"prior_scale={self.prior_scale} of a Gaussian code: above 0")

    @property
    def outputs(self) -> int:
        return 2 * self.latent

    def mean(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=1)[0]

    def draw(self, output: Tensor) -> Tensor:
        mu, log_variance = self._split(output)
        return torch.addcmul(mu, torch.randn_like(mu), (0.5 * log_variance).exp())

    def decoded(self, latents: Tensor) -> Tensor:
        return latents

    def divergences(self, output: Tensor, latents: Tensor) -> dict[str, Tensor]:
        mu, log_variance = self._split(output)
        return {"kl": kl_centred_normal_terms(mu, log_variance, self.prior_scale)}

    def log_weight(self, output: Tensor, latents: Tensor) -> Tensor:
        mu, log_variance = self._split(output)
        prior = log_standard_normal(latents / self.prior_scale) - self.latent * math.log(self.prior_scale)
        return prior - log_normal(latents, mu, log_variance)

    def prior(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return self.prior_scale * torch.randn(n, self.latent, device=device, generator=generator)

    @staticmethod
    def _split(output: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = output.chunk(2, dim=1)
        return mu, bounded_log_variance(raw)


@dataclass(frozen=True)
class ELBO:
    """Minus the evidence lower bound (eq. 3): reconstruction plus ``beta`` times each divergence, mean over ``draws``.

    ``beta``: 1 is the bound itself. ``warmup``: iterations over which beta rises linearly to its value, from its
    first part on (Sonderby et al. 2016, arXiv 1602.02282). ``free_nats``: no divergence of a dimension is pushed below
    it, by its mean over the batch (Kingma et al. 2016, arXiv 1606.04934, appendix C.8); one number for all divergences,
    or one by name and 0 for the others. Under DDP and ``train.accumulate`` the mean is that of a rank or part.
    UserError for values below 0, and for names that do not appear.
    """

    beta: float = 1.0
    warmup: int = 0
    free_nats: float | Mapping[str, float] = 0.0
    draws: int = 1

    def __post_init__(self) -> None:
        floors = self.free_nats if isinstance(self.free_nats, Mapping) else {"": self.free_nats}
        free = {f"free_nats{'.' * bool(name)}{name}": value for name, value in floors.items()}
        for name, value in {"beta": self.beta, "warmup": self.warmup, **free}.items():
            if not value >= 0:
                raise UserError(f"model.bound.{name}={value}: 0 or more")
        if self.draws < 1:
            raise UserError(f"model.bound.draws={self.draws}: at least 1")

    def __call__(self, evidence: Evidence) -> Terms:
        beta = self.beta * min(1.0, evidence.iteration / max(self.warmup, 1))
        terms = {"reconstruction": evidence.error.mean()}
        floors = self._floors(evidence.divergences)
        for name, nats in evidence.divergences.items():  # [K*B *]
            held = nats.mean(0).clamp_min(floors[name]) if floors[name] > 0 else nats.mean(0)
            terms[name] = beta * held.sum()
        return terms

    def _floors(self, names: Collection[str]) -> dict[str, float]:
        """Free nats of each divergence."""
        if not isinstance(self.free_nats, Mapping):
            return dict.fromkeys(names, self.free_nats)
        for name in self.free_nats:
            if name not in names:
                raise UserError(f"model.bound.free_nats.{name}: no such divergence; this model has {', '.join(names)}")
        return {name: self.free_nats.get(name, 0.0) for name in names}
