"""Shared by all tests: one torch thread, runs in a temporary folder, and the command line called in-process."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gentrain.cli import main
from gentrain.config import Node, conf_dir, load_yaml
from gentrain.engine.state import seed_all

TINY = ("size=tiny", "data=digits", "trainer=cpu", "trainer.threads=1")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same numbers whichever tests ran before on this worker."""
    seed_all(0)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in; ``outputs/`` is made in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(workplace: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """``run("list", "models")`` calls the command line as a user would and returns exit code, stdout and stderr."""

    def call(*words: str) -> Outcome:
        capfd.readouterr()
        code = main(list(words))
        shown = capfd.readouterr()
        return Outcome(code, shown.out, shown.err)

    return call


def tiny(*overrides: str) -> Node:
    """A resolved config at the smallest size."""
    return copy.deepcopy(_composed(tuple(words(*overrides))))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Node:
    """Hydra takes longer for a config than many a test for the rest."""
    from gentrain.compose import compose

    return compose(overrides).config


def words(*more: str) -> Sequence[str]:
    """Words of a tiny run whose folder is outputs/run, on the data that the model's file says it needs."""
    chosen = next((word.removeprefix("model=") for word in more if word.startswith("model=")), None)
    needed = [] if chosen is None else load_yaml(conf_dir() / "model" / f"{chosen}.yaml")["about"].get("data", [])
    return (*(word for word in TINY if not (needed and word.startswith("data="))), *needed, *more)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the long counts of the fault tests (make faults)")


class Count:
    """What a fault test says it did; ``make faults`` makes ``outputs/faults.json`` of it."""

    def __init__(self, record: Callable[[str, object], None], full: bool) -> None:
        self._record, self._full = record, full

    def of(self, short: int, long: int) -> int:
        """How many faults to inject: ``short`` in ``make test``, ``long`` in ``make faults``."""
        return long if self._full else short

    def says(self, *, injected: int, fired: int, survived: int, **facts: float | str) -> None:
        """Note the counts. Fails unless every fault fired and every one was survived."""
        for key, value in {"injected": injected, "fired": fired, "survived": survived, **facts}.items():
            self._record(key, value)
        assert fired == injected > 0, f"{fired} of {injected} faults fired"
        assert survived == fired, f"{survived} of {fired} faults were survived"


@pytest.fixture
def count(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Count:
    return Count(record_property, bool(request.config.getoption("--full")))
