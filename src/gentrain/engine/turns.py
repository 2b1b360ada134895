"""How the players of one game take turns within an iteration."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from gentrain.engine.player import Seat
from gentrain.errors import UserError

Work = Callable[[Seat], None]


class Turns(Protocol):
    """The order of an iteration. One that is an ``nn.Module`` has state, which travels in the checkpoint."""

    @property
    def true_weights(self) -> bool:
        """Whether a player's weights are in the others' turns what they are in its own: if so, samples made in one turn
        may serve in the next."""
        ...

    def begin(self, seats: Sequence[Seat]) -> None:
        """Told once who plays, before the first iteration. UserError where they cannot play so."""
        ...

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        """One iteration of those who move in it. ``gradients(seat)`` leaves the player's gradients on its parameters;
        ``step(seat)`` moves them."""
        ...


@dataclass(frozen=True)
class Alternating:
    """Each player sees what the players before it have just done (Goodfellow 2014, Algorithm 1)."""

    true_weights: ClassVar[bool] = True

    def begin(self, seats: Sequence[Seat]) -> None:
        """Anybody may play so."""

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        for seat in seats:
            gradients(seat)
            step(seat)


@dataclass(frozen=True)
class Simultaneous:
    """All players look at the same parameters, then all move (simultaneous gradient descent).

    With ``loss=minimax`` and ``model.fresh_noise=false`` these are the gradients of one backward pass with a reversal
    layer between critic and generator (Ganin and Lempitsky 2015, arXiv 1409.7495, eq. 13-15).
    """

    true_weights: ClassVar[bool] = True

    def begin(self, seats: Sequence[Seat]) -> None:
        """Who shares an optimiser matters only where they move in the same iteration."""

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        _refuse_sharing(seats, "simultaneous")
        for seat in seats:
            gradients(seat)
        for seat in seats:
            step(seat)


@dataclass(frozen=True)
class Extragradient:
    """All players look a step ahead, and then move from where they were by the gradients that they find there
    (Korpelevich 1976; for GANs Gidel et al. 2019, arXiv 1802.10551, section 3.1 and algorithm 4).

    The look is a simultaneous step with each player's own optimiser and constraint, and as there its moments count
    both gradients. Behind the second gradients, parameters and buffers are bit for bit what they were before the look;
    nothing is left of it but the moments, and what parts with state of their own (a replay pool, ADA) have seen. The
    batch is the same both times, the noise is not. An iteration takes twice as long as a simultaneous one.

    On f(u, v) = u v with rate a the squared distance from the saddle is multiplied by 1 - a^2 + a^4 in a round.
    """

    true_weights: ClassVar[bool] = True

    def begin(self, seats: Sequence[Seat]) -> None:
        """As for simultaneous turns."""

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        _refuse_sharing(seats, "extragradient")
        for seat in seats:
            gradients(seat)
        held: list[Tensor] = [tensor for seat in seats for tensor in (*seat.parameters, *seat.buffers)]
        kept = [tensor.detach().clone() for tensor in held]
        try:
            for seat in seats:
                wanted, seat.norm_wanted = seat.norm_wanted, False  # the norm that is logged is the step's
                step(seat)
                seat.norm_wanted = wanted
            for seat in seats:
                gradients(seat)
        finally:
            with torch.no_grad():
                torch._foreach_copy_(held, kept)
        for seat in seats:
            step(seat)


@final
class Prediction(nn.Module):
    """Alternating, but the others see where one player would be after one more step like its last (Yadav et al. 2018,
    arXiv 1705.07364, section 3): with its weights u before that step and u+ now, they see u+ + (u+ - u).

    ``ahead``: that player, the one that minimises (a GAN's generator). Until its first step there is nothing to go on
    and the others see u+. Steps of others on the same weights (a lazy regulariser) count with the step they follow, and
    are taken at the true weights. Only parameters are predicted; behind the look, parameters and buffers are bit for
    bit what they were, so that no average, checkpoint or statistic of batch norm comes of weights that nobody has.

    On f(u, v) = u v with rate a the factor of a round has determinant 1 - a^2 instead of 1: it shrinks towards the
    saddle where alternating steps circle it.
    """

    true_weights: ClassVar[bool] = False

    def __init__(self, ahead: str = "generator") -> None:
        super().__init__()
        self.ahead = ahead
        self._before: list[Tensor] = []  # u, and not u+ - u: the difference of floats added again may miss u+
        self._seat: Seat | None = None
        self._owners: frozenset[str] = frozenset()

    def begin(self, seats: Sequence[Seat]) -> None:
        by_name = {seat.player.name: seat for seat in seats}
        if self.ahead not in by_name:
            raise UserError(f"turns.ahead={self.ahead}: no such player; this system has {', '.join(by_name)}")
        self._seat = by_name[self.ahead]
        own = {id(parameter) for parameter in self._seat.parameters}
        self._owners = frozenset(s.player.name for s in seats if any(id(p) in own for p in s.parameters))
        if len(self._owners) == len(by_name):
            raise UserError(f"turns=prediction: nobody plays against the {self.ahead}; use turns=alternating")

    def forward(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        for seat in seats:
            with contextlib.nullcontext() if seat.player.name in self._owners else self.predicted():
                gradients(seat)
            if seat is self._seat:
                self._before = [parameter.detach().clone() for parameter in seat.parameters]
            step(seat)

    @contextlib.contextmanager
    def predicted(self) -> Iterator[None]:
        """Inside, the player's weights are where they would be after one more step like its last."""
        if self._seat is None or not self._before:
            yield
            return
        weights: list[Tensor] = [*self._seat.parameters]
        held = weights + self._seat.buffers
        kept = [tensor.detach().clone() for tensor in held]
        try:
            with torch.no_grad():
                for weight, before in zip(weights, self._before, strict=True):
                    weight.add_(weight - before.to(weight.device))
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(held, kept)

    def get_extra_state(self) -> dict[str, Any]:
        return {"before": self._before}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._before = list(state["before"])


def _refuse_sharing(seats: Sequence[Seat], turns: str) -> None:
    """UserError where the gradients of one player would wipe out those of another who moves at the same time."""
    optimizers = [id(seat.optimizer) for seat in seats]
    if len(set(optimizers)) < len(optimizers):
        names = ", ".join(seat.player.name for seat in seats)
        raise UserError(f"turns={turns}: two of {names} share an optimiser; use turns=alternating")
    nets = [net for seat in seats for net in seat.player.nets]
    if shared := [net for net in nets if nets.count(net) > 1]:
        raise UserError(f"turns={turns}: two players move the {shared[0]}; use turns=alternating")
