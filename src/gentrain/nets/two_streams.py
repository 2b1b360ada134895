"""Two streams of shifted convolutions at several resolutions: one of the rows above a pixel, one that also sees what
lies to its left (Salimans et al. 2017, arXiv 1701.05517, section 2 and figure 2), and a walk that computes each
feature once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.nets.causal import raster
from gentrain.nets.shifted import (
    DOWN,
    DOWN_RIGHT,
    ColouredHead,
    GatedBlock,
    Pad,
    PixelBlock,
    PixelConvolved,
    RowBlock,
    RowConvolved,
    ShiftedConv2d,
    ShiftedDoubling,
    concat_elu,
)

ABOVE: Pad = (1, 1, 2, -1)
"""Of the first 2x3 kernel: the two rows above (``DOWN`` shifted down by one)."""

ROW_ABOVE: Pad = (1, 1, 1, -1)
"""Of the first 1x3 kernel: the row above."""

LEFT: Pad = (1, -1, 1, 0)
"""Of the first 2x1 kernel: the left neighbour and the one above it."""


class Level(nn.Module):
    """Blocks of both streams at one resolution; ``short_cut``: on the way up, where each gets an earlier feature."""

    def __init__(self, width: int, blocks: int, condition: int, dropout: float, *, short_cut: bool) -> None:
        super().__init__()
        own, both = (2 * width, 4 * width) if short_cut else (0, 2 * width)
        self.above = nn.ModuleList(GatedBlock(width, own, condition, dropout, wide=3) for _ in range(blocks))
        self.left = nn.ModuleList(GatedBlock(width, both, condition, dropout, wide=2) for _ in range(blocks))

    def pairs(self) -> list[tuple[GatedBlock, GatedBlock]]:
        return cast("list[tuple[GatedBlock, GatedBlock]]", list(zip(self.above, self.left, strict=True)))


class TwoStreams(nn.Module):
    """[B C H W] in [-1, 1] -> [B outputs H W]. ``above`` names the stream of the rows above, ``left`` that which also
    sees what lies to the left."""

    def __init__(
        self,
        channels: int,
        width: int,
        blocks: int,
        levels: int,
        dropout: float,
        outputs: int,
        colours: int,
        condition: int,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.above = ShiftedConv2d(channels + 1, width, (2, 3), ABOVE)
        self.row_above = ShiftedConv2d(channels + 1, width, (1, 3), ROW_ABOVE)
        self.left = ShiftedConv2d(channels + 1, width, (2, 1), LEFT)
        self.smaller = nn.ModuleList(
            Level(width, blocks, condition, dropout, short_cut=False) for level in range(levels)
        )
        self.larger = nn.ModuleList(
            Level(width, blocks + (level < levels - 1), condition, dropout, short_cut=True) for level in range(levels)
        )
        between = range(levels - 1)
        self.halve_above = nn.ModuleList(ShiftedConv2d(width, width, (2, 3), DOWN, stride=2) for _ in between)
        self.halve_left = nn.ModuleList(ShiftedConv2d(width, width, (2, 2), DOWN_RIGHT, stride=2) for _ in between)
        self.double_above = nn.ModuleList(ShiftedDoubling(width, width, 3) for _ in between)
        self.double_left = nn.ModuleList(ShiftedDoubling(width, width, 2) for _ in between)
        self.last = ShiftedConv2d(width, outputs) if colours == 1 else ColouredHead(width, width, outputs, colours)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        ones = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        above, left = self.above(ones), self.row_above(ones) + self.left(ones)
        told = self.told(condition)
        short_cuts: list[tuple[Tensor, Tensor]] = []
        sides: list[tuple[int, int]] = []
        for level in range(self.levels):
            if level:
                above, left = self.halve_above[level - 1](above), self.halve_left[level - 1](left)
            seen_above, seen_left = concat_elu(above), concat_elu(left)
            short_cuts.append((seen_above, seen_left))
            for of_above, of_left in self.level(self.smaller, level).pairs():
                above = of_above(above, seen_above, None, told[level])
                seen_above = concat_elu(above)
                left = of_left(left, seen_left, seen_above, told[level])
                seen_left = concat_elu(left)
                short_cuts.append((seen_above, seen_left))
            sides.append((above.shape[2], above.shape[3]))
        seen_above, seen_left = short_cuts.pop()
        for level in reversed(range(self.levels)):
            if level < self.levels - 1:
                above = self.double_above[level](above, sides[level])
                left = self.double_left[level](left, sides[level])
                seen_above, seen_left = concat_elu(above), concat_elu(left)
            for of_above, of_left in self.level(self.larger, level).pairs():
                old_above, old_left = short_cuts.pop()
                above = of_above(above, seen_above, old_above, told[level])
                seen_above = concat_elu(above)
                left = of_left(left, seen_left, torch.cat([seen_above, old_left], dim=1), told[level])
                seen_left = concat_elu(left)
        return self.output(left, x)

    def output(self, features: Tensor, x: Tensor) -> Tensor:
        """[B outputs H W] for the last features [B F H W] and pixels x [B C H W], of which a head of one group sees
        nothing."""
        features = F.elu(features)
        return cast("Tensor", self.last(features, x) if isinstance(self.last, ColouredHead) else self.last(features))

    def told(self, condition: Tensor | None) -> list[Tensor | None]:
        """The condition [B K] or [B K H W] at each resolution."""
        if condition is None:
            return [None] * self.levels
        if condition.ndim == 2:
            return [condition[:, :, None, None]] * self.levels
        return [condition[:, :, :: 2**level, :: 2**level] for level in range(self.levels)]

    @staticmethod
    def level(levels: nn.ModuleList, level: int) -> Level:
        return cast("Level", levels[level])

    def walk(self, x: Tensor, condition: Tensor | None = None) -> TwoStreamWalk:
        return TwoStreamWalk(self, x, condition)


class TwoStreamWalk:
    """A ``Walk`` that computes each feature once: rows of the first stream when a row begins, pixels of the second when
    their turn comes; at a coarser resolution in every second row and column of the finer one alone."""

    @torch.no_grad()
    def __init__(self, net: TwoStreams, x: Tensor, condition: Tensor | None) -> None:
        batch, c, height, width = x.shape
        self.places: Sequence[tuple[int, int]] = raster(height, width)
        self._net, self._step = net, -1
        self._ones = x.new_zeros(batch, c + 1, height + 2, width + 2)  # a margin above and on either side
        self._ones[:, c, 2:, 1:-1] = 1.0
        self.x = self._ones[:, :c, 2:, 1:-1]
        self.x.copy_(x)
        self._first = [layer.weight() for layer in (net.above, net.row_above, net.left)]
        self._row_above = self._features = x.new_zeros(())
        self._levels = [
            LevelAt(net, level, batch, (-(-height // 2**level), -(-width // 2**level)), told)
            for level, told in enumerate(net.told(condition))
        ]

    @torch.no_grad()
    def at(self, step: int) -> Tensor:
        row, column = self.places[step]
        if step != self._step:
            if column == 0:
                self._begin(row)
            self._features = self._pixel(row, column)[:, :, None, None]
            self._step = step
        return self._net.output(self._features, self.x[:, :, row, column, None, None])[:, :, 0, 0]

    def _begin(self, row: int) -> None:
        """The stream of rows above, in this row of every resolution that has it."""
        seen = self._ones[:, :, row : row + 2]
        above = F.conv2d(seen, self._first[0], self._net.above.bias)[:, :, 0]
        self._row_above = F.conv2d(seen[:, :, 1:], self._first[1], self._net.row_above.bias)[:, :, 0]
        due = [at for level, at in enumerate(self._levels) if row % 2**level == 0]
        short_cuts: list[Tensor] = []
        for level, at in enumerate(due):
            above = at.row_smaller(row >> level, above, short_cuts)
            if at.halve_above is not None:
                at.halve_above.put(above)
                above = at.halve_above.made() if level + 1 < len(due) else above
        for level, at in reversed(list(enumerate(due))):
            if at.double_above is not None:
                above = at.row_doubled(self._levels[level + 1].end_above, row >> level & 1)
            above = at.row_larger(row >> level, above, short_cuts)

    def _pixel(self, row: int, column: int) -> Tensor:
        """[B F] of the other stream, there and wherever a coarser resolution has the pixel."""
        net = self._net
        seen = self._ones[:, :, row + 1 : row + 3, column].flatten(1)
        left = self._row_above[:, :, column] + F.linear(seen, self._first[2].flatten(1), net.left.bias)
        due = [at for level, at in enumerate(self._levels) if row % 2**level == 0 and column % 2**level == 0]
        short_cuts: list[Tensor] = []
        for level, at in enumerate(due):
            left = at.pixel_smaller(row >> level, column >> level, left, short_cuts)
            if at.halve_left is not None:
                at.halve_left.put(column >> level, left)
                left = at.halve_left.made(column >> level) if level + 1 < len(due) else left
        for level, at in reversed(list(enumerate(due))):
            i, j = row >> level, column >> level
            if at.double_left is not None:
                left = at.pixel_doubled(self._levels[level + 1].end_left[:, j >> 1], i & 1, j & 1)
            left = at.pixel_larger(i, j, left, short_cuts)
        return left


class LevelAt:
    """One resolution on a walk: its blocks, the way to the next coarser one and back, and the ends of both streams in
    the row that it is at (``end_above`` [B F W], ``end_left`` [B W F])."""

    def __init__(
        self, net: TwoStreams, level: int, batch: int, sides: tuple[int, int], condition: Tensor | None
    ) -> None:
        self._width = sides[1]
        self._told = None if condition is None else condition.expand(-1, -1, *sides)
        self._smaller, self._larger = (
            [(RowBlock(a, batch, sides[1]), PixelBlock(b, batch, sides[1])) for a, b in net.level(way, level).pairs()]
            for way in (net.smaller, net.larger)
        )
        self.halve_above: RowConvolved | None = None
        self.halve_left: PixelConvolved | None = None
        self.double_above: tuple[Tensor, Tensor] | None = None
        self.double_left: tuple[Tensor, Tensor] | None = None
        if level < net.levels - 1:
            self.halve_above = RowConvolved(cast("ShiftedConv2d", net.halve_above[level]), batch, sides[1])
            self.halve_left = PixelConvolved(cast("ShiftedConv2d", net.halve_left[level]), batch, sides[1])
            self.double_above, self.double_left = (
                (layer.weight(), layer.bias)
                for layer in cast("list[ShiftedDoubling]", [net.double_above[level], net.double_left[level]])
            )
        features = net.above.v
        self.end_above = features.new_zeros(batch, len(features), sides[1])
        self.end_left = features.new_zeros(batch, sides[1], len(features))

    def row_smaller(self, row: int, above: Tensor, short_cuts: list[Tensor]) -> Tensor:
        if self.halve_left is not None:
            self.halve_left.next_row()
        seen = concat_elu(above)
        short_cuts.append(seen)
        for of_above, of_left in self._smaller:
            above = of_above.row(above, seen, None, self._at_row(row))
            seen = concat_elu(above)
            of_left.next_row(seen)
            short_cuts.append(seen)
        if self.double_above is None:
            short_cuts.pop()  # the way up begins with it
        return above

    def row_doubled(self, coarse: Tensor, parity: int) -> Tensor:
        """The row 2i + parity of a picture twice as large as that of whose row i ``coarse`` [B F W] is."""
        assert self.double_above is not None
        weight, bias = self.double_above
        made = F.conv_transpose2d(coarse[:, :, None], weight[:, :, parity : parity + 1], bias, stride=(1, 2))
        return made[:, :, 0, 1 : 1 + self._width]

    def row_larger(self, row: int, above: Tensor, short_cuts: list[Tensor]) -> Tensor:
        seen = concat_elu(above)
        for of_above, of_left in self._larger:
            above = of_above.row(above, seen, short_cuts.pop(), self._at_row(row))
            seen = concat_elu(above)
            of_left.next_row(seen)
        self.end_above = above
        return above

    def pixel_smaller(self, row: int, column: int, left: Tensor, short_cuts: list[Tensor]) -> Tensor:
        seen = concat_elu(left)
        short_cuts.append(seen)
        for _, of_left in self._smaller:
            left = of_left.at(column, left, seen, None, self._at_pixel(row, column))
            seen = concat_elu(left)
            short_cuts.append(seen)
        if self.double_left is None:
            short_cuts.pop()
        return left

    def pixel_doubled(self, coarse: Tensor, i: int, j: int) -> Tensor:
        assert self.double_left is not None
        weight, bias = self.double_left
        return torch.addmm(bias, coarse, weight[:, :, i, j])

    def pixel_larger(self, row: int, column: int, left: Tensor, short_cuts: list[Tensor]) -> Tensor:
        seen = concat_elu(left)
        for _, of_left in self._larger:
            left = of_left.at(column, left, seen, short_cuts.pop(), self._at_pixel(row, column))
            seen = concat_elu(left)
        self.end_left[:, column] = left
        return left

    def _at_row(self, row: int) -> Tensor | None:
        return None if self._told is None else self._told[:, :, row]

    def _at_pixel(self, row: int, column: int) -> Tensor | None:
        return None if self._told is None else self._told[:, :, row, column]
