"""NSF: monotonic rational-quadratic splines whose knots a masked network reads from the numbers before.

Paper: Durkan, Bekasov, Murray, Papamakarios 2019, Neural Spline Flows, arXiv 1906.04032: section 3.1 and eq. 4, section
3.2 (coupling and autoregressive layers).
Adds to MAF: a spline in place of shift and scale, by zuko; ``passes`` of 2 make couplings, which sample in two passes.
Departs: one hidden network a layer with ReLU for their residual ones; actnorm and alternating orders for their random
permutations and LU layers; images go through the logit of RealNVP.
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
class NSF:
    """``layers`` of splines with ``bins`` on [-bound, bound], the identity outside; ``passes``: 2 for couplings, null
    for as many as there are numbers (autoregressive). UserError without zuko."""

    layers: int = 5
    hidden: Sequence[int] = (128, 128)
    bins: int = 8
    bound: float = 5.0
    passes: int | None = None
    alpha: float = 1.0e-6

    def __post_init__(self) -> None:
        if self.layers < 1 or not self.hidden or any(width < 1 for width in self.hidden):
            raise UserError(f"model.net: layers={self.layers} hidden={list(self.hidden)}: 1 or more of each")
        if self.bins < 2 or not self.bound > 0:
            raise UserError(f"model.net: bins={self.bins} bound={self.bound}: at least 2, and above 0")
        if self.passes is not None and self.passes < 2:
            raise UserError(f"model.net.passes={self.passes}: at least 2, or null")

    def build(self, spec: Spec) -> Bijection:
        zuko = library()
        d, bins = spec.numel, self.bins

        def spline(*knots: object) -> object:
            return zuko.transforms.MonotonicRQSTransform(*knots, bound=self.bound)

        parts: list[Bijection] = [Logit(self.alpha), Flatten(spec.shape)] if spec.is_image else []
        for order in alternating_orders(d, self.layers):
            layer = zuko.flows.MaskedAutoregressiveTransform(
                d,
                order=order,
                passes=self.passes,
                univariate=spline,
                shapes=[(bins,), (bins,), (bins - 1,)],
                hidden_features=self.hidden,
            )
            parts += [ActNorm(d), Autoregressive(layer)]
        return Chain(*parts)
