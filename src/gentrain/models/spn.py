"""SPN: a picture as interleaved slices, each pixel given those before it in its slice and all slices before that.

Paper: Menick and Kalchbrenner 2019, Generating High Fidelity Images with Subscale Pixel Networks and Multidimensional
Upscaling, arXiv 1812.01608, section 3.
Adds: the network of the family Autoregressive in subscale order: ``stride`` S makes S^2 slices, in raster order of
their first pixels. Slices before the one that is made go through an embedder, each with a plane that says where it is
known, and the slice's number beside them; what comes out conditions a masked decoder of the slice. Size upscaling
(``own_first``): the first slice is a small picture, with networks of its own. Depth upscaling is
loss=categorical_in_depth, which takes two such networks.
Departs: the decoder's masked convolutions are PixelCNN++'s shifted ones, and its masked attention stands behind them;
all slices of a picture train at once.
Checked by: tests/test_spn.py, tests/test_autoregressive.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import Walk
from gentrain.nets.causal_attention import AttentionAt, CausalAttention
from gentrain.nets.shifted import ColouredHead, ShiftedConv2d
from gentrain.nets.stages import over_places
from gentrain.nets.two_streams import TwoStreams
from gentrain.types import Spec


@dataclass(frozen=True)
class SPN:
    """``width`` features; ``blocks`` pairs of gated blocks twice in the decoder, then ``attention`` layers of ``heads``
    heads; ``embedder`` residual blocks. UserError for numbers out of their range and a stride that leaves nothing."""

    width: int
    blocks: int
    stride: int = 2
    embedder: int = 2
    attention: int = 1
    heads: int = 4
    dropout: float = 0.0
    own_first: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("blocks", 1),
            ("stride", 1),
            ("embedder", 0),
            ("attention", 0),
            ("heads", 1),
            ("width", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least {least}")
        if self.width % self.heads:
            raise UserError(f"model.net.width={self.width}: a multiple of model.net.heads={self.heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.net.dropout={self.dropout:g}: 0 or more, below 1")

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        if self.stride > min(spec.shape[1:]):
            raise UserError(f"model.net.stride={self.stride}: pictures of {spec.shape[1:]} have no such slices")
        return Subscale(self, spec, outputs, colours, condition)


class Slices:
    """A picture as S^2 slices of ``sides`` h and w, with zeros where a slice has no pixel of it. Slice
    S a + b starts at row a and column b."""

    def __init__(self, stride: int, height: int, width: int) -> None:
        self.stride, self.whole = stride, (height, width)
        self.sides = (-(-height // stride), -(-width // stride))

    def cut(self, x: Tensor) -> Tensor:
        """[B C H W] -> [B S^2 C h w]."""
        s, (h, w) = self.stride, self.sides
        x = F.pad(x, (0, w * s - self.whole[1], 0, h * s - self.whole[0]))
        return x.unflatten(3, (w, s)).unflatten(2, (h, s)).permute(0, 3, 5, 1, 2, 4).flatten(1, 2)  # type: ignore[no-untyped-call, no-any-return]

    def join(self, slices: Tensor) -> Tensor:
        """[B S^2 C h w] -> [B C H W]."""
        s = self.stride
        x = slices.unflatten(1, (s, s)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)  # type: ignore[no-untyped-call]
        return cast("Tensor", x[:, :, : self.whole[0], : self.whole[1]])

    def places(self) -> list[tuple[int, int, int, int, int]]:
        """(slice, row and column in it, row and column in the picture) of each pixel in subscale order."""
        s, (h, w) = self.stride, self.sides
        every = [(m, i, j, i * s + m // s, j * s + m % s) for m in range(s * s) for i in range(h) for j in range(w)]
        return [place for place in every if place[3] < self.whole[0] and place[4] < self.whole[1]]


class Subscale(nn.Module):
    """[B C H W] in [-1, 1] -> [B outputs H W]."""

    def __init__(self, choice: SPN, spec: Spec, outputs: int, colours: int, condition: int) -> None:
        super().__init__()
        self.slices = Slices(choice.stride, *spec.shape[1:])
        count = choice.stride**2
        ends = [1, count] if choice.own_first and count > 1 else [count]
        self.ranges = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.parts = nn.ModuleList(
            SlicePart(choice, spec.channels, count, self.slices.sides, outputs, colours, condition) for _ in ends
        )
        there = self.slices.cut(torch.ones(1, 1, *spec.shape[1:]))[0]
        self.register_buffer("there", there, persistent=False)  # [S^2 1 h w]: where a slice has pixels
        self.there: Tensor

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        slices, told = self.slices.cut(x), self.told(x, condition)
        made = []
        for part, which in zip(cast("list[SlicePart]", list(self.parts)), self.ranges, strict=True):
            context = part.context(slices, self.there, which, told)
            of_part = slices[:, which.start : which.stop].flatten(0, 1)
            made.append(part(of_part, context).unflatten(0, (len(x), len(which))))
        return self.slices.join(torch.cat(made, dim=1))

    def told(self, x: Tensor, condition: Tensor | None) -> Tensor | None:
        """The condition at the places of all slices, [B S^2 K h w]: none of it is the picture's."""
        return None if condition is None else self.slices.cut(over_places(condition, x))

    def part(self, number: int) -> SlicePart:
        """Whose slice it is."""
        return cast("SlicePart", self.parts[0 if number in self.ranges[0] else 1])

    def walk(self, x: Tensor, condition: Tensor | None = None) -> SubscaleWalk:
        return SubscaleWalk(self, x, condition)


class SlicePart(nn.Module):
    """Embedder and decoder of some slices; slices x [N C h w] and their context [N F h w] -> [N outputs h w]."""

    def __init__(
        self,
        choice: SPN,
        channels: int,
        count: int,
        sides: tuple[int, int],
        outputs: int,
        colours: int,
        condition: int,
    ) -> None:
        super().__init__()
        width = choice.width
        self.first = ShiftedConv2d(count * (channels + 2 + condition), width, (3, 3), (1, 1, 1, 1))
        self.embedder = nn.ModuleList(ResidualBlock(width) for _ in range(choice.embedder))
        self.streams = TwoStreams(channels, width, choice.blocks, 1, choice.dropout, width, 1, width)
        self.attention = nn.ModuleList(
            CausalAttention(width, choice.heads, sides[0] * sides[1]) for _ in range(choice.attention)
        )
        self.last = ShiftedConv2d(width, outputs) if colours == 1 else ColouredHead(width, width, outputs, colours)

    def context(self, slices: Tensor, there: Tensor, which: range, told: Tensor | None) -> Tensor:
        """[B*T F h w] for the T slices ``which`` of slices [B M C h w]: of each the slices before it, where those have
        pixels (``there`` [M 1 h w]; elsewhere a plane says that nothing is known), its number, and what is ``told`` of
        all [B M K h w]."""
        batch, count, _, *sides = slices.shape
        targets = torch.arange(which.start, which.stop, device=slices.device)
        every = torch.arange(count, device=slices.device)
        before = (every < targets[:, None]).to(slices.dtype)[:, :, None, None, None]  # [T M 1 1 1]
        pixels = torch.cat([slices, there.expand(batch, *there.shape)], dim=2)[:, None] * before  # [B T M C+1 h w]
        number = (every == targets[:, None]).to(slices.dtype)[None, :, :, None, None]
        known = [pixels.flatten(2, 3), number.expand(batch, -1, -1, *sides)]
        if told is not None:
            known.append(told.flatten(1, 2)[:, None].expand(-1, len(which), -1, -1, -1))
        features = self.first(torch.cat(known, dim=2).flatten(0, 1))
        for block in self.embedder:
            features = block(features)
        return F.elu(features)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        features = self.streams(x, context)
        for layer in self.attention:
            features = layer(features)
        return self.output(features, x)

    def output(self, features: Tensor, x: Tensor) -> Tensor:
        features = F.elu(features)
        return cast("Tensor", self.last(features, x) if isinstance(self.last, ColouredHead) else self.last(features))


class ResidualBlock(nn.Module):
    """x plus two 3x3 convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ShiftedConv2d(width, width, (3, 3), (1, 1, 1, 1))
        self.second = ShiftedConv2d(width, width, (3, 3), (1, 1, 1, 1), scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.second(F.elu(self.first(F.elu(x)))))


class SubscaleWalk:
    """Slice after slice: its context once, then its decoder's own walk (a ``Walk``)."""

    def __init__(self, net: Subscale, x: Tensor, condition: Tensor | None) -> None:
        self.x, self._net = x.clone(), net
        self._told = net.told(x, condition)
        self._order = net.slices.places()
        self.places: Sequence[tuple[int, int]] = [place[3:] for place in self._order]
        self._slice, self._done = -1, -1
        self._walk: Walk
        self._attention: list[AttentionAt] = []
        self._features = x

    @torch.no_grad()
    def at(self, step: int) -> Tensor:
        number, i, j, row, column = self._order[step]
        part, slices = self._net.part(number), self._net.slices
        if number != self._slice:
            self._begin(number, part)
        if step and self._order[step - 1][0] == number:  # the pixel that was written since
            _, above, left, *place = self._order[step - 1]
            self._walk.x[:, :, above, left] = self.x[:, :, place[0], place[1]]
        for place_in_slice in range(self._done + 1, i * slices.sides[1] + j + 1):  # and those that are no pixels
            self._features = self._walk.at(place_in_slice)
            for layer in self._attention:
                self._features = layer.at(place_in_slice, self._features)
            self._done = place_in_slice
        own = self.x[:, :, row, column, None, None]
        return part.output(self._features[:, :, None, None], own)[:, :, 0, 0]

    def _begin(self, number: int, part: SlicePart) -> None:
        slices = self._net.slices.cut(self.x)
        context = part.context(slices, self._net.there, range(number, number + 1), self._told)
        self._walk = part.streams.walk(slices[:, number], context)
        self._attention = [AttentionAt(layer, len(slices)) for layer in cast("list[CausalAttention]", part.attention)]
        self._slice, self._done = number, -1
