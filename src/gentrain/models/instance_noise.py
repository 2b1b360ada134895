"""Instance noise: Gaussian noise on all that a critic sees, less and less of it.

Paper: Sonderby, Caballero, Theis, Shi and Huszar 2017, "Amortised MAP Inference for Image Super-resolution", arXiv
1610.04490, section on instance noise; Arjovsky and Bottou 2017, "Towards Principled Methods for Training Generative
Adversarial Networks", arXiv 1701.04862, section 3.
Adds: a view. Two distributions on thin sets hardly overlap, and a critic tells them apart without fail; with noise on
both their supports are one.
Departs: the decay is linear in the iteration and ends at a fraction of the run; the papers leave its form open.
Checked by: tests/test_views.py (the standard deviation over the run, separate draws, resume).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.game import Verdict
from gentrain.types import Spec


@dataclass(frozen=True)
class InstanceNoise:
    """Adds N(0, s^2) with s falling linearly from ``sd`` (in units of [-1, 1]) to 0 over the fraction ``until`` of the
    run. A pure function of the iteration, so a resumed run needs no counter. UserError for other values."""

    sd: float = 0.1
    until: float = 0.5

    def __post_init__(self) -> None:
        if not self.sd >= 0:
            raise UserError(f"model.views: instance noise of sd={self.sd}: 0 or more")
        if not 0 < self.until <= 1:
            raise UserError(f"model.views: instance noise until={self.until} of the run: above 0 and at most 1")

    def require(self, spec: Spec) -> None:
        """Any data will do."""

    def deviation(self, iteration: int, total: int) -> float:
        """s in an iteration; 1 is the first."""
        return self.sd * max(0.0, 1.0 - (iteration - 1) / max(self.until * total, 1.0))

    def __call__(self, x: Tensor, iteration: int, total: int) -> Tensor:
        s = self.deviation(iteration, total)
        return x + s * torch.randn_like(x) if s > 0 else x

    def learn(self, on_real: Verdict) -> Mapping[str, Tensor]:
        """Nothing: it goes by the clock."""
        return {}
