"""Weights & Biases: one run per job, no secret in it, and no failure of the service that reaches the training."""

from __future__ import annotations

import logging
import os
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from gentrain.engine.loggers import FINISHED, Wandb
from gentrain.engine.loggers.wandb import has_key

CANARY = "k3y-that-nobody-may-read"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def run_offline(folder: Path, **more: Any) -> str:
    logger = Wandb(mode="offline", **more)
    logger.start({"seed": 1, "api_key": CANARY}, folder, "run")
    run_id = str(logger._run.id)
    logger.scalars({"loss/critic/real": 1.0}, 1, 64)
    logger.summary({"metric/fid": 3.0, "note": "best"})
    logger.finish(FINISHED)
    logger.finish(FINISHED)
    return run_id


def test_two_runs_in_one_process_have_two_ids_leak_nothing_and_draw_no_random_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(sys, "argv", ["gentrain", f"+logger.api_key={CANARY}", "model=wgan"])
    before = (random.getstate(), torch.get_rng_state())
    first, second = run_offline(tmp_path / "a"), run_offline(tmp_path / "b", tags=["x"], group="g")
    assert first != second
    assert wandb.run is None
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert sys.argv[1].endswith(CANARY)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


class FakeRun:
    def __init__(self, service: types.ModuleType, **asked: Any) -> None:
        self.service, self.asked, self.id = service, asked, asked.get("id", "id0")
        self.logged: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.closed: list[int] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, row: dict[str, Any]) -> None:
        if getattr(self.service, "dead", False):
            raise ConnectionError(f"https://user:{CANARY}@host is gone\nand more")
        self.logged.append(row)

    def finish(self, exit_code: int = 0) -> None:
        self.closed.append(exit_code)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake: Any = types.ModuleType("wandb")
    fake.run, fake.made, fake.refuses = None, [], ()

    def init(**asked: Any) -> FakeRun:
        if asked["mode"] in fake.refuses:
            raise RuntimeError(f"{asked['mode']} does not work")
        fake.made.append(FakeRun(fake, **asked))
        return fake.made[-1]  # type: ignore[no-any-return]

    fake.init, fake.Settings, fake.Image = init, lambda **settings: settings, lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_the_axes_are_iterations_and_images(service: Any, tmp_path: Path) -> None:
    logger = Wandb(mode="offline")
    logger.start({}, tmp_path, "run")
    logger.scalars({"loss/g/adversarial": torch.tensor(2.0)}, 7, 448)  # type: ignore[dict-item]
    logger.picture("samples/fixed", tmp_path / "grid.png", 7, 448)
    logger.summary({"final/fid": 1.5})
    logger.finish("failed")
    run = service.made[0]
    assert run.metrics == {"iteration": None, "images": None, "*": "iteration"}
    assert run.logged[0] == {"loss/g/adversarial": 2.0, "iteration": 7, "images": 448}
    assert run.logged[1] == {"samples/fixed": ("image", str(tmp_path / "grid.png")), "iteration": 7, "images": 448}
    assert run.summary == {"final/fid": 1.5}
    assert run.closed == [1]


def test_a_service_that_dies_costs_one_line_and_is_still_closed(
    service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = Wandb(mode="offline")
    logger.start({}, tmp_path, "run")
    service.dead = True
    with caplog.at_level(logging.WARNING):
        for i in range(5):
            logger.scalars({"a": 1.0}, i, i)
            logger.picture("samples/fixed", tmp_path / "x.png", i, i)
        logger.finish(FINISHED)
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()
    assert CANARY not in caplog.text
    assert service.made[0].closed == [0]


@pytest.mark.parametrize("refuses", [("online",), ("online", "offline")])
def test_a_service_that_does_not_start_is_kept_offline_or_left_out(
    service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, refuses: tuple[str, ...], monkeypatch: Any
) -> None:
    service.refuses = refuses
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    logger = Wandb(mode="online")
    with caplog.at_level(logging.WARNING):
        logger.start({}, tmp_path, "run")
        logger.scalars({"a": 1.0}, 1, 1)
        logger.finish(FINISHED)
    assert len(caplog.records) == len(refuses)
    assert [run.asked["mode"] for run in service.made] == [m for m in ("offline",) if m not in refuses]


def test_a_missing_package_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = Wandb(mode="offline")
    with caplog.at_level(logging.WARNING):
        logger.start({}, tmp_path, "run")
        logger.scalars({"a": 1.0}, 1, 1)
        logger.finish(FINISHED)
    assert len(caplog.records) == 1


def test_auto_is_online_only_with_a_key(service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode_of(logger: Wandb) -> str:
        logger.start({}, tmp_path, "run")
        return str(service.made[-1].asked["mode"])

    assert not has_key()
    assert mode_of(Wandb()) == "offline"
    assert mode_of(Wandb(mode="online")) == "offline", "it would ask for a key on the terminal"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password " + "x" * 40)
    monkeypatch.setenv("NETRC", str(netrc))
    assert mode_of(Wandb()) == "online"
    netrc.write_text("machine example.org login user password x")
    assert mode_of(Wandb()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert mode_of(Wandb()) == "online"
    assert mode_of(Wandb(mode="disabled")) == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode_of(Wandb()) == "offline"


def test_a_resumed_run_continues_the_one_on_the_server(
    service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    for resume_at in (0, 100, 0):
        logger = Wandb()
        logger.start({}, tmp_path, "run", resume_at=resume_at)
        logger.finish("stopped")
    assert [run.asked.get("resume") for run in service.made] == [None, "allow", None]
    assert service.made[1].asked["id"] == service.made[0].id
