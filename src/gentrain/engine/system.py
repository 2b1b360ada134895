"""The one training step: networks, players, optimisers, clipping, accumulation, averages and the clock.

It knows nothing of images, losses or sampling; families and papers add those.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gentrain.engine import precision as numbers
from gentrain.engine.clock import Clock, Ledger
from gentrain.engine.ema import Average, Ema
from gentrain.engine.finite import diverged
from gentrain.engine.player import Moves, Player, Seat, distinct, make_optimizer, total
from gentrain.engine.ranks import average_buffers, average_gradients, world_size
from gentrain.engine.starting import take_first_values
from gentrain.engine.state import moved, packed
from gentrain.engine.turns import Alternating, Turns
from gentrain.errors import UserError
from gentrain.types import Images, Spec, Terms


class System(lightning.LightningModule, ABC):
    """Base of the families. A family fills ``nets``, says who the players are, and how to sample.

    ``spec``: shape of the data. ``players``: the numbers of each player by name. ``ema``: average of the networks in
    ``sampled``, or None.
    """

    sampled: tuple[str, ...] = ()
    """Names of the networks that sampling needs: these are averaged, and put into eval mode to sample."""

    keeps: tuple[str, ...] = ()
    """Names of attributes that training changes beside the networks (an image pool, a growth stage, a running mean):
    tensors, plain values and nests of them, or objects with ``state_dict``. They travel in the checkpoint."""

    def __init__(
        self,
        spec: Spec,
        players: Mapping[str, Moves],
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.spec = spec
        self.moves = dict(players)
        self.turns: Turns = turns if turns is not None else Alternating()
        self.ema = ema
        self.nets = nn.ModuleDict()
        self.rules = nn.ModuleDict()  # parts with state that no player moves: a running mean, a pool of samples
        if isinstance(turns, nn.Module):
            self.rules["turns"] = turns
        self.average: Average | None = None
        self.clock = Clock()
        self.ledger = Ledger()
        self.seats: list[Seat] = []
        self.optimizers_by_name: dict[str, Optimizer] = {}
        self.precision_name = "32-true"
        self.channels_last = False
        self.accumulate = 1
        self.setbacks = 0
        """How often the run went back to a checkpoint because its numbers were lost; each halves the learning rates."""
        self.interrupted: Callable[[], bool] = lambda: False
        self._active: Seat | None = None
        self._unread: list[tuple[Tensor, int, Seat, Terms]] = []
        self._started = False

    @abstractmethod
    def players(self) -> Sequence[Player]:
        """The players in the order in which they move."""

    def prepare(self, *, total: int, precision: str = "32-true", accumulate: int = 1) -> None:
        """Make optimisers, averages and seats, once the networks are where they will stay."""
        self.clock.total = total
        self.precision_name, self.accumulate = precision, accumulate
        self.channels_last = self.spec.is_image
        if self.channels_last:
            self.nets.to(memory_format=torch.channels_last)
        if self.ema is not None and self.average is None:
            self.average = Average(self.ema, self.nets, self.sampled)
        roster = list(self.players())
        unknown = sorted(set(self.moves) - {p.optimizer or p.name for p in roster} - {p.name for p in roster})
        if unknown:
            raise UserError(
                f"model.players.{unknown[0]}: no such player; this system has {', '.join(p.name for p in roster)}"
            )
        self.optimizers_by_name = self._make_optimizers(roster)
        everyone = list(self.nets.parameters())
        self.seats = [
            Seat(p, self._moves_of(p), self.nets, self.optimizers_by_name[p.optimizer or p.name], everyone)
            for p in roster
        ]
        self.turns.begin(self.seats)

    def _moves_of(self, player: Player) -> Moves:
        for name in (player.name, player.optimizer):
            if name in self.moves:
                return self.moves[name]
        raise UserError(f"model.players.{player.name}: missing; the player needs an optimizer")

    def _make_optimizers(self, roster: Sequence[Player]) -> dict[str, Optimizer]:
        made: dict[str, Optimizer] = {}
        for name in dict.fromkeys(p.optimizer or p.name for p in roster):
            sharing = [p for p in roster if (p.optimizer or p.name) == name]
            nets = dict.fromkeys(net for p in sharing for net in p.nets)
            parameters = distinct(self.nets[net] for net in nets)
            try:
                made[name] = make_optimizer(self._moves_of(sharing[0]).optimizer, parameters)
            except ValueError as error:  # how torch.optim says that a number is out of its range
                raise UserError(f"model.players.{name}.optimizer: {error}") from error
        return made

    # ---------------------------------------------------------------- the step

    def training_step(self, block: Sequence[Images], batch_idx: int) -> None:
        """Lightning hands over a short run of batches: its own 0.6 ms per step would double the time of a small one."""
        for batch in block:
            self.iterate(batch)
            if self.interrupted():
                break
        self.read_losses()

    def iterate(self, batch: Images) -> None:
        """One iteration of the game on one batch."""
        on_device = batch.to(self.device, channels_last=self.channels_last)
        parts = list(on_device.chunks(self.accumulate))
        iteration = self.clock.iteration + 1
        moving = [seat for seat in self.seats if seat.moves_at(iteration)]
        self.turns(
            moving, lambda seat: self._gradients(seat, parts, iteration), lambda seat: self._step(seat, iteration)
        )
        if world_size() > 1:
            average_buffers(self.nets, self.rules)
        if self.average is not None and any(name in self.sampled for seat in moving for name in seat.player.nets):
            self.average.update(iteration)
        self.clock.tick(len(batch) * world_size())

    def _gradients(self, seat: Seat, parts: Sequence[Images], iteration: int) -> None:
        self._give_the_floor_to(seat)
        seat.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, part in enumerate(parts):
            with self.autocast(), self.further_part() if i else contextlib.nullcontext():
                terms = seat.player.loss(part)
            loss = total(terms, seat.player.name)
            losses.append(loss.detach())
            if self.device.type == "cpu" and world_size() == 1:  # free here, and the backward pass is saved
                self._refuse(loss.item(), iteration, seat, terms)
            (loss / len(parts) if len(parts) > 1 else loss).backward()  # type: ignore[no-untyped-call]
            for name, term in terms.items():
                self.ledger.note(seat.term_key(name), term)
        self._exchange(seat, torch.stack(losses).mean(), iteration, terms)

    def further_part(self) -> contextlib.AbstractContextManager[object]:
        """Around the loss of each part of a batch but the first: what is done once in a turn rests in here."""
        return contextlib.nullcontext()

    def _exchange(self, seat: Seat, loss: Tensor, iteration: int, terms: Terms) -> None:
        """Share gradients among the ranks, and find out whether any of them computed with NaN."""
        if world_size() > 1:
            average_gradients(seat.parameters, loss)
            if self.device.type == "cpu":
                self._refuse(loss.item(), iteration, seat, terms)
        if self.device.type != "cpu":  # asking now would stall the device: it is asked once in a block
            self._unread.append((loss, iteration, seat, {name: term.detach() for name, term in terms.items()}))

    def read_losses(self) -> None:
        """NonFiniteError for the first loss since the last call that is NaN or infinite."""
        unread, self._unread = self._unread, []
        if unread:
            values = torch.stack([loss for loss, *_ in unread]).tolist()
            for value, (_, iteration, seat, terms) in zip(values, unread, strict=True):
                self._refuse(value, iteration, seat, terms)

    def _refuse(self, loss: float, iteration: int, seat: Seat, terms: Terms) -> None:
        if not math.isfinite(loss):
            values = ", ".join(f"{name} = {term.item():.3g}" for name, term in terms.items())
            raise diverged(iteration, f"the loss of the {seat.player.name} ({values})", seat.player.name)

    def _step(self, seat: Seat, iteration: int) -> None:
        if seat.clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(seat.parameters, seat.clip)
            self.ledger.note(f"grad_norm/{seat.player.name}", norm)
        elif seat.norm_wanted:
            self.ledger.note(f"grad_norm/{seat.player.name}", seat.gradient_norm())
            seat.norm_wanted = False
        seat.set_rate(iteration, self.clock.total, 0.5**self.setbacks)
        seat.optimizer.step()
        if seat.player.after is not None:
            seat.player.after()

    def take_first_values(self, forward: Callable[[], object]) -> None:
        """Let layers that start from data see this batch by ``forward``, if it is the first of the run."""
        if not self._started:
            take_first_values(self.nets, forward)
        self._started = True

    def _give_the_floor_to(self, seat: Seat) -> None:
        """Only the player's own parameters collect gradients: no other player moves, and no backward pass is wasted."""
        if self._active is seat:
            return
        for parameter in seat.others:
            parameter.requires_grad_(False)
        for parameter in seat.parameters:
            parameter.requires_grad_(True)
        self._active = seat

    # ---------------------------------------------------------------- weights and modes

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return numbers.autocast(self.precision_name, self.device)

    @contextlib.contextmanager
    def weights(self, which: str) -> Iterator[None]:
        """Inside, ``nets`` holds the averaged networks (``ema``) or the live ones (``raw``)."""
        if which != "ema" or self.average is None:
            yield
            return
        live = {name: self.nets[name] for name in self.average.nets}
        try:
            for name, net in self.average.nets.items():
                self.nets[name] = net
            yield
        finally:
            for name, net in live.items():
                self.nets[name] = net

    def report(self) -> dict[str, float]:
        """Means of everything noted since the last report, by logger key."""
        for seat in self.seats:
            seat.norm_wanted = True  # one gradient norm per report: it reads every gradient once
        return self.ledger.means()

    def note(self, key: str, value: Tensor) -> None:
        """Log the mean of a scalar that no player minimises, e.g. ``score/real``."""
        self.ledger.note(key, value)

    def remarks(self) -> dict[str, str]:
        """What a reader of its results must know and cannot see in the config, by name: it is said at the start and
        stands in the run card."""
        return {}

    def pending(self) -> dict[str, Any]:
        """What waits to be logged, so that a resumed run logs what an uninterrupted one does."""
        return {"terms": self.ledger.state(), "norms": {seat.player.name: seat.norm_wanted for seat in self.seats}}

    def restore_pending(self, pending: Mapping[str, Any]) -> None:
        """Put back what ``pending`` gave."""
        self.ledger.restore(pending["terms"], self.device)
        for seat in self.seats:
            seat.norm_wanted = pending["norms"][seat.player.name]

    def configure_optimizers(self) -> None:
        """Lightning is given none: it would count their steps, and refuse clipping and accumulation."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    # ---------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """All that training changes, as tensors and plain values."""
        return {
            "nets": self.nets.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers_by_name.items()},
            "clock": {"iteration": self.clock.iteration, "images": self.clock.images},
            "setbacks": self.setbacks,
            "rules": self.rules.state_dict(),
            "kept": {name: packed(getattr(self, name)) for name in self.keeps},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave. UserError if it is of other networks or players, or only one has an average."""
        try:
            self._restore(state)
        except (RuntimeError, KeyError, ValueError) as error:  # how torch says that sizes or names do not fit
            why = " ".join(str(error).split())
            raise UserError(
                f"model: the checkpoint is of other networks or players than the config's ({why:.200})"
            ) from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        if (self.average is None) != (state["average"] is None):
            has, wants = ("an", "none") if self.average is None else ("no", "one")
            raise UserError(f"model.ema: the checkpoint has {has} average of the weights, the config asks for {wants}")
        self.nets.load_state_dict(state["nets"])
        self._started = False  # the state may be of before the first iteration
        self.rules.load_state_dict(state["rules"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.average.forget_places()
        for name, optimizer in self.optimizers_by_name.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.clock.iteration = state["clock"]["iteration"]
        self.clock.images = state["clock"]["images"]
        self.setbacks = state["setbacks"]
        for name in self.keeps:
            held = getattr(self, name)
            if hasattr(held, "load_state_dict"):
                held.load_state_dict(state["kept"][name])
            else:
                setattr(self, name, moved(state["kept"][name], self.device))
