"""What happens between iterations: nothing that goes wrong while a run is looked at costs it anything."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, tiny, words
from fixtures_data import idx_set
from test_contract import differences, logged, ready

from gentrain.engine import checkpoint, precision
from gentrain.engine.conductor import Conductor
from gentrain.engine.finite import NonFiniteError, diverged
from gentrain.engine.health import Health
from gentrain.engine.player import Seat
from gentrain.engine.system import System
from gentrain.engine.turns import Simultaneous
from gentrain.engine.validation import Validation
from gentrain.errors import UserError

BUDGET = ["train.iterations=9", "train.validate_every=3", "train.log_every=2", "metrics.samples=40"]


def card(workplace: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workplace / "outputs" / name / "run.json").read_text(encoding="utf-8"))
    return content


def end(workplace: Path, name: str) -> dict[str, Any]:
    return checkpoint.load(workplace / "outputs" / name / "checkpoints" / "last.ckpt")


def same_end(workplace: Path, one: str, other: str) -> None:
    """Weights, random states, scores and every logged number."""
    for part in ("system", "rng", "scores", "owed"):
        assert differences(end(workplace, one)[part], end(workplace, other)[part]) == [], part
    assert logged(workplace / "outputs" / one) == logged(workplace / "outputs" / other)
    for key in ("final", "scored_at", "best", "protocol", "iteration"):
        assert card(workplace, one)[key] == card(workplace, other)[key]


def test_a_signal_where_scores_are_due_leaves_them_owed_and_resume_makes_up_for_them(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = words("model=dcgan", *BUDGET)
    assert run(*shared, "name=straight").code == 0
    original = System._step

    def interrupted(self: System, seat: Seat, iteration: int) -> None:
        if iteration == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, seat, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(System, "_step", interrupted)
        assert run(*shared, "name=cut").code == 143
    assert (card(workplace, "cut")["iteration"], card(workplace, "cut")["scored_at"]) == (6, 3)
    assert end(workplace, "cut")["owed"]
    assert run("resume", "run=outputs/cut").code == 0
    same_end(workplace, "straight", "cut")
    assert card(workplace, "cut")["scored_at"] == 9


@pytest.mark.parametrize("at", [3, 9])
def test_a_signal_ends_an_evaluation_at_once_and_its_iteration_is_saved_already(
    at: int, run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = words("model=dcgan", *BUDGET)
    assert run(*shared, "name=straight").code == 0
    original = Validation.score

    def long(self: Validation, system: System) -> Any:
        if system.clock.iteration == at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(250)
        return original(self, system)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "score", long)
        assert run(*shared, "name=cut").code == 143
    assert (card(workplace, "cut")["status"], card(workplace, "cut")["iteration"]) == ("stopped", at)
    assert run("resume", "run=outputs/cut").code == 0
    assert card(workplace, "cut")["status"] == "finished"
    same_end(workplace, "straight", "cut")


def test_an_evaluation_that_breaks_costs_no_iteration(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Validation, system: System) -> Any:
        raise UserError("the extractor is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "score", broken)
        assert run(*words("model=dcgan", *BUDGET), "name=cut").code == 2
    assert card(workplace, "cut")["status"] == "failed"
    assert end(workplace, "cut")["system"]["clock"]["iteration"] == 3
    assert run("resume", "run=outputs/cut").code == 0
    assert run(*words("model=dcgan", *BUDGET), "name=straight").code == 0
    same_end(workplace, "straight", "cut")


def test_a_resumed_run_that_stops_before_its_next_scores_still_shows_the_last(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = System._step
    stops = [4, 5]

    def interrupted(self: System, seat: Seat, iteration: int) -> None:
        if stops and iteration == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, seat, iteration)

    monkeypatch.setattr(System, "_step", interrupted)
    assert run(*words("model=vae", *BUDGET), "name=cut").code == 143
    before = card(workplace, "cut")
    assert before["scored_at"] == 3
    assert run("resume", "run=outputs/cut").code == 143
    after = card(workplace, "cut")
    assert after["iteration"] == 5
    assert [after[key] for key in ("final", "protocol", "best")] == [
        before[key] for key in ("final", "protocol", "best")
    ]


def test_speed_counts_the_seconds_of_training_and_nothing_else(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves by 1 s in an iteration and by 100 s in a save or an evaluation."""
    now = [0.0]

    def slow(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def wrapped(*a: Any, **k: Any) -> Any:
            now[0] += seconds
            return original(*a, **k)

        monkeypatch.setattr(owner, name, wrapped)

    monkeypatch.setattr("gentrain.engine.clock.time.monotonic", lambda: now[0])
    slow(System, "iterate", 1.0)
    slow(Validation, "score", 100.0)
    slow(Conductor, "_write", 100.0)
    assert run(*words("model=vae", *BUDGET), "name=run", "train.checkpoint_every=1", "train.log_every=4").code == 0
    assert card(workplace, "run")["images_per_second"] == pytest.approx(16.0)
    speeds = [
        row["speed/images_per_second"]
        for row in _rows(workplace / "outputs" / "run" / "metrics.csv")
        if row["speed/images_per_second"]
    ]
    assert [float(speed) for speed in speeds] == pytest.approx([16.0] * len(speeds))
    assert len(speeds) == 5


def _rows(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_auto_meant_at_the_start_stays_true_where_the_run_goes_on(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: False)
    assert run(*words("model=vae", *BUDGET), "name=cut").code == 0
    folder = workplace / "outputs" / "cut"
    (folder / "checkpoints" / checkpoint.file_name(9)).unlink()
    content = {**card(workplace, "cut"), "status": "failed"}
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)
    assert run("resume", "run=outputs/cut").code == 0
    assert (card(workplace, "cut")["precision"], end(workplace, "cut")["precision"]) == ("32-true", "32-true")


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [("fpu avx512f avx512_bf16", "bf16-mixed"), ("amx_bf16 sse", "bf16-mixed"), ("avx512f avx512vl", "32-true")],
)
def test_auto_goes_by_the_instructions_of_the_cpu(flags: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor : 0\nflags : {flags}\n")
    assert precision.resolve("auto", torch.device("cpu")) == chosen
    assert precision.resolve("32-true", torch.device("cpu")) == "32-true"


def test_a_device_that_is_asked_for_its_losses_once_in_a_block_names_the_first_bad_one() -> None:
    system, _ = ready(tiny("model=dcgan"))
    critic, generator = system.seats
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    for loss, iteration, seat in ((good, 4, critic), (bad, 4, generator), (bad, 5, critic)):
        system._unread.append((loss, iteration, seat, {"real": loss}))
    with pytest.raises(NonFiniteError, match=r"iteration 4: the loss of the generator \(real = nan\)"):
        system.training_step([], 0)
    system.training_step([], 0)
    assert "model.players.<player>" in str(diverged(3, "score/real"))


def test_players_that_share_an_optimiser_cannot_move_at_once() -> None:
    system, _ = ready(tiny("model=dcgan"))
    critic, generator = system.seats
    generator.optimizer = critic.optimizer
    with pytest.raises(UserError, match="two of critic, generator share an optimiser; use turns=alternating"):
        Simultaneous()([critic, generator], lambda seat: None, lambda seat: None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.accumulate=3"], "train.batch_size=16: train.accumulate=3 parts would be unequal; use a multiple of 3"),
        (["trainer=ddp_cpu", "train.batch_size=15"], "train.batch_size=15: 2 ranks would be unequal"),
        (["trainer=ddp_cpu", "train.accumulate=3", "train.batch_size=16"], "use a multiple of 6"),
        (["data=ring", "train.flip=true"], "flip=true mirrors images"),
        (["train.batch_size=100000"], "fewer than one batch"),
    ],
)
@pytest.mark.parametrize("word", ["check", "train"])
def test_check_refuses_what_train_refuses(
    word: str, overrides: list[str], said: str, run: Run, workplace: Path
) -> None:
    ended = run(word, "size=tiny", "model=dcgan", *overrides)
    assert ended.code == 2
    assert said in ended.err
    assert not list((workplace / "outputs").glob("*/*"))


def test_a_run_goes_on_and_is_scored_from_any_folder(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative data_root is frozen as it was meant when the run began."""
    idx_set(workplace / "data" / "fashion_mnist", train=64, test=20)
    shared = ["model=dcgan", "data=fashion_mnist", "size=tiny", "trainer=cpu", "trainer.threads=1", "name=run"]
    budget = ["train.iterations=3", "train.validate_every=3", "metrics.samples=70"]
    assert run(*shared, *budget, "metrics.scores.distances.allow_few=true").code == 0
    folder = workplace / "outputs" / "run"
    (folder / "run.json").write_text(json.dumps({**card(workplace, "run"), "status": "failed"}), encoding="utf-8")
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    assert run("resume", f"run={folder}").code == 0
    assert run("evaluate", f"run={folder}").code == 0
    assert run("sample", "run=../outputs/run", "n=4").code == 0


def test_health_is_told_the_score_that_best_follows_turned_so_that_smaller_is_better(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float | None] = []
    original = Health.observe

    def observe(self: Health, *facts: Any, **more: Any) -> Any:
        if not facts[1]:  # not of a log
            told.append(more["score"])
        return original(self, *facts, **more)

    monkeypatch.setattr(Health, "observe", observe)
    for name, extra, sign in (("a", [], 1.0), ("b", ["metrics.monitor=is_domain", "metrics.mode=max"], -1.0)):
        told.clear()
        assert run(*words("model=dcgan", *BUDGET, *extra, f"name={name}")).code == 0
        best = card(workplace, name)["best"]
        assert len(told) == 3
        assert min(float(value or 0.0) for value in told) == sign * best["value"]
    told.clear()
    assert run(*words("model=dcgan", *BUDGET, "metrics=none", "name=c")).code == 0
    assert told == [None] * 3
