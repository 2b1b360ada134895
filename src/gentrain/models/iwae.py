"""Importance-weighted autoencoder: a VAE trained on a tighter bound, made of several draws per image.

Paper: Burda, Grosse, Salakhutdinov 2016, Importance Weighted Autoencoders, arXiv 1509.00519: eq. 8 (the bound),
section 3 (its gradient, a sum over the draws weighted by their normalised importance), section 5 (learning rates).
Adds to the VAE: the bound, and a learning rate that falls in steps which grow threefold in length.
Departs: one stochastic layer; the paper's models of two need a posterior and a prior that are chains of networks, and
an encoder with one output gives the first link alone. The second moments of Adam start at 0, in the released code at 1.
Checked by: tests/test_bounds.py (the gradient against the weighted sum, K = 1 against the ELBO, log p(x) of a linear
Gaussian model in closed form), tests/test_contract.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gentrain.errors import UserError
from gentrain.objectives.autoencoding import Evidence
from gentrain.types import Terms


@dataclass(frozen=True)
class ImportanceWeighted:
    """Minus log 1/K sum_k p(x, z_k) / q(z_k|x) (eq. 8) for K = ``draws``, nats, mean over the batch.

    One draw is the ELBO with its divergence estimated by the draw. UserError for fewer than 1.
    """

    draws: int = 50

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"model.bound.draws={self.draws}: at least 1")

    def __call__(self, evidence: Evidence) -> Terms:
        log_prior_ratio = evidence.posterior.log_weight(evidence.output, evidence.latents)  # [K*B]
        log_weights = log_prior_ratio.view(self.draws, -1) - evidence.error  # [K B]
        return {"minus_bound": math.log(self.draws) - torch.logsumexp(log_weights.float(), 0).mean()}


@dataclass(frozen=True)
class Stages:
    """Learning-rate factor 1 falling to ``end`` in ``stages`` steps of equal ratio, each ``growth`` times as long as
    the one before (section 5: 8 stages of 3^i passes at 0.001 * 10^(-i/7)). UserError for values that make none."""

    stages: int = 8
    growth: float = 3.0
    end: float = 0.1

    def __post_init__(self) -> None:
        for name, fits, needs in (
            ("stages", self.stages >= 2, "at least 2"),
            ("growth", self.growth > 0, "above 0"),
            ("end", 0 < self.end <= 1, "above 0, at most 1"),
        ):
            if not fits:
                raise UserError(f"model.players.autoencoder.schedule.{name}={getattr(self, name)}: {needs}")

    def __call__(self, iteration: int, total: int) -> float:
        lengths = [self.growth**i for i in range(self.stages)]
        left = (iteration - 1) / max(total, 1) * sum(lengths)
        stage = 0
        while stage < self.stages - 1 and left >= lengths[stage]:
            left -= lengths[stage]
            stage += 1
        return float(self.end ** (stage / (self.stages - 1)))
