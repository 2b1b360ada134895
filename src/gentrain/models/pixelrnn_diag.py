"""PixelRNN with Diagonal BiLSTMs: a likelihood of pictures by recurrent layers that see all earlier pixels.

Paper: van den Oord et al. 2016, Pixel Recurrent Neural Networks, arXiv 1601.06759: section 3.2 and eq. 3 (the layer),
figure 5 and table 1 (the network).
Adds: the network of the family Autoregressive: a 7x7 convolution of mask A, residual Diagonal BiLSTM layers, two 1x1
layers. A step takes a diagonal, a column of the skewed map: the state of a pixel comes from its left and its upper
neighbour by a 2x1 convolution. A second LSTM runs over the mirrored map; its output moves down by one row before it is
added, else a pixel would see those to its right. The two together see the whole past.
Departs: Adam for RMSProp; the width of the hidden 1x1 layers is that of the layers; no skip connections to the output.
Only places inside the picture are computed, not the corners of the skewed map.
Checked by: tests/test_autoregressive.py (order, sums, walks), tests/test_pixelrnn.py (a loop over pixels, what each
direction sees, the second without its shift is caught).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import MaskedConv2d
from gentrain.nets.recurrent import RecurrentStack, lstm_step, require_sizes, scan, skew, uniform_state, unskew
from gentrain.types import Spec

ABOVE, BESIDE = 0, 1
"""Taps of the column convolution on the skewed map: the upper neighbour, and the pixel before in the same row."""


@dataclass(frozen=True)
class PixelRNNDiag:
    """``layers`` Diagonal BiLSTMs of ``width`` units for each colour with features of its own. ``kernel``: of the first
    convolution. UserError for vectors, even kernels and numbers below 1."""

    width: int
    layers: int
    kernel: int = 7

    def __post_init__(self) -> None:
        require_sizes({"width": self.width, "layers": self.layers, "kernel": self.kernel}, odd=("kernel",))

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        if condition:
            raise UserError("model.condition: this network takes none; gated_pixelcnn does")
        h = self.width * colours
        layers = [DiagonalBiLstm(h, colours) for _ in range(self.layers)]
        return RecurrentStack(spec.channels, h, layers, self.kernel, outputs, colours)


class DiagonalBiLstm(nn.Module):
    """[B 2h H W] -> [B h H W]."""

    def __init__(self, h: int, colours: int) -> None:
        super().__init__()
        self.input_to_state = MaskedConv2d(2 * h, 8 * h, 1, "B", colours, parts=8)
        self.state_to_state = uniform_state(2, 2, h)

    def forward(self, x: Tensor) -> Tensor:
        rightward, leftward = self.directions(x)
        # What the mirrored LSTM says at a pixel depends on those to its right: the row below may know it.
        shifted = F.pad(leftward[:-1], (0, 0, 0, 0, 0, 0, 1, 0))
        return (rightward + shifted).permute(2, 3, 0, 1)

    def directions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [H W B h] of the LSTM from left to right and of that from right to left, neither shifted."""
        _, _, height, width = x.shape
        rightward, leftward = self.input_to_state(x).permute(2, 3, 0, 1).chunk(2, dim=-1)  # [H W B 4h]
        gates = skew(torch.stack((rightward, leftward.flip(1)), dim=2))  # [H T 2 B 4h]
        spans = [(max(0, t - width + 1), min(t + 1, height)) for t in range(width + height - 1)]
        states = scan(gates.permute(1, 2, 0, 3, 4), self.state_to_state, before=1, spans=spans)
        rightward, leftward = unskew(states.permute(2, 0, 1, 3, 4)).unbind(2)
        return rightward, leftward.flip(1)

    def walk(self, batch: int, height: int, width: int) -> DiagonalBiLstmAt:
        return DiagonalBiLstmAt(self, batch, height, width)


class DiagonalBiLstmAt:
    """From left to right the states come with the pixels. From right to left those of a row need the whole row, and are
    first asked for in the row below: they are computed when that begins."""

    def __init__(self, layer: DiagonalBiLstm, batch: int, height: int, width: int) -> None:
        self._state = layer.state_to_state  # [2 2 h 4h]
        h = self._state.shape[2]
        convolution = layer.input_to_state
        matrices, biases = (convolution.weight * convolution.mask).flatten(1), cast("Tensor", convolution.bias)
        self._of_input = tuple(zip(matrices.chunk(2), biases.chunk(2), strict=True))
        new = self._state.new_zeros
        self._row = 0
        self._features = new(width, batch, 2 * h)
        self._rightward, self._cells = new(width + 1, batch, h), new(width + 1, batch, h)  # place 0: off the picture
        self._leftward = new(width, batch, h)  # of the row above
        self._above = new(width, batch, 4 * h)

    def at(self, features: Tensor, row: int, column: int) -> Tensor:
        if row != self._row:
            self._row = row
            self._above = self._rightward[1:] @ self._state[0, ABOVE]
            self._go_left()
        self._features[column] = features
        gates = F.linear(features, *self._of_input[0]) + self._above[column]
        gates = torch.addmm(gates, self._rightward[column], self._state[0, BESIDE])
        hidden, self._cells[column + 1] = lstm_step(gates, self._cells[column])
        self._rightward[column + 1] = hidden
        return hidden + self._leftward[column]

    def _go_left(self) -> None:
        """The mirrored LSTM over the row that is complete, all of whose inputs are kept."""
        gates = F.linear(self._features, *self._of_input[1]) + self._leftward @ self._state[1, ABOVE]
        hidden = cell = torch.zeros_like(self._leftward[0])
        for column in reversed(range(len(gates))):
            sums = torch.addmm(gates[column], hidden, self._state[1, BESIDE])
            hidden, cell = lstm_step(sums, cell)
            self._leftward[column] = hidden
