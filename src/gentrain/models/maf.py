"""MAF: each number is shifted and scaled by what a masked network reads from those before it, in several orders.

Paper: Papamakarios, Pavlakou, Murray 2017, Masked Autoregressive Flow for Density Estimation, arXiv 1705.07057: eq. 3
to 5, section 3.1.
Adds to the flow family: zuko's masked affine layers; sampling takes one pass for each number.
Departs: actnorm between the layers for their batch normalisation; the log scale is softly clipped by zuko; images go
through the logit of RealNVP, with its alpha.
Checked by: tests/test_flows.py (inverse and Jacobian after training, the density of the ring), tests/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection, Chain
from gentrain.nets.flows.external import Autoregressive, alternating_orders, library
from gentrain.nets.flows.parts import ActNorm, Flatten, Logit
from gentrain.types import Spec


@dataclass(frozen=True)
class MAF:
    """``layers`` of networks with layers of ``hidden``. UserError without zuko."""

    layers: int = 5
    hidden: Sequence[int] = (128, 128)
    alpha: float = 1.0e-6

    def __post_init__(self) -> None:
        if self.layers < 1 or not self.hidden or any(width < 1 for width in self.hidden):
            raise UserError(f"model.net: layers={self.layers} hidden={list(self.hidden)}: 1 or more of each")

    def build(self, spec: Spec) -> Bijection:
        layer = library().flows.MaskedAutoregressiveTransform
        parts: list[Bijection] = [Logit(self.alpha), Flatten(spec.shape)] if spec.is_image else []
        for order in alternating_orders(spec.numel, self.layers):
            parts += [ActNorm(spec.numel), Autoregressive(layer(spec.numel, order=order, hidden_features=self.hidden))]
        return Chain(*parts)
