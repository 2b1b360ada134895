"""Several scales: behind each level but the last, half of the channels are put aside as a part of the code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection
from gentrain.nets.flows.conditioners import ZeroConvolution
from gentrain.types import Spec


class Split(nn.Module):
    """x [B C H W] -> what goes on [B C/2 H W], what is put aside [B C/2 H W], and the log-determinant [B].

    ``learned``: what is put aside is N(mean, sd^2) with both read from what goes on (Glow's split prior, arXiv
    1807.03039, section 3.6), and leaves as the standard normal (x - mean) / sd: codes are noise, and a temperature
    scales all of them alike. Else it leaves as it is.
    """

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.net = ZeroConvolution(channels // 2, channels) if learned else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        on, aside = x.chunk(2, dim=1)
        if self.net is None:
            return on, aside, x.new_zeros(len(x))
        mean, logs = self.net(on).float().chunk(2, dim=1)
        return on, (aside - mean) * (-logs).exp(), -logs.flatten(1).sum(1)

    def inverse(self, on: Tensor, aside: Tensor) -> Tensor:
        if self.net is not None:
            mean, logs = self.net(on).float().chunk(2, dim=1)
            aside = torch.addcmul(mean, aside, logs.exp())
        return torch.cat([on, aside], dim=1)


class MultiScale(Bijection):
    """Levels over images [B C H W], each of which halves the side and makes four times the channels; codes [B Z] hold
    what was put aside, the finest scale first, and the ``top`` [C H W] last."""

    def __init__(
        self, levels: Sequence[Bijection], shape: tuple[int, ...], *, learned: bool, last: bool = True
    ) -> None:
        """``last``: the last level squeezes too."""
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.splits, self.aside = nn.ModuleList(), list[tuple[int, int, int]]()
        channels, height, width = shape
        for number in range(len(levels)):
            final = number == len(levels) - 1
            if not final or last:
                channels, height, width = 4 * channels, height // 2, width // 2
            if not final:
                self.splits.append(Split(channels, learned=learned))
                channels //= 2
                self.aside.append((channels, height, width))
        self.top = (channels, height, width)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        codes, total = [], torch.zeros(len(x), device=x.device)
        for number, level in enumerate(self.levels):
            x, logdet = level(x, c)
            total = total + logdet
            if number < len(self.splits):
                x, aside, logdet = self.splits[number](x)
                codes.append(aside.flatten(1))
                total = total + logdet
        return torch.cat([*codes, x.flatten(1)], dim=1), total

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        shapes = [*self.aside, self.top]
        parts = torch.split(z, [math.prod(shape) for shape in shapes], dim=1)
        x: Tensor = parts[-1].reshape(len(z), *self.top)
        for number in reversed(range(len(self.levels))):
            if number < len(self.splits):
                split = self.splits[number]
                assert isinstance(split, Split)
                x = split.inverse(x, parts[number].reshape(len(z), *self.aside[number]))
            level = self.levels[number]
            assert isinstance(level, Bijection)
            x = level.inverse(x, c)
        return x


def require_halvings(spec: Spec, halvings: int, key: str, least: int = 1) -> None:
    """UserError unless the data are images whose sides can be halved so often; ``least``: ``key`` from here on."""
    if not spec.is_image:
        raise UserError(
            f"model.net: this flow is of images, and the data are vectors of {spec.numel} numbers: use model=realnvp, "
            "nice, maf or nsf"
        )
    if halvings < 0:
        raise UserError(f"{key}: at least {least}")
    height, width = spec.shape[1:]
    most = min(side & -side for side in (height, width)).bit_length() - 1
    if halvings > most:
        sizes = f"{height}x{width} pixels can be halved {most} times"
        better = f"set it to {most - halvings + int(key.rpartition('=')[2])}" if most - halvings + 1 > 0 else ""
        raise UserError(f"{key}: {sizes}, not {halvings}: {better + ', or ' if better else ''}choose data.size=32")
