"""A Markov chain whose transition is a network, trained to walk back to the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast, final

import torch
from torch import Tensor, nn

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.objectives.autoencoding import DataLikelihood, SeededCorruption
from gentrain.types import Images, Spec, Terms

FIRST_IMAGES = 10_000
"""Training images whose means chains begin from."""


class DrawnLikelihood(DataLikelihood, Protocol):
    """A likelihood of the data that can be drawn from."""

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Data as ``prepare`` gives them; no gradient goes through."""
        ...


class Transition(Protocol):
    """A network that is one step of a chain."""

    def rest(self, x: Tensor) -> list[Tensor]:
        """Hidden states before the first step from data x."""
        ...

    def __call__(
        self, x: Tensor, hidden: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What the likelihood takes, and the hidden states, of corrupted data x."""
        ...


class MakesTransition(Protocol):
    """A choice of network that waits for the data."""

    @property
    def reach(self) -> int:
        """Steps of a chain until all layers have had a say in what the likelihood takes."""
        ...

    def network(self, spec: Spec, head: nn.Module) -> nn.Module:
        """A ``Transition`` with ``head`` before what the likelihood takes."""
        ...


class Noise(nn.Module):
    """Independent pixels, on as often as in the data, or numbers of the data's means and standard deviations: where
    chains begin. A coin and N(0, 1) until it has seen data."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.binary = spec.is_image
        self.register_buffer("mean", torch.full(spec.shape, 0.5 if self.binary else 0.0))
        self.register_buffer("scale", torch.ones(spec.shape))
        self.mean: Tensor
        self.scale: Tensor

    def begin(self, x: Tensor) -> None:
        self.mean.copy_(x.mean(0))
        self.scale.copy_(x.std(0, correction=0))

    def forward(self, n: int, generator: torch.Generator | None) -> Tensor:
        mean = self.mean.expand(n, *self.mean.shape)
        if self.binary:
            return torch.bernoulli(mean, generator=generator)
        return mean + self.scale * torch.empty_like(mean).normal_(generator=generator)


@final
class GenerativeStochastic(System):
    """X_(t+1) ~ P(X | H_t), H_t from a corrupted X_t and H_(t-1). Samples are its states; it has no likelihood.

    ``loss``: P(X | H), binary pixels or a density of vectors. ``corruption``: of X, None for none. ``walkback``: steps
    of the chain in training, at each of which the error is that of the data it began with. ``steps``: of a chain from
    ``Noise`` to a sample; of images the last mean is shown, of vectors a draw.
    """

    sampled = ("network",)
    first_images = FIRST_IMAGES

    def __init__(
        self,
        spec: Spec,
        net: MakesTransition,
        loss: DrawnLikelihood,
        corruption: SeededCorruption | None,
        players: Mapping[str, Moves],
        walkback: int = 4,
        steps: int = 100,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        for name, value in (("walkback", walkback), ("steps", steps)):
            if value < 1:
                raise UserError(f"model.{name}={value}: at least 1")
        if walkback < net.reach:
            raise UserError(
                f"model.walkback={walkback}: layers that no step hears would not be trained: at least {net.reach} for "
                "this model.net"
            )
        if not hasattr(loss, "draw"):
            raise UserError(
                "model.loss: a chain needs a likelihood to draw from: loss=bernoulli, or loss=density for vectors"
            )
        loss.require(spec)
        self.loss, self.corruption = loss, corruption
        self.walkback, self.steps = walkback, steps
        self.nets["network"] = net.network(spec, loss.head())
        self.rules["noise"] = Noise(spec)

    @property
    def noise(self) -> Noise:
        return cast("Noise", self.rules["noise"])

    def begin_from(self, x: Tensor) -> None:
        self.noise.begin(self.loss.prepare(x, fixed=True))

    @property
    def network(self) -> Transition:
        return cast("Transition", self.nets["network"])

    def players(self) -> Sequence[Player]:
        return (Player("network", nets=("network",), loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        target = self.loss.prepare(batch.x)
        x, hidden = target, self.network.rest(target)
        errors = []
        for step in range(self.walkback):
            output, hidden = self._advance(x, hidden)
            errors.append(self.loss.error(output, target).mean())
            if step + 1 < self.walkback:
                x = self.loss.draw(output)
        self.note("walkback/first_step", errors[0])
        self.note("walkback/last_step", errors[-1])
        return {"reconstruction": torch.stack(errors).mean()}

    def _advance(
        self, x: Tensor, hidden: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        return self.network(self._corrupted(x, generator), hidden, generator)

    def _corrupted(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Corruptions are of data in [-1, 1]; binary pixels are 0 and 1 here."""
        if self.corruption is None:
            return x
        if not self.spec.is_image:
            return self.corruption(x, generator)
        return 0.5 * (self.corruption(2.0 * x - 1.0, generator) + 1.0)

    # ---------------------------------------------------------------- capabilities

    def chain(
        self,
        n: int,
        *,
        length: int,
        stride: int,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        with torch.no_grad():
            given = None if start is None else self.loss.prepare(start.to(self.device), fixed=True)
            x = self.noise(n, generator) if given is None else given
            hidden, states = self.network.rest(x), []
            for step in range(length * stride):
                output, hidden = self._advance(x, hidden, generator)
                x = self.loss.draw(output, generator)
                if (step + 1) % stride == 0:
                    states.append(self.loss.mean(output) if self.spec.is_image else x)
            return torch.stack(states, dim=1)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.chain(n, length=1, stride=self.steps, generator=generator)[:, 0]
