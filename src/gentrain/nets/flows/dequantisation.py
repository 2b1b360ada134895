"""Noise that makes a density of the levels of pixels, and the bound on their probability that comes of it.

Of levels k = 0 .. n-1 and u in [0, 1), y = (k + u) / n has a density p on [0, 1), and by Jensen's inequality
log P(k) >= E_q[log p(y) - log q(u | k)] - D log n (Theis et al. 2016, arXiv 1511.01844, section 3.1; Ho et al. 2019,
arXiv 1902.00275, eq. 12). Equality would need q to be the model's own distribution within the level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.flows.base import log_normal
from gentrain.nets.flows.bijection import Chain
from gentrain.nets.flows.conditioners import ZeroConvolution
from gentrain.nets.flows.couplings import CheckerboardCoupling, TanhAffine
from gentrain.nets.flows.parts import Sigmoid
from gentrain.types import Spec


class Dequantiser(nn.Module, ABC):
    """``bits``: pixels keep so many of their eight."""

    kind: Literal["uniform", "variational"]

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.levels = bits, 2**bits

    @abstractmethod
    def noise(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """u in [0, 1) of the shape of the levels k, float32 [B C H W], and log q(u | k) [B] nats."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y float32 [B C H W] in [0, 1) for x uint8, and what log p(y) is to be lessened by, [B] nats."""
        k = self.level(x)
        u, nats = self.noise(k)
        return (k + u) / self.levels, nats + k[0].numel() * math.log(self.levels)

    def level(self, x: Tensor) -> Tensor:
        """float32 0 .. 2^bits - 1 of uint8 x."""
        return (x >> (8 - self.bits)).float()

    def centre(self, x: Tensor) -> Tensor:
        """The middle of each pixel's level in [0, 1)."""
        y: Tensor = (self.level(x) + 0.5) / self.levels
        return y

    def pixels(self, y: Tensor) -> Tensor:
        """Levels in [-1, 1] for y [B C H W]; what lies outside [0, 1) has the level next to it. The gradient is that of
        the line through the levels, everywhere."""
        line = y * (2.0 * self.levels / (self.levels - 1))
        k = (y.detach() * self.levels).floor().clamp(0, self.levels - 1)
        signed: Tensor = k * (2.0 / (self.levels - 1)) - 1.0 + (line - line.detach())  # a 0 that has the gradient
        return signed


class UniformNoise(Dequantiser):
    """u ~ U[0, 1)."""

    kind: Literal["uniform", "variational"] = "uniform"

    def noise(self, k: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand_like(k), k.new_zeros(len(k))


class FlowNoise(Dequantiser):
    """u of a flow given the image: normal noise through checkerboard couplings that see features of the levels, and a
    sigmoid (Flow++, arXiv 1902.00275, section 3.1)."""

    kind: Literal["uniform", "variational"] = "variational"

    def __init__(self, bits: int, shape: tuple[int, ...], couplings: int, width: int) -> None:
        super().__init__(bits)
        channels = shape[0]
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()
        )
        parts = (
            CheckerboardCoupling(_net(channels, width), TanhAffine(channels), shape, number)
            for number in range(couplings)
        )
        self.flow = Chain(*parts, Sigmoid())

    def noise(self, k: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.randn_like(k)
        seen = self.features(k * (2.0 / (self.levels - 1)) - 1.0).float()
        u, logdet = self.flow(start, seen)
        return u.clamp(max=1.0 - 2.0**-12), log_normal(start) - logdet


def _net(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels + width, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 1),
        nn.SiLU(),
        ZeroConvolution(width, 2 * channels),
    )


class MakesDequantiser(Protocol):
    """A frozen recipe (a config target)."""

    def build(self, spec: Spec) -> Dequantiser: ...


@dataclass(frozen=True)
class Uniform:
    """``bits``: 1 .. 8; Glow's images of 256 pixels have 5."""

    bits: int = 8

    def __post_init__(self) -> None:
        _require_bits(self.bits)

    def build(self, spec: Spec) -> Dequantiser:
        return UniformNoise(self.bits)


@dataclass(frozen=True)
class Variational:
    """``couplings`` and ``width`` of the flow that makes the noise. UserError for fewer than 2 and 1."""

    bits: int = 8
    couplings: int = 4
    width: int = 32

    def __post_init__(self) -> None:
        _require_bits(self.bits)
        if self.couplings < 2 or self.width < 1:
            raise UserError(
                f"model.dequantisation: couplings={self.couplings} width={self.width}: at least 2 (one for each colour "
                "of the checkerboard) and 1"
            )

    def build(self, spec: Spec) -> Dequantiser:
        return FlowNoise(self.bits, spec.shape, self.couplings, self.width)


def _require_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise UserError(f"model.dequantisation.bits={bits}: images are stored with 8, so 1 .. 8")
