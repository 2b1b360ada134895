"""Convolutions that see rows above and columns to the left by shifting the picture instead of masking the kernel, with
normalised weights (Salimans et al. 2017, arXiv 1701.05517, section 2; Salimans and Kingma 2016, arXiv 1602.07868).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.nets.causal import MaskedConv2d
from gentrain.nets.first_batch import FirstBatch

Pad = tuple[int, int, int, int]
"""Zeros left, right, above, below; a negative number crops."""

DOWN: Pad = (1, 1, 1, 0)
"""Of a 2x3 kernel: the pixel's own row and the one above, a column to either side."""

DOWN_RIGHT: Pad = (1, 0, 1, 0)
"""Of a 2x2 kernel: the pixel, its left and upper neighbours, and the one between them."""


class Normed(FirstBatch, ABC):
    """Weights g v / |v| (arXiv 1602.07868, eq. 2), a length g for each output, and biases; the first batch makes the
    outputs' mean 0 and their standard deviation ``scale`` (section 3). An output that the batch does not vary (a row
    that sees padding alone) keeps its length."""

    def __init__(self, shape: tuple[int, ...], *, scale: float = 1.0, output_dim: int = 0) -> None:
        super().__init__()
        self.v = nn.Parameter(0.05 * torch.randn(shape))
        self.g = nn.Parameter(torch.full((shape[output_dim],), scale))
        self.bias = nn.Parameter(torch.zeros(shape[output_dim]))
        self.scale, self.output_dim = scale, output_dim

    def weight(self) -> Tensor:
        rest = [dim for dim in range(self.v.ndim) if dim != self.output_dim]
        length = self.v.square().sum(rest, keepdim=True).sqrt()
        return self.v * (self.g.view_as(length) / length)

    def normed(self, x: Tensor, sides: tuple[int, int] | None = None) -> Tensor:
        """What ``applied`` makes of x with these weights."""
        made = self.applied(x, self.weight(), self.bias, sides)
        if not self.initialising:
            return made
        spread, mean = torch.std_mean(made.float(), dim=(0, *range(2, made.ndim)), correction=0)
        factor = torch.where(spread > 1e-3 * self.scale, self.scale / spread, torch.ones_like(spread))
        with torch.no_grad():
            self.bias.sub_(mean).mul_(factor)
            self.g.mul_(factor)
        return self.applied(x, self.weight(), self.bias, sides)

    @abstractmethod
    def applied(self, x: Tensor, weight: Tensor, bias: Tensor, sides: tuple[int, int] | None) -> Tensor:
        """The layer with these weights; ``sides``: of the output, for one that doubles them."""


class ShiftedConv2d(Normed):
    """[B F H W] -> [B F' H' W']; with ``stride`` 2 sides are halved, rounded up."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int] = (1, 1),
        pad: Pad = (0, 0, 0, 0),
        *,
        stride: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__((outputs, inputs, *kernel), scale=scale)
        self.pad, self.stride = pad, stride

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(x)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor, sides: tuple[int, int] | None) -> Tensor:
        if any(self.pad):
            x = F.pad(x, self.pad)
        return F.conv2d(x, weight, bias, stride=self.stride)


class ShiftedDoubling(Normed):
    """[B F H W] -> [B F' H' W'] of sides twice as large, or one less: a transposed convolution of stride 2. Row i and
    column j reach rows 2i, 2i+1 and, of a kernel ``wide`` columns wide, columns 2j, 2j+1 (2) or 2j-1 .. 2j+1 (3)."""

    def __init__(self, inputs: int, outputs: int, wide: int) -> None:
        super().__init__((inputs, outputs, 2, wide), output_dim=1)
        self.left = (wide - 1) // 2

    def forward(self, x: Tensor, sides: tuple[int, int]) -> Tensor:
        return self.normed(x, sides)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor, sides: tuple[int, int] | None) -> Tensor:
        assert sides is not None
        made = F.conv_transpose2d(x, weight, bias, stride=2)
        return made[:, :, : sides[0], self.left : self.left + sides[1]]


def concat_elu(x: Tensor) -> Tensor:
    """[B F ...] -> [B 2F ...]: ELU of x and of -x."""
    return F.elu(torch.cat([x, -x], dim=1))


class GatedBlock(nn.Module):
    """x + a sigmoid(b), a and b from two convolutions with ``side`` features [B S H W] added between them (arXiv
    1701.05517, section 2.4 and 2.5, figure 2). Inputs are told beside their ``concat_elu``."""

    def __init__(self, width: int, side: int, condition: int, dropout: float, *, wide: int) -> None:
        super().__init__()
        kernel, pad = (2, wide), DOWN if wide == 3 else DOWN_RIGHT
        self.first = ShiftedConv2d(2 * width, width, kernel, pad)
        self.side = ShiftedConv2d(side, width) if side else None
        self.second = ShiftedConv2d(2 * width, 2 * width, kernel, pad, scale=0.1)
        self.told = nn.Linear(condition, 2 * width, bias=False) if condition else None
        self.dropout = dropout
        if self.told is not None:
            nn.init.normal_(self.told.weight, std=0.05)

    def forward(self, x: Tensor, seen: Tensor, side: Tensor | None, condition: Tensor | None) -> Tensor:
        """``x`` [B F H W], ``seen`` = concat_elu(x), ``condition`` [B K H W] or [B K 1 1]."""
        inner = self.first(seen)
        if self.side is not None:
            inner = inner + self.side(side)
        both = self.second(F.dropout(concat_elu(inner), self.dropout, self.training))
        return self.gated(x, both, condition)

    def gated(self, x: Tensor, both: Tensor, condition: Tensor | None) -> Tensor:
        """``both`` [B 2F ...] behind the second convolution, and ``condition`` [B K ...] alike."""
        if self.told is not None:
            assert condition is not None
            both = both + self.told(condition.movedim(1, -1)).movedim(-1, 1)
        a, b = both.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)


class ColouredHead(nn.Module):
    """Features of earlier pixels and the pixel's own earlier colours to the output: what a head of several groups
    (``PixelHead.colours``) needs behind features that no group owns."""

    def __init__(self, features: int, width: int, outputs: int, colours: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(features, width * colours, 1)
        self.own = MaskedConv2d(colours, width * colours, 1, "A", colours, bias=False)
        self.last = MaskedConv2d(width * colours, outputs, 1, "B", colours)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """[B outputs H W] for features [B F H W] and x [B C H W]."""
        return cast("Tensor", self.last(F.elu(self.features(features) + self.own(x))))


# ---------------------------------------------------------------- on a walk


class RowConvolved:
    """A 2x3 convolution row by row: it keeps the row before. Rows are [B F W]."""

    def __init__(self, layer: ShiftedConv2d, batch: int, width: int) -> None:
        self._weight, self._bias, self._stride = layer.weight(), layer.bias, layer.stride
        self._rows = self._weight.new_zeros(batch, self._weight.shape[1], 2, width + 2)

    def put(self, row: Tensor) -> None:
        self._rows[:, :, 0] = self._rows[:, :, 1]
        self._rows[:, :, 1, 1:-1] = row

    def made(self) -> Tensor:
        """From the last two rows."""
        return F.conv2d(self._rows, self._weight, self._bias, stride=self._stride)[:, :, 0]


class PixelConvolved:
    """A 2x2 convolution pixel by pixel: it keeps the row before and the row so far. Pixels are [B F]."""

    def __init__(self, layer: ShiftedConv2d, batch: int, width: int) -> None:
        weight = layer.weight()
        self._weight, self._bias = weight.permute(2, 3, 1, 0).flatten(0, 2), layer.bias
        self._rows = weight.new_zeros(batch, 2, width + 1, weight.shape[1])

    def next_row(self) -> None:
        self._rows[:, 0] = self._rows[:, 1]

    def put(self, column: int, pixel: Tensor) -> None:
        self._rows[:, 1, column + 1] = pixel

    def made(self, column: int) -> Tensor:
        return torch.addmm(self._bias, self._rows[:, :, column : column + 2].flatten(1), self._weight)


class RowBlock:
    """A ``GatedBlock`` of the stream of rows above."""

    def __init__(self, block: GatedBlock, batch: int, width: int) -> None:
        self._first, self._second = (RowConvolved(layer, batch, width) for layer in (block.first, block.second))
        self._side, self._gated = block.side, block.gated

    def row(self, x: Tensor, seen: Tensor, side: Tensor | None, condition: Tensor | None) -> Tensor:
        self._first.put(seen)
        inner = self._first.made()
        if self._side is not None and side is not None:
            inner = inner + self._side(side[:, :, None])[:, :, 0]
        self._second.put(concat_elu(inner))
        return self._gated(x, self._second.made(), condition)


class PixelBlock:
    """A ``GatedBlock`` of the other stream, whose ``side`` holds the stream of rows above and then, on the way up, a
    short-cut of its own."""

    def __init__(self, block: GatedBlock, batch: int, width: int) -> None:
        self._first, self._second = (PixelConvolved(layer, batch, width) for layer in (block.first, block.second))
        self._gated = block.gated
        assert block.side is not None
        weight, above = block.side.weight().flatten(1), block.first.v.shape[1]
        self._above, self._short_cut, self._bias = weight[:, :above], weight[:, above:].t(), block.side.bias
        self._from_above = weight.new_zeros(())

    def next_row(self, seen_above: Tensor) -> None:
        """With the row [B 2F W] of the stream of rows above."""
        self._first.next_row()
        self._second.next_row()
        self._from_above = F.linear(seen_above.transpose(1, 2), self._above, self._bias)  # [B W F]

    def at(self, column: int, x: Tensor, seen: Tensor, short_cut: Tensor | None, condition: Tensor | None) -> Tensor:
        self._first.put(column, seen)
        inner = self._first.made(column) + self._from_above[:, column]
        if short_cut is not None:
            inner = inner + short_cut @ self._short_cut
        self._second.put(column, concat_elu(inner))
        return self._gated(x, self._second.made(column), condition)
