"""Scores on a schedule: few samples while it trains, the whole protocol at the end, the best measured anew."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, words
from test_contract import differences

from gentrain.data.sources import digits
from gentrain.engine import checkpoint
from gentrain.engine.validation import Validation
from gentrain.evaluation.classes import ClassesShown
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.frechet import FrechetDetails
from gentrain.evaluation.likelihood import LikelihoodBound
from gentrain.evaluation.manifold import Manifold, Memorisation
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.subject import FeatureCache
from gentrain.evaluation.trial import Cost, Trial

BUDGET = ("train.iterations=12", "train.log_every=6", "train.validate_every=3", "metrics.samples=90")
FEW = "metrics.during_samples=50"
CLASSES = (
    "metrics=domain",
    "+metrics.at_end.more._target_=gentrain.evaluation.classes.ClassesShown",
    "+metrics.at_end.more.extractor=${metrics.scores.distances.extractor}",
    "~metrics.scores.classes",
)


def card(name: str = "run") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("outputs", name, "run.json").read_text(encoding="utf-8"))
    return content


def rows(name: str = "run") -> list[dict[str, str]]:
    with Path("outputs", name, "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curve(key: str, name: str = "run") -> list[int]:
    return [int(row["iteration"]) for row in rows(name) if row.get(key)]


def test_few_samples_in_training_bear_their_count_and_the_end_has_all(run: Run) -> None:
    assert run(*words("model=dcgan", "name=run", *BUDGET, FEW)).code == 0
    assert curve("metric/fd_domain@50") == [3, 6, 9, 12]
    assert curve("metric/fd_domain") == [12]
    found = card()
    assert found["protocol"]["samples"] == 90
    assert found["in_training"]["protocol"]["samples"] == 50
    assert found["final"] != found["in_training"]["scores"]
    assert found["scored_at"] == 12
    assert found["samples_per_second"] > 0
    again = json.loads(run("evaluate", "run=outputs/run", "device=cpu", "--json").out)
    assert again["scores"] == found["final"]


def test_the_best_is_chosen_by_few_and_measured_anew_by_all(run: Run) -> None:
    # An untrained network is better than one of twelve steps: other weights are measured than the last.
    assert run(*words("model=dcgan", "name=run", *BUDGET, FEW)).code == 0
    found = card()
    best = found["best"]
    scored = {int(row["iteration"]): float(row["metric/fd_domain@50"]) for row in rows() if row["metric/fd_domain@50"]}
    assert best["value"] == min(scored.values())
    assert scored[best["iteration"]] == best["value"]
    assert best["iteration"] < 12
    again = json.loads(run("evaluate", "run=outputs/run", "checkpoint=best", "device=cpu", "--json").out)
    assert again["scores"] == best["at_end"]
    assert best["at_end"] != found["final"]


def test_what_stands_under_at_end_is_measured_there_alone(run: Run) -> None:
    assert run(*words("model=dcgan", "name=run", *BUDGET, FEW, *CLASSES)).code == 0
    assert curve("metric/fd_domain@50") == [3, 6, 9, 12]
    assert "metric/classes_shown@50" not in rows()[0]
    assert curve("metric/classes_shown") == [12]
    assert "classes_shown" in card()["final"]


def test_the_schedule_is_in_images_and_moves_no_weight(run: Run) -> None:
    batch = 16
    assert run(*words("model=dcgan", "name=often", *BUDGET, FEW, f"metrics.during_every={2 * batch}")).code == 0
    assert curve("metric/fd_domain@50", "often") == [2, 4, 6, 8, 10, 12]
    assert run(*words("model=dcgan", "name=seldom", *BUDGET, FEW, "metrics.during_every=1000000")).code == 0
    assert curve("metric/fd_domain@50", "seldom") == [12]  # at the end, whatever the schedule
    assert run(*words("model=dcgan", "name=never", *BUDGET, "metrics=none")).code == 0
    ends = [checkpoint.load(Path("outputs", name, "checkpoints", "last.ckpt")) for name in ("often", "seldom", "never")]
    for part in ("system", "rng"):
        assert differences(ends[0][part], ends[1][part]) == []
        assert differences(ends[0][part], ends[2][part]) == []


@pytest.mark.parametrize(("bound", "at"), [(100.0, [3, 6, 9, 12]), (2.0, [6, 12]), (1.0, [12]), (0.0, [12])])
def test_what_scores_may_cost_thins_the_schedule(
    bound: float, at: list[int], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "costs", lambda self, system: (Cost(1.0, {}), Cost(2.0, {})))
    ended = run(*words("model=dcgan", "name=run", *BUDGET, FEW, f"metrics.during_seconds={bound}"))
    assert ended.code == 0
    assert curve("metric/fd_domain@50") == at
    planned = {100.0: 4, 2.0: 2, 1.0: 1, 0.0: 0}[bound]
    assert f"scores: about 1 s each, {planned} times in training" in ended.out
    assert (f"metrics.during_seconds={bound:g}" in ended.out) == (planned < 4)
    assert card()["scoring"]["times"] == planned


def test_real_images_are_paid_for_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as dear as a score, they leave room for two of four scores in 4 s, and are paid at the end anyway."""
    few, all_of_them = Cost(1.0, {"test": 2.0}), Cost(5.0, {"test": 2.0, "train": 9.0})
    monkeypatch.setattr(Validation, "costs", lambda self, system: (few, all_of_them))
    ended = run(*words("model=dcgan", "name=run", *BUDGET, FEW, "metrics.during_seconds=4"))
    assert "about 1 s each after about 2 s for the real images, 2 times" in ended.out
    assert "with those of the end about 23 s" in ended.out  # 2 + 2 * 5 + 2 + 9


def test_a_cost_counts_what_a_metric_does_and_no_cache_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "_each", lambda self, key, work: 1.0)
    monkeypatch.setattr(Trial, "_product", lambda self: 0.0)
    data, cache = digits(), FeatureCache()
    distances, details = Distances(Domain()), FrechetDetails(Domain())
    metrics = {"distances": distances, "details": details, "likelihood": LikelihoodBound(limit=30)}

    def cost() -> Cost:
        return Trial(data, None, lambda n: data.test.all(n).x, cache).cost(metrics, 100, 20)

    found = cost()
    assert found.each == 100 + 100 + 20  # drawn, their features, the likelihood of a few
    assert {(split, count): seconds for (_, split, count), seconds in found.first.items()} == {
        ("test", len(data.test)): len(data.test),
        ("train", len(data.train)): len(data.train),
    }
    cache.reference(cache.extractor(Domain(), data, "cpu"), data, "test", len(data.test))
    assert [split for _, split, _ in cost().first] == ["train"]
    assert found.sum(3) - found.sum(2) == found.each


def test_work_grows_with_what_is_compared() -> None:
    data = digits()
    memory, manifold = Memorisation(Domain()), Manifold(Domain())
    assert memory.work(data, 100).products == pytest.approx(2 * (100 + 359) * 1438 * (32 + 64 + 9 * (64 + 64)))
    assert memory.work(data, 100).passes == {"train": 1438, "test": 359}
    assert manifold.work(data, 100).products == pytest.approx(3 * 100**2 * (32 + 64))
    cheap, dear = (Distances(Domain(), subsets=subsets).work(data, 300).products for subsets in (1, 100))
    assert dear > 20 * cheap
    assert ClassesShown(Domain()).work(data, 100).passes == {}  # labels are there


@pytest.mark.parametrize("model", ["dcgan", "vae"])
def test_the_cost_is_said_at_the_start(model: str, run: Run) -> None:
    ended = run(*words(f"model={model}", "name=run", *BUDGET))
    assert ended.out.index("scores: ") < ended.out.index("iterations")
    assert 0 < card()["scoring"]["seconds"] < 60


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("metrics.during_samples=0", "metrics.during_samples=0: at least 1"),
        ("metrics.during_every=-1", "metrics.during_every=-1: at least 1"),
        ("metrics.during_seconds=-1", "metrics.during_seconds=-1: 0 or more"),
        ("metrics.during_samples=20", "raise metrics.during_samples"),
        ("+metrics.at_end={classes: ${metrics.scores.classes}}", "metrics.at_end.classes: metrics.scores has a metric"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(word: str, says: str, run: Run) -> None:
    ended = run(*words("model=dcgan", "name=run", word))
    assert ended.code == 2
    assert says in ended.err
    assert not Path("outputs").exists()


def test_likelihood_in_training_looks_at_few_images(run: Run) -> None:
    assert run(*words("model=vae", "name=run", *BUDGET, FEW, "metrics=likelihood", "metrics.samples=90")).code == 0
    found = card()
    assert found["in_training"]["protocol"]["splits"] == {"likelihood": "test 50"}
    assert found["in_training"]["protocol"]["limit"] == 50
    assert found["protocol"]["splits"] == {"likelihood": "test 359"}
    assert curve("metric/nll_nats@50") == [3, 6, 9, 12]
