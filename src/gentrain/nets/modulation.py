"""Normalisation whose gain and bias depend on a condition, and the network that hands the condition to it.

Conditional batch normalisation: de Vries et al. 2017, arXiv 1707.00683; per class in a generator: Miyato and Koyama
2018, arXiv 1802.05637; through one embedding for all layers: Brock et al. 2019, arXiv 1809.11096, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MakeNorm = Callable[[int], list[nn.Module]]
"""Channels to the layers of a normalisation; none is an empty list."""


class Conditional(nn.Module):
    """Base of layers whose forward takes a condition: (x, c)."""


class ConditionalSequential(nn.Sequential):
    """Layers one after the other: (x, c [B condition]) -> x; c goes to those that are ``Conditional``."""

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, c: Tensor | None) -> Tensor: ...
    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, c) if isinstance(layer, Conditional) else layer(x)
        return x


class Table(nn.Module):
    """One-hot c [B K] -> its row [B outputs] of a table that starts at 0.

    No layer of torch's on purpose: spectral norm and orthogonal regularisation, which are for maps between features,
    pass it by (a table of zeros has no largest singular value to divide by)."""

    def __init__(self, classes: int, outputs: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(classes, outputs))

    def forward(self, c: Tensor) -> Tensor:
        return c @ self.rows


class ClassVectors(nn.Module):
    """Labels int64 [B] -> learned vectors [B width], from N(0, 1).

    A generator's input rather than a map between its features: no ``nn.Embedding``, so that spectral norm and
    orthogonal regularisation pass it by, as in BigGAN."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(classes, width))

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.vectors)


class ConditionalBatchNorm2d(Conditional):
    """Batch norm of x [B C H W] with gain 1 + A c and bias B c for c [B condition].

    ``one_hot``: c is a one-hot label, and A and B are tables that start at 0: gain 1 and bias 0 for each class.
    Otherwise they are linear layers without bias, for the network to initialise."""

    def __init__(self, channels: int, condition: int, *, one_hot: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.shift = (
            Table(condition, channels) if one_hot else nn.Linear(condition, channels, bias=False) for _ in range(2)
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h: Tensor = self.norm(x)
        gain = (1.0 + self.gain(c).float()).to(h.dtype)  # the sum in float32: bfloat16 has steps of 0.008 at 1
        return torch.addcmul(self.shift(c).to(h.dtype)[..., None, None], gain[..., None, None], h)


def modulated(condition: int, *, one_hot: bool) -> MakeNorm:
    """The normalisation of a network whose condition has so many numbers."""
    return lambda channels: [ConditionalBatchNorm2d(channels, condition, one_hot=one_hot)]
