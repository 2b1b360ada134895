"""LSTMs whose state is a line of a picture: the scan over lines, skewed pictures, and a stack of such layers.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, arXiv 1601.06759: eq. 3 (the step), section 3.2 (skewing),
section 3.3 and table 1 (the stack). A step takes a whole line of pixels: a row, or a diagonal, which is a column of the
skewed picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import ConvolvedAt, MaskedConv2d, at_pixel, raster

Spans = Sequence[tuple[int, int]]

aten = torch.ops.aten


def require_sizes(sizes: Mapping[str, int], odd: Sequence[str]) -> None:
    """UserError for one of ``model.net``'s numbers below 1, or even where it is in ``odd``."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"model.net.{name}={value}: at least 1")
        if name in odd and value % 2 == 0:
            raise UserError(f"model.net.{name}={value}: an odd number, it has a middle")


def uniform_state(d: int, taps: int, h: int) -> nn.Parameter:
    """Weights [d taps h 4h] of ``scan``, uniform in the range of torch's convolutions."""
    bound = (taps * h) ** -0.5
    return nn.Parameter(torch.empty(d, taps, h, 4 * h).uniform_(-bound, bound))


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state and cell [... h] after one step (eq. 3), from the sums [... 4h] that the gates o, f, i and the
    content g are made of, in this order, and the cell before."""
    o, f, i = gates[..., : -cell.shape[-1]].sigmoid().chunk(3, dim=-1)
    cell = torch.addcmul(f * cell, i, gates[..., -cell.shape[-1] :].tanh())
    return o * cell.tanh(), cell


def scan(gates: Tensor, weight: Tensor, before: int, spans: Spans | None = None) -> Tensor:
    """Hidden states [T D N B h] of ``D`` LSTMs side by side over T lines of N places, from a zero state.

    ``gates`` [T D N B 4h]: the input's part of the sums. ``weight`` [D K h 4h]: the state-to-state convolution, whose
    tap k reads place n + k - ``before`` of the line before; zeros lie beyond its ends. ``spans``: places lo .. hi-1
    that line t has, neither falling with t; states elsewhere are zero. Computed in the weight's precision.
    """
    gates = gates.to(weight.dtype)
    if spans is None:
        spans = [(0, gates.shape[2])] * len(gates)
    with torch.autocast(gates.device.type, enabled=False):
        if torch.is_grad_enabled() and (gates.requires_grad or weight.requires_grad):
            return cast("Tensor", _Scan.apply(gates, weight, before, spans))
        return _forward(gates, weight, before, spans, keep=False)[0][1:, :, before : before + gates.shape[2]]


def _forward(gates: Tensor, weight: Tensor, before: int, spans: Spans, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [T+1 D N+K-1 B h] with the zeros around them, gates after their activation [T D N B 4h] and cells
    [T+1 D N B h]; of the last two only what the last line needs unless ``keep``."""
    lines, d, n, b, width = gates.shape
    h, taps = width // 4, weight.shape[1]
    hidden = gates.new_empty(lines + 1, d, n + taps - 1, b, h)
    cells = gates.new_empty(lines + 1 if keep else 1, d, n, b, h)
    active = gates.new_empty(lines if keep else 1, d, n, b, width)
    hidden[0], cells[0] = 0.0, 0.0
    for t, (lo, hi) in enumerate(spans):
        here = active[t if keep else 0, :, lo:hi]
        here.copy_(gates[t, :, lo:hi])
        if t:
            sums = here.view(d, -1, width)
            for k in range(taps):
                sums.baddbmm_(hidden[t, :, lo + k : hi + k].view(d, -1, h), weight[:, k])
        here[..., : 3 * h].sigmoid_()
        here[..., 3 * h :].tanh_()
        o, f, i, g = here.chunk(4, dim=-1)
        hidden[t + 1, :, : before + lo], hidden[t + 1, :, before + hi :] = 0.0, 0.0
        cells[t + 1 if keep else 0, :, hi:] = 0.0  # places that a later line begins with
        cell = cells[t + 1 if keep else 0, :, lo:hi]
        torch.mul(f, cells[t if keep else 0, :, lo:hi], out=cell).addcmul_(i, g)
        torch.mul(o, cell.tanh(), out=hidden[t + 1, :, before + lo : before + hi])
    return hidden, active, cells


class _Scan(torch.autograd.Function):
    """The scan with its gradient written out: what autograd would record of every line is kept once, in place."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, before: int, spans: Spans) -> Tensor:
        hidden, active, cells = _forward(gates, weight, before, spans, keep=True)
        ctx.save_for_backward(weight, hidden, active, cells)
        ctx.before, ctx.spans = before, spans
        return hidden[1:, :, before : before + gates.shape[2]]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, hidden, active, cells = ctx.saved_tensors
        before, h, taps = ctx.before, weight.shape[2], weight.shape[1]
        d = len(weight)
        sums = torch.empty_like(active)
        of_weight = torch.zeros_like(weight)
        of_hidden, of_cell = torch.zeros_like(hidden[0]), torch.zeros_like(cells[0])  # from the line behind
        backwards = weight.transpose(2, 3).contiguous()
        for t in reversed(range(len(active))):
            lo, hi = ctx.spans[t]
            here, to = active[t, :, lo:hi], sums[t, :, lo:hi]
            sums[t, :, :lo], sums[t, :, hi:] = 0.0, 0.0
            o, f, i, g = here.chunk(4, dim=-1)
            to_o, to_f, to_i, to_g = to.chunk(4, dim=-1)
            squashed = cells[t + 1, :, lo:hi].tanh()
            of_output = grad[t, :, lo:hi] + of_hidden[:, before + lo : before + hi]
            through = aten.tanh_backward(of_output * o, squashed).add_(of_cell[:, lo:hi])
            torch.mul(of_output, squashed, out=to_o)
            torch.mul(through, cells[t, :, lo:hi], out=to_f)
            torch.mul(through, g, out=to_i)
            torch.mul(through, i, out=to_g)
            torch.mul(through, f, out=of_cell[:, lo:hi])
            gated = to[..., : 3 * h]
            aten.sigmoid_backward.grad_input(gated, here[..., : 3 * h], grad_input=gated)
            aten.tanh_backward.grad_input(to_g, g, grad_input=to_g)
            if not t:
                break
            flat = to.view(d, -1, 4 * h)
            of_hidden.zero_()
            for k in range(taps):
                of_hidden[:, lo + k : hi + k].view(d, -1, h).baddbmm_(flat, backwards[:, k])
                of_weight[:, k].baddbmm_(hidden[t, :, lo + k : hi + k].view(d, -1, h).transpose(1, 2), flat)
        return sums, of_weight, None, None


def skew(x: Tensor) -> Tensor:
    """[H W ...] -> [H W+H-1 ...]: row r moved r places to the right, zeros around it. Column t holds the places whose
    row and column add up to t."""
    h, w = x.shape[:2]
    padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, h))  # rows of W+H, cut anew into rows one shorter
    return padded.flatten(0, 1)[:-h].unflatten(0, (h, w + h - 1))  # type: ignore[no-untyped-call, no-any-return]


def unskew(x: Tensor) -> Tensor:
    """[H W+H-1 ...] -> [H W ...]: what ``skew`` made of it, undone."""
    h, columns = x.shape[:2]
    padded = F.pad(x.flatten(0, 1), (0, 0) * (x.dim() - 2) + (0, h))
    return padded.unflatten(0, (h, columns + 1))[:, : columns + 1 - h]  # type: ignore[no-untyped-call, no-any-return]


class LayerAt(Protocol):
    """A layer on a walk over pictures, with its states so far."""

    def at(self, features: Tensor, row: int, column: int) -> Tensor:
        """Its output [B h] at a pixel from its input there [B 2h]; pixels in raster order, each at least once."""
        ...


class Recurrent(Protocol):
    """A layer [B 2h H W] -> [B h H W] that can be walked."""

    def walk(self, batch: int, height: int, width: int) -> LayerAt: ...


class RecurrentStack(nn.Module):
    """[B C H W] in [-1, 1] -> [B outputs H W]: a convolution of mask A to 2 ``width`` features, ``layers``, the output
    of each brought back to 2 ``width`` by a 1x1 convolution and added to its input, and two 1x1 convolutions."""

    def __init__(
        self, channels: int, width: int, layers: Sequence[nn.Module], kernel: int, outputs: int, colours: int
    ) -> None:
        super().__init__()
        self.first = MaskedConv2d(channels, 2 * width, kernel, "A", colours)
        self.layers = nn.ModuleList(layers)
        self.wide = nn.ModuleList(MaskedConv2d(width, 2 * width, 1, "B", colours) for _ in layers)
        self.hidden = MaskedConv2d(2 * width, 2 * width, 1, "B", colours)
        self.last = MaskedConv2d(2 * width, outputs, 1, "B", colours)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        # Features of a pixel side by side: a line of pixels is then copied in long runs.
        features = self.first(x).contiguous(memory_format=torch.channels_last)
        for layer, wide in zip(self.layers, self.wide, strict=True):
            features = features + wide(layer(features).contiguous(memory_format=torch.channels_last))
        output: Tensor = self.last(F.relu(self.hidden(F.relu(features))))
        return output

    def walk(self, x: Tensor, condition: Tensor | None = None) -> RecurrentWalk:
        return RecurrentWalk(self, x)


class RecurrentWalk:
    """Features and states of each pixel are computed once, when its turn comes (a ``Walk``)."""

    def __init__(self, net: RecurrentStack, x: Tensor) -> None:
        batch, _, height, width = x.shape
        self.places = raster(height, width)
        self._first = ConvolvedAt(net.first, batch, height, width)
        self.x = self._first.inputs
        self.x.copy_(x)
        self._layers = [
            (cast("Recurrent", layer).walk(batch, height, width), at_pixel(cast("MaskedConv2d", wide)))
            for layer, wide in zip(net.layers, net.wide, strict=True)
        ]
        self._hidden, self._last = at_pixel(net.hidden), at_pixel(net.last)

    def at(self, step: int) -> Tensor:
        row, column = self.places[step]
        features = self._first.at(row, column)
        for layer, wide in self._layers:
            features = features + wide(layer.at(features, row, column))
        return self._last(torch.relu(self._hidden(torch.relu(features))))
