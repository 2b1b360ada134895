"""A product of conditional distributions, one for each pixel given those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast, final

import torch
from torch import Tensor

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.families.of_classes import OfClasses
from gentrain.nets.causal import Causal, MakesCausal, Recomputed, Walk
from gentrain.nets.stages import InStages
from gentrain.objectives.pixel_heads import PixelHead, StagedHead, require_head
from gentrain.types import Images, LikelihoodOn, Spec, Terms


class Condition(Protocol):
    """What a network is told besides the pixels (``model.condition``), made from the label."""

    def width(self, spec: Spec) -> int:
        """Channels of it. UserError for data that have no classes."""
        ...

    def build(self, spec: Spec) -> torch.nn.Module:
        """labels int64 [B] -> [B K], or [B K H W] where it differs by place."""
        ...


@final
class Autoregressive(OfClasses):
    """log p(x) = sum over pixels and colours of log p(x_i | x_<i), exact, in one pass of ``net``; sampling takes a step
    for each.

    ``loss``: what the output says about a pixel (categorical, logistic_mixture, bernoulli). ``condition``: the class,
    told to the network; ``log_likelihood`` is then that of the picture alone, summed over classes. ``temperature``: of
    samples, below 1 narrower. UserError for data that are no images.
    """

    sampled: tuple[str, ...] = ("net",)

    def __init__(
        self,
        spec: Spec,
        net: MakesCausal,
        loss: PixelHead,
        players: Mapping[str, Moves],
        condition: Condition | None = None,
        temperature: float = 1.0,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        self.head = require_head(loss)
        self.head.require(spec)
        if not temperature > 0:
            raise UserError(f"model.temperature={temperature:g}: above 0")
        if not hasattr(net, "causal"):
            raise UserError(
                f"model/net: {type(net).__name__} makes no network that sees earlier pixels alone; choose one of those "
                "that do: made, pixelcnn, gated_pixelcnn, ..."
            )
        self.temperature = temperature
        self.watch: Callable[[int, int], None] | None = None
        self.conditional = condition is not None
        c, told = spec.channels, 0 if condition is None else condition.width(spec)
        staged = self.head if isinstance(self.head, StagedHead) else None
        outputs = (self.head.channels(c),) if staged is None else staged.stages(c)
        nets = [
            net.causal(spec, of_stage, colours=self.head.colours(c), condition=told + stage * c)
            for stage, of_stage in enumerate(outputs)
        ]
        self.stages = len(nets)
        self.nets["net"] = nets[0] if staged is None else InStages(nets, outputs, staged.shown)
        if condition is not None:
            self.nets["condition"] = condition.build(spec)
            self.sampled = (*self.sampled, "condition")

    def players(self) -> Sequence[Player]:
        learning = tuple(name for name, net in self.nets.items() if any(True for _ in net.parameters()))
        return (Player("model", nets=learning, loss=self.objective),)

    def temper(self, at: float | None) -> None:
        """From now on samples are drawn at this temperature (``evaluation.temperature``); None: 1."""
        self.temperature = 1.0 if at is None else at

    def objective(self, batch: Images) -> Terms:
        """Minus the log-likelihood, nats per image."""
        self.take_first_values(lambda: self._errors(batch.x, batch.y, fixed=False))
        return {"nll": self._errors(batch.x, batch.y, fixed=False).mean()}

    # ---------------------------------------------------------------- capabilities

    @property
    def likelihood_on(self) -> LikelihoodOn:
        return self.head.likelihood_on

    def log_likelihood(self, x: Tensor) -> Tensor:
        if not self.conditional:
            return -self._errors(x, None, fixed=True)
        return self.over_classes(lambda k: -self._errors(x, torch.full((len(x),), k, device=x.device), fixed=True))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        if self.conditional and labels is None:
            labels = self.draw_labels(n, generator)
        empty = torch.zeros(n, *self.spec.shape, device=self.device)
        return self.fill(empty, torch.zeros_like(empty, dtype=torch.bool), labels=labels, generator=generator)

    def complete(
        self, x: Tensor, known: Tensor, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """[B C H W] in [-1, 1]: the pictures x uint8 [B C H W] with all pixels drawn anew that are not ``known`` (bool,
        of a shape that broadcasts), each given those before it, known or drawn. Known pixels behind it have no say."""
        target = self.head.prepare(x, fixed=True)
        if self.conditional and labels is None:
            labels = self.draw_labels(len(x), generator)
        return self.fill(self.head.seen(target), known.expand_as(target), labels=labels, generator=generator)

    def fill(
        self,
        x: Tensor,
        known: Tensor,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        cached: bool = True,
        watch: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """x [B C H W] in [-1, 1] with all but the ``known`` pixels (bool [B C H W]) drawn. ``cached`` false: by the
        whole network at each step, slowly; the same pictures but for rounding. ``watch``, or the system's, is told
        (pixels done, of)."""
        net = cast("Causal", self.nets["net"])
        condition = self._condition(labels)
        walk: Walk = net.walk(x, condition)
        if not cached:
            walk = Recomputed(net, x, condition, walk.places)
        watch, c = watch or self.watch, self.spec.channels
        steps, numbers = self.head.colours(c), self.head.uniforms(c)
        for step, (row, column) in enumerate(walk.places):
            before = step * self.stages // len(walk.places) * steps  # of the stages that are done
            known_pixel, pixel = x[:, :, row, column], walk.x[:, :, row, column]
            kept = known[:, :, row, column]
            for colour in range(steps):
                uniform = torch.rand(len(x), numbers, device=x.device, generator=generator)
                drawn = self.head.draw_pixel(walk.at(step), pixel, before + colour, uniform, self.temperature)
                pixel = torch.where(kept, known_pixel, drawn)
                walk.x[:, :, row, column] = pixel
            if watch is not None:
                watch(step + 1, len(walk.places))
        return walk.x

    def _errors(self, x: Tensor, labels: Tensor | None, *, fixed: bool) -> Tensor:
        """-log p(x), or -log p(x | label) [B] nats."""
        target = self.head.prepare(x, fixed=fixed)
        output = self.nets["net"](self.head.seen(target), self._condition(labels))
        return self.head.error(output, target)

    def _condition(self, labels: Tensor | None) -> Tensor | None:
        if not self.conditional:
            return None
        if labels is None:
            raise ValueError("this system is told the class: labels are due")
        told: Tensor = self.nets["condition"](labels)
        return told
