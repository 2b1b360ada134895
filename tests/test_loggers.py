"""Loggers: what is written reads back, no secret is, and a service that fails does not stop a run."""

from __future__ import annotations

import builtins
import csv
import inspect
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gentrain.engine import loggers
from gentrain.engine.loggers import FINISHED, MetricsCsv, TensorBoard
from gentrain.errors import UserError
from gentrain.masking import mask_secrets

ROOT = Path(__file__).parents[1]
CANARY = "k3y-that-nobody-may-read"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def started(folder: Path, resume_at: int = 0) -> MetricsCsv:
    table = MetricsCsv()
    table.start({}, folder, "run", resume_at=resume_at)
    return table


# metrics.csv


def test_numbers_read_back_exactly_and_gaps_stay_empty(tmp_path: Path) -> None:
    table = started(tmp_path)
    third = float(torch.tensor(1 / 3))
    table.scalars({"loss/critic/real": third, "loss/critic/fake": math.nan}, 10, 640)
    table.scalars({"metric/fid": -math.inf}, 10, 640)
    table.scalars({"loss/critic/real": 1e-300}, 20, 1280)
    table.scalars({}, 30, 1920)
    found = rows(tmp_path)
    assert list(found[0]) == ["iteration", "images", "seconds", "loss/critic/real", "loss/critic/fake", "metric/fid"]
    assert [row["iteration"] for row in found] == ["10", "10", "20"]
    assert [row["images"] for row in found] == ["640", "640", "1280"]
    assert float(found[0]["loss/critic/real"]) == third
    assert found[0]["loss/critic/fake"] == "nan"
    assert found[0]["metric/fid"] == ""
    assert found[1]["metric/fid"] == "-inf"
    assert float(found[2]["loss/critic/real"]) == 1e-300


def test_each_row_is_on_disk_at_once_and_a_reader_never_sees_a_broken_table(tmp_path: Path) -> None:
    table = started(tmp_path)
    for i in range(1, 30):
        table.scalars({"a": i, f"key {i // 7}, with a comma": i}, i, i)
        found = rows(tmp_path)
        assert len(found) == i
        assert all(None not in row and None not in row.values() for row in found)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_resume_equals_the_straight_run(tmp_path: Path) -> None:
    def train(table: MetricsCsv, first: int, last: int) -> None:
        for i in range(first, last + 1):
            table.scalars({"loss/model/nll": math.sqrt(i)}, i, 64 * i)
            if i % 4 == 0:
                table.scalars({f"metric/{i}": i / 3}, i, 64 * i)

    train(started(tmp_path / "straight"), 1, 12)
    # Killed at iteration 9, in the middle of a line; the last checkpoint is of iteration 6.
    train(started(tmp_path / "killed"), 1, 9)
    path = tmp_path / "killed" / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-5])
    train(started(tmp_path / "killed", resume_at=6), 7, 12)

    def facts(folder: Path) -> list[dict[str, str]]:
        return [{key: cell for key, cell in row.items() if key != "seconds" and cell} for row in rows(folder)]

    assert facts(tmp_path / "killed") == facts(tmp_path / "straight")


def test_seconds_of_training_go_on_where_the_checkpoint_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("gentrain.engine.loggers.metrics_csv.time.monotonic", lambda: now[0])
    for first, resume_at in ((1, 0), (3, 2)):
        table = started(tmp_path, resume_at=resume_at)
        for i in range(first, first + 3):
            now[0] += 2.0
            table.scalars({"a": 1.0}, i, i)
        now[0] += 500.0  # nobody trains
    assert [float(row["seconds"]) for row in rows(tmp_path)] == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_cut_off_number_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    table = started(tmp_path)
    table.scalars({"a": 1.25}, 1, 1)
    table.scalars({"a": 123.456}, 2, 2)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-4])  # 123.456 now reads 123.
    started(tmp_path, resume_at=2)
    assert [row["a"] for row in rows(tmp_path)] == ["1.25"]


def test_a_new_run_does_not_continue_an_old_file(tmp_path: Path) -> None:
    started(tmp_path).scalars({"a": 1.0}, 0, 0)
    started(tmp_path)
    assert rows(tmp_path) == []


def test_rows_wait_for_a_disk_that_refuses_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = started(tmp_path)
    table.scalars({"a": 1.0}, 1, 1)
    real = Path.open

    def half(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r+" in mode:  # half a row gets through, then the disk is full
            with real(self, "ab") as file:
                file.write(b"2,2,0")
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **kwargs)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Path, "open", half)
        table.scalars({"a": 2.0}, 2, 2)
        table.scalars({"a": 3.0}, 3, 3)
    assert len(caplog.records) == 1
    table.scalars({"a": 4.0}, 4, 4)
    table.scalars({"b": 5.0}, 5, 5)
    table.finish(FINISHED)
    table.finish(FINISHED)
    assert [row["a"] for row in rows(tmp_path)] == ["1.0", "2.0", "3.0", "4.0", ""]


# Secrets


def test_secrets_are_masked_at_any_depth_and_nothing_else_is() -> None:
    config = {
        "seed": 3,
        "tokens": 512,
        "tokenizer": "bytes",
        "mask_token": 0,
        "token_net": {"_target_": "torch.nn.Linear"},
        "empty": {"password": None, "use_token": True, "api_key": ""},
        "wandb": {"API_KEY": CANARY, "list": [{"HF_TOKEN": CANARY}], "apikey": CANARY, "secrets": {"any": CANARY}},
        "db": {"password": 12345, "access_tokens": [CANARY]},
        "overrides": [f"+logger.api_key={CANARY}", f"x.password='{CANARY} {CANARY}'", "model=wgan"],
        "proxy": f"https://user:{CANARY}@host/path",
    }
    before = repr(config)
    masked = mask_secrets(config)
    assert repr(config) == before
    assert CANARY not in repr(masked)
    assert "12345" not in repr(masked)
    kept = {key: masked[key] for key in ("seed", "tokens", "tokenizer", "mask_token", "token_net", "empty")}
    assert kept == {key: config[key] for key in kept}
    assert masked["wandb"]["API_KEY"] == "***"
    assert masked["overrides"][2] == "model=wgan"
    assert masked["proxy"] == "https://***@host/path"


# TensorBoard


def test_tensorboard_holds_every_key_by_iteration_and_hides_what_is_done_again(tmp_path: Path) -> None:
    events_of = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "grid.png")
    for resume_at, iterations in ((0, (10, 20, 30)), (10, (20,))):
        logger = TensorBoard()
        logger.start({"api_key": CANARY}, tmp_path, "run", resume_at=resume_at)
        for iteration in iterations:
            logger.scalars({"loss/critic/real": iteration / 2}, iteration, iteration * 64)
        logger.picture("samples/fixed", tmp_path / "grid.png", iterations[-1], 0)
        logger.summary({"final/fid": 1.0})
        logger.finish(FINISHED)
        logger.finish(FINISHED)
    events = events_of.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/critic/real")] == [(10, 5.0), (20, 10.0)]
    assert [e.value for e in events.Scalars("images")] == [640, 1280]
    assert events.Images("samples/fixed")
    assert not [p for p in (tmp_path / "tensorboard").iterdir() if CANARY.encode() in p.read_bytes()]


def test_a_missing_tensorboard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'gentrain\[tensorboard\]'"):
        TensorBoard().start({}, tmp_path, "run")


@pytest.mark.parametrize("name", ["csv", "wandb", "tensorboard"])
def test_config_files_bind_exactly(name: str) -> None:
    node = yaml.safe_load((ROOT / "conf" / "logger" / f"{name}.yaml").read_text())
    if not node:
        return
    target = getattr(loggers, node.pop("_target_").rsplit(".", 1)[1])
    defaults = {key: p.default for key, p in inspect.signature(target).parameters.items()}
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()} == defaults
