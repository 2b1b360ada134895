"""PixelRNN with Row LSTMs: a likelihood of pictures by recurrent layers that take a row of pixels per step.

Paper: van den Oord et al. 2016, Pixel Recurrent Neural Networks, arXiv 1601.06759: section 3.1 and eq. 3 (the layer),
figure 5 and table 1 (the network).
Adds: the network of the family Autoregressive: a 7x7 convolution of mask A, residual Row LSTM layers, two 1x1 layers.
The input's part of the gates is a 1xk convolution of mask B over the whole map; the state's part a 1xk convolution of
the row above, all of which is past. A layer sees a triangle above a pixel, k // 2 wider to either side with each row.
Departs: Adam for RMSProp; the width of the hidden 1x1 layers is that of the layers; no skip connections to the output.
Checked by: tests/test_autoregressive.py (order, sums, walks), tests/test_pixelrnn.py (a loop over pixels, triangle).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import ConvolvedAt, MaskedConv2d
from gentrain.nets.recurrent import RecurrentStack, lstm_step, require_sizes, scan, uniform_state
from gentrain.types import Spec


@dataclass(frozen=True)
class PixelRNNRow:
    """``layers`` Row LSTMs of ``width`` units for each colour with features of its own. ``kernel``: of the first
    convolution; ``reach``: k, of those in a layer. UserError for vectors, even kernels and numbers below 1."""

    width: int
    layers: int
    kernel: int = 7
    reach: int = 3

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "layers": self.layers, "kernel": self.kernel, "reach": self.reach}
        require_sizes(sizes, odd=("kernel", "reach"))

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        if condition:
            raise UserError("model.condition: this network takes none; gated_pixelcnn does")
        h = self.width * colours
        layers = [RowLstm(h, colours, self.reach) for _ in range(self.layers)]
        return RecurrentStack(spec.channels, h, layers, self.kernel, outputs, colours)


class RowLstm(nn.Module):
    """[B 2h H W] -> [B h H W]."""

    def __init__(self, h: int, colours: int, reach: int) -> None:
        super().__init__()
        self.input_to_state = MaskedConv2d(2 * h, 4 * h, (1, reach), "B", colours, parts=4)
        self.state_to_state = uniform_state(1, reach, h)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.input_to_state(x).permute(2, 3, 0, 1)  # [H W B 4h]
        states = scan(gates[:, None], self.state_to_state, before=self.state_to_state.shape[1] // 2)
        return states[:, 0].permute(2, 3, 0, 1)

    def walk(self, batch: int, height: int, width: int) -> RowLstmAt:
        return RowLstmAt(self, batch, height, width)


class RowLstmAt:
    """The row above is complete when a row begins: its part of the gates is computed for the whole row at once."""

    def __init__(self, layer: RowLstm, batch: int, height: int, width: int) -> None:
        self._taps = layer.state_to_state[0]  # [k h 4h]
        k, h, _ = self._taps.shape
        self._inputs = ConvolvedAt(layer.input_to_state, batch, height, width)
        new = self._taps.new_zeros
        self._row, self._margin = 0, k // 2
        self._hidden, self._cells = new(width + k - 1, batch, h), new(width, batch, h)
        self._above, self._cells_above = new(width, batch, 4 * h), new(width, batch, h)

    def at(self, features: Tensor, row: int, column: int) -> Tensor:
        if row != self._row:
            self._row = row
            taps, width = len(self._taps), len(self._cells)
            around = torch.cat([self._hidden[k : k + width] for k in range(taps)], dim=-1)
            self._above = around @ self._taps.flatten(0, 1)
            self._cells_above.copy_(self._cells)
        self._inputs.inputs[:, :, row, column] = features
        gates = self._inputs.at(row, column) + self._above[column]
        hidden, self._cells[column] = lstm_step(gates, self._cells_above[column])
        self._hidden[self._margin + column] = hidden
        return hidden
