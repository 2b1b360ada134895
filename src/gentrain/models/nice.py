"""NICE: additive couplings between the numbers at even and at odd places, and one scale for each code.

Paper: Dinh, Krueger, Bengio 2015, NICE: Non-linear Independent Components Estimation, arXiv 1410.8516: eq. 3 (density),
section 3.2 (additive couplings), section 3.3 (scaling), section 3.4 (logistic prior).
Adds to the flow family: dense additive couplings; parts that stand in ``nets.flows``.
Departs: Adam's own decay rates; images are taken to [-1/2, 1/2); no whitening of colour images; the couplings' last
layers start at 0.
Checked by: tests/test_flow_parts.py and tests/test_flows.py (inverse and Jacobian after training),
tests/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection, Chain
from gentrain.nets.flows.conditioners import dense
from gentrain.nets.flows.couplings import Additive, HalfCoupling
from gentrain.nets.flows.parts import Centre, Flatten, Permutation, Scaling
from gentrain.types import Spec


@dataclass(frozen=True)
class NICE:
    """``couplings``: how many, by turns; ``hidden``: widths of each one's network. UserError for fewer than 2 (a half
    would stay as it is) and for data of one number."""

    couplings: int = 4
    hidden: Sequence[int] = (1000, 1000, 1000, 1000, 1000)

    def __post_init__(self) -> None:
        if self.couplings < 2:
            raise UserError(f"model.net.couplings={self.couplings}: at least 2, one for each half")
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.net.hidden needs widths of 1 or more, got {list(self.hidden)}")

    def build(self, spec: Spec) -> Bijection:
        d = spec.numel
        if d < 2:
            raise UserError("model=nice: samples of one number have no halves; use model=maf")
        places = torch.arange(d)
        parts: list[Bijection] = [Centre(), Flatten(spec.shape)] if spec.is_image else []
        parts.append(Permutation(torch.cat([places[::2], places[1::2]])))
        for number in range(self.couplings):
            # Sizes differ where d is odd: the half that stays is the smaller one.
            kept, changed = HalfCoupling.sizes(d)
            parts.append(HalfCoupling(dense(kept, changed, self.hidden), Additive(), swapped=number % 2 == 1))
        return Chain(*parts, Scaling(d))
