"""A picture in stages: all pixels of one before the next begins, each stage with a network of its own that is told what
the stages before it made (depth upscaling: Menick and Kalchbrenner 2019, arXiv 1812.01608, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.nets.causal import Causal, Walk

Shown = Callable[[Tensor, int], Tensor]
"""(x [B C ...] in [-1, 1], stage) -> what there is of x in that stage alone, in [-1, 1]."""


class InStages(nn.Module):
    """``Causal`` networks, ``outputs[i]`` channels each, as one, whose channels stand side by side. A later one has C
    more channels of condition for each stage before it."""

    def __init__(self, nets: Sequence[nn.Module], outputs: Sequence[int], shown: Shown) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.outputs, self.shown = tuple(outputs), shown

    def net(self, stage: int) -> Causal:
        return cast("Causal", self.nets[stage])

    def told(self, x: Tensor, stage: int, condition: Tensor | None) -> Tensor | None:
        """The condition of one stage for pictures x [B C H W] of which the stages before it are there."""
        if stage == 0:
            return condition
        earlier = [self.shown(x, before) for before in range(stage)]
        if condition is not None:
            earlier.append(over_places(condition, x))
        return torch.cat(earlier, dim=1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        stages = range(len(self.nets))
        return torch.cat(
            [self.net(stage)(self.shown(x, stage), self.told(x, stage, condition)) for stage in stages], dim=1
        )

    def walk(self, x: Tensor, condition: Tensor | None = None) -> StagedWalk:
        return StagedWalk(self, x, condition)


def over_places(condition: Tensor, x: Tensor) -> Tensor:
    """[B K] or [B K H W] -> [B K H W] for x [B C H W]."""
    return condition if condition.ndim == 4 else condition[:, :, None, None].expand(-1, -1, *x.shape[2:])


class StagedWalk:
    """The walks of all stages one after the other (a ``Walk``): every place comes once in each. Channels of other
    stages than the walk's are 0."""

    def __init__(self, net: InStages, x: Tensor, condition: Tensor | None) -> None:
        self.x = x.clone()
        self._net, self._condition, self._stage = net, condition, 0
        self._walk = self._begin(0)
        self._once = self._walk.places
        self.places: Sequence[tuple[int, int]] = list(self._once) * len(net.nets)

    def _begin(self, stage: int) -> Walk:
        told = self._net.told(self.x, stage, self._condition)
        return self._net.net(stage).walk(self._net.shown(self.x, stage), told)

    def at(self, step: int) -> Tensor:
        stage, now = divmod(step, len(self._once))
        if stage != self._stage:
            self._stage, self._walk = stage, self._begin(stage)
        for row, column in self._once[max(now - 1, 0) : now + 1]:  # what was written since
            self._walk.x[:, :, row, column] = self._net.shown(self.x[:, :, row, column], stage)
        before, all_of = sum(self._net.outputs[:stage]), sum(self._net.outputs)
        made = self._walk.at(now)
        return F.pad(made, (before, all_of - before - made.shape[1]))
