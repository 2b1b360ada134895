"""From a resolved config (plain dicts, lists and numbers) to objects.

A node with ``_target_`` names a class or function by its dotted path; its other keys are the arguments;
``_partial_: true`` makes a factory that waits for the rest. Nothing here knows Hydra: a run starts from the frozen,
resolved config in its folder, so that a rank of DDP, a job of a sweep and a resumed run read the same text.

A config that comes out of a run folder or a checkpoint is not trusted: each target is compared as text with
``TRUSTED_PREFIXES`` before anything is imported, because importing a module already runs it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gentrain.errors import UserError

Node = dict[str, Any]

TRUSTED_PREFIXES = (
    "gentrain.families.", "gentrain.models.", "gentrain.nets.", "gentrain.objectives.", "gentrain.data.sources.",
    "gentrain.evaluation.metrics.", "gentrain.evaluation.accuracy.", "gentrain.evaluation.classes.",
    "gentrain.evaluation.diversity.", "gentrain.evaluation.frechet.", "gentrain.evaluation.likelihood.",
    "gentrain.evaluation.manifold.", "gentrain.evaluation.modes.", "gentrain.evaluation.parzen.",
    "gentrain.evaluation.annealing.", "gentrain.evaluation.classification.",
    "gentrain.evaluation.domain.Domain", "gentrain.evaluation.inception.",
    "gentrain.evaluation.mobilenet.", "gentrain.evaluation.dinov2.", "gentrain.evaluation.reconstruction.",
    "gentrain.evaluation.clustering.", "gentrain.evaluation.perceptual.", "gentrain.evaluation.rate_distortion.",
    "gentrain.engine.player.", "gentrain.engine.turns.", "gentrain.engine.ema.", "gentrain.engine.health.",
    "gentrain.engine.optimistic.", "gentrain.engine.loggers.", "torch.nn.", "torch.optim.",
)  # fmt: skip
"""What a target may be called in a config that nobody vouches for: the parts that configs are made of. All of gentrain
would be too much: ``gentrain.config.locate`` as a target imports whatever its argument says."""

TRUSTED_HOMES = (*TRUSTED_PREFIXES, "gentrain.data.")
"""Where such a target may be defined: ``data.sources`` only collects what other modules define."""

PARTIAL, TARGET = "_partial_", "_target_"
LETTERS, LEVELS, VALUES = 1_000_000, 50, 20_000
"""Bounds of one config file; the largest of ours has a hundredth of each."""


UNFIT = (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, MemoryError, AttributeError)
"""What constructors raise over values that they were not made for; ``debug=true`` shows where."""


def conf_dir() -> Path:
    """The shipped config tree: inside an installed package, or at the root of a checkout."""
    here = Path(__file__).resolve().parent
    for place in (here / "conf", here.parents[1] / "conf"):
        if (place / "train.yaml").is_file():
            return place
    raise FileNotFoundError(f"the config tree is missing: neither {here / 'conf'} nor {here.parents[1] / 'conf'}")


def options(group: str, extra: Iterable[Path] = ()) -> list[str]:
    """Names in one config group (``options("model")``), sorted; own config folders come in by ``extra``."""
    folders = [conf_dir() / group, *(Path(place) / group for place in extra)]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def nearest(name: str, valid: Iterable[str], *, limit: int = 3) -> str:
    """`` (did you mean a, b?)`` with the valid names close to ``name``; all of them if few and none is close."""
    known = sorted(set(valid))
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.6)
    if close:
        return f" (did you mean {', '.join(close)}?)"
    return f" (there are: {', '.join(known)})" if 0 < len(known) <= 80 else ""


def load_yaml(path: Path) -> Node:
    """A config file as plain data: mappings with names for keys, lists, text, numbers.

    No tag can make an object (``yaml.safe_load``), and a small file cannot grow into a large config. Raises UserError.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > LETTERS:
            raise ValueError(f"more than {LETTERS:,} letters")
        _shallow(yaml.parse(text, Loader=loader))
        content = yaml.load(text, Loader=loader)
        _unfolded(content, {})
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {why}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that is none
        raise UserError(f"{path}: not valid YAML ({(str(error) or type(error).__name__).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a config is a mapping, this is {type(content).__name__}")
    return content


def _shallow(events: Iterable[Any]) -> None:
    """Raises ValueError for deep nesting, over which the parser itself would run out of stack and end the process."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > LEVELS:
            raise ValueError(f"more than {LEVELS} levels")


def _unfolded(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for once its anchors are followed. Raises ValueError for too many, for a node that
    holds itself, and for what is no plain data.
    """
    if not isinstance(node, (dict, list)):
        if node is not None and not isinstance(node, (str, int, float)):
            raise ValueError(f"{type(node).__name__} where text or a number is needed: {node!r:.50}")
        return 1
    if known.setdefault(id(node), 0):
        return known[id(node)]
    names = [key for key in node if not isinstance(key, str)] if isinstance(node, dict) else []
    if names:
        raise ValueError(f"the key {names[0]!r:.50} is no name")
    size = 1
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list)) and known.get(id(child)) == 0:
            raise ValueError("a node that holds itself")
        size += _unfolded(child, known)
        if size > VALUES:
            raise ValueError(f"more than {VALUES:,} values")
    known[id(node)] = size
    return size


def locate(target: str, *, trusted: bool = True, where: str = "") -> Any:
    """The object at a dotted path.

    Raises UserError if the path is outside ``TRUSTED_PREFIXES`` (and the config is not trusted) before any import, if
    nothing is there, or if an untrusted path leads through an allowed module to an object that lives elsewhere.
    """
    at = f"{where}: " if where else ""
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"{at}_target_ is not a dotted name: {target!r}")
    if not trusted and not target.startswith(TRUSTED_PREFIXES):
        raise UserError(
            f"{at}_target_ {target} is outside what a stored config may name (gentrain's models, networks, losses, data"
            " and metrics, torch.nn, torch.optim): add trust=true if you wrote it yourself"
        )
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise
        for part in parts[cut:]:
            if not hasattr(found, part):
                raise UserError(f"{at}nothing called {part} in {module_name}{nearest(part, dir(found))}")
            found = getattr(found, part)
        home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if not trusted and not home.startswith(TRUSTED_HOMES):
            raise UserError(f"{at}_target_ {target} leads to {home}, outside the allowed packages")
        return found
    raise UserError(f"{at}no module for _target_ {target}: is the package installed?")


def build(node: Any, *, trusted: bool = True, where: str = "", **extra: Any) -> Any:
    """Make what a config node describes; ``extra`` are arguments of the outermost target that only the caller has."""
    if isinstance(node, Mapping):
        inner = {
            key: build(value, trusted=trusted, where=f"{where}.{key}" if where else str(key))
            for key, value in node.items()
            if key not in (TARGET, PARTIAL)
        }
        if TARGET not in node:
            return inner
        target: Callable[..., Any] = locate(node[TARGET], trusted=trusted, where=where)
        if node.get(PARTIAL, False):
            return functools.partial(target, **inner, **extra)
        try:
            return target(**inner, **extra)
        except UNFIT as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{where}: {node[TARGET]} cannot be made of these values ({why:.200}); debug=true shows where"
            ) from error
    if isinstance(node, (list, tuple)):
        return [build(item, trusted=trusted, where=f"{where}[{i}]") for i, item in enumerate(node)]
    return node
