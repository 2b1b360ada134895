"""Exponential moving average of the networks that a system samples with.

Only those networks are copied (a GAN wants the generator's average, not the critic's). Parameters are averaged; buffers
(batch-norm statistics, counters) are copied from the live network: averaging an integer buffer is meaningless, and
leaving the buffers of the first iteration behind ruins every sample.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentrain.errors import UserError


@dataclass(frozen=True)
class Ema:
    """Config of an average. ``decay`` per generator step; before ``start`` (iterations) the average is a plain copy.

    The decay is warmed up as min(decay, (1+t)/(10+t)), so that a short run is not an average of its noise at the start.
    """

    decay: float = 0.999
    start: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"model.ema.decay={self.decay}: must lie in [0, 1)")


class Average(nn.Module):
    """Copies of some networks that trail behind them."""

    def __init__(self, config: Ema, nets: nn.ModuleDict, names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleDict({name: copy.deepcopy(nets[name]) for name in names}).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.updates: Tensor
        self._count = -1
        self._live = (nets,)  # in a tuple: a module attribute would make the live networks part of the average's state
        self._pairs: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] | None = None

    def forget_places(self) -> None:
        """Look the tensors up again: after a move to another device or after loading a state."""
        self._pairs = None
        self._count = -1

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """One step of the average, after the live networks have moved."""
        if self._pairs is None:
            self._pairs = self._find()
        averaged, live, own_buffers, live_buffers = self._pairs
        if self._count < 0:
            self._count = int(self.updates)
        if iteration <= self.config.start:
            torch._foreach_copy_(averaged, live)
        else:
            self._count += 1
            self.updates.add_(1)
            decay = min(self.config.decay, (1 + self._count) / (10 + self._count))
            torch._foreach_lerp_(averaged, live, 1.0 - decay)
        if own_buffers:
            torch._foreach_copy_(own_buffers, live_buffers)

    def _find(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        sources = [self._live[0][name] for name in self.nets]
        return (
            [p for net in self.nets.values() for p in net.parameters()],
            [p for net in sources for p in net.parameters()],
            [b for net in self.nets.values() for b in net.buffers()],
            [b for net in sources for b in net.buffers()],
        )
