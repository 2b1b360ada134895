"""PixelCNN: a likelihood of pictures by masked convolutions, every pixel given those above it and to its left.

Paper: van den Oord et al. 2016, Pixel Recurrent Neural Networks, arXiv 1601.06759: section 3.4 (masks), figure 5 and
table 1 (the network).
Adds: the network of the family Autoregressive: a 7x7 convolution of mask A, residual blocks of mask B, two 1x1 layers.
Departs: Adam for RMSProp; the width of the hidden 1x1 layers is that of the blocks.
Checked by: tests/test_autoregressive.py (no output sees its own or a later pixel; its blind spot is there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import ConvolvedAt, MaskedConv2d, at_pixel, raster
from gentrain.types import Spec


@dataclass(frozen=True)
class PixelCNN:
    """``blocks`` residual blocks on 2 ``width`` features. UserError for vectors and for numbers below 1."""

    width: int
    blocks: int
    kernel: int = 7

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("blocks", 0), ("kernel", 1)):
            if getattr(self, name) < least:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least {least}")
        if self.kernel % 2 == 0:
            raise UserError(f"model.net.kernel={self.kernel}: an odd number, it has a middle")

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        if condition:
            raise UserError("model.condition: this network takes none; gated_pixelcnn does")
        # Each colour has its own share of the features.
        return MaskedStack(spec.channels, self.width * colours, self.blocks, self.kernel, outputs, colours)


class MaskedStack(nn.Module):
    """[B C H W] in [-1, 1] -> [B outputs H W]."""

    def __init__(self, channels: int, width: int, blocks: int, kernel: int, outputs: int, colours: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(channels, 2 * width, kernel, "A", colours)
        self.blocks = nn.ModuleList(MaskedBlock(width, colours) for _ in range(blocks))
        self.hidden = MaskedConv2d(2 * width, 2 * width, 1, "B", colours)
        self.last = MaskedConv2d(2 * width, outputs, 1, "B", colours)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.first(x)
        for block in self.blocks:
            features = block(features)
        output: Tensor = self.last(F.relu(self.hidden(F.relu(features))))
        return output

    def walk(self, x: Tensor, condition: Tensor | None = None) -> MaskedWalk:
        return MaskedWalk(self, x)


class MaskedBlock(nn.Module):
    """2h -> h -> h -> 2h by 1x1, 3x3, 1x1 convolutions, added to what came in."""

    def __init__(self, width: int, colours: int) -> None:
        super().__init__()
        self.narrow = MaskedConv2d(2 * width, width, 1, "B", colours)
        self.middle = MaskedConv2d(width, width, 3, "B", colours)
        self.wide = MaskedConv2d(width, 2 * width, 1, "B", colours)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.middle(F.relu(self.narrow(F.relu(x)))))
        return x + cast("Tensor", self.wide(inner))


class MaskedWalk:
    """Features of each pixel are computed once, when its turn comes (a ``Walk``)."""

    def __init__(self, net: MaskedStack, x: Tensor) -> None:
        batch, _, height, width = x.shape
        self.places = raster(height, width)
        self._first = ConvolvedAt(net.first, batch, height, width)
        self.x = self._first.inputs
        self.x.copy_(x)
        self._blocks = [
            (at_pixel(block.narrow), ConvolvedAt(block.middle, batch, height, width), at_pixel(block.wide))
            for block in cast("list[MaskedBlock]", net.blocks)
        ]
        self._hidden, self._last = at_pixel(net.hidden), at_pixel(net.last)

    def at(self, step: int) -> Tensor:
        row, column = self.places[step]
        features = self._first.at(row, column)
        for narrow, middle, wide in self._blocks:
            middle.inputs[:, :, row, column] = torch.relu(narrow(torch.relu(features)))
            features = features + wide(torch.relu(middle.at(row, column)))
        return self._last(torch.relu(self._hidden(torch.relu(features))))
