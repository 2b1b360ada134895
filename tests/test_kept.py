"""State that a system keeps outside of its networks travels in the checkpoint, and one that forgets it is found."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny
from test_contract import MODELS, batches, differences, ready
from torch import Tensor, nn

from gentrain.engine import checkpoint
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.types import Images, Spec, Terms

SAVED = {"nets", "average", "optimizers_by_name", "clock", "setbacks", "rules"}
"""What ``System.state`` holds for all systems."""

LOOKED_AT = {"ledger", "seats", "_active", "_unread"}
"""What waits to be logged (saved beside the system), and what ``prepare`` makes anew."""


def digest(value: Any, depth: int = 0) -> str:
    """A text that changes when anything in a nest of tensors, values and objects does."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return digest(dict(value.state_dict()), depth)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{digest(inner, depth + 1)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple, set)):
        return "[" + ",".join(digest(inner, depth + 1) for inner in value) + "]"
    if value is None or isinstance(value, (str, int, float, bool, torch.device, torch.dtype)):
        return repr(value)
    if depth < 6 and (dataclasses.is_dataclass(value) or hasattr(value, "__dict__")) and not callable(value):
        return type(value).__name__ + digest(vars(value), depth + 1)
    return type(value).__name__


def attributes(system: System) -> dict[str, str]:
    """Digest of every attribute; Lightning's own begin with these."""
    found = {**vars(system), **dict(system.named_children())}
    held = {id(part) for part in system.rules.values()}  # saved as ``rules``, whoever else holds them

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [inner for inner in value if id(inner) not in held]
        return {k: v for k, v in value.items() if id(v) not in held} if type(value) is dict else value

    found = {name: without(value) for name, value in found.items() if id(value) not in held}
    lightnings = ("_modules", "_trainer", "_fabric", "_parameters", "_buffers")
    return {name: digest(value) for name, value in found.items() if not name.startswith(lightnings)}


def forgotten(system: System, some: list[Images]) -> set[str]:
    """Attributes that training changes and no checkpoint holds."""
    system.iterate(some[0])  # caches that the first iteration fills are none of a system's state
    before = attributes(system)
    for batch in some[1:]:
        system.iterate(batch)
    changed = {name for name, value in attributes(system).items() if value != before.get(name)}
    return changed - SAVED - LOOKED_AT - set(system.keeps)


@pytest.mark.parametrize("model", MODELS)
def test_no_system_forgets_what_training_changes(model: str) -> None:
    config = tiny(f"model={model}")
    system, data = ready(config)
    assert forgotten(system, list(batches(config, data, 5))) == set()


class Pool(System):
    """A player whose loss depends on what it has seen, in four kinds of attributes."""

    def __init__(self, keeps: tuple[str, ...] = ()) -> None:
        super().__init__(Spec((2,)), {"down": Moves(lambda parameters: torch.optim.SGD(parameters, lr=0.1))})
        self.keeps = keeps
        self.nets["down"] = nn.Linear(2, 1)
        self.pool: list[Tensor] = []
        self.stage = 0
        self.mean = {"fast": torch.zeros(2), "slow": (torch.zeros(2), 3)}
        self.statistics = nn.BatchNorm1d(2)

    def players(self) -> tuple[Player, ...]:
        return (Player("down", ("down",), self.objective),)

    def objective(self, batch: Images) -> Terms:
        self.pool.append(batch.x[0].clone())
        self.stage += 1
        self.mean["fast"] = self.mean["fast"] + batch.x.mean(0)
        self.statistics(batch.x)
        past = torch.stack(self.pool).mean(0) + self.mean["fast"] + self.stage + self.statistics.running_mean
        return {"value": (self.nets["down"](past) ** 2).mean()}


EVERYTHING = ("pool", "stage", "mean", "statistics")


def random_batches(count: int) -> list[Images]:
    generator = torch.Generator().manual_seed(0)
    return [Images(torch.randn(4, 2, generator=generator)) for _ in range(count)]


def prepared(keeps: tuple[str, ...]) -> Pool:
    torch.manual_seed(0)
    system = Pool(keeps)
    system.prepare(total=9)
    return system


@pytest.mark.parametrize("left_out", EVERYTHING)
def test_a_system_that_forgets_is_found(left_out: str) -> None:
    keeps = tuple(name for name in EVERYTHING if name != left_out)
    assert forgotten(prepared(keeps), random_batches(4)) == {left_out}


@pytest.mark.parametrize("keeps", [EVERYTHING, EVERYTHING[1:], (*EVERYTHING[:2], "statistics")])
def test_what_is_kept_comes_back(keeps: tuple[str, ...], tmp_path: Path) -> None:
    some = random_batches(6)
    straight = prepared(EVERYTHING)
    for batch in some:
        straight.iterate(batch)
    first = prepared(keeps)
    for batch in some[:3]:
        first.iterate(batch)
    checkpoint.save({"system": first.state()}, tmp_path / "a.ckpt")
    second = prepared(keeps)
    second.restore(checkpoint.load(tmp_path / "a.ckpt")["system"])
    for batch in some[3:]:
        second.iterate(batch)
    same = not differences(straight.state()["nets"], second.state()["nets"])
    assert same == (keeps == EVERYTHING), "one that is left out changes the end"
