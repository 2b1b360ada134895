"""Players of a game: which networks one may change, what it minimises, when it moves.

One player: autoencoder, flow. Two: a GAN. A lazy regulariser is one more player that shares an optimiser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gentrain.errors import UserError
from gentrain.types import Images, Terms


class Cadence(Protocol):
    """When a player moves, as a pure function of the iteration (1 is the first), so that a resume needs no state."""

    def __call__(self, iteration: int) -> bool: ...


class Schedule(Protocol):
    """Factor on the learning rate as a pure function of the iteration and the length of the run."""

    def __call__(self, iteration: int, total: int) -> float: ...


class MakesOptimizer(Protocol):
    """A ``torch.optim`` class with its numbers, waiting for parameters (``_partial_: true``)."""

    def __call__(self, parameters: Iterable[nn.Parameter], **more: Any) -> Optimizer: ...


@dataclass(frozen=True)
class Moves:
    """How one player moves: the numbers of a config's ``model.players.<name>``.

    ``every``: moves on iterations divisible by it. "Five critic steps per generator step" is 5 for the generator: each
    critic step then sees a fresh batch, as in the WGAN papers. ``clip``: bound on the norm of its gradient.
    """

    optimizer: MakesOptimizer
    every: int | Cadence = 1
    clip: float | None = None
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if isinstance(self.every, int) and self.every < 1:
            raise UserError(f"model.players: every={self.every}, at least 1 is needed")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"model.players: clip={self.clip}, more than 0 is needed; null does not clip")


@dataclass(frozen=True)
class Player:
    """``loss`` returns named terms and the player minimises their sum; ``optimizer`` names whose ``Moves`` it steps
    with (its own by default); ``after`` runs behind each of its steps (weight clipping)."""

    name: str
    nets: tuple[str, ...]
    loss: Callable[[Images], Terms]
    optimizer: str | None = None
    every: int | Cadence | None = None
    after: Callable[[], None] | None = None


@dataclass(frozen=True)
class Linear:
    """Learning-rate factor 1 up to the fraction ``start`` of the run, then linear towards ``end`` at its end;
    ``start`` 1 is a constant rate."""

    start: float = 0.0
    end: float = 0.0

    def __call__(self, iteration: int, total: int) -> float:
        past = (iteration - 1) / max(total, 1) - self.start
        if past <= 0 or self.start >= 1:
            return 1.0
        return 1.0 - (1.0 - self.end) * min(past / (1.0 - self.start), 1.0)


@dataclass(frozen=True)
class Exponential:
    """Learning-rate factor that is multiplied by ``factor`` in every iteration, from 1 in the first."""

    factor: float

    def __post_init__(self) -> None:
        if not 0.0 < self.factor <= 1.0:
            raise UserError(f"model.players: schedule.factor={self.factor:g}: above 0, at most 1")

    def __call__(self, iteration: int, total: int) -> float:
        return float(self.factor ** (iteration - 1))


@dataclass(frozen=True)
class Warmup:
    """Learning-rate factor that rises linearly over the first ``iterations``."""

    iterations: int

    def __call__(self, iteration: int, total: int) -> float:
        return min(1.0, iteration / max(self.iterations, 1))


class Seat:
    """A player at the table: its parameters, its optimiser, and the parameters that must stand still meanwhile."""

    def __init__(
        self, player: Player, moves: Moves, nets: nn.ModuleDict, optimizer: Optimizer, everyone: list[nn.Parameter]
    ) -> None:
        self.player = player
        self.optimizer = optimizer
        self.clip = moves.clip
        self.schedule = moves.schedule
        self.parameters = distinct(nets[name] for name in player.nets)
        self.buffers = list(dict.fromkeys(buffer for name in player.nets for buffer in nets[name].buffers()))
        own = {id(p) for p in self.parameters}
        self.others = [p for p in everyone if id(p) not in own]
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.norm_wanted = True
        self._term_keys: dict[str, str] = {}
        every = player.every if player.every is not None else moves.every
        self.moves_at: Cadence = every if callable(every) else _Every(every)

    def term_key(self, term: str) -> str:
        """The term's name in every logger."""
        return self._term_keys.setdefault(term, f"loss/{self.player.name}/{term}")

    def set_rate(self, iteration: int, total: int, factor: float = 1.0) -> None:
        """The learning rate of this iteration; ``factor`` on top of the schedule's."""
        if self.schedule is not None or factor != 1.0:
            factor *= self.schedule(iteration, total) if self.schedule is not None else 1.0
            for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = base * factor

    def gradient_norm(self) -> Tensor:
        """L2 norm over all of the player's gradients."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])


@dataclass(frozen=True)
class _Every:
    number: int

    def __call__(self, iteration: int) -> bool:
        return iteration % self.number == 0


def total(terms: Terms, player: str = "player") -> Tensor:
    """Sum of the terms in float32: what the player minimises. UserError where there is none."""
    if not terms:
        raise UserError(
            f"model: the {player} has nothing to minimise: the terms of its objective have a weight of 0, or act in "
            "other iterations; give one of them a weight above 0"
        )
    values = iter(terms.values())
    result = next(values).float()
    for value in values:
        result = result + value.float()
    return result


def distinct(nets: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of some networks in order, each once: two networks may share weights, and one step is one step."""
    return list(dict.fromkeys(parameter for net in nets for parameter in net.parameters()))


def parameter_counts(nets: Mapping[str, nn.Module]) -> dict[str, int]:
    """Parameters of each network by name; what several share is counted with the first of them."""
    seen: set[nn.Parameter] = set()
    counts = {}
    for name, net in nets.items():
        own = set(net.parameters()) - seen
        counts[name] = sum(parameter.numel() for parameter in own)
        seen |= own
    return counts


def make_optimizer(factory: MakesOptimizer, parameters: list[nn.Parameter]) -> Optimizer:
    """Build an optimiser, fused where torch has a fused kernel for the device: one pass over memory per step."""
    target = getattr(factory, "func", factory)
    chosen = getattr(factory, "keywords", {})
    can_fuse = "fused" in inspect.signature(target).parameters and not {"fused", "foreach"} & set(chosen)
    on_supported = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    optimizer = factory(parameters, fused=True) if can_fuse and on_supported else factory(parameters)
    if not torch.cuda.is_available() and hasattr(optimizer, "_accelerator_graph_capture_health_check"):
        # torch 2.15 looks for a GPU driver on disk in every step of every optimiser: 0.1 ms, a tenth of a small step.
        setattr(optimizer, "_accelerator_graph_capture_health_check", lambda: None)  # noqa: B010
    return optimizer
