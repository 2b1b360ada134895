"""What an invertible part is, how parts are put one behind the other, and parts that start from the first batch.

Log-determinants are float32 under any precision. A network inside a part may run under autocast, and its output is made
float32 where it leaves it; elementwise arithmetic on float32 stays float32; a part that multiplies matrices itself
leaves autocast (``float32``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from gentrain.types import Spec


class Bijection(nn.Module, ABC):
    """x [B *] to z [B *'] of as many numbers, and back. ``c``: what the map may depend on besides, [B C' H W] or
    [B C'], the same both ways."""

    @abstractmethod
    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z, and log |det dz/dx| float32 [B] in nats."""

    @abstractmethod
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The x that ``forward`` makes z of."""


class MakesBijection(Protocol):
    """A frozen recipe (a config target) of a whole flow."""

    def build(self, spec: Spec) -> Bijection:
        """Images [B C H W] in [0, 1), or vectors [B D], to codes [B Z], Z = C*H*W or D. UserError for data that it
        cannot take."""
        ...


class Chain(Bijection):
    """Parts one behind the other."""

    def __init__(self, *parts: Bijection) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = torch.zeros(len(x), device=x.device)
        for part in self.parts:
            x, logdet = part(x, c)
            total = total + logdet
        return x, total

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        for part in reversed(self.parts):
            assert isinstance(part, Bijection)
            z = part.inverse(z, c)
        return z


def float32(x: Tensor) -> AbstractContextManager[object]:
    """Inside, autocast is off on x's device."""
    return torch.autocast(x.device.type, enabled=False)


def places(x: Tensor) -> int:
    """H*W of images [B C H W], 1 for vectors [B D]: how often a number for each channel counts."""
    return x[0, 0].numel()


def each_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] so that it broadcasts along the channels of x [B C *]."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def standardising(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bias and log scale, float32 [C] each, that bring the channels of x [B C *] to mean 0 and variance 1:
    (x + bias) * exp(log_scale)."""
    each = x.float().transpose(0, 1).flatten(1)  # [C B*]
    return -each.mean(1), -torch.log(each.std(1, correction=0) + 1e-6)
