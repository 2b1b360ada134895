"""``gentrain evaluate run=DIR``: score a trained run again, under its stored protocol or under other metrics.

``gentrain evaluate samples=FOLDER data=NAME`` or ``samples=FOLDER reference=FOLDER2``: score pictures made elsewhere.
"""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gentrain.commands.words import Words, above_zero, options, place, whole_number, yes
from gentrain.config import Node, nearest
from gentrain.errors import OK, UserError, one_line
from gentrain.folder import RunFolder
from gentrain.records import dumped

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet
    from gentrain.evaluation.metric import Metric

KEYS = {
    "run": None,
    "checkpoint": "last",
    "weights": "ema",
    "samples": "",
    "device": "auto",
    "trust": "false",
    "out": "",
    "truncation": "",
    "temperature": "",
}
PICTURE_KEYS = {
    "samples": None,
    "reference": "",
    "n": "",
    "seed": "0",
    "range": "",
    "resize": "",
    "resample": "bicubic",
    "channels": "",
    "device": "auto",
    "out": "",
}
GROUPS = ("data", "metrics", "data_root", "size")
USAGE = "gentrain evaluate run=DIR [metrics=NAME], or gentrain evaluate samples=FOLDER data=NAME|reference=FOLDER"


def run(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    words, rest = place([a for a in arguments if a != "--json"])
    keys = {argument.partition("=")[0] for argument in rest}
    if "run" not in keys and "samples" not in keys:
        wrong = next((a for a in rest if a.partition("=")[0] not in PICTURE_KEYS and _group(a) not in GROUPS), None)
        said = f"{wrong} is not one of its keys{nearest(wrong.partition('=')[0], KEYS)}" if wrong else "run= is missing"
        raise UserError(f"evaluate: {said}; usage: {USAGE}")
    groups = GROUPS if "run" not in keys else ("metrics",)
    words.overrides = [argument for argument in rest if _group(argument) in groups]
    own = [argument for argument in rest if _group(argument) not in groups]
    title, result = of_run(own, words) if "run" in keys else of_pictures(own, words)
    if out := result.pop("out"):
        write(result, Path(out))
    show(title, result, as_json=as_json)
    return OK


def _group(argument: str) -> str:
    """The config group or root key that an override is about."""
    return argument.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def show(title: str, result: Mapping[str, Any], *, as_json: bool) -> None:
    """All digits, so that two outputs can be compared."""
    for name, value in result["scores"].items():
        if not math.isfinite(value):
            print(f"gentrain: {name} is {value}, which JSON writes as null", file=sys.stderr)
    if as_json:
        print(dumped(result), end="")
        return
    print(title)
    for name, value in result["scores"].items():
        print(f"  {name:<16} {value!r}")
    print("protocol: " + ", ".join(f"{key}={value}" for key, value in result["protocol"].items()))


def checked_out(out: str) -> str:
    """``out=`` as it is, or UserError before anything is computed."""
    path = Path(out)
    if out and (path.suffix != ".json" or path.is_dir() or not path.absolute().parent.is_dir()):
        why = "the name must end in .json" if path.suffix != ".json" else "no such folder, or a folder itself"
        raise UserError(f"out={out}: {why}; give a file in a folder that is there")
    return out


def write(result: Mapping[str, Any], path: Path) -> None:
    """As JSON: whole, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(dumped(result), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"out={path}: cannot be written ({error.strerror})") from None


def of_run(arguments: Sequence[str], words: Words) -> tuple[str, dict[str, Any]]:
    """A title, and scores, protocol and seconds of one checkpoint."""
    given = options(arguments, KEYS, "evaluate")
    folder = RunFolder.open(Path(given["run"]))
    if given["samples"] and not given["samples"].lstrip("+-").isdigit():
        raise UserError(
            f"run= and samples={given['samples']}: of a run, samples= is how many are drawn; pictures in a folder are "
            "scored without run="
        )
    drawn = next((word for word in words.overrides if word.lstrip("+~").partition("=")[0] == "metrics.samples"), None)
    if given["samples"] and drawn:
        raise UserError(f"samples={given['samples']} and {drawn}: one of the two says how many are drawn")
    out, trusted = checked_out(given["out"]), yes(given["trust"], "trust")
    result = score(folder, given, words, trusted=trusted)
    title = f"{folder.path} ({given['checkpoint']}, iteration {result['iteration']}, {result['weights']} weights)"
    return title, {**result, "out": out}


def score(folder: RunFolder, given: Mapping[str, str], words: Words, *, trusted: bool) -> dict[str, Any]:
    """Scores, protocol and seconds of one checkpoint, under the stored metrics or those that ``words`` choose."""
    if given["weights"] not in ("ema", "raw"):
        raise UserError(f"weights={given['weights']}: ema or raw")
    drawn_at: dict[str, Any] = {key: above_zero(given[key], key) for key in ("truncation", "temperature")}
    from gentrain.config import build
    from gentrain.engine.fit import check_config
    from gentrain.engine.restore import load_system
    from gentrain.engine.sampling import telling
    from gentrain.engine.session import Scoring
    from gentrain.engine.validation import score_system
    from gentrain.evaluation.protocol import promised, require
    from gentrain.evaluation.reference import FeatureCache

    config = folder.config()
    check_config(config, trusted=trusted)
    chosen = build(chosen_metrics(config, words), where="metrics") if words.overrides else None
    system = load_system(folder, given["checkpoint"], device=given["device"], trusted=trusted)
    data = build(config["data"], trusted=trusted, where="data")
    if folder.card().get("data", {}).get("fingerprint") != data.fingerprint:
        raise UserError(f"run={folder.path}: the data are no longer those it was trained on (fingerprint differs)")
    scoring = Scoring(**(chosen or build(config["metrics"], trusted=trusted, where="metrics")))
    n = whole_number(given["samples"], "samples", least=2) if given["samples"] else scoring.samples
    if not scoring.all:
        raise UserError(
            "metrics=none scores nothing; choose another group"
            if chosen
            else f"run={folder.path}: it was trained without metrics; say which, e.g. metrics=domain "
            "(gentrain list metrics)"
        )
    scoring, left_out = scoring.possible(system, data)
    for line in left_out:
        print(f"gentrain: {one_line(line)}", file=sys.stderr)
    key = "samples" if given["samples"] or not words.overrides else "metrics.samples"
    require(scoring.scores, system, data, n=n, key=key)
    require(scoring.at_end, system, data, n=n, key=key, section="metrics.at_end")
    promised(scoring.all, system, data)
    kind = given["weights"] if system.average is not None else "raw"
    asked: dict[str, Any] = {"n": n, "seed": config["seed"], "weights": kind, **drawn_at}
    with telling(system, "samples"):
        report = score_system(system, data, scoring.all, cache=FeatureCache.on_disk(), **asked)
    return {
        "run": str(folder.path),
        "checkpoint": given["checkpoint"],
        "iteration": system.clock.iteration,
        "weights": kind,
        "scores": report.scores,
        "protocol": report.protocol,
        "left_out": left_out,
        "seconds": round(report.seconds, 2),
    }


def chosen_metrics(config: Node, words: Words) -> Node:
    """The ``metrics`` section that ``words`` ask for, as if the run had been started with them."""
    choices = config["choices"]
    if not any(override.startswith("metrics=") for override in words.overrides):
        return changed(config["metrics"], words.overrides)
    at = [f"{group}={choices[group]}" for group in ("model", "data", "size") if choices.get(group)]
    metrics: Node = composed([*at, *words.overrides], words)["metrics"]
    return metrics


def changed(metrics: Node, overrides: Sequence[str]) -> Node:
    """The run's own ``metrics`` section with other values (``metrics.samples=5000``) for keys that it has."""
    from gentrain.check import bind, check
    from gentrain.engine.session import Scoring

    section: Node = copy.deepcopy(metrics)
    for override in overrides:
        key, _, text = override.partition("=")
        first, *path = key.split(".")
        node: Any = section
        for name in path[:-1]:
            node = node.get(name) if isinstance(node, dict) else None
        if first != "metrics" or not path or not isinstance(node, dict) or path[-1] not in node:
            there = [".".join(["metrics", *path[:-1], name]) for name in node] if isinstance(node, dict) else []
            raise UserError(
                f"{override}: the run's metrics have no such key{nearest(key, there)}; metrics=NAME chooses others "
                "(gentrain list metrics)"
            )
        try:
            node[path[-1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{override}: not a value") from None
    check({"metrics": section})
    bind(Scoring, section, "metrics")
    return section


def composed(overrides: Sequence[str], words: Words) -> Node:
    """The sections ``data`` and ``metrics`` of a config, held against the signatures of what they name."""
    from gentrain.check import bind, check
    from gentrain.compose import compose
    from gentrain.engine.session import Scoring

    config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
    sections: Node = {"data": config["data"], "metrics": config["metrics"]}
    check(sections)
    bind(Scoring, sections["metrics"], "metrics")
    return sections


def of_pictures(arguments: Sequence[str], words: Words) -> tuple[str, dict[str, Any]]:
    """A title, and scores and protocol of pictures made elsewhere."""
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key not in PICTURE_KEYS:
            known = [*PICTURE_KEYS, *GROUPS]
            raise UserError(f"evaluate: {argument} is not one of its keys{nearest(key, known)}; usage: {USAGE}")
    given = options(arguments, PICTURE_KEYS, "evaluate")
    about_data = [word for word in words.overrides if _group(word) != "metrics"]
    twice = [word for word in about_data if not word.lstrip("+~").startswith(("data.", "size="))]
    if given["reference"] and twice:
        raise UserError(f"evaluate: reference= and {twice[0]}: one of the two")
    if not given["reference"] and not any(word.startswith("data=") for word in about_data):
        raise UserError(
            "evaluate: data= is missing, the data set that the pictures are held against (e.g. data=digits), or "
            "reference=FOLDER"
        )
    for word in words.overrides:
        if word.lstrip("+~").partition("=")[0] in ("metrics.samples", "metrics.during_samples"):
            raise UserError(f"{word}: pictures are not drawn; n=... takes so many of them")
    from gentrain.data.fit import Said

    said = Said(
        range=given["range"] or None,
        resize=given["resize"] or None,
        resample=given["resample"],
        channels=whole_number(given["channels"], "channels") if given["channels"] else None,
        n=whole_number(given["n"], "n", least=1) if given["n"] else None,
    )
    seed, out = whole_number(given["seed"], "seed"), checked_out(given["out"])
    result = _scored(Path(given["samples"]), given["reference"], said, words, seed=seed, device=given["device"])
    title = f"{result['samples']} ({result['protocol']['samples']} pictures)"
    return title, {**result, "out": out}


def _scored(samples: Path, reference: str, said: Any, words: Words, *, seed: int, device: str) -> dict[str, Any]:
    from gentrain.config import build
    from gentrain.data import given as pictures
    from gentrain.data.fit import Said
    from gentrain.engine.restore import device_called
    from gentrain.evaluation.given import score_pictures
    from gentrain.evaluation.subject import FeatureCache

    where = device_called(device)
    # For a folder, data=folder brings the metrics of photographs; its data section is built where it is spoken of.
    overrides = [*_folder(reference), *words.overrides] if reference else words.overrides
    config = composed(overrides, words)
    metrics = _metrics(config)
    facts: dict[str, Any] = {}
    data: DataSet
    if reference:
        pictures.refuse_splits(Path(reference))
    if reference and not any(_group(word) == "data" for word in words.overrides):
        held_against = pictures.read(Path(reference), Said(range=said.range, channels=said.channels), "reference")
        data = pictures.one_set(held_against, Path(reference))
        facts["reference"] = held_against.facts
    else:
        data = build(config["data"], where="data")
        data = pictures.whole(data) if reference else data
    if not data.spec.is_image:
        raise UserError(f"data {data.name!r} are vectors: pictures cannot be held against them")
    found = pictures.read(samples, said, "samples", data.spec.shape)
    report, left_out = score_pictures(found, data, metrics, seed=seed, device=where, cache=FeatureCache.on_disk())
    for line in left_out:
        print(f"gentrain: {one_line(line)}", file=sys.stderr)
    return {
        "samples": found.facts["path"],
        "scores": report.scores,
        "protocol": report.protocol | facts,
        "left_out": left_out,
    }


def _folder(reference: str) -> list[str]:
    """Words for a data set of a folder's images, whatever its name is made of."""
    root = str(Path(reference).expanduser().absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return ["data=folder", f"data.root='{root}'"]


def _metrics(config: Node) -> Mapping[str, Mapping[str, Metric]]:
    """By the section that they stand in. No model has a say in them."""
    from gentrain.config import build
    from gentrain.engine.session import Scoring

    found = Scoring(**build({**config["metrics"], "also": {}}, where="metrics"))
    if not found.all:
        raise UserError("metrics=none scores nothing; choose another group")
    return {"metrics.scores": found.scores, "metrics.at_end": found.at_end}
