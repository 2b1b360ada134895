"""MADE: a dense network whose weights are masked so that each output depends on the numbers before its own alone; with
no hidden layer the fully visible belief network, a logistic regression for each pixel.

Paper: Germain et al. 2015, MADE: Masked Autoencoder for Distribution Estimation, arXiv 1502.03509: section 3 (masks),
4.2 (several masks), and the direct connections from input to output; Frey 1998, Graphical Models for Machine Learning
and Digital Communication (FVSBN).
Adds: a network of the family Autoregressive on flattened pixels. A walk computes each hidden unit once, when the last
number that it sees is known.
Departs: an order is drawn once, not for each batch, since a picture's likelihood is one product; with several masks the
outputs (logits) are averaged at rest, where the paper averages probabilities.
Checked by: tests/test_made.py (masks against paths, FVSBN against logistic regressions), tests/test_autoregressive.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.causal import group_of, raster
from gentrain.nets.layers import ACTIVATIONS, choose
from gentrain.types import Spec


@dataclass(frozen=True)
class MADE:
    """``hidden``: units of each hidden layer; none for the FVSBN. ``masks``: so many draws of what hidden units see,
    one of them in each training step. ``order`` of the pixels: raster, or shuffled once; by ``seed``, as the masks.
    ``direct``: connections from input to output besides. UserError for numbers below 1 and for nothing at all."""

    hidden: Sequence[int]
    activation: str = "relu"
    masks: int = 1
    order: Literal["raster", "shuffled"] = "raster"
    direct: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        choose(ACTIVATIONS, self.activation, "model.net.activation")
        choose({"raster": 0, "shuffled": 0}, self.order, "model.net.order")
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.net.hidden={list(self.hidden)}: at least 1 unit in each layer")
        if self.masks < 1:
            raise UserError(f"model.net.masks={self.masks}: at least 1")
        if not self.hidden and not self.direct:
            raise UserError("model.net.hidden=[] model.net.direct=false: nothing leads from input to output")

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        if condition:
            raise UserError("model.condition: this network takes none; gated_pixelcnn does")
        places = raster(spec.shape[1], spec.shape[2])
        generator = torch.Generator().manual_seed(self.seed)
        if self.order == "shuffled":
            places = [places[int(i)] for i in torch.randperm(len(places), generator=generator)]
        return MaskedDense(self, spec, outputs, colours, places, generator)


class MaskedDense(nn.Module):
    """[B C H W] in [-1, 1] -> [B outputs H W].

    Each input and output has a position in the order, and each hidden unit one from which on it sees nothing: a
    weight stays where what it comes from is not behind (into the output: before) what it goes to.
    """

    inputs_at: Tensor
    outputs_at: Tensor

    def __init__(
        self,
        chosen: MADE,
        spec: Spec,
        outputs: int,
        colours: int,
        places: Sequence[tuple[int, int]],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.places, self.colours, self.sides = places, colours, spec.shape[1:]
        self.activation = ACTIVATIONS[chosen.activation]()
        turn = torch.empty(self.sides, dtype=torch.long)  # of each pixel [H W]
        for step, place in enumerate(places):
            turn[place] = step
        first = turn.flatten() * colours  # [H*W]
        self.register_buffer(
            "inputs_at", (group_of(spec.channels, colours)[:, None] + first).flatten(), persistent=False
        )
        self.register_buffer("outputs_at", (group_of(outputs, colours)[:, None] + first).flatten(), persistent=False)
        widths = [spec.numel, *chosen.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        count = len(self.outputs_at)
        self.bias = nn.Parameter(torch.zeros(count))
        self.output = nn.Linear(widths[-1], count, bias=False) if chosen.hidden else None
        self.direct = nn.Linear(spec.numel, count, bias=False) if chosen.direct else None
        self.count = chosen.masks if chosen.hidden else 1
        for mask in range(self.count):
            least = torch.zeros(1, dtype=torch.long)
            for layer, width in enumerate(chosen.hidden):
                # Uniform over the positions that an output can still see, from the least of the layer before on.
                drawn = torch.rand(width, generator=generator) * (len(places) * colours - 1 - least.min())
                least = least.min() + drawn.long()
                self.register_buffer(f"seen_{layer}_{mask}", least, persistent=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        if self.training:
            mask = int(torch.randint(self.count, ())) if self.count > 1 else 0
            output = self._through(flat, mask)
        else:
            output = torch.stack([self._through(flat, mask) for mask in range(self.count)]).mean(0)
        return output.view(len(x), -1, *self.sides)

    def walk(self, x: Tensor, condition: Tensor | None = None) -> MaskedDenseWalk:
        return MaskedDenseWalk(self, x)

    def seen(self, mask: int) -> list[Tensor]:
        """Position of the last number that each hidden unit sees, int64 [units] for each layer."""
        return [getattr(self, f"seen_{layer}_{mask}") for layer in range(len(self.hidden))]

    def _through(self, flat: Tensor, mask: int) -> Tensor:
        at, features = self.inputs_at, flat
        for layer, seen in zip(cast("list[nn.Linear]", self.hidden), self.seen(mask), strict=True):
            features = self.activation(F.linear(features, layer.weight * (seen[:, None] >= at), layer.bias))
            at = seen
        output, own = self.bias.expand(len(flat), -1), self.outputs_at[:, None]
        if self.output is not None:
            output = output + F.linear(features, self.output.weight * (own > at))
        if self.direct is not None:
            output = output + F.linear(flat, self.direct.weight * (own > self.inputs_at))
        return output


class MaskedDenseWalk:
    """Inputs, hidden units and outputs lie in the order of their positions, so that all that is known at a step is the
    front of each, and what it adds one slice (a ``Walk``). Each weight is fetched once, when it is due."""

    def __init__(self, net: MaskedDense, x: Tensor) -> None:
        self.x, self.places = x.clone(), net.places
        self._step, self._channels, self._colours = -1, x.shape[1], net.colours
        inputs = _Sorted(net.inputs_at)
        # Of a pixel's outputs all that belong to it, in their own order.
        outputs = _Sorted(net.outputs_at, net.outputs_at.div(net.colours, rounding_mode="floor"))
        self._known = x.new_zeros(len(x), len(inputs.at))  # inputs, in their order
        self._per_pixel = len(outputs.at) // len(net.places)
        self._bias = net.bias.detach().float()[outputs.order]
        self._direct = None if net.direct is None else _Link(net.direct, inputs, outputs)
        count = net.count if net.output is not None else 0
        self._towers = [_Tower(net, mask, inputs, outputs, len(x)) for mask in range(count)]

    def at(self, step: int) -> Tensor:
        if step != self._step and step > 0:
            self._note(step - 1)
        self._step = step
        if self._colours > 1:
            self._note(step)  # its colours so far; the masks hide the others
        rows = slice(step * self._per_pixel, (step + 1) * self._per_pixel)
        output = self._bias[rows].expand(len(self.x), -1)
        if self._direct is not None:
            output = output + self._direct(self._known[:, : (step + 1) * self._channels], rows)
        if not self._towers:
            return output
        # A unit whose last number is that of the step before could not be computed until now.
        first = step * self._colours - 1
        found = [tower.add(self._known, first, first + self._colours, rows) for tower in self._towers]
        return output + (found[0] if len(found) == 1 else torch.stack(found).mean(0))

    def _note(self, step: int) -> None:
        row, column = self.places[step]
        self._known[:, step * self._channels : (step + 1) * self._channels] = self.x[:, :, row, column]


class _Sorted:
    """Units by their positions, or by another ``key``."""

    def __init__(self, at: Tensor, key: Tensor | None = None) -> None:
        self.order = (at if key is None else key).argsort(stable=True)
        self.at = at[self.order]


class _Link:
    """A masked matrix from sorted units to sorted units."""

    def __init__(self, layer: nn.Linear, into: _Sorted, out: _Sorted, *, last: bool = True) -> None:
        self._weight, self._into, self._out, self._last = layer.weight.detach().float(), into, out, last

    def __call__(self, front: Tensor, rows: slice) -> Tensor:
        """[B rows] of the front of the inputs [B n]."""
        n, at = front.shape[1], self._out.at[rows][:, None]
        weight = self._weight[self._out.order[rows]][:, self._into.order[:n]]
        seen = at > self._into.at[:n] if self._last else at >= self._into.at[:n]
        return F.linear(front, weight * seen)


class _Tower:
    """The hidden layers under one mask and what their units are so far."""

    def __init__(self, net: MaskedDense, mask: int, inputs: _Sorted, outputs: _Sorted, batch: int) -> None:
        self._layers = []
        below = inputs
        for layer, seen in zip(cast("list[nn.Linear]", net.hidden), net.seen(mask), strict=True):
            units = _Sorted(seen)
            values = layer.weight.new_zeros(batch, len(seen), dtype=torch.float32)
            bias = layer.bias.detach().float()[units.order]
            self._layers.append((_Link(layer, below, units, last=False), bias, units.at.tolist(), values))
            below = units
        self._output = _Link(cast("nn.Linear", net.output), below, outputs)
        self._activation = net.activation

    def add(self, known: Tensor, first: int, last: int, rows: slice) -> Tensor:
        """Compute the units whose last number is at ``first`` .. ``last`` - 1; the outputs of ``rows`` [B C']."""
        below = known
        for link, bias, positions, values in self._layers:
            new = slice(bisect_left(positions, first), bisect_left(positions, last))
            if new.start < new.stop:
                values[:, new] = self._activation(link(below, new) + bias[new])
            below = values[:, : new.stop]
        return self._output(below, rows)
