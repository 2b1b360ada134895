"""``gentrain explore TOOL run=DIR``: look into a trained run; each tool writes a picture and its numbers as JSON."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrain.commands.evaluate import write
from gentrain.commands.words import options, whole_number, yes
from gentrain.config import nearest
from gentrain.errors import OK, UserError
from gentrain.folder import SAFE, RunFolder

if TYPE_CHECKING:
    from gentrain.engine.system import System
    from gentrain.explore.study import Study

Reader = Callable[[str, str], Any]


def _count(least: int) -> Reader:
    return lambda text, key: whole_number(text, key, least=least)


def _text(text: str, key: str) -> str:
    return text


def _one_of(*names: str) -> Reader:
    def read(text: str, key: str) -> str:
        if text not in names:
            raise UserError(f"{key}={text}: {', '.join(names)}{nearest(text, names)}")
        return text

    return read


def _real(text: str, key: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{key}={text}: a number is needed") from None
    if not abs(number) < 1e6:
        raise UserError(f"{key}={text}: a finite number below a million is needed")
    return number


def _reals(text: str, key: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(_real(part, key) for part in text.strip("[]").split(",")))


def _above_zero(text: str, key: str) -> float:
    number = _real(text, key)
    if not number > 0:
        raise UserError(f"{key}={text}: above 0")
    return number


def _temperatures(text: str, key: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(_above_zero(part, key) for part in text.strip("[]").split(",")))


def _not_below_zero(text: str, key: str) -> float:
    number = _real(text, key)
    if number < 0:
        raise UserError(f"{key}={text}: 0 or more")
    return number


def _places_of(text: str, key: str) -> tuple[int, ...]:
    return tuple(whole_number(part, key, least=0) for part in text.strip("[]").split(",") if part)


def _edits(text: str, key: str) -> tuple[str, ...]:
    known = ("path", "class", "label")
    names = tuple(part for part in text.strip("[]").split(",") if part != "none")
    for name in names:
        if name not in known:
            raise UserError(f"{key}={name}: none, or some of {', '.join(known)}{nearest(name, known)}")
    return names


@dataclass(frozen=True)
class Tool:
    """``line``: what it is for. ``needs``: sets of capabilities, one of which is enough. ``keys``: default and reader
    of its own keys; ``called``: the names under which those that Python or taste forbids are handed over."""

    line: str
    needs: tuple[frozenset[str], ...]
    keys: Mapping[str, tuple[str, Reader]]
    called: Mapping[str, str]

    def fits(self, can: frozenset[str]) -> bool:
        return any(needed <= can for needed in self.needs)

    def lacks(self, can: frozenset[str]) -> frozenset[str]:
        """What is missing of the set that is nearest to being there."""
        return min((needed - can for needed in self.needs), key=len)


def _tool(line: str, *needs: str, called: Mapping[str, str] | None = None, **keys: tuple[str, Reader]) -> Tool:
    return Tool(line, tuple(frozenset(some.split()) for some in needs), keys, called or {})


TRAIN, TEST = ("10000", _count(2)), ("10000", _count(2))
BOTH, DRAWN = "encode decode", "sample decode"
BY_CLASS = "sample_by_class"
"""What a run can besides ``CAPABILITIES``: its system is asked for samples of a class."""
TOOLS = {
    "probe": _tool(
        "few labels: classifiers on codes, pixels, PCA and an untrained network", "encode",
        per_class=("", _text), labels=("", _text), repeats=("5", _count(1)), k=("5", _count(1)), train=TRAIN, n=TEST,
    ),
    "cluster": _tool(
        "k-means on codes, pixels and PCA against the classes; a model's own clusters", "encode",
        k=("0", _count(0)), repeats=("3", _count(1)), n=TEST,
    ),
    "anomaly": _tool(
        "one class as the anomaly: reconstruction error and likelihood, AUROC", BOTH, "log_likelihood",
        called={"class": "anomaly"}, **{"class": ("", _text)}, n=("2000", _count(2)), train=TRAIN,
    ),
    "latent": _tool(
        "a 2-D map of the codes with their classes, and the decoded plane of 2-D codes", "encode",
        method=("auto", _one_of("auto", "pca", "tsne")), n=("2000", _count(1)), side=("15", _count(2)),
    ),
    "reconstruct": _tool(
        "test images and what comes back: usual ones, the worst, the best", BOTH, n=TEST, show=("8", _count(1)),
    ),
    "interpolate": _tool(
        "from image to image (draw to draw) through the codes, beside the cross-fade of pixels", BOTH, DRAWN,
        pairs=("100", _count(1)), steps=("9", _count(3)), show=("4", _count(1)),
    ),
    "arithmetic": _tool(
        "an attribute's vector added to codes: class to class, or a named attribute", BOTH,
        called={"from": "source", "to": "target"}, **{"from": ("", _text)}, to=("", _text), attribute=("", _text),
        strengths=("0,0.5,1,1.5,2", _reals), n=("500", _count(1)), train=TRAIN, show=("6", _count(1)),
    ),
    "traverse": _tool(
        "one latent dimension at a time, and how active each is; or each meaningful code", BOTH, "decode vary",
        image=("none", _text), dims=("10", _count(1)), order=("activity", _one_of("activity", "index")),
        steps=("9", _count(3)), reach=("3", _above_zero), n=("2000", _count(2)),
    ),
    "truncate": _tool(
        "fidelity against diversity as the latents are kept nearer to 0", "sample truncation",
        at=("0.1,0.3,0.5,0.7,1,1.5,2", _reals), n=("2000", _count(2)), passes=("16", _count(0)), show=("12", _count(1)),
    ),
    "temperature": _tool(
        "samples at several temperatures, of the same noise", "sample temperature",
        at=("0.3,0.5,0.7,0.8,0.9,1", _temperatures), n=("500", _count(2)), show=("10", _count(1)),
    ),
    "attention": _tool(
        "what a place of a feature map looks at, generator and critic", "sample attention", show=("4", _count(1)),
    ),
    "classes": _tool(
        "samples of each class, and how many a classifier of the data takes for it", BY_CLASS,
        n=("100", _count(1)), show=("10", _count(1)),
    ),
    "project": _tool(
        "test images as the generator makes them: codes by optimisation, by an encoder, by both; edits", BOTH, DRAWN,
        called={"from": "source", "to": "target"}, images=("", _places_of), n=("8", _count(1)),
        mode=("cnn_opt", _one_of("opt", "cnn", "cnn_opt")), starts=("4", _count(1)), steps=("100", _count(1)),
        optimizer=("lbfgs", _one_of("lbfgs", "adam")), encoder_steps=("500", _count(1)),
        features=("domain", _text), pixel_weight=("1", _not_below_zero), feature_weight=("1", _not_below_zero),
        pull=("0", _not_below_zero), edit=("none", _edits),
        **{"from": ("", _text)}, to=("", _text), attribute=("", _text), strengths=("0,0.5,1,1.5", _reals),
        train=("500", _count(2)), show=("8", _count(1)),
    ),
    "neighbours": _tool(
        "samples beside their nearest training images, in pixels and in features", "sample",
        n=("1000", _count(1)), train=TRAIN, k=("3", _count(1)), show=("5", _count(1)), size=("32", _count(1)),
    ),
}  # fmt: skip

COMMON = {
    "run": None, "checkpoint": "last", "weights": "ema", "seed": "0", "device": "auto", "trust": "false", "out": "",
}  # fmt: skip
UNNAMED = ("run", "out", "device", "trust")
"""Keys that the names of the files do not tell."""


def run(arguments: Sequence[str]) -> int:
    word, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if word in ("--help", "-h") or (rest and rest[0] in ("--help", "-h")):
        print(_help(word), end="")
        return OK
    if word not in TOOLS:
        said = "which tool?" if "=" in word else f"{word}: no such tool{nearest(word, TOOLS)};"
        raise UserError(f"explore: {said} usage: gentrain explore TOOL run=DIR; tools: {', '.join(TOOLS)}")
    tool = TOOLS[word]
    given = options(rest, COMMON | {key: default for key, (default, _) in tool.keys.items()}, f"explore {word}")
    values = {tool.called.get(key, key): read(given[key], key) for key, (_, read) in tool.keys.items()}
    folder = RunFolder.open(Path(given["run"]))
    lines, files = _explored(word, tool, folder, given, values)
    for line in lines:
        print(line)
    print(f"picture: {files[0]}\nnumbers: {files[1]}")
    return OK


def _help(word: str) -> str:
    width = max(map(len, TOOLS))
    if word in TOOLS:
        keys = COMMON | {key: default for key, (default, _) in TOOLS[word].keys.items()}
        usage = " ".join(f"{k}=DIR" if d is None else f"[{k}={d}]" for k, d in keys.items())
        return f"{word}: {TOOLS[word].line}\nusage: gentrain explore {word} {usage}\n"
    lines = "\n".join(f"  {name:<{width}}  {tool.line}" for name, tool in TOOLS.items())
    return f"gentrain explore TOOL run=DIR [key=value ...]: look into a trained run\n\ntools\n{lines}\n"


def _explored(
    word: str, tool: Tool, folder: RunFolder, given: Mapping[str, str], values: Mapping[str, Any]
) -> tuple[list[str], tuple[Path, Path]]:
    seed, trusted = whole_number(given["seed"], "seed"), yes(given["trust"], "trust")
    if given["weights"] not in ("ema", "raw"):
        raise UserError(f"weights={given['weights']}: ema or raw")
    from gentrain.capabilities import CAPABILITIES
    from gentrain.config import build
    from gentrain.engine.fit import check_config
    from gentrain.engine.restore import load_system
    from gentrain.engine.sampling import at_rest
    from gentrain.engine.validation import can
    from gentrain.evaluation.classes import labels_seen
    from gentrain.evaluation.randomness import isolated_rng
    from gentrain.explore.study import Study

    config = folder.config()
    check_config(config, trusted=trusted)
    system = load_system(folder, given["checkpoint"], device=given["device"], trusted=trusted)
    by_class = {BY_CLASS} if can(system, "sample") and getattr(system, "conditional", False) else set()
    able = frozenset(name for name in CAPABILITIES if can(system, name))
    _refuse(word, tool, folder, system, able | by_class | _more(system))
    data = build(config["data"], trusted=trusted, where="data")
    if folder.card().get("data", {}).get("fingerprint") != data.fingerprint:
        raise UserError(f"run={folder.path}: the data are no longer those it was trained on (fingerprint differs)")
    kind = given["weights"] if system.average is not None else "raw"
    places = _places(word, tool, folder, given)
    study = Study(system, data, seed, system.device, lambda: _untrained(config, study, trusted))
    with at_rest(system, kind), isolated_rng(seed):
        found = importlib.import_module(f"gentrain.explore.{word}").explore(study, places[0], **values)
    result = {
        "tool": word,
        "run": str(folder.path),
        "checkpoint": given["checkpoint"],
        "iteration": system.clock.iteration,
        "weights": kind,
        "seed": seed,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "labels_seen": labels_seen(system, data),
        "asked": {key: given[key] for key in tool.keys},
        **found.result,
    }
    write(result, places[1])
    return [*found.lines, *_of_labels(result["labels_seen"])], places


def _of_labels(seen: Mapping[str, int] | None) -> list[str]:
    """A line that says so where the model was trained with labels."""
    if seen is None:
        return []
    least, most = min(seen.values()), max(seen.values())
    each = f"{least}" if least == most else f"{least} to {most}"
    return [f"the model was trained with labels: {each} of each of {len(seen)} classes"]


def _more(system: System) -> set[str]:
    """What tools here ask of a system beside its capabilities."""
    from gentrain.evaluation.temperature import Tempers
    from gentrain.evaluation.truncation import Truncates
    from gentrain.explore.attention import attending

    has = {
        "truncation": isinstance(system, Truncates),
        "temperature": isinstance(system, Tempers),
        "attention": bool(attending(system)),
    }
    return {name for name, there in has.items() if there}


def _refuse(word: str, tool: Tool, folder: RunFolder, system: System, can: frozenset[str]) -> None:
    """UserError where the run cannot do what the tool needs."""
    if tool.fits(can):
        return
    needs = ", or ".join(" and ".join(sorted(needed)) for needed in tool.needs)
    others = [name for name, other in TOOLS.items() if other.fits(can)]
    reasons = {"encode": "nothing leads from an image to its code; ", BY_CLASS: "its samples are not asked by class; "}
    why = "".join(reasons.get(name, "") for name in sorted(tool.lacks(can)))
    raise UserError(
        f"explore {word} run={folder.path}: it needs {needs}, which {type(system).__name__} cannot do: {why}"
        f"tools for this run: {', '.join(others) or 'none (gentrain sample draws from it)'}"
    )


def _untrained(config: Mapping[str, Any], study: Study, trusted: bool) -> Any:
    """The system as it was before its first iteration, on the study's device."""
    from gentrain.engine.assemble import build_system
    from gentrain.evaluation.randomness import isolated_rng

    with isolated_rng():
        system = build_system(dict(config), study.data, seed=config["seed"], trusted=trusted)
    return system.to(study.device).eval()


def _places(word: str, tool: Tool, folder: RunFolder, given: Mapping[str, str]) -> tuple[Path, Path]:
    """Of the picture and the numbers. What was asked for is in their names, so that two questions are two files."""
    defaults = COMMON | {key: default for key, (default, _) in tool.keys.items()}
    said = [f"{key}={value}" for key, value in given.items() if key not in UNNAMED and value != defaults[key]]
    name = SAFE.sub("-", ",".join([word, *sorted(said)]))[:120]
    out = Path(given["out"]) if given["out"] else folder.path / "explore"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: the folder cannot be made ({error.strerror})") from None
    return out / f"{name}.png", out / f"{name}.json"
