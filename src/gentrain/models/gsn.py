"""Generative stochastic network: the transition of a Markov chain, learned by walking back to the data.

Paper: Bengio, Thibodeau-Laufer, Alain and Yosinski 2014, Deep Generative Stochastic Networks Trainable by Backprop,
arXiv 1306.1091, and its experiment on MNIST; Bengio, Yao, Alain and Vincent 2013, Generalized Denoising Auto-Encoders
as Generative Models, arXiv 1305.6663, section 4 (walkback).
    H_t = f(corrupted X_t, H_(t-1), noise),    X_(t+1) ~ P(X | H_t)
Adds to the denoising autoencoder: layers that keep their state from step to step and are driven from below and from
above by the same weights, noise before and behind their activation, and a loss over several steps of the chain, whose
target is at each of them the data that it began with.
Departs: Adam for SGD with momentum at small sizes; the loss is the mean over the steps of a sum over pixels, where the
authors' code has the sum over the steps of a mean. Chains for samples begin at independent pixels with the data's
means, not at a test image; images are shown as means, vectors as draws.
Checked by: tests/test_gsn.py (the layers written out, the target and the gradient of each step, a chain whose histogram
is the data's), tests/test_contract.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.types import Spec


@dataclass(frozen=True)
class NoisyLayers:
    """``hidden``: widths from the data on. ``noise``: standard deviation before and behind each tanh. ``quiet``: so
    many layers, from the data on, have none: the first in the authors' code (config target)."""

    hidden: Sequence[int] = (1500, 1500)
    noise: float = 2.0
    quiet: int = 1

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"model.net.hidden={list(self.hidden)}: one width of 1 or more at least")
        if not self.noise >= 0:
            raise UserError(f"model.net.noise={self.noise}: 0 or more")
        if self.quiet < 0:
            raise UserError(f"model.net.quiet={self.quiet}: 0 or more")

    @property
    def reach(self) -> int:
        return 1 + len(self.hidden) // 2

    def network(self, spec: Spec, head: nn.Module) -> nn.Module:
        return TiedLayers(spec, self, head)


@dataclass(frozen=True)
class Falling:
    """Learning-rate factor that is multiplied by ``factor`` so many ``times`` in a run, at equal distances: once a pass
    over the data where these are the passes (config target)."""

    factor: float = 0.995
    times: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise UserError(f"model.players.network.schedule.factor={self.factor}: above 0, at most 1")
        if self.times < 1:
            raise UserError(f"model.players.network.schedule.times={self.times}: at least 1")

    def __call__(self, iteration: int, total: int) -> float:
        return float(self.factor ** ((iteration - 1) * self.times // max(total, 1)))


class TiedLayers(nn.Module):
    """Layer i is fed from below through W_i and from above through the transpose of W_(i+1)."""

    def __init__(self, spec: Spec, choice: NoisyLayers, head: nn.Module) -> None:
        super().__init__()
        self.shape, self.noise, self.quiet = spec.shape, choice.noise, choice.quiet
        widths = [spec.numel, *choice.hidden]
        self.weights = nn.ParameterList()
        for below, above in pairwise(widths):
            reach = math.sqrt(6.0 / (below + above))
            self.weights.append(nn.Parameter(torch.empty(below, above).uniform_(-reach, reach)))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        self.head = head

    def rest(self, x: Tensor) -> list[Tensor]:
        """Hidden layers before the first step, [B F] of 0 each."""
        return [torch.zeros(len(x), weight.shape[1], dtype=weight.dtype, device=x.device) for weight in self.weights]

    def forward(
        self, x: Tensor, hidden: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """One step: first the layers 1, 3, ... from their neighbours, then 2, 4, ... and the data's. ``x``: corrupted
        data [B *]. Gives what the likelihood takes, and the hidden layers."""
        layers = [x.flatten(1).to(self.biases[0].dtype), *hidden]
        count = len(layers)
        for place in [*range(1, count, 2), *range(2, count, 2)]:
            layers[place] = self._active(place, self._drive(place, layers), generator)
        # Only layer 1 feeds the data's, which is even: the order among even layers does not matter.
        return self.head(self._drive(0, layers).view(-1, *self.shape)), layers[1:]

    def _drive(self, place: int, layers: Sequence[Tensor]) -> Tensor:
        drive: Tensor = self.biases[place]
        if place > 0:
            drive = drive + layers[place - 1] @ self.weights[place - 1]
        if place + 1 < len(layers):
            drive = drive + layers[place + 1] @ self.weights[place].T
        return drive

    def _active(self, place: int, drive: Tensor, generator: torch.Generator | None) -> Tensor:
        if place <= self.quiet or self.noise == 0:
            return torch.tanh(drive)
        return self._noisy(torch.tanh(self._noisy(drive, generator)), generator)

    def _noisy(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return x + self.noise * torch.empty_like(x).normal_(generator=generator)
