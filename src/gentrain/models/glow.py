"""Glow: steps of actnorm, an invertible 1x1 convolution and a coupling, at several scales.

Paper: Kingma and Dhariwal 2018, Glow: Generative Flow with Invertible 1x1 Convolutions, arXiv 1807.03039: sections 3.1
to 3.3, table 1, and the authors' release where it says more (the sigmoid of the scale, the learned split and top, the
scaled zero convolutions).
Adds to the flow family: the step, which is all that stands here; its parts are those of ``nets.flows``.
Departs: what is put aside at a scale leaves as noise, so that all codes but the top are N(0, I); odd sizes are no
problem where the side can be halved ``levels`` times (28 pixels: twice); no edge channel in the zero convolutions;
actnorm takes its first values from the first batch, of the run's own size; on request a logit in front and a least
scale of the couplings, without which samples of a short run can overflow.
Checked by: tests/test_flow_parts.py and tests/test_flows.py (inverse and Jacobian after training, first values and
resumes, temperature, classes), tests/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection, Chain, float32, places
from gentrain.nets.flows.conditioners import GlowNet
from gentrain.nets.flows.couplings import Additive, HalfCoupling, Map, SigmoidAffine
from gentrain.nets.flows.multiscale import MultiScale, require_halvings
from gentrain.nets.flows.parts import ActNorm, Centre, InvertibleConvolution, Logit, Permutation, Squeeze, over_channels
from gentrain.nets.layers import choose
from gentrain.types import Spec

COUPLINGS: dict[str, Callable[[float], Map]] = {"affine": SigmoidAffine, "additive": lambda floor: Additive()}

MIXINGS: dict[str, Callable[[int], Bijection]] = {
    "lu": lambda channels: InvertibleConvolution(channels),
    "plain": lambda channels: InvertibleConvolution(channels, lu=False),
    "shuffle": lambda channels: Permutation(torch.randperm(channels)),
    "reverse": lambda channels: Permutation(torch.arange(channels).flip(0)),
}
"""How a step mixes the channels: by a 1x1 convolution, or by what figure 3 compares it with."""


class Step(Bijection):
    """Actnorm, mixing, coupling (figure 2a). Actnorm and the convolution are one linear map of the channels, and are
    computed as one."""

    def __init__(self, channels: int, width: int, mixing: str, coupling: str, floor: float = 0.0) -> None:
        super().__init__()
        self.norm, self.mixing = ActNorm(channels), MIXINGS[mixing](channels)
        transform = COUPLINGS[coupling](floor)
        kept, changed = HalfCoupling.sizes(channels)
        self.coupling = HalfCoupling(GlowNet(kept, transform.parameters_each * changed, width), transform)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mixed, first = self._mixed(x)
        z, second = self.coupling(mixed, c)
        return z, first + second

    def _mixed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm.initialising or not isinstance(self.mixing, InvertibleConvolution):
            normal, first = self.norm(x)
            mixed, second = self.mixing(normal)
            return mixed, first + second
        with float32(x):
            logs = self.norm.factor * self.norm.log_scale
            w, logdet = self.mixing.matrix()
            w = w * logs.exp()
            return over_channels(x, w, w @ self.norm.bias), (places(x) * (logdet + logs.sum())).expand(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.norm.inverse(self.mixing.inverse(self.coupling.inverse(z, c)))


@dataclass(frozen=True)
class Glow:
    """``levels`` L: scales; ``steps`` K: at each; ``width``: channels inside the couplings' networks. ``coupling``:
    affine or additive. ``mixing``: lu, plain, shuffle or reverse. ``alpha``: of the logit that pixels go through first,
    as RealNVP's; None: they are moved to [-1/2, 1/2) and no more. ``floor``: least scale of an affine coupling.
    UserError for vectors, and for sizes that cannot be halved ``levels`` times."""

    levels: int = 3
    steps: int = 32
    width: int = 512
    coupling: str = "affine"
    mixing: str = "lu"
    alpha: float | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        choose(COUPLINGS, self.coupling, "model.net.coupling")
        choose(MIXINGS, self.mixing, "model.net.mixing")
        if not 0.0 <= self.floor < 1.0:
            raise UserError(f"model.net.floor={self.floor}: 0 or more, and below 1")
        for name in ("levels", "steps", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least 1")

    def build(self, spec: Spec) -> Bijection:
        require_halvings(spec, self.levels, f"model.net.levels={self.levels}")
        channels, levels = spec.channels, []
        for _ in range(self.levels):
            channels *= 4
            steps = (Step(channels, self.width, self.mixing, self.coupling, self.floor) for _ in range(self.steps))
            levels.append(Chain(Squeeze(), *steps))
            channels //= 2
        first = Centre() if self.alpha is None else Logit(self.alpha)
        return Chain(first, MultiScale(levels, spec.shape, learned=True))
