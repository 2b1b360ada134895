"""Gated PixelCNN: PixelCNN without a blind spot, by a stack for the rows above and a stack for the row itself, both
with gates; conditional where it is told something (``model.condition``).

Paper: van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, arXiv 1606.05328: figure 2 and
eq. 2 (a layer), eq. 4 and 5 (what it is told).
Adds: the network of the family Autoregressive, and a walk that computes a row of the vertical stack at once and one
pixel of the horizontal one.
Departs: each horizontal layer also goes straight to the two 1x1 layers at the end, which is PixelRNN's way (arXiv
1601.06759); the first kernel is larger than the others, as there; links and residuals have no bias.
Checked by: tests/test_gated_pixelcnn.py, tests/test_autoregressive.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import MaskedConv2d, group_of, raster
from gentrain.types import Spec


@dataclass(frozen=True)
class GatedPixelCNN:
    """``layers`` layers of ``width`` features in each stack, kernels of ``kernel`` and in the first layer of ``first``
    pixels, ``hidden`` features in the 1x1 layer before the output. UserError for vectors, even kernels and numbers
    below 1."""

    width: int
    layers: int
    hidden: int
    kernel: int = 3
    first: int = 7

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("layers", 1), ("hidden", 1), ("kernel", 3), ("first", 3)):
            if getattr(self, name) < least:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least {least}")
        for name in ("kernel", "first"):
            if getattr(self, name) % 2 == 0:
                raise UserError(f"model.net.{name}={getattr(self, name)}: an odd number, it has a middle")

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        kernels = [self.first] + [self.kernel] * (self.layers - 1)
        # Each colour has its own share of the features.
        return TwoStacks(
            spec.channels, self.width * colours, self.hidden * colours, kernels, outputs, colours, condition
        )


class TwoStacks(nn.Module):
    """[B C H W] in [-1, 1] -> [B outputs H W]. ``condition`` [B K] or [B K H W] enters every gate; None: zeros."""

    def __init__(
        self, channels: int, width: int, hidden: int, kernels: list[int], outputs: int, colours: int, condition: int
    ) -> None:
        super().__init__()
        count = len(kernels)
        self.layers = nn.ModuleList(
            GatedLayer(width if i else channels, width, kernel, colours, condition, first=i == 0, last=i == count - 1)
            for i, kernel in enumerate(kernels)
        )
        # One matrix for the sum of all layers' skips.
        self.skips = MaskedConv2d(width * count, hidden, 1, "B")
        self.skips.mask.copy_(
            (group_of(hidden, colours)[:, None] >= group_of(width * count, colours, count))[..., None, None]
        )
        self.hidden = MaskedConv2d(hidden, hidden, 1, "B", colours)
        self.output = MaskedConv2d(hidden, outputs, 1, "B", colours)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        told = None if condition is None else as_map(condition)
        above, row, gated = x, x, []
        for layer in cast("list[GatedLayer]", self.layers):
            above, row, features = layer(above, row, told)
            gated.append(features)
        output: Tensor = self.output(F.relu(self.hidden(F.relu(self.skips(torch.cat(gated, dim=1))))))
        return output

    def walk(self, x: Tensor, condition: Tensor | None = None) -> GatedWalk:
        return GatedWalk(self, x, None if condition is None else as_map(condition))


class GatedLayer(nn.Module):
    """A layer of both stacks (figure 2). Kernels have only the taps that masks would leave: the k x k one the rows
    above and its own, which the horizontal stack sees one row later; the 1 x k one the columns to the left and its own.

    The first layer has no residual; in the last one nothing comes after either stack but the output.
    """

    def __init__(
        self, inputs: int, width: int, kernel: int, colours: int, condition: int, *, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.kernel, self.reach, self.last = kernel, kernel // 2, last
        # No mask of colours here: what it makes of a row is seen by the rows below alone.
        self.vertical = nn.Conv2d(inputs, 2 * width, (self.reach + 1, kernel))
        self.link = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.horizontal = LeftConv2d(inputs, 2 * width, self.reach + 1, colours, "A" if first else "B")
        self.across = None if first or last else MaskedConv2d(width, width, 1, "B", colours, bias=False)
        self.told_row = nn.Conv2d(condition, 2 * width, 1, bias=False) if condition else None
        self.told_above = nn.Conv2d(condition, 2 * width, 1, bias=False) if condition and not last else None

    def forward(self, above: Tensor, row: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of both stacks what goes to the next layer, and the gated features of the horizontal one."""
        wide = self.vertical(F.pad(above, (self.reach, self.reach, self.reach, 0)))
        # One row down: linked without it, a pixel would see its whole row.
        narrow = self.horizontal(row) + self.link(F.pad(wide, (0, 0, 1, -1)))
        if told is not None and self.told_row is not None:
            narrow = narrow + self.told_row(told)
        gated = gate(narrow)
        if self.last:
            return wide, gated, gated
        if told is not None and self.told_above is not None:
            wide = wide + self.told_above(told)
        onward = gated if self.across is None else row + self.across(gated)
        return gate(wide), onward, gated


class LeftConv2d(nn.Conv2d):
    """A row convolution of ``taps`` columns that end with the own one, of which it sees what the mask's kind says; rows
    keep their length. Outputs come in two parts of the colours' groups."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, taps: int, colours: int, kind: Literal["A", "B"]) -> None:
        super().__init__(inputs, outputs, (1, taps))
        out, into = group_of(outputs, colours, parts=2)[:, None], group_of(inputs, colours)
        mask = torch.ones_like(self.weight)
        mask[:, :, 0, -1] = (out > into if kind == "A" else out >= into).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (self.kernel_size[1] - 1, 0)), self.weight * self.mask, self.bias)


def gate(x: Tensor) -> Tensor:
    """[B F H W] = tanh(a) sigmoid(b), a and b the halves of [B 2F H W] (eq. 2)."""
    a, b = x.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def as_map(condition: Tensor) -> Tensor:
    """[B K 1 1] of [B K]; [B K H W] as it is."""
    return condition[:, :, None, None] if condition.ndim == 2 else condition


class GatedWalk:
    """The vertical stack computes a row of all pictures when the next one begins, the horizontal stack a pixel (a
    ``Walk``). Pictures and features lie with the channels last, so that what a kernel sees of a row is one piece of
    memory; all of it is multiplied in place. In the numbers of the weights, whatever autocast says."""

    def __init__(self, net: TwoStacks, x: Tensor, told: Tensor | None) -> None:
        batch, channels, height, width = x.shape
        self.places = raster(height, width)
        self._row = -1
        layers = cast("list[GatedLayer]", list(net.layers))
        self._told = None if told is None else told.detach().float().permute(0, 2, 3, 1)  # [B H|1 W|1 K]
        self._matrices = [_Matrices(layer) for layer in layers]
        features = self._matrices[0].width

        def zeros(*sides: int) -> Tensor:
            return torch.zeros(batch, *sides, device=x.device)

        reach = layers[0].reach
        self._picture = zeros(height + reach, width + 2 * reach, channels)
        self.x = self._picture[:, reach:, reach : reach + width].permute(0, 3, 1, 2)
        self.x.copy_(x)
        # Of each layer but the first: the last rows of the vertical stack's input, and this row of the horizontal's.
        self._above = [zeros(layer.reach + 1, width + 2 * layer.reach, features) for layer in layers[1:]]
        rows = [zeros((width + layer.reach) * features) for layer in layers[1:]]
        self._linked = [zeros(width, 2 * features) for _ in layers]
        self._inner = zeros(2 * features)
        self._halves = self._inner.chunk(2, dim=1)
        self._gated = zeros(len(layers) * features)
        parts = torch.split(self._gated, features, dim=1)
        # What is read and written at each column, cut out once: cutting costs as much as a small product.
        self._columns = []
        for column in range(width):
            steps = []
            for i, part in enumerate(parts):
                own = None if i == 0 else _cut(rows[i - 1], column + layers[i].reach, 1, features)
                seen = None if i == 0 else _cut(rows[i - 1], column, layers[i].reach + 1, features)
                onto = None if layers[i].last else _cut(rows[i], column + layers[i + 1].reach, 1, features)
                steps.append((self._matrices[i], self._linked[i][:, column], seen, own, part, onto))
            self._columns.append(steps)
        self._ends = [(_own(cast("Tensor", end.bias)), _matrix(end)) for end in (net.skips, net.hidden, net.output)]
        self._skipped, self._hidden = (zeros(len(bias)) for bias, _ in self._ends[:2])
        self._whole = self._picture.view(batch, -1)

    def at(self, step: int) -> Tensor:
        row, column = self.places[step]
        if row != self._row:
            with torch.autocast(self.x.device.type, enabled=False):
                self._begin(row)
        first, (a, b) = self._matrices[0], self._halves
        line, channels = self._picture.shape[2], self._picture.shape[3]
        start = (row + first.reach) * line + column
        pixels = _cut(self._whole, start, first.reach + 1, channels)
        for matrices, linked, seen, own, part, onto in self._columns[column]:
            torch.addmm(linked, pixels if seen is None else seen, matrices.horizontal, out=self._inner)
            torch.mul(a.tanh_(), b.sigmoid_(), out=part)
            if onto is None:
                continue
            if own is None or matrices.across is None:
                onto.copy_(part)
            else:
                torch.addmm(own, part, matrices.across, out=onto)
        skips, hidden, output = self._ends
        # Products with a place to go to are no affair of autocast.
        skipped = torch.addmm(skips[0], self._gated, skips[1], out=self._skipped).relu_()
        found = torch.addmm(hidden[0], skipped, hidden[1], out=self._hidden).relu_()
        return torch.addmm(output[0], found, output[1], out=found.new_empty(len(found), len(output[0])))

    def _begin(self, row: int) -> None:
        """Compute what the vertical stack makes of the row above, for this row."""
        self._row = row
        batch, width = len(self._picture), len(self._columns)
        rows = self._picture[:, max(row - 1, 0) : max(row - 1, 0) + self._matrices[0].reach + 1]
        for i, (matrices, linked) in enumerate(zip(self._matrices, self._linked, strict=True)):
            linked.copy_(self._heard(matrices.told_row, row) + matrices.bias)
            if row == 0:  # nothing lies above
                continue
            wide = torch.addmm(matrices.bias_above, _patches(rows, width, matrices.kernel), matrices.vertical)
            linked.view(-1, wide.shape[1]).addmm_(wide, matrices.link)
            if i + 1 == len(self._matrices):
                return
            wide.view(batch, width, -1).add_(self._heard(matrices.told_above, row - 1))
            wide[:, : wide.shape[1] // 2].tanh_()
            rows = self._above[i]
            for place in range(rows.shape[1] - 1):
                rows[:, place].copy_(rows[:, place + 1])
            reach = rows.shape[1] - 1
            rows[:, -1, reach : reach + width].copy_(F.glu(wide, 1).view(batch, width, -1))

    def _heard(self, matrix: Tensor | None, row: int) -> Tensor | float:
        """[B W|1 2F], or 0 where it is told nothing."""
        if self._told is None or matrix is None:
            return 0.0
        return self._told[:, row % self._told.shape[1]] @ matrix


class _Matrices:
    """Weights of a layer as matrices [inputs outputs]: inputs by row, column and channel."""

    def __init__(self, layer: GatedLayer) -> None:
        self.reach, self.kernel = layer.reach, layer.kernel
        self.vertical, self.link = _matrix(layer.vertical), _matrix(layer.link)
        self.horizontal = _matrix(layer.horizontal)
        self.across = None if layer.across is None else _matrix(layer.across)
        self.told_row = None if layer.told_row is None else _matrix(layer.told_row)
        self.told_above = None if layer.told_above is None else _matrix(layer.told_above)
        self.bias_above, self.bias = (_own(cast("Tensor", conv.bias)) for conv in (layer.vertical, layer.horizontal))
        self.width = self.link.shape[0] // 2


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().float()


def _matrix(layer: nn.Conv2d) -> Tensor:
    weight = _own(layer.weight)
    if isinstance(layer, (MaskedConv2d, LeftConv2d)):
        weight = weight * layer.mask
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def _cut(rows: Tensor, start: int, count: int, features: int) -> Tensor:
    """``count`` pixels from ``start`` of [B pixels*F]: a view [B count*F]."""
    return rows[:, start * features : (start + count) * features]


def _patches(rows: Tensor, width: int, kernel: int) -> Tensor:
    """What the kernel sees at each of ``width`` columns: rows [B R W' F] -> [B*W R*kernel*F]."""
    batch, high, _, features = rows.shape
    s = rows.stride()
    seen = rows.as_strided((batch, width, high, kernel * features), (s[0], s[2], s[1], 1), rows.storage_offset())
    return seen.reshape(batch * width, high * kernel * features)
