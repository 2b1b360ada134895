"""Numbers that are lost: the run stops within a step, or goes back and takes smaller steps, and saves none of them."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Count, Run, words

from gentrain.engine import checkpoint
from gentrain.engine.finite import refuse_non_finite
from gentrain.engine.player import Seat
from gentrain.engine.system import System

BUDGET = [
    "train.iterations=8",
    "train.checkpoint_every=2",
    "train.validate_every=0",
    "train.log_every=1",
    "metrics=none",
]
BUDGET += ["train.keep=9", "train.on_nonfinite=rollback"]

Poison = Callable[[int, int], list[int]]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """``poison(5, 2)``: the first two times that iteration 5 comes, a weight of the critic becomes NaN behind it."""
    original = System._step

    def arm(at: int, times: int) -> list[int]:
        fired: list[int] = []

        def step(self: System, seat: Seat, iteration: int) -> None:
            original(self, seat, iteration)
            if iteration == at and seat.player.name == "critic" and len(fired) < times:
                fired.append(iteration)
                with torch.no_grad():
                    seat.parameters[0].view(-1)[0] = math.nan

        monkeypatch.setattr(System, "_step", step)
        return fired

    return arm


def card(workplace: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workplace / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    return content


def files(workplace: Path) -> list[Path]:
    return checkpoint.steps(workplace / "outputs" / "run" / "checkpoints")


def test_a_run_goes_back_to_its_last_checkpoint_and_takes_smaller_steps(
    run: Run, workplace: Path, poison: Poison
) -> None:
    fired = poison(5, 1)
    ended = run(*words("model=dcgan", "name=run", *BUDGET))
    assert (ended.code, fired) == (0, [5])
    assert "back to iteration-000000004.ckpt with 0.5 times the learning rate" in ended.out
    assert len(card(workplace)["rollbacks"]) == 1
    assert card(workplace)["status"] == "finished"
    state = checkpoint.load(files(workplace)[0])["system"]
    assert state["setbacks"] == 1
    for optimizer in state["optimizers"].values():
        assert optimizer["param_groups"][0]["lr"] == pytest.approx(1e-4)
    rows = (workplace / "outputs" / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["iteration", *map(str, range(1, 9))]


def test_three_rollbacks_at_most_and_no_file_ever_holds_what_is_not_finite(
    run: Run, workplace: Path, poison: Poison
) -> None:
    fired = poison(5, 99)
    ended = run(*words("model=dcgan", "name=run", *BUDGET))
    assert (ended.code, len(fired)) == (2, 4)
    assert "given up after 3 rollbacks, the last to iteration-000000004.ckpt" in ended.err
    assert "Traceback" not in ended.err
    assert card(workplace)["status"] == "failed"
    assert [path.name for path in files(workplace)] == [checkpoint.file_name(n) for n in (4, 2)]
    for path in files(workplace):
        refuse_non_finite(checkpoint.load(path)["system"], 0)


@pytest.mark.parametrize(
    ("at", "said"), [(5, "the last good checkpoint is iteration-000000004.ckpt"), (1, "no checkpoint was")]
)
def test_a_run_stops_within_a_step_and_says_where_the_last_good_checkpoint_is(
    at: int, said: str, run: Run, workplace: Path, poison: Poison
) -> None:
    poison(at, 99)
    ended = run(*words("model=dcgan", "name=run", *BUDGET, "train.on_nonfinite=stop"))
    assert ended.code == 2
    assert f"iteration {at}: the loss of the generator" in ended.err
    assert said in ended.err


def test_what_is_lost_where_no_loss_shows_it_is_found_before_it_is_saved(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch-norm statistic or an average may be NaN while every loss is finite."""
    original = System.iterate

    def iterate(self: System, batch: Any) -> None:
        original(self, batch)
        if self.clock.iteration == 4 and self.average is not None:
            next(iter(self.average.buffers())).copy_(torch.tensor(3))
            next(b for b in self.average.nets.buffers() if b.is_floating_point()).fill_(math.inf)

    monkeypatch.setattr(System, "iterate", iterate)
    ended = run(*words("model=dcgan", "name=run", *BUDGET, "train.on_nonfinite=stop"))
    assert ended.code == 2
    assert "iteration 4: average.nets.generator" in ended.err
    assert [path.name for path in files(workplace)] == [checkpoint.file_name(2)]


PLACES = ("weight", "gradient", "buffer", "loss")


def test_poison_anywhere_stops_the_run_within_a_step_and_is_never_saved(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    """NaN or infinity at a random iteration, player and place; a checkpoint is due after every iteration."""
    number, generator = count.of(8, 100), random.Random(0)
    fired = survived = 0
    for trial in range(number):
        at, place = generator.randrange(2, 8), PLACES[trial % 4]
        player, value = generator.choice(["critic", "generator"]), generator.choice([math.nan, math.inf])
        player = "generator" if place == "buffer" else player  # this size's critic has no batch norm
        done: list[int] = []
        with monkeypatch.context() as patch:
            poisoned(patch, at, player, place, value, done)
            shared = words("model=dcgan", f"name=r{trial}", "train.checkpoint_every=1", "train.keep=9")
            ended = run(*shared, "train.iterations=12", "train.validate_every=0", "metrics=none")
        fired += bool(done)
        steps = checkpoint.steps(workplace / "outputs" / f"r{trial}" / "checkpoints")
        for path in steps:
            refuse_non_finite(checkpoint.load(path)["system"], 0)
        said = re.search(r"iteration (\d+): .*the last good checkpoint is iteration-0*(\d+)", ended.err)
        assert said, f"{place} of {player}: {ended.err}"
        in_time = int(said[1]) in (at, at + 1) and int(said[2]) == at - 1 == len(steps)
        survived += ended.code == 2 and in_time and "Traceback" not in ended.err
    count.says(injected=number, fired=fired, survived=survived)


def poisoned(patch: pytest.MonkeyPatch, at: int, player: str, place: str, value: float, done: list[int]) -> None:
    gradients, step = System._gradients, System._step

    def after_gradients(self: System, seat: Seat, parts: Any, iteration: int) -> None:
        if (iteration, seat.player.name, place) == (at, player, "loss"):
            done.append(iteration)
            loss = seat.player.loss
            object.__setattr__(seat.player, "loss", lambda part: {k: v * value for k, v in loss(part).items()})
        gradients(self, seat, parts, iteration)
        if (iteration, seat.player.name, place) == (at, player, "gradient"):
            done.append(iteration)
            assert seat.parameters[0].grad is not None
            seat.parameters[0].grad.view(-1)[0] = value

    def after_step(self: System, seat: Seat, iteration: int) -> None:
        step(self, seat, iteration)
        if (iteration, seat.player.name) == (at, player) and place in ("weight", "buffer"):
            done.append(iteration)
            net = self.nets[seat.player.nets[0]]
            held = list(net.parameters()) if place == "weight" else [b for b in net.buffers() if b.is_floating_point()]
            with torch.no_grad():
                held[0].view(-1)[0] = value

    patch.setattr(System, "_gradients", after_gradients)
    patch.setattr(System, "_step", after_step)
