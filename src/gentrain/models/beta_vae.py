"""beta-VAE: a VAE whose divergence weighs more, or is led to a given number of nats, so that latents come apart.

Paper: Higgins et al. 2017, beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (ICLR),
eq. 4: the weight ``beta`` of ``gentrain.models.vae.ELBO``. Burgess et al. 2018, Understanding disentangling in
beta-VAE, arXiv 1804.03599, section 5: the capacity.
Adds to the VAE: the bound with a capacity.
Departs: networks are those of ``model/net``; the paper's data, dSprites, do not ship.
Checked by: tests/test_bounds.py (both against a hand computation; the reported ELBO knows nothing of either).
"""

from __future__ import annotations

from dataclasses import dataclass

from gentrain.errors import UserError
from gentrain.objectives.autoencoding import Evidence, summed
from gentrain.types import Terms


@dataclass(frozen=True)
class Capacity:
    """Reconstruction + ``gamma`` |KL - C|, nats, KL the mean over the batch; C rises linearly from 0 to ``capacity``
    nats within ``over`` iterations. UserError for values below 0."""

    gamma: float = 1000.0
    capacity: float = 25.0
    over: int = 100_000
    draws: int = 1

    def __post_init__(self) -> None:
        for name, least in (("gamma", 0), ("capacity", 0), ("over", 0), ("draws", 1)):
            if not getattr(self, name) >= least:
                raise UserError(f"model.bound.{name}={getattr(self, name)}: at least {least}")

    def __call__(self, evidence: Evidence) -> Terms:
        target = self.capacity * min(1.0, evidence.iteration / max(self.over, 1))
        kl = summed(evidence.divergences).mean()
        return {"reconstruction": evidence.error.mean(), "capacity": self.gamma * (kl - target).abs()}
