"""``train.patience``: a run whose scores no longer get better ends well, says why, and can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, words
from test_ddp import SHARED

from gentrain.engine.loop import Interrupted
from gentrain.engine.system import System
from gentrain.engine.validation import Validation
from gentrain.evaluation.protocol import Report
from gentrain.evaluation.trial import Cost

CURVE = {3: 5.0, 6: 4.0, 9: 6.0, 12: 7.0, 15: 1.0, 18: 2.0, 21: 2.0}
"""Better at 6, then worse twice, and best of all behind that."""
BUDGET = ("model=dcgan", "name=run", "train.iterations=21", "train.validate_every=3", "metrics.during_samples=50")


def card() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("outputs/run/run.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Scores that are known: in training those of the curve, at the end 100 more."""
    values = dict(CURVE)

    def report(system: System, more: float) -> Report:
        protocol = {"samples": 50 + int(more)}
        return Report({"fd_domain": values[system.clock.iteration] + more}, protocol, 1.0, 1.0)

    monkeypatch.setattr(Validation, "score", lambda self, system: report(system, 0.0))
    monkeypatch.setattr(Validation, "score_at_end", lambda self, system: report(system, 100.0))
    monkeypatch.setattr(Validation, "costs", lambda self, system: (Cost(0.0, {}), Cost(0.0, {})))
    return values


@pytest.mark.usefixtures("curve")
def test_a_run_whose_scores_get_no_better_ends_well_and_says_why(run: Run) -> None:
    ended = run(*words(*BUDGET, "train.patience=2"))
    assert ended.code == 0
    found = card()
    assert (found["status"], found["iteration"], found["scored_at"]) == ("finished", 12, 12)
    assert found["stopped_early"] == (
        "iteration 12: fd_domain was not better than 4 of iteration 6 in 2 scores in a row (train.patience)"
    )
    assert "early stop at iteration 12" in ended.out
    # Final and best by the protocol of the end, the best one by its own weights.
    assert found["final"] == {"fd_domain": 107.0}
    assert (found["best"]["iteration"], found["best"]["at_end"]) == (6, {"fd_domain": 104.0})
    assert found["protocol"] == {"samples": 150}
    table = run("table", "outputs/run")
    assert "stopped early at iteration 12" in table.out


@pytest.mark.usefixtures("curve")
@pytest.mark.parametrize("patience", ["null", "3"])
def test_without_patience_or_with_enough_it_runs_to_its_end(patience: str, run: Run) -> None:
    assert run(*words(*BUDGET, f"train.patience={patience}")).code == 0
    found = card()
    assert (found["iteration"], found["best"]["iteration"], found["stopped_early"]) == (21, 15, None)


@pytest.mark.usefixtures("curve")
def test_resume_says_that_it_stopped_and_goes_on_where_that_is_allowed(run: Run) -> None:
    assert run(*words(*BUDGET, "train.patience=2")).code == 0
    again = run("resume", "run=outputs/run")
    assert again.code == 0
    assert "finished already" in again.out
    assert "stopped early at iteration 12: fd_domain" in again.out
    assert card()["iteration"] == 12
    # As if it had been killed between its last checkpoint and its card: not an iteration more.
    Path("outputs/run/run.json").write_text(json.dumps(card() | {"status": "failed"}), encoding="utf-8")
    assert run("resume", "run=outputs/run").code == 0
    assert (card()["status"], card()["iteration"], card()["final"]) == ("finished", 12, {"fd_domain": 107.0})
    config = Path("outputs/run/config.yaml")
    config.write_text(config.read_text(encoding="utf-8").replace("patience: 2", "patience: 5"), encoding="utf-8")
    assert run("resume", "run=outputs/run", "allow=train.patience").code == 0
    assert (card()["iteration"], card()["stopped_early"], card()["best"]["iteration"]) == (21, None, 15)


def test_a_stop_that_an_interruption_hid_is_made_up_for(
    run: Run, curve: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Validation.score

    def interrupted(self: Validation, system: System) -> Report | None:
        if system.clock.iteration == 12:
            raise Interrupted
        return score(self, system)

    with monkeypatch.context() as patched:
        patched.setattr(Validation, "score", interrupted)
        run(*words(*BUDGET, "train.patience=2"))
    assert (card()["status"], card()["iteration"]) == ("stopped", 12)
    assert run("resume", "run=outputs/run").code == 0
    assert (card()["status"], card()["iteration"]) == ("finished", 12)
    assert "iteration 12" in card()["stopped_early"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["train.patience=0"], "train.patience=0: at least 1"),
        (["train.patience=2", "metrics=none", "~metrics.during_samples"], "metrics.monitor names no score to stop by"),
        (["train.patience=2", "train.validate_every=0"], "there are no scores before the run's end"),
    ],
)
def test_patience_that_waits_for_nothing_is_one_line(more: list[str], says: str, run: Run) -> None:
    ended = run(*words(*BUDGET, *more))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert says in ended.err


def test_ranks_stop_together(run: Run) -> None:
    """Few steps make the samples worse than none: the score stops getting better at once."""
    ended = run(*SHARED, "name=run", "train.iterations=40", "train.validate_every=2", "metrics.samples=40",
                "train.patience=1")  # fmt: skip
    assert ended.code == 0, ended.err
    found = card()
    assert (found["status"], found["world_size"]) == ("finished", 2)
    assert 4 <= found["iteration"] == found["scored_at"] < 40
    assert found["images"] == 16 * found["iteration"]
    assert f"iteration {found['iteration']}" in found["stopped_early"]
