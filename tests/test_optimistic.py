"""Optimistic optimisers against the updates written out, and in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import batches, differences, ready
from torch import Tensor, nn

from gentrain.engine import checkpoint
from gentrain.engine.optimistic import OptimisticAdam, OptimisticSGD

ADAM = tuple(
    f"model.players.{name}.optimizer._target_=gentrain.engine.optimistic.OptimisticAdam"
    for name in ("critic", "generator")
)


def followed(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: list[float]) -> list[float]:
    places = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        places.append(float(parameter.detach()))
    return places


def test_updates_are_those_of_the_paper() -> None:
    """Algorithm 1 in plain numbers: twice Adam's direction less the one before."""
    gradients, rate, (b1, b2), eps = [0.3, -2.0, 0.7, 0.7], 0.05, (0.5, 0.9), 1e-3
    theta, m, v, before, expected = 1.0, 0.0, 0.0, None, []
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        now = m / (1 - b1**t) / ((v / (1 - b2**t)) ** 0.5 + eps)
        theta += -2 * rate * now + rate * (now if before is None else before)
        before = now
        expected.append(theta)
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    adam = OptimisticAdam([parameter], lr=rate, betas=(b1, b2), eps=eps)
    assert followed(adam, parameter, gradients) == pytest.approx(expected, rel=1e-12)

    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    plain = followed(OptimisticSGD([parameter], lr=rate), parameter, gradients)
    assert plain == pytest.approx([1 - 0.05 * x for x in (0.3, 0.3 - 4.3, 0.3 - 4.3 + 3.4, 0.3 - 4.3 + 3.4 + 0.7)])


def test_where_gradients_stay_the_same_the_steps_are_adams() -> None:
    """The two directions are then one, and 2 d - d = d."""
    ends: list[Tensor] = []
    for kind in (OptimisticAdam, torch.optim.Adam):
        parameter = nn.Parameter(torch.zeros(3))
        optimizer = kind([parameter], lr=0.1)
        for _ in range(5):
            parameter.grad = torch.tensor([1.0, -2.0, 0.5])
            optimizer.step()
        ends.append(parameter.detach())
    assert torch.allclose(*ends, atol=1e-5)


def test_a_player_takes_it_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = tiny("model=dcgan", *ADAM)
    straight, data = ready(config)
    plain, _ = ready(tiny("model=dcgan"))
    path = tmp_path / checkpoint.file_name(2)
    for system, parts in ((straight, 4), (plain, 4)):
        torch.manual_seed(1)
        for i, batch in enumerate(batches(config, data, parts), start=1):
            if i == 3:
                torch.manual_seed(2)
            system.iterate(batch)
            if i == 2 and system is straight:
                checkpoint.save({"system": system.state()}, path)
    assert differences(straight.state()["nets"], plain.state()["nets"])
    resumed, _ = ready(config, seed=99)
    resumed.restore(checkpoint.load(path)["system"])
    torch.manual_seed(2)
    for batch in batches(config, data, 2, start=2):
        resumed.iterate(batch)
    assert differences(straight.state(), resumed.state()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.players.critic.optimizer.lr=-1", "model.players.critic.optimizer: lr=-1: 0 or more"),
        ("model.players.critic.optimizer.betas=[0.5,1]", "model.players.critic.optimizer: beta2=1: from 0 to below 1"),
        ("+model.players.critic.optimizer.weight_decay=1", "weight_decay"),
    ],
)
def test_numbers_out_of_range_are_one_line(run: Run, word: str, said: str) -> None:
    outcome = run("check", *words("model=dcgan", *ADAM, word))
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
