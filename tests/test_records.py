"""Results as JSON that every program reads, though a score may be nan or inf."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, words

from gentrain.evaluation import metrics
from gentrain.records import dumped, restored


def strict(text: str) -> Any:
    """As every program but Python reads it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null_with_a_note_and_comes_back() -> None:
    record = {
        "a.b": {"c": math.nan, "d": None, "e": 1.5},
        "f": [math.inf, {"g": -math.inf}],
        "h": "nan",
        "i": Path("x"),
    }
    text = dumped(record)
    plain = strict(text)
    assert plain["a.b"] == {"c": None, "d": None, "e": 1.5}
    assert plain["f"] == [None, {"g": None}]
    assert plain["not_finite"] == {"a.b.c": "nan", "f.0": "inf", "f.1.g": "-inf"}
    back = restored(json.loads(text))
    assert math.isnan(back["a.b"].pop("c"))
    assert back == {"a.b": {"d": None, "e": 1.5}, "f": [math.inf, {"g": -math.inf}], "h": "nan", "i": "x"}
    assert "not_finite" not in strict(dumped({"a": 1.0}))


@pytest.mark.parametrize("note", [3, [], {"a": 3, "b": "1e9", "c": None, "d.e": "nan", "f": "nan"}])
def test_a_note_that_is_none_changes_nothing(note: object) -> None:
    record = {"a": None, "b": None, "c": None, "f": 1.0}
    assert restored({**record, "not_finite": note}) == record


def test_scores_that_are_not_finite_are_null_wherever_they_are_written(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "kernel_distance", lambda *a, **k: (math.nan, math.inf))
    assert run(*words("model=dcgan", "name=run", "train.iterations=2", "~metrics.at_end")).code == 0
    card = strict((workplace / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert card["final"]["kid_domain"] is card["final"]["kid_domain_sd"] is None
    assert card["final"]["fd_domain"] > 0
    noted = {key: value for key, value in card["not_finite"].items() if key.startswith("final.")}
    assert noted == {"final.kid_domain": "nan", "final.kid_domain_sd": "inf"}
    ended = run("evaluate", "run=outputs/run", "device=cpu", "--json", "out=again.json")
    again = strict(ended.out)
    assert again == strict((workplace / "again.json").read_text(encoding="utf-8"))
    assert again["scores"] == card["final"]
    assert again["not_finite"] == {"scores.kid_domain": "nan", "scores.kid_domain_sd": "inf"}
    table = strict(run("table", "outputs", "--json", "columns=kid,fd").out)
    assert table["tables"][0]["rows"][0]["columns"]["kid_domain"] == {"mean": None, "missing": "not finite"}
