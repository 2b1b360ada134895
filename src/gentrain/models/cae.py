"""Contractive autoencoder: a code that moves little where the data do.

Paper: Rifai, Vincent, Muller, Glorot, Bengio 2011, Contractive Auto-Encoders: Explicit Invariance During Feature
Extraction, ICML: the penalty is lambda ||df/dx||_F^2 of the encoder f (not of the decoder), at each training point.
Adds to the autoencoder: that penalty; exact where the encoder knows its own Jacobian (one sigmoid layer), else
estimated from random projections of it.
Departs: Adam; inputs are in [-1, 1], where the Jacobian is half of what it is in [0, 1]: the paper's lambda is a
quarter of ``weight``. With untied weights the encoder can shrink and the decoder grow, which lowers the penalty and
changes nothing else: model/net=tied_sigmoid forbids it, deeper networks do not.
Checked by: tests/test_autoencoders.py (closed form against autograd's Jacobian, mean of the estimate, refusals).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.objectives.autoencoding import Pass
from gentrain.objectives.penalties import squared_gradient_norms


@runtime_checkable
class KnowsJacobian(Protocol):
    """An encoder with a closed form of ||df/dx||_F^2 [B] at x [B ...]."""

    def squared_jacobian(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Contraction:
    """``weight`` times the mean over samples of ||df/dx||_F^2, f the encoder's output, x what it was shown.

    Closed form for a ``KnowsJacobian``. Else the mean over ``probes`` draws v ~ N(0, I) of ||v^T df/dx||^2, whose
    expectation it is (Hutchinson's estimator), by one more pass through the encoder and one product each; an
    encoder that mixes the samples of a batch is refused. float32, autocast off.
    """

    weight: float
    probes: int = 1
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"model.regularisers: weight={self.weight} of the contraction: 0 or more")
        if self.probes < 1:
            raise UserError(f"model.regularisers: probes={self.probes} of the contraction: at least 1")

    def __call__(self, way: Pass) -> Tensor:
        return self.weight * self.squared_jacobian(way).mean()

    def squared_jacobian(self, way: Pass) -> Tensor:
        """||df/dx||_F^2 of each sample or its estimate [B], in squared units of the code per unit of the data."""
        x, encoder = way.seen.float(), way.encoder
        if isinstance(encoder, KnowsJacobian):
            with torch.autocast(x.device.type, enabled=False):
                return encoder.squared_jacobian(x)
        draws = [self._projected(way, torch.randn_like(way.output)) for _ in range(self.probes)]
        return torch.stack(draws).mean(0)

    @staticmethod
    def _projected(way: Pass, v: Tensor) -> Tensor:
        # A pass of its own: that of the reconstruction starts at data that ask for no gradient, and should stay so.
        return squared_gradient_norms(lambda x: way.encoder(x) * v, way.seen)
