"""Networks that see of a picture only what comes before each pixel: masked convolutions, and walks that keep what was
computed.

Order: rows from the top, in a row from the left, in a pixel R, G, B (van den Oord et al. 2016, arXiv 1601.06759). Where
a network ties the colours of a pixel by itself to nothing but earlier pixels (``colours=1``), they are the likelihood's
affair; else features come in as many groups as there are colours, side by side, and a group sees those of its own
colour and of colours before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.types import Spec


class Walk(Protocol):
    """A network on its way over pictures that are being made, pixel after pixel, with what it computed so far."""

    x: Tensor
    """[B C H W] in [-1, 1]: whoever walks writes each pixel before going on to the next."""

    places: Sequence[tuple[int, int]]
    """(row, column) of each pixel, in the order of the walk."""

    def at(self, step: int) -> Tensor:
        """The network's output [B C'] at ``places[step]``, as the whole network on ``x`` gives it there. Steps come in
        their order, each at least once; again after a colour of the same pixel was written."""
        ...


@runtime_checkable
class Causal(Protocol):
    """A network whose output at a pixel depends on earlier pixels alone, and on earlier colours of its own."""

    def __call__(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """[B C' H W] for x [B C H W] in [-1, 1] and ``condition``: [B K], or [B K H W] if it differs by place."""
        ...

    def walk(self, x: Tensor, condition: Tensor | None = None) -> Walk:
        """A walk over ``x`` [B C H W], whose values nobody asks for before they are written. It works on a copy,
        ``Walk.x``."""
        ...


class MakesCausal(Protocol):
    """A choice of such a network (``model/net``)."""

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        """A ``Causal`` module with ``outputs`` channels. ``colours``: groups of features, C or 1. ``condition``:
        channels of what it is told besides; 0: nothing. UserError for data that it cannot be built for."""
        ...


def raster(height: int, width: int) -> list[tuple[int, int]]:
    """Rows from the top, in a row from the left."""
    return [(row, column) for row in range(height) for column in range(width)]


class Recomputed:
    """The walk of any ``Causal`` network that keeps nothing: the whole network at every step. What cached walks are
    held against."""

    def __init__(self, net: Causal, x: Tensor, condition: Tensor | None, places: Sequence[tuple[int, int]]) -> None:
        self.x, self.places = x.clone(), places
        self._net, self._condition = net, condition

    def at(self, step: int) -> Tensor:
        row, column = self.places[step]
        return self._net(self.x, self._condition)[:, :, row, column]


class MaskedConv2d(nn.Conv2d):
    """Convolution of an odd kernel that sees no later pixel; pictures keep their size.

    Kind ``A`` sees of its own pixel the colours before the output's, ``B`` that colour too. ``colours``: inputs and
    outputs come in so many groups; outputs in each of ``parts`` equal parts, for layers that are cut in two behind.
    Stored weights under the mask never matter.
    """

    mask: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        kind: Literal["A", "B"],
        colours: int = 1,
        parts: int = 1,
        bias: bool = True,
    ) -> None:
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__(inputs, outputs, (high, wide), padding=(high // 2, wide // 2), bias=bias)
        row, column = high // 2, wide // 2
        mask = torch.zeros(outputs, inputs, high, wide)
        mask[:, :, :row] = 1.0
        mask[:, :, row, :column] = 1.0
        out, into = group_of(outputs, colours, parts)[:, None], group_of(inputs, colours)[None, :]
        mask[:, :, row, column] = (out > into if kind == "A" else out >= into).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def group_of(channels: int, colours: int, parts: int = 1) -> Tensor:
    """Group 0 .. colours-1 of each channel, int64 [channels]: equal parts side by side, in each of ``parts`` parts.
    ValueError where they do not come out even."""
    if channels % (parts * colours):
        raise ValueError(f"{channels} channels do not split into {parts} x {colours}")
    return torch.arange(channels // parts).div(channels // parts // colours, rounding_mode="floor").repeat(parts)


class ConvolvedAt:
    """One masked convolution on a walk: a picture of its inputs with a margin, and its output at one pixel from those
    that the mask lets through. ``inputs`` [B F H W] is the view of it to write into."""

    def __init__(self, layer: MaskedConv2d, batch: int, height: int, width: int) -> None:
        high, wide = layer.kernel_size
        self._rows, self._columns = high // 2 + 1, wide
        self._padded = layer.weight.new_zeros(
            batch, layer.in_channels, height + high // 2, width + 2 * (wide // 2)
        )  # no later row is ever read
        self.inputs = self._padded[:, :, high // 2 :, wide // 2 : wide // 2 + width]
        weight = (layer.weight * layer.mask)[:, :, : self._rows]  # [F' F k' k]
        self._weight, self._bias = weight.flatten(1).t().contiguous(), layer.bias

    def at(self, row: int, column: int) -> Tensor:
        """[B F']."""
        seen = self._padded[:, :, row : row + self._rows, column : column + self._columns].flatten(1)
        return seen @ self._weight if self._bias is None else torch.addmm(self._bias, seen, self._weight)


def at_pixel(layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """A 1x1 convolution (its mask taken in) as a function of the features of one pixel [B F] -> [B F']."""
    weight = layer.weight * layer.mask if isinstance(layer, MaskedConv2d) else layer.weight
    matrix, bias = weight.flatten(1), layer.bias
    return lambda features: F.linear(features, matrix, bias)
