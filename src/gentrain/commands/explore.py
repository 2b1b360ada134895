"""``gentrain explore TOOL run=DIR``: look into a trained run; each tool writes a picture and its numbers as JSON."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrain.commands.evaluate import write
from gentrain.commands.tools import BY_CLASS, TOOLS, Tool
from gentrain.commands.words import options, whole_number, yes
from gentrain.config import nearest
from gentrain.errors import OK, UserError
from gentrain.folder import SAFE, RunFolder

if TYPE_CHECKING:
    from gentrain.engine.system import System
    from gentrain.explore.study import Study

COMMON = {
    "run": None, "checkpoint": "last", "weights": "ema", "seed": "0", "device": "auto", "trust": "false", "out": "",
}  # fmt: skip
LONGEST = 120
"""Characters of a file's name before its suffix."""
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
    from gentrain.engine.sampling import at_rest, telling
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
    with at_rest(system, kind), isolated_rng(seed), telling(system, f"explore {word}"):
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
    from gentrain.explore.complete import Completes

    has = {
        "truncation": isinstance(system, Truncates) and system.has_tails,
        "attention": bool(attending(system)),
        "complete": isinstance(system, Completes),
        "temperature": isinstance(system, Tempers),
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
    name = SAFE.sub("-", whole := ",".join([word, *sorted(said)]))
    if len(name) > LONGEST:  # a path among the words
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]}"
    out = Path(given["out"]) if given["out"] else folder.path / "explore"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: the folder cannot be made ({error.strerror})") from None
    return out / f"{name}.png", out / f"{name}.json"
