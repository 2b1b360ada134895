"""Find what is wrong with a config before anything is built: unknown keys, missing keys, wrong types, wrong pairs.

Every ``_target_``'s keys are bound to its signature and its annotations. A pair that makes no sense
(``model=vae loss=hinge``) is a value whose type does not fit the annotation, and needs no table of pairs.
"""

from __future__ import annotations

import collections.abc as abc
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gentrain.config import PARTIAL, TARGET, Node, conf_dir, load_yaml, locate, nearest
from gentrain.errors import UserError

SCALARS: dict[type, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,), bool: (bool,), Path: (str,)}

LARGEST = 1 << 63
MADE, MAY_BE_MADE, MADE_OF = frozenset({"model", "data"}), frozenset({"logger"}), frozenset({"callbacks"})
"""Sections that describe an object, that may do so, and whose keys do."""


def check(config: Node, given: Mapping[str, frozenset[str]] | None = None, *, trusted: bool = True) -> None:
    """Raise UserError with one line for the first mistake in ``config``.

    ``given``: for a top-level key, the arguments its target receives from the program (``{"model": {"spec"}}``).
    """
    for key, node in config.items():
        _walk(node, key, frozenset() if given is None else given.get(key, frozenset()), trusted)
        if key in MADE or (key in MAY_BE_MADE and isinstance(node, Mapping) and TARGET in node):
            _object(node, key)
        for name, part in node.items() if key in MADE_OF and isinstance(node, Mapping) else ():
            if isinstance(part, Mapping) and TARGET in part:
                _object(part, f"{key}.{name}")


def _object(node: Any, where: str) -> None:
    if not (isinstance(node, Mapping) and TARGET in node and not node.get(PARTIAL, False)):
        raise UserError(f"{where}: a {TARGET} with its keys is needed, without {PARTIAL}")


def _walk(node: Any, where: str, given: frozenset[str], trusted: bool) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key not in (TARGET, PARTIAL):
                _walk(value, f"{where}.{key}", frozenset(), trusted)
        if TARGET in node:
            _bind(node, where, given, trusted)
    elif isinstance(node, list):
        for i, item in enumerate(node):
            _walk(item, f"{where}[{i}]", frozenset(), trusted)
    elif isinstance(node, int) and abs(node) >= LARGEST:
        raise UserError(f"{where}: a number of {len(f'{abs(node):x}') * 4} bits is more than anything here can count")
    elif isinstance(node, float) and not math.isfinite(node):
        raise UserError(f"{where}: {node} is no number to compute with; null is how a number is left out")


def _bind(node: Mapping[str, Any], where: str, given: frozenset[str], trusted: bool) -> None:
    target = locate(node[TARGET], trusted=trusted, where=where)
    if not callable(target):
        raise UserError(f"{where}: {node[TARGET]} cannot be called, it is {type(target).__name__}")
    bind(target, node, where, given)


def bind(target: Any, node: Any, where: str, given: frozenset[str] = frozenset()) -> None:
    """Hold the keys of a config section against the signature of what it is for. UserError for the first misfit."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where}: {node!r} does not fit, a mapping is needed")
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    hints = type_hints(target)
    for key, value in node.items():
        if key in (TARGET, PARTIAL):
            continue
        if key not in parameters:
            if takes_any:
                continue
            raise UserError(f"{where}.{key}: {_name(target)} has no such key{nearest(key, set(parameters) - {'self'})}")
        if key in hints and not fits(value, hints[key]):
            raise UserError(misfit(f"{where}.{key}", value, hints[key]))
    if not node.get(PARTIAL, False):
        for name, parameter in parameters.items():
            needed = parameter.default is parameter.empty and parameter.kind not in (
                inspect.Parameter.VAR_KEYWORD,
                inspect.Parameter.VAR_POSITIONAL,
            )
            if needed and name not in node and name not in given:
                raise UserError(f"{where}: the key {name} is missing, {_name(target)} needs it")


def with_absolute_paths(node: Any) -> Any:
    """The config with each relative path, by the annotations of its target, made absolute from the current folder."""
    if isinstance(node, list):
        return [with_absolute_paths(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    paths = _path_keys(node) if TARGET in node else set()
    return {
        key: str(Path(value).expanduser().absolute())
        if key in paths and value is not None
        else with_absolute_paths(value)
        for key, value in node.items()
    }


def _path_keys(node: Mapping[str, Any]) -> set[str]:
    target = locate(node[TARGET])
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    return {key for key, hint in hints.items() if "path" in _marks(hint)}


def _marks(hint: Any) -> list[Any]:
    """What an annotation is marked with by ``Annotated``, also inside of a union."""
    marks = list(getattr(hint, "__metadata__", ()))
    return marks + [mark for inner in typing.get_args(hint) for mark in _marks(inner)]


def type_hints(target: Any) -> dict[str, Any]:
    """Annotations of a class's constructor or of a function; empty where they cannot be evaluated."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def product(node: Mapping[str, Any]) -> Any:
    """The type that a target node makes, or None where its annotations do not say. Untrusted nodes never get here."""
    target = locate(node[TARGET])
    if node.get(PARTIAL, False):
        return None
    return target if inspect.isclass(target) else type_hints(target).get("return")


def fits(value: Any, hint: Any) -> bool:
    """Whether a config value may stand where ``hint`` is asked for. Unknown kinds of hint accept everything."""
    origin = typing.get_origin(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(value, Mapping) and TARGET in value:
        return _makes(value, hint, origin)
    if origin is not None and inspect.isclass(origin):
        return _fits_container(value, origin, typing.get_args(hint))
    if hint in SCALARS:
        return isinstance(value, SCALARS[hint]) and (hint is bool or not isinstance(value, bool))
    if inspect.isclass(hint) and not issubclass(hint, (abc.Mapping, abc.Sequence)):
        # An object is asked for and there is a plain value.
        return not isinstance(value, (str, int, float, bool, list, dict)) and value is not None
    return True


def _makes(node: Mapping[str, Any], hint: Any, origin: Any) -> bool:
    made = product(node)
    if made is None or not inspect.isclass(made):
        return True
    if origin is not None or not inspect.isclass(hint):
        return True
    if hint in SCALARS:
        return issubclass(made, SCALARS[hint])
    if getattr(hint, "_is_protocol", False):
        # Methods and properties are attributes of the class; the fields of a data class are its annotations.
        return all(hasattr(made, name) or name in _annotations(made) for name in _protocol_members(hint))
    return issubclass(made, hint)


def _annotations(made: type) -> set[str]:
    return {name for base in made.__mro__ for name in getattr(base, "__annotations__", {})}


def _protocol_members(hint: type) -> Iterator[str]:
    for base in hint.__mro__:
        if base not in (object, typing.Protocol, typing.Generic):
            names = {*vars(base), *getattr(base, "__annotations__", {})}
            yield from (n for n in names if n == "__call__" or not n.startswith("_"))


def _fits_container(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    if issubclass(origin, abc.Mapping):
        return isinstance(value, Mapping) and (
            len(arguments) != 2 or all(fits(item, arguments[1]) for key, item in value.items())
        )
    if issubclass(origin, tuple) and arguments and arguments[-1] is not Ellipsis:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(arguments)
            and all(fits(item, hint) for item, hint in zip(value, arguments, strict=True))
        )
    if issubclass(origin, (abc.Sequence, abc.Set)):
        return isinstance(value, (list, tuple)) and (not arguments or all(fits(item, arguments[0]) for item in value))
    if issubclass(origin, abc.Callable):  # type: ignore[arg-type]
        return value is not None and not isinstance(value, (str, int, float, bool, list))
    return True


def misfit(where: str, value: Any, hint: Any) -> str:
    """One line about a value that does not fit its annotation, with what would; about the entry of a mapping if that is
    what does not."""
    for option in (hint, *typing.get_args(hint)):
        kinds = typing.get_args(option)
        if isinstance(value, Mapping) and TARGET not in value and len(kinds) == 2 and _is_mapping(option):
            wrong = [key for key, item in value.items() if not fits(item, kinds[1])]
            return misfit(f"{where}.{wrong[0]}", value[wrong[0]], kinds[1])
    if isinstance(value, Mapping) and TARGET in value:
        group, choices = _choices_that_fit(where, hint)
        use = f"; {group}= one of {', '.join(choices)} fits" if choices else ""
        return f"{where}: {_name(locate(value[TARGET]))} makes {_name(product(value))}, {_name(hint)} is needed{use}"
    shown = "a mapping" if isinstance(value, Mapping) else repr(value)
    if typing.get_origin(hint) is typing.Literal:
        names = [str(name) for name in typing.get_args(hint)]
        return f"{where}: {shown} is not one of {', '.join(names)}{nearest(str(value), names)}"
    return f"{where}: {shown} does not fit, {_name(hint)} is needed"


def _is_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, abc.Mapping)


def _choices_that_fit(where: str, hint: Any) -> tuple[str, list[str]]:
    """The config group behind a key (``model.net`` or just ``loss``) and its options that would fit."""
    parts = where.split(".")
    for start in range(len(parts)):
        group = "/".join(parts[start:])
        files = sorted((conf_dir() / group).glob("*.yaml"))
        if files:
            nodes = {file.stem: load_yaml(file) for file in files}
            return group, [name for name, node in nodes.items() if TARGET in node and fits(node, hint)]
    return "", []


def _name(thing: Any) -> str:
    if typing.get_origin(thing) is not None:
        return str(thing).replace("typing.", "").replace("collections.abc.", "")
    return str(getattr(thing, "__name__", thing))
