"""Couplings: one part of the numbers changes by a simple map whose parameters a network reads from the other part.

Which part: halves of the channels, or the squares of one colour of a checkerboard. Which map: a frozen choice that says
how many parameters it wants for each number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.nets.flows.bijection import Bijection, each_channel


class Map(nn.Module, ABC):
    """x [B C *] -> y of the same shape, number by number, given h [B parameters*C *] of a network."""

    parameters_each: int

    @abstractmethod
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """y, and log |dy/dx| of each number [B C *]; None where all are 0."""

    @abstractmethod
    def inverse(self, y: Tensor, h: Tensor) -> Tensor: ...


class Additive(Map):
    """x + h (NICE, arXiv 1410.8516, section 3.2)."""

    parameters_each = 1

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None]:
        return x + h, None

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        return y - h


class SigmoidAffine(Map):
    """(x + shift) * scale, scale = floor + (1 - floor) sigmoid(h + 2): with ``floor`` 0 the affine coupling as Glow's
    release has it. On the way back each such map divides by its scale, and a chain of them can overflow; above 0 it
    multiplies by 1 / floor at most (exploding inverses: Behrmann et al. 2021, arXiv 2006.09347)."""

    parameters_each = 2

    def __init__(self, floor: float = 0.0) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None]:
        shift, logs = self._split(h)
        return (x + shift) * logs.exp(), logs

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        shift, logs = self._split(h)
        return y * (-logs).exp() - shift

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = h.chunk(2, dim=1)
        if self.floor == 0:
            return shift, F.logsigmoid(raw + 2.0)
        return shift, torch.log(self.floor + (1.0 - self.floor) * torch.sigmoid(raw + 2.0))


class TanhAffine(Map):
    """x * exp(s) + t, s = a tanh(h) with a learned ``a`` for each channel (RealNVP, arXiv 1605.08803, eq. 7 and
    section 4.1)."""

    parameters_each = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reach = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor | None]:
        shift, logs = self._split(h)
        return torch.addcmul(shift, x, logs.exp()), logs

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        shift, logs = self._split(h)
        return (y - shift) * (-logs).exp()

    def _split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = h.chunk(2, dim=1)
        return shift, each_channel(self.reach, raw) * torch.tanh(raw)


def summed(logs: Tensor | None, x: Tensor) -> Tensor:
    """[B] of log-derivatives [B C *]."""
    return x.new_zeros(len(x)) if logs is None else logs.sum(tuple(range(1, logs.ndim)))


def joined(x: Tensor, c: Tensor | None) -> Tensor:
    return x if c is None else torch.cat([x, c], dim=1)


class HalfCoupling(Bijection):
    """Of channels [B C *] the first C//2 stay and the rest change given them; ``swapped``: the last C//2 stay.

    ``net``: [B kept (+ C') *] -> [B parameters*changed *] (``sizes``).
    """

    def __init__(self, net: nn.Module, transform: Map, *, swapped: bool = False) -> None:
        super().__init__()
        self.net, self.transform, self.swapped = net, transform, swapped

    @staticmethod
    def sizes(channels: int) -> tuple[int, int]:
        """Channels that stay, and that change."""
        return channels // 2, channels - channels // 2

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, old = self._parts(x)
        new, logs = self.transform(old, self.net(joined(kept, c)).float())
        return self._whole(kept, new), summed(logs, x)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        kept, new = self._parts(z)
        return self._whole(kept, self.transform.inverse(new, self.net(joined(kept, c)).float()))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self.sizes(x.shape[1])
        if self.swapped:
            other, first = torch.split(x, [changed, kept], dim=1)
            return first, other
        first, other = torch.split(x, [kept, changed], dim=1)
        return first, other

    def _whole(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.swapped else [kept, changed], dim=1)


class CheckerboardCoupling(Bijection):
    """Of images [B C H W] the places with (row + column + ``parity``) even stay, and the others change given them
    (arXiv 1605.08803, section 3.4). ``net``: [B C (+ C') H W] -> [B parameters*C H W]; what stays is 0 elsewhere in its
    input."""

    def __init__(self, net: nn.Module, transform: Map, shape: tuple[int, ...], parity: int) -> None:
        super().__init__()
        self.net, self.transform = net, transform
        self.register_buffer("stays", checkerboard(shape[-2], shape[-1], parity), persistent=False)
        self.stays: Tensor

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        new, logs = self.transform(x, self.net(joined(x * self.stays, c)).float())
        return torch.where(self.stays, x, new), summed(None if logs is None else logs * ~self.stays, x)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        old = self.transform.inverse(z, self.net(joined(z * self.stays, c)).float())
        return torch.where(self.stays, z, old)


def checkerboard(height: int, width: int, parity: int) -> Tensor:
    """bool [H W], true where row + column + parity is even."""
    return (torch.arange(height)[:, None] + torch.arange(width) + parity) % 2 == 0
