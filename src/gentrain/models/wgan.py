"""Wasserstein GAN: a critic kept Lipschitz by clipping its weights, trained well ahead of the generator.

Paper: Arjovsky, Chintala and Bottou 2017, arXiv 1701.07875, Algorithm 1; the schedule of critic steps is that of the
authors' code.
Adds to the adversarial family: the clip after each critic step, and when the generator moves.
Departs: the clip follows each step, as in Algorithm 1 (the authors' code clips before it), so the critic that the
generator sees is always clipped; samples come from averaged weights.
Checked by: every weight within the bound after every step; the moves of the schedule counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gentrain.errors import UserError
from gentrain.objectives.penalties import clip_weights


@dataclass(frozen=True)
class WeightClip:
    """Clamp every parameter of the critic to [-bound, bound]; buffers stay as they are."""

    bound: float = 0.01

    def __post_init__(self) -> None:
        if not self.bound > 0:
            raise UserError(f"model.constraint.bound={self.bound}: a number above 0 is needed")

    def __call__(self, net: nn.Module) -> None:
        clip_weights(net, self.bound)


@dataclass(frozen=True)
class CriticAhead:
    """When the generator moves: after ``every`` critic steps, but after ``ahead`` in its first ``first`` steps and in
    each ``again``-th step later, so that it follows a critic near its optimum.

    A pure function of the iteration, so a resumed run needs no counter.
    """

    every: int = 5
    ahead: int = 100
    first: int = 25
    again: int = 500

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("ahead", 1), ("first", 0), ("again", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"model.players.generator.every.{name}={value}: at least {least}")

    def __call__(self, iteration: int) -> bool:
        opening = self.first * self.ahead
        if iteration <= opening:
            return iteration % self.ahead == 0
        # Generator steps are numbered from 0; the numbers that are multiples of `again` are the long ones.
        short_before_long = self.again - self.first % self.again if self.first % self.again else 0
        rest = iteration - opening
        if rest <= short_before_long * self.every:
            return rest % self.every == 0
        period = self.ahead + (self.again - 1) * self.every
        place = (rest - short_before_long * self.every - 1) % period + 1
        return place == self.ahead or (place > self.ahead and (place - self.ahead) % self.every == 0)
