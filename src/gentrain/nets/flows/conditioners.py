"""Networks inside couplings: they need not be invertible, and their last layer starts at 0 or near it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from gentrain.nets.first_batch import FirstBatch
from gentrain.nets.flows.bijection import standardising


class NormalisedConvolution(FirstBatch):
    """A convolution with an actnorm behind it, as one: ((W * x) + bias) * exp(3 log_scale) with the scale multiplied
    into the weights. Weights from N(0, 0.05) (the release of Glow, arXiv 1807.03039)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.initialising:
            with torch.no_grad():
                bias, log_scale = standardising(F.conv2d(x, self.weight, padding=self.padding))
                self.bias.copy_(bias)
                self.log_scale.copy_(log_scale / 3.0)
        scale = (3.0 * self.log_scale).exp()
        return F.conv2d(x, self.weight * scale[:, None, None, None], self.bias * scale, padding=self.padding)


class ZeroConvolution(nn.Module):
    """(W * x + bias) * exp(3 log_scale), all of them 0 at first (the release of Glow)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        scale = (3.0 * self.log_scale).exp()
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight * scale[:, None, None, None], self.bias * scale, padding=padding)


class GlowNet(nn.Sequential):
    """3x3, ReLU, 1x1, ReLU, 3x3 from 0, with ``width`` channels between (arXiv 1807.03039, section 3.3 and the
    release)."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__(
            NormalisedConvolution(inputs, width, 3),
            nn.ReLU(inplace=True),
            NormalisedConvolution(width, width, 1),
            nn.ReLU(inplace=True),
            ZeroConvolution(width, outputs),
        )


class ResidualNet(nn.Module):
    """Residual blocks of 3x3 convolutions with weight norm, batch norm and ReLU before each, and their sum of skips to
    the end (RealNVP, arXiv 1605.08803, sections 3.7 and 4.1; skips as in its reference 46, PixelRNN)."""

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(inputs, width, 3, padding=1))
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.skips = nn.ModuleList(weight_norm(nn.Conv2d(width, width, 1)) for _ in range(blocks + 1))
        last = nn.Conv2d(width, outputs, 1)
        with torch.no_grad():
            last.weight.mul_(0.1)  # the coupling starts near the identity
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), weight_norm(last))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        total = self.skips[0](x)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            x = x + block(x)
            total = total + skip(x)
        out: Tensor = self.last(total)
        return out


def _block(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        convolution = weight_norm(nn.Conv2d(width, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width), nn.ReLU(), convolution]
    return nn.Sequential(*layers)


def dense(inputs: int, outputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """[B inputs] -> [B outputs] by layers of ReLU, the last from 0."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    last = nn.Linear(widths[-1], outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
