"""How the players of one game take turns within an iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gentrain.engine.player import Seat
from gentrain.errors import UserError

Work = Callable[[Seat], None]


class Turns(Protocol):
    """``gradients(seat)`` leaves the player's gradients on its parameters; ``step(seat)`` moves them."""

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None: ...


@dataclass(frozen=True)
class Alternating:
    """Each player sees what the players before it have just done (Goodfellow 2014, Algorithm 1)."""

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        for seat in seats:
            gradients(seat)
            step(seat)


@dataclass(frozen=True)
class Simultaneous:
    """All players look at the same parameters, then all move (simultaneous gradient descent)."""

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        optimizers = [id(seat.optimizer) for seat in seats]
        if len(set(optimizers)) < len(optimizers):  # the second one's gradients would wipe out the first one's
            names = ", ".join(seat.player.name for seat in seats)
            raise UserError(f"turns=simultaneous: two of {names} share an optimiser; use turns=alternating")
        nets = [net for seat in seats for net in seat.player.nets]
        if shared := [net for net in nets if nets.count(net) > 1]:  # likewise
            raise UserError(f"turns=simultaneous: two players move the {shared[0]}; use turns=alternating")
        for seat in seats:
            gradients(seat)
        for seat in seats:
            step(seat)
