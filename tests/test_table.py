"""Runs side by side: from made run folders, where every number is known, and from a real pair."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import Run, words

from gentrain import evaluation
from gentrain.data.sources import digits, ring
from gentrain.report import names
from gentrain.report.columns import Cell
from gentrain.report.table import blocks, number, with_spread
from gentrain.report.table import words as in_words
from gentrain.types import LikelihoodOn

CAN = {"dcgan": ["sample"], "gan": ["sample"], "vae": ["sample", "log_likelihood", "encode", "decode"]}
PROTOCOL = {
    "data": "digits",
    "fingerprint": "f" * 64,
    "splits": {"distances": "test 359"},
    "samples": 128,
    "shape": [1, 8, 8],
    "extractors": {"digits": {"sha256": "a" * 64, "resize": "none"}},
    "weights": "ema",
    "precision": "32-true",
    "device": "cpu",
    "metrics": {"distances": {"metric": "Distances", "split": "test", "reference": None}},
    "versions": {"torch": "2.10"},
}
Make = Callable[..., Path]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` by dotted key."""
    base = json.loads(json.dumps(base))
    for key, value in changes.items():
        node, parts = base, key.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return base


@pytest.fixture
def make(workplace: Path) -> Make:
    """A run folder in outputs/; config, card and protocol with changes by dotted key."""

    def folder(
        name: str,
        model: str = "dcgan",
        seed: int = 0,
        config: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
        protocol: dict[str, Any] | None = None,
        **final: float,
    ) -> Path:
        path = workplace / "outputs" / name
        path.mkdir(parents=True)
        frozen = {
            "choices": {"model": model, "data": "digits", "loss": "nonsaturating", "size": "tiny", "logger": "csv"},
            "about": {"name": model, "can": CAN[model]},
            "seed": seed,
            "kind": "images",
            "name": name,
            "output": "outputs",
            "train": {"batch_size": 16, "iterations": 20, "log_every": 10},
            "trainer": {"threads": 1},
            "metrics": {"samples": 128, "during_samples": 128, "monitor": "fd_domain"},
            "data": {"root": "data"},
            "model": {
                "loss": {"_target_": "a"},
                "players": {"critic": {"lr": 1e-3}, "generator": {"lr": 1e-3}},
            },
        }
        made = {
            "status": "finished",
            "seed": seed,
            "created": "2026-01-01",
            "device": "cpu (1 threads)",
            "spec": {"shape": [1, 8, 8]},
            "parameters": {"generator": 1000, "critic": 234},
            "iteration": 20,
            "images": 320,
            "seconds": 30.0 + seed,
            "images_per_second": 100.0,
            "final": final,
            "scored_at": 20,
            "best": {"monitor": "fd_domain", "iteration": 10, "scores": {"fd_domain": 0.5}} if final else None,
            "protocol": merged({**PROTOCOL, "seed": seed}, protocol or {}),
        }
        (path / "config.yaml").write_text(yaml.safe_dump(merged(frozen, config or {})), encoding="utf-8")
        (path / "run.json").write_text(json.dumps(merged(made, card or {})), encoding="utf-8")
        return path

    return folder


def rows_of(run: Run, *more: str) -> dict[str, dict[str, Any]]:
    """The table as JSON: rows by name."""
    ended = run("table", "outputs", "--json", *more)
    assert ended.code == 0, ended.err
    return {row["name"]: row for part in json.loads(ended.out)["tables"] for row in part["rows"]}


def remarks_of(run: Run) -> str:
    return "\n".join(json.loads(run("table", "outputs", "--json").out)["tables"][0]["remarks"])


# ---------------------------------------------------------------- rows


def test_runs_that_differ_in_seed_and_place_alone_are_one_row(run: Run, make: Make) -> None:
    values = [1.25, 2.5, 4.0]
    for seed, value in enumerate(values):
        free = {"trainer.threads": seed + 1, "train.log_every": seed + 1, "data.root": f"d{seed}", "size": str(seed)}
        make(f"r{seed}", seed=seed, config=free, fd_domain=value)
    (row,) = rows_of(run).values()
    assert row["seeds"] == [0, 1, 2]
    found = row["columns"]["fd_domain"]
    assert found["mean"] == pytest.approx(sum(values) / 3, abs=1e-12)
    assert found["sd"] == pytest.approx((sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5, abs=1e-12)
    assert found["values"] == values


@pytest.mark.parametrize(
    ("key", "value", "label"),
    [
        ("model.players.critic.lr", 0.5, "critic.lr=0.5"),  # the generator has an lr as well
        ("train.iterations", 7, "iterations=7"),
        ("train.flip", True, "flip=true"),
        ("model.loss._target_", "gentrain.objectives.adversarial.Hinge", "_target_=...es.adversarial.Hinge"),
    ],
)
def test_runs_of_other_configs_are_rows_named_by_the_keys_that_differ(
    run: Run, make: Make, key: str, value: object, label: str
) -> None:
    make("a", fd_domain=1.0)
    make("b", seed=1, config={key: value}, fd_domain=2.0)
    rows = rows_of(run)
    assert len(rows) == 2
    assert f"dcgan {label}" in rows
    assert rows[f"dcgan {label}"]["differs"] == {key: value}


def test_a_choice_stands_for_the_keys_below_it_and_for_no_others(run: Run, make: Make) -> None:
    make("a", fd_domain=1.0)
    hinge = {"choices.loss": "hinge", "model.loss._target_": "b"}
    make("b", config=hinge, fd_domain=2.0)
    assert set(rows_of(run)) == {"dcgan loss=hinge", "dcgan loss=nonsaturating"}
    make("c", config={**hinge, "model.players.critic.lr": 0.5, "model.players.generator.lr": 0.5}, fd_domain=2.0)
    assert "dcgan loss=hinge lr=0.5" in rows_of(run)
    make("d", config={"choices.size": "small", "train.iterations": 900, "choices.logger": "wandb"}, fd_domain=2.0)
    assert "dcgan loss=nonsaturating size=small lr=0.001" in rows_of(run)


def test_runs_on_several_devices_are_no_seeds_of_runs_on_one(run: Run, make: Make) -> None:
    """Each rank normalises its own part of a batch."""
    make("a", card={"world_size": 1}, fd_domain=1.0)
    make("b", seed=1, card={"world_size": 2}, fd_domain=1.0)
    assert set(rows_of(run)) == {"dcgan devices=1", "dcgan devices=2"}


def test_one_seed_twice_is_not_two_seeds(run: Run, make: Make) -> None:
    make("old", card={"created": "2026-01-01"}, fd_domain=1.0)
    make("new", card={"created": "2026-01-02"}, fd_domain=3.0)
    (row,) = rows_of(run).values()
    assert row["columns"]["fd_domain"] == {"mean": 3.0, "sd": None, "n": 1, "values": [3.0]}
    ended = run("table", "outputs")
    assert "1 same config and seed as another run: outputs/old (outputs/new)" in ended.err
    assert "one seed, its spread over seeds is unknown" in ended.out


def test_a_folder_given_twice_counts_once(run: Run, make: Make) -> None:
    make("a", fd_domain=1.0)
    ended = run("table", "outputs", "outputs/a", "--json")
    (row,) = json.loads(ended.out)["tables"][0]["rows"]
    assert row["seeds"] == [0]
    assert ended.err == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fingerprint", "0" * 64),
        ("splits", {"distances": "train 1438"}),
        ("samples", 1000),
        ("extractors", {"digits": {"sha256": "b" * 64, "resize": "none"}}),
        ("extractors", {"digits": {"sha256": "a" * 64, "resize": "bilinear"}}),
        ("extractors", {"own": {"sha256": "b" * 64, "resize": "none"}}),
        ("weights", "raw"),
        ("precision", "bf16-mixed"),
        ("truncation", 0.5),
        ("metrics.distances.reference", 100),
    ],
)
def test_scores_of_other_protocols_are_not_averaged_nor_compared_in_silence(
    run: Run, make: Make, key: str, value: object
) -> None:
    full = {"truncation": None}
    make("a", protocol=full, fd_domain=1.0)
    make("b", seed=1, protocol={**full, key: value}, fd_domain=2.0)
    make("g", "gan", protocol=full, fd_domain=3.0)
    rows = rows_of(run)
    assert len(rows) == 3, "the same config, and yet not one row"
    assert all(len(row["seeds"]) == 1 for row in rows.values())
    field = next(line for line in remarks_of(run).splitlines() if line.startswith("protocols differ in " + key))
    shared = next(name for name in rows if key.split(".")[0] not in name or "dcgan" not in name)
    assert shared in field or "gan" in field


@pytest.mark.parametrize(("key", "value"), [("seed", 5), ("device", "cuda"), ("versions", {"torch": "2.11"})])
def test_fields_that_decide_no_score_do_not_part_seeds(run: Run, make: Make, key: str, value: object) -> None:
    make("a", fd_domain=1.0)
    make("b", seed=1, protocol={key: value}, fd_domain=2.0)
    (row,) = rows_of(run).values()
    assert row["seeds"] == [0, 1]
    assert "protocols differ" not in remarks_of(run)


def test_what_only_one_system_is_asked_for_is_no_difference(run: Run, make: Make) -> None:
    """The likelihood of 64 images is none of the Fréchet distance's business, though they are of its split."""
    make("a", fd_domain=1.0)
    likelihood = {"metrics.likelihood": {"limit": 64}, "splits": {"distances": "test 359", "likelihood": "test 64"}}
    make("v", "vae", protocol=likelihood, fd_domain=1.0, nll_nats=40.0)
    alone = {"metrics": {"likelihood": {"limit": 64}}, "samples": 0, "extractors": {}}
    make("w", "gan", config={"about.can": CAN["vae"]}, protocol=alone, nll_nats=40.0)
    assert "protocols differ" not in remarks_of(run)


def test_a_run_without_a_protocol_is_said_and_kept_apart(run: Run, make: Make) -> None:
    make("a", fd_domain=1.0)
    make("b", seed=1, card={"protocol": None}, fd_domain=1.0)
    assert len(rows_of(run)) == 2
    assert "protocol not recorded: " in remarks_of(run)


# ---------------------------------------------------------------- cells


def test_what_cannot_be_and_what_was_not_measured_are_two_things(run: Run, make: Make) -> None:
    make("g", "gan", fd_domain=1.0)
    make("v", "vae", nll_nats=41.0, iw_bound_nats=-41.0, elbo_nats=-42.0)
    own = {"about": {}}
    make("o", "dcgan", config=own, fd_domain=1.0)
    names = "columns=fd_domain,nats,bits/dim,elbo_nats,modes,published,samples/s"
    columns = {row["model"]: row["columns"] for row in rows_of(run, names).values()}
    assert columns["gan"]["nll_nats"] == {"mean": None, "undefined": "no likelihood"}
    assert columns["gan"]["elbo_nats"] == {"mean": None, "undefined": "no likelihood"}
    assert columns["vae"]["bits_per_dim"] == {"mean": None, "undefined": "no likelihood of 8-bit images"}
    assert columns["vae"]["fd_domain"] == {"mean": None, "missing": "not measured"}
    assert columns["gan"]["modes_covered"] == {"mean": None, "undefined": "not for images"}
    assert columns["gan"]["samples_per_second"] == {"mean": None, "missing": "not measured"}
    assert columns["dcgan"]["nll_nats"] == {"mean": None, "missing": "not measured"}, "it does not say what it can"
    ended = run("table", "outputs", names)
    assert re.search(r"gan +1 .* -- \[\w\]", ended.out)
    assert re.search(r"\[\w\] no likelihood\n", ended.out)
    assert re.search(r"vae +1 +n\.m\.", ended.out)
    assert "n.m.: not measured" in ended.out
    shown = run("table", "outputs", names, "--markdown").out
    assert "| no likelihood |" in shown
    assert "| not measured |" in shown


def systems() -> list[object]:
    """In a system's place, with all that decides which scores a metric promises."""
    on = LikelihoodOn
    kinds = (on(), on(bits=5), on(bits=1, binarisation="static"), on(bits=None, exact=False))
    bounds = {"elbo": None, "importance_bound": None, "cluster": len}
    return [SimpleNamespace(conditional=by, likelihood_on=kind, **bounds) for by in (False, True) for kind in kinds]


def shipped() -> tuple[list[type[Any]], list[Any]]:
    """Every class of evaluation that is a metric, and a source of each extractor."""
    modules = [
        importlib.import_module(f"gentrain.evaluation.{found.name}") for found in iter_modules(evaluation.__path__)
    ]
    classes = {v for m in modules for v in vars(m).values() if isinstance(v, type) and v.__module__ == m.__name__}
    concrete = [c for c in sorted(classes, key=lambda c: c.__name__) if dataclasses.is_dataclass(c)]
    return [c for c in concrete if hasattr(c, "measure")], [c() for c in concrete if hasattr(c, "keys")]


def promises(metric: type[Any], sources: list[Any]) -> set[str]:
    """Every key that a metric class promises for some system, data and extractor."""
    takes = {field.name for field in dataclasses.fields(metric)}
    images = dataclasses.replace(digits(), density=ring().density)  # no metric asks which data these are
    few = {"smallest": 8} if "smallest" in takes else {}
    made = [metric(**few, extractor=source) for source in sources] if "extractor" in takes else [metric(**few)]
    every = [(each, system, data) for each in made for system in systems() for data in (images, ring())]
    return {key for each, system, data in every for key in each.scores(system, data)}


def test_every_score_that_a_metric_can_promise_is_known_to_the_table(run: Run, make: Make) -> None:
    metrics, sources = shipped()
    promised = {metric.__name__: promises(metric, sources) for metric in metrics}
    assert not [name for name, keys in promised.items() if not keys]
    every = set().union(*promised.values())
    assert {"cas", "fd_dinov2_by_class", "log_z_sd", "copy_rate_pixels", "bits_per_dim_5bit", "swd_8"} <= every
    unknown = {name: [key for key in keys if not names.is_known(key)] for name, keys in promised.items()}
    assert not any(unknown.values()), f"report/names.py must list {unknown}"
    of_nobody = {name for name in names.spelt() if name not in every} - {"swd_mean"}
    assert not [name for name in of_nobody if name[:2] != "is"]
    make("v", "vae", other=1.0)
    (row,) = rows_of(run, f"columns={','.join(sorted(every))}").values()
    assert set(row["columns"]) == every


def test_a_word_that_is_no_score_is_refused_with_the_nearest(run: Run, make: Make) -> None:
    make("v", "vae", nll_nats=41.0)
    for word, near in (("label_acuracy", "label_accuracy"), ("copy_rate_pixel", "copy_rate_pixels"), ("secnds", "sec")):
        ended = run("table", "outputs", f"columns={word}")
        assert ended.code == 2
        assert near in ended.err.partition("did you mean")[2]
    for word in ("kid_other", "fd_domain_floors", "swd_x", "best.cass", "nats_domain"):
        assert run("table", "outputs", f"columns={word}").code == 2, word


CANNOT = {
    "cas": "not asked by class",
    "label_accuracy": "not asked by class",
    "fd_domain_by_class": "not asked by class",
    "reconstruction_mse": "no reconstructions",
    "log_z": "no Boltzmann machine",
    "cluster_nmi": "no codes",
    "clusters_used": "no clusters of its own",
    "classification_error": "no classifier",
    "rate_bpp": "no compressor",
    "modes_total": "not for images",
}
OF_IMAGES = ("precision_domain", "density_domain", "coverage", "copy_rate_pixels", "authenticity_domain", "swd_mean")


def test_undefined_cells_say_why(run: Run, make: Make) -> None:
    make("g", "gan", card={"conditional": False}, fd_domain=1.0)
    make("c", "dcgan", card={"conditional": True}, fd_domain=1.0)
    vectors = {"choices.data": "ring", "kind": "vectors"}
    make("r", "gan", config=vectors, card={"spec": {"shape": [2]}, "conditional": False}, swd=1.0)
    kinds = ("swd_16", "ms_ssim", "classes_shown", "fd_domain_sd", "fid_inf", "copy_rate", "floor", "cas")
    columns = ",".join([*CANNOT, *OF_IMAGES, *kinds])
    tables = json.loads(run("table", "outputs", "--json", f"columns={columns}").out)["tables"]
    by_name = {row["model"]: row["columns"] for row in tables[0]["rows"]}
    assert {key: by_name["gan"][key].get("undefined") for key in CANNOT} == CANNOT
    for key in ("cas", "label_accuracy", "fd_domain_by_class"):
        assert by_name["dcgan"][key] == {"mean": None, "missing": "not measured"}
    of_vectors = tables[1]["rows"][0]["columns"]
    for key in (*OF_IMAGES, *kinds):
        assert of_vectors[key] == {"mean": None, "undefined": "not for vectors"}, key
        assert key == "cas" or "missing" in by_name["gan"][key], key


def test_an_older_card_does_not_say_whether_it_is_asked_by_class(run: Run, make: Make) -> None:
    make("g", "gan", fd_domain=1.0)
    make("h", "dcgan", card={"conditional": "no"}, fd_domain=1.0)
    for row in rows_of(run, "columns=cas").values():
        assert row["columns"]["cas"] == {"mean": None, "missing": "not measured"}


def test_a_column_that_no_run_has_is_there_when_it_is_asked_for(run: Run, make: Make) -> None:
    make("v", "vae", nll_nats=41.0)
    names = ["fd", "published", "fid", "fd_dinov2_floor", "bits/dim", "recall_domain", "samples/s"]
    (row,) = rows_of(run, f"columns={','.join(names)}").values()
    keys = ["bits_per_dim" if name == "bits/dim" else name for name in names[:-1]]
    assert list(row["columns"]) == [*keys, "samples_per_second"]
    assert row["columns"]["fid"] == {"mean": None, "missing": "not measured"}


def test_bounds_are_marked_and_exact_likelihoods_are_not(run: Run, make: Make) -> None:
    make("v", "vae", nll_nats=41.0, bits_per_dim=4.08, elbo_nats=-42.0)
    make("f", "vae", config={"train.iterations": 5}, nll_nats=40.0, bits_per_dim=3.99)
    rows = rows_of(run, "columns=nats,bits/dim,elbo_nats")
    bound, exact = rows["vae iterations=20"]["columns"], rows["vae iterations=5"]["columns"]
    assert (bound["bits_per_dim"]["bound"], bound["nll_nats"]["bound"], bound["elbo_nats"]["bound"]) == (
        "<=",
        "<=",
        ">=",
    )
    assert "bound" not in exact["bits_per_dim"]
    assert exact["elbo_nats"]["undefined"] == "likelihood is no bound"
    assert "<= 4.08 " in run("table", "outputs", "columns=bits/dim,fd").out


def test_a_score_that_some_seeds_lack_or_that_is_not_finite_is_said(run: Run, make: Make) -> None:
    make("a", seed=0, fd_domain=1.0, kid_domain=1.0)
    make("b", seed=1, fd_domain=3.0)
    make("c", seed=2, fd_domain=float("nan"), kid_domain=float("inf"))
    make("x", "gan", fd_domain=float("nan"))
    rows = rows_of(run, "columns=fd,kid")
    fd, kid = (rows["dcgan"]["columns"][key] for key in ("fd_domain", "kid_domain"))
    assert (fd["mean"], fd["n"], fd["note"]) == (2.0, 2, "not finite in 1 of 3 runs, which are left out")
    assert (kid["mean"], kid["n"]) == (1.0, 1)
    assert "measured in 2 of 3 runs" in kid["note"]
    assert rows["gan"]["columns"]["fd_domain"] == {"mean": None, "missing": "not finite"}
    assert re.search(r"2\.0 ± 1\.4 \[a\]", run("table", "outputs", "columns=fd").out)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("key", ["full", "at_end"])
def test_best_is_the_score_of_the_full_count_where_there_is_one(run: Run, make: Make, nested: bool, key: str) -> None:
    best = {"monitor": "fd_domain", "value": 0.1, "iteration": 10, "scores": {"fd_domain": 0.1}}
    results = {"final": {"fd_domain": 2.0}, "best": {**best, key: {"fd_domain": 1.5}}, "protocol": PROTOCOL}
    card = {"results": results, "final": None, "best": None} if nested else results
    make("a", card=card, config={"metrics.during_samples": 16})
    (row,) = rows_of(run).values()
    assert row["columns"]["fd_domain"]["mean"] == 2.0
    assert row["columns"]["best.fd_domain"] == {"mean": 1.5, "sd": None, "n": 1, "values": [1.5]}
    assert "so optimistic" in remarks_of(run)


def test_a_best_that_was_scored_in_training_alone_is_marked(run: Run, make: Make) -> None:
    make("a", config={"metrics.during_samples": 16}, fd_domain=2.0)
    make("b", "gan", config={"metrics.during_samples": 128}, fd_domain=2.0)
    rows = rows_of(run)
    assert "in training" in rows["dcgan"]["columns"]["best.fd_domain"]["note"]
    assert "note" not in rows["gan"]["columns"]["best.fd_domain"], "of the same count"


def test_facts_and_the_distance_from_a_published_figure(run: Run, make: Make) -> None:
    for seed in (0, 1):
        stated = {"published": {"fd_domain": 1.25, "source": "Table 3"}}
        make(f"a{seed}", seed=seed, config=stated, card={"samples_per_second": 7.0}, fd_domain=2.0 + seed)
    make("g", "gan", fd_domain=2.0)
    rows = rows_of(run, "columns=published,parameters,images,minutes,images/s,samples/s")
    columns = rows["dcgan"]["columns"]
    assert columns["published.fd_domain"]["values"] == [0.75, 1.75]
    assert columns["parameters"]["mean"] == 1234
    assert columns["minutes"]["mean"] == pytest.approx(30.5 / 60)
    assert columns["samples_per_second"]["mean"] == 7
    assert rows["gan"]["columns"]["published.fd_domain"]["undefined"] == "no published figure stated"
    assert "published.fd_domain" in rows_of(run)["dcgan"]["columns"], "shown by default where one is stated"
    make("a2", seed=2, config={"published": {"fd_domain": 9.0}}, fd_domain=2.0)
    differing = rows_of(run)["dcgan"]["columns"]["published.fd_domain"]
    assert differing == {"mean": None, "missing": "its runs state several published figures"}


def test_each_row_shows_what_it_cost_beside_its_scores(run: Run, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"published": {"fd_domain": 1.25}}
    scores = {"fd_domain": 2.0, "fd_domain_floor": 0.5, "nll_nats": 40.0, "bits_per_dim": 4.0}
    make("v", "vae", config=stated, card={"samples_per_second": 7.0, "seconds": 0.4}, **scores)
    make("g", "gan", fd_domain=3.0)
    beside = ["fd_domain", "best.fd_domain", "published.fd_domain", "fd_domain_floor", "bits_per_dim", "nll_nats"]
    cost = ["parameters", "images", "seconds", "images_per_second", "samples_per_second"]
    rows = rows_of(run)
    assert list(rows["vae"]["columns"]) == beside + cost
    assert rows["vae"]["columns"]["seconds"]["mean"] == 0.4
    assert rows["gan"]["columns"]["bits_per_dim"]["undefined"] == "no likelihood"
    monkeypatch.setenv("COLUMNS", "60")
    shown = run("table", "outputs").out
    assert shown.count("\n\n") == sum("─" in line for line in shown.splitlines()) - 1 > 0, "a gap between two blocks"


def test_minutes_below_one_are_shown_in_seconds(run: Run, make: Make) -> None:
    for seed, seconds in enumerate((0.4, 0.8)):
        make(f"a{seed}", seed=seed, card={"seconds": seconds}, fd_domain=1.0)
    make("g", "gan", card={"seconds": 0.4}, fd_domain=1.0)
    make("v", "vae", card={"seconds": 90.0}, fd_domain=1.0)
    out = run("table", "outputs", "columns=minutes", "sort=name").out
    said = [re.split(r" {2,}", line)[-1] for line in out.splitlines()[2:5]]
    assert said == ["0.60 ± 0.28 s", "0.4 s", "1.5"]
    record = rows_of(run, "columns=minutes")["gan"]["columns"]["minutes"]
    assert record["mean"] == pytest.approx(0.4 / 60), "files for machines hold minutes"


def test_scores_of_an_earlier_iteration_and_times_of_other_devices_are_said(run: Run, make: Make) -> None:
    make("a", card={"scored_at": 10}, fd_domain=2.0)
    make("b", "gan", card={"device": "H200"}, fd_domain=2.0)
    said = remarks_of(run)
    assert "dcgan, seed 0: final scores are of iteration 10 of 20" in said
    assert "times are of different devices: H200, cpu (1 threads)" in said


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [
        (1.77134, 0.0521, "1.771 ± 0.052"),
        (1.77134, 0.0996, "1.77 ± 0.10"),
        (2216.54, 12.3, "2217 ± 12"),
        (22165.4, 1234.0, "22200 ± 1200"),
        (10.0, 0.0, "10 ± 0"),
        (0.9999993, 2.4e-8, "0.999999 ± 2.4e-08"),
        (1.23456e-9, 2.5e-11, "1.235e-09 ± 2.5e-11"),
        (-0.5, 0.25, "-0.50 ± 0.25"),
    ],
)
def test_value_and_spread_are_rounded_together(mean: float, sd: float, shown: str) -> None:
    assert with_spread(mean, sd) == shown


def test_single_numbers_have_four_digits_and_whole_ones_all() -> None:
    values = (1.234567, 1024000.0, 0.0001234, 0.0, 12345.67, -3.0, float("nan"))
    assert [number(value) for value in values] == ["1.235", "1,024,000", "1.234e-04", "0", "12,346", "-3", "nan"]
    assert in_words(Cell((3.0, 3.0), 3.0, 0.0, is_fact=True)) == "3"


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_table_fits_the_terminal_and_loses_no_column(
    run: Run, make: Make, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    scores = {f"{name}_domain": 1.5 for name in ("fd", "kid", "is", "precision", "recall", "density", "coverage")}
    for seed in (0, 1):
        make(f"a{seed}", seed=seed, **{key: value + 0.1234567 * seed for key, value in scores.items()})
    make("v", "vae", config={"choices.model": "a_very_long_name_of_a_model_of_mine"}, nll_nats=40.0, **scores)
    monkeypatch.setenv("COLUMNS", str(width))
    out = run("table", "outputs", "--all").out
    assert max(map(len, out.splitlines())) <= width
    for key in scores:
        assert out.count(key) == (2 if key == "fd_domain" else 1), key
    assert out.count("1.562 ± 0.087") == len(scores)
    if width == 160:
        assert sum("─" in line for line in out.splitlines()) < 4


def test_blocks_show_text_as_it_is() -> None:
    shown = blocks(["job", "x"], [["[red]a[/red] :smile:", "[b]1[/b]"]], 60)
    assert "[red]a[/red] :smile:" in shown
    assert "[b]1[/b]" in shown
    assert "\x1b" not in shown


def test_no_cell_is_broken_at_any_width() -> None:
    body = [[f"row{i}", *(f"{'x' * (3 + 5 * j % 11)}{i}{j}" for j in range(9))] for i in range(2)]
    for width in range(35, 160):
        shown = blocks(["job", *(f"c{j}" for j in range(9))], body, width)
        assert max(map(len, shown.splitlines())) <= width
        assert all(part in shown.split() for line in body for part in line), width


def test_csv_holds_full_numbers_and_no_formula(run: Run, make: Make) -> None:
    for seed, value in enumerate((1 / 3, 2 / 3)):
        make(f"a{seed}", seed=seed, config={"choices.model": "=cmd|' /C calc'!A0"}, fd_domain=value)
    make("v", "vae", nll_nats=41.1, elbo_nats=-42.0)
    ended = run("table", "outputs", "--csv")
    attack, vae = csv.DictReader(io.StringIO(ended.out))
    assert attack["name"].startswith("'=cmd")
    assert float(attack["fd_domain"]) == statistics.fmean((1 / 3, 2 / 3))
    assert float(attack["fd_domain:sd"]) == statistics.stdev((1 / 3, 2 / 3))
    assert (attack["seeds"], attack["fd_domain:n"], attack["nll_nats"]) == ("0 1", "2", "no likelihood")
    assert (vae["fd_domain"], vae["nll_nats"], vae["nll_nats:bound"]) == ("not measured", "41.1", "<=")
    assert "" not in (attack["nll_nats"], vae["fd_domain"])


def test_markdown_escapes_and_keeps_its_columns(run: Run, make: Make) -> None:
    make("a", config={"choices.model": "a|b <img src=x> `c` [d](e)"}, fd_domain=1.0)
    out = run("table", "outputs", "--markdown").out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"a\|b \<img src=x\> \`c\` \[d\](e)" in out


def test_out_writes_what_the_suffix_says(run: Run, make: Make, workplace: Path) -> None:
    make("a", fd_domain=1.0)
    for suffix, flag in ((".md", "--markdown"), (".csv", "--csv"), (".json", "--json")):
        assert run("table", "outputs", f"out=t{suffix}").code == 0
        assert (workplace / f"t{suffix}").read_text(encoding="utf-8") == run("table", "outputs", flag).out
    assert sorted(path.name for path in workplace.glob("*t.*")) == ["t.csv", "t.json", "t.md"]


def test_sorted_with_gaps_last_in_both_directions(run: Run, make: Make) -> None:
    make("a", "dcgan", fd_domain=2.0)
    make("b", "gan", fd_domain=1.0)
    make("c", "vae", nll_nats=1.0)
    assert list(rows_of(run, "sort=fd")) == ["gan", "dcgan", "vae"]
    assert list(rows_of(run, "--sort", "-fd_domain")) == ["dcgan", "gan", "vae"]
    assert list(rows_of(run, "sort=-name")) == ["vae", "gan", "dcgan"]


def test_data_sets_are_never_side_by_side(run: Run, make: Make) -> None:
    make("a", fd_domain=2.0)
    make("b", config={"choices.data": "ring", "kind": "vectors"}, card={"spec": {"shape": [2]}}, swd=1.0)
    tables = json.loads(run("table", "outputs", "--json").out)["tables"]
    assert [part["data"] for part in tables] == ["digits", "ring"]
    assert "fd_domain" not in tables[1]["rows"][0]["columns"]
    ended = run("table", "--data", "ring", "outputs")
    assert ended.code == 0
    assert "dcgan" in ended.out
    assert "1 other data: outputs/a (digits)" in ended.err


# ---------------------------------------------------------------- what is passed over, and mistakes


def test_what_cannot_be_compared_is_passed_over_in_one_line(run: Run, make: Make, workplace: Path) -> None:
    make("good", fd_domain=1.0)
    make("running", seed=1, card={"status": "running"}, fd_domain=1.0)
    make("failed", seed=2, card={"status": "failed"}, fd_domain=1.0)
    make("none", seed=3)
    (make("bare", seed=4, fd_domain=1.0) / "run.json").unlink()
    (workplace / "outputs" / "bare" / "checkpoints").mkdir()
    ended = run("table", "outputs")
    assert ended.code == 0
    assert ended.err.count("\n") == 1
    for said in (
        "1 unfinished: outputs/running (running)",
        "1 failed: outputs/failed",
        "1 no scores: outputs/none",
        "1 unreadable: outputs/bare (run.json: no such file)",
    ):
        assert said in ended.err
    (row,) = rows_of(run).values()
    assert row["seeds"] == [0]
    passed = json.loads(run("table", "outputs", "--json").out)["passed_over"]
    assert {each["why"] for each in passed} == {"unfinished", "failed", "no scores", "unreadable"}


HOSTILE = {
    "no json": "{",
    "a list": "[1]",
    "deep": "[" * 100_000,
    "deep enough for the parser": '{"status": "finished", "x": ' + "[" * 400 + "]" * 400 + "}",
    "not text": b"\xff\xfe\x00",
    "a word for a score": '{"status": "finished", "final": {"fd_domain": "low"}}',
    "a score with no name": '{"status": "finished", "final": {"\\u001b[2J": 1.0}}',
    "scores in a list": '{"status": "finished", "final": [1.0]}',
    "endless digits": '{"status": "finished", "final": {"fd_domain": ' + "9" * 10_000 + "}}",
    "large": '{"status": "finished", "final": {"fd_domain": 1.0}' + " " * 5_000_000 + "}",
    "a status that steers": '{"status": "\\u001b]0;x\\u0007\\u202e\\n"}',
}


@pytest.mark.parametrize("card", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_card_is_one_line(run: Run, make: Make, card: str | bytes) -> None:
    make("good", fd_domain=1.0)
    (make("bad", seed=1, fd_domain=1.0) / "run.json").write_bytes(card if isinstance(card, bytes) else card.encode())
    ended = run("table", "outputs")
    assert ended.code == 0, ended.err
    assert re.search(r"1 (unreadable|unfinished): outputs/bad", ended.err)
    assert ended.err.count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in ended.out + ended.err)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "- 1",
        "a: [",
        "seed: 0",
        "choices: {}\nmodel: {}\ndata: {}\ntrain: {}\nseed: x",
        "!!python/object:os.system {}",
    ],
)
def test_a_broken_config_is_one_line(run: Run, make: Make, config: str) -> None:
    make("good", fd_domain=1.0)
    (make("bad", seed=1, fd_domain=1.0) / "config.yaml").write_text(config, encoding="utf-8")
    ended = run("table", "outputs")
    assert ended.code == 0
    assert "1 unreadable: outputs/bad (" in ended.err
    assert ended.err.count("\n") == 1


def test_no_text_of_a_run_folder_steers_the_terminal(run: Run, make: Make) -> None:
    evil = "\x1b[2J\u202e\x07\udc80[red]" + "x" * 500
    config = {"choices.model": evil, "choices.loss": evil, "train.extra": evil, "about.name": evil}
    card = {"device": evil, "status": "finished", "monitor": evil}
    make("a", config={"choices.model": "m" + "\x1b[2J\u202e[red]" + "x" * 500}, card=card, fd_domain=1.0)
    make("b", config={k: v.replace("\udc80", "") for k, v in config.items()}, protocol={evil: evil}, fd_domain=1.0)
    make("c", config={"train.extra": "\x1b[2J"}, protocol={"weights": "\x1b[2J"}, fd_domain=1.0)
    make("d", protocol={"weights": "\x1b]0;\x07"}, fd_domain=1.0)
    for kind in ((), ("--all",), ("--markdown",), ("--csv",), ("--json",)):
        ended = run("table", "outputs", *kind)
        assert ended.code == 0, ended.err
        assert all(c.isprintable() or c == "\n" for c in ended.out + ended.err), kind
        if "--json" not in kind:
            assert max(map(len, ended.out.splitlines())) < 1200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["output"], "did you mean outputs?"),
        (["empty"], "no finished run with scores in empty (no run folder)"),
        (["outputs", "data=digit"], "did you mean digits?"),
        (["outputs", "columns=fd_domian"], "did you mean fd_domain"),
        (["outputs", "columns=,"], "name at least one"),
        (["outputs", "sort=fdd"], "no such column (did you mean fd"),
        (["outputs", "sort=best,x"], "best,x: no such column"),
        (["outputs", "sort=kid"], "which of kid_domain, kid_dinov2?"),
        (["outputs", "colums=fd"], "did you mean columns?"),
        (["outputs", "--jsn"], "did you mean --json, --csv?"),
        (["outputs", "--data"], "a value must follow"),
        (["outputs", "out=table.txt"], "must end in .md, .csv, .json"),
        (["outputs", "out=nowhere/t.csv"], "cannot be written"),
        (["outputs", "out=empty/folder.csv"], "cannot be written"),
        (["outputs", "--json", "--csv"], "csv and json at a time"),
        (["outputs", "--csv", "out=t.md"], "csv and markdown at a time"),
    ],
)
def test_mistakes_are_one_line(run: Run, make: Make, workplace: Path, given: list[str], said: str) -> None:
    make("a", fd_domain=1.0, kid_domain=1.0, kid_dinov2=2.0)
    (workplace / "empty" / "folder.csv").mkdir(parents=True)
    ended = run("table", *given)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not list(workplace.glob("**/*.part"))


def test_nothing_to_compare_says_why(run: Run, make: Make) -> None:
    make("a", card={"status": "failed"})
    ended = run("table", "outputs")
    assert ended.code == 2
    assert "1 failed: outputs/a" in ended.err


# ---------------------------------------------------------------- real runs


def test_a_real_gan_beside_a_real_vae_over_two_seeds(run: Run, workplace: Path) -> None:
    few = ("train.iterations=4", "train.validate_every=2")
    for model in ("dcgan", "vae"):
        for seed in (0, 1):
            assert run(*words(f"model={model}", f"seed={seed}", *few)).code == 0
    rows = rows_of(run)
    assert set(rows) == {"dcgan", "vae"}
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in workplace.glob("outputs/vae-*/*/run.json")]
    scores = [(card.get("results") or card)["final"]["nll_nats"] for card in cards]
    found = rows["vae"]["columns"]["nll_nats"]
    assert found["mean"] == pytest.approx(statistics.fmean(scores), rel=1e-12)
    assert found["sd"] == pytest.approx(statistics.stdev(scores), rel=1e-9)
    assert found["bound"] == "<="
    assert rows["dcgan"]["columns"]["nll_nats"] == {"mean": None, "undefined": "no likelihood"}
    assert all(row["columns"]["fd_domain"]["n"] == 2 for row in rows.values())
    assert rows["dcgan"]["columns"]["images"]["mean"] == 64
    for row in rows_of(run, "columns=cas").values():
        assert row["columns"]["cas"] == {"mean": None, "undefined": "not asked by class"}
    shown = run("table", "outputs")
    assert shown.code == 0
    assert shown.err == ""


def test_codes_have_columns_of_their_own(run: Run, make: Make) -> None:
    make("a", "vae", reconstruction_mse=0.01, cluster_accuracy=0.5, cluster_nmi_pixels=0.4)
    (row,) = rows_of(run).values()
    assert {"reconstruction_mse", "cluster_accuracy"} <= row["columns"].keys()
    assert "cluster_nmi_pixels" not in row["columns"]


def test_estimates_of_a_likelihood_are_shown_without_being_asked_for(run: Run, make: Make) -> None:
    machine = {"about.can": ["sample", "log_likelihood", "rbm"]}
    make("m", "vae", config=machine, nll_nats_ais=237.0, log_z=903.0, log_z_sd=0.1)
    make("c", "gan", parzen_nats_unreliable=280.0, parzen_sigma=0.1)
    shown = rows_of(run)["vae"]["columns"]
    assert shown["nll_nats_ais"]["mean"] == 237.0
    assert "parzen_nats_unreliable" in shown
    assert not {"log_z", "log_z_sd", "parzen_sigma"} & set(shown)
    assert "nll_nats_ais" in rows_of(run, "columns=nats")["vae"]["columns"]
