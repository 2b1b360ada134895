"""From words on the command line to a resolved config. The only module that imports Hydra and OmegaConf."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from gentrain.config import TARGET, Node, conf_dir, nearest, options
from gentrain.errors import UserError

SIZES = ("tiny", "small", "paper")
KINDS = ("images", "vectors")


def _by_size(tiny: Any, small: Any, paper: Any, *, _root_: DictConfig) -> Any:
    return _node((tiny, small, paper)[_place(_root_, "size", SIZES)])


def _by_kind(images: Any, vectors: Any, *, _root_: DictConfig) -> Any:
    return _node((images, vectors)[_place(_root_, "kind", KINDS)])


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf holds them: Hydra's ``--resolve`` ends in a traceback over plain ones."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def _place(root: DictConfig, key: str, valid: Sequence[str]) -> int:
    value = root.get(key)
    if value not in valid:
        raise UserError(f"{key}={value}: unknown{nearest(str(value), valid)}")
    return valid.index(value)


class OwnFolders(SearchPathPlugin):
    """The user's config folders, searched before the shipped one, also for the root config. Hydra's own
    ``hydra.searchpath`` comes too late for that: it holds from when the root has been read."""

    places: ClassVar[tuple[Path, ...]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for place in self.places:
            search_path.prepend("gentrain", f"file://{place.absolute()}", SearchPathQuery(provider="main"))


def _register(config_dirs: Iterable[Path]) -> None:
    # Both only choose among values that stand in the config: no resolver runs code or reads the machine.
    OmegaConf.register_new_resolver("by_size", _by_size, replace=True)
    OmegaConf.register_new_resolver("by_kind", _by_kind, replace=True)
    OwnFolders.places = tuple(config_dirs)
    if OwnFolders not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(OwnFolders)
    GlobalHydra.instance().clear()


@dataclass(frozen=True)
class Composed:
    """``config``: plain, resolved; ``overrides``: the words it came from."""

    config: Node
    overrides: tuple[str, ...]


def compose(overrides: Sequence[str], *, config_name: str = "train", config_dirs: Sequence[Path] = ()) -> Composed:
    """The config of one job. UserError, in one line, for a word that Hydra or OmegaConf cannot take."""
    _register(config_dirs)
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            # Keys of these groups may be those of a choice that is known only when all else is composed.
            open_groups = [group for group in WANTED.values() if not _chosen(group, overrides)]
            keys = tuple(f"{group.replace('/', '.')}." for group in open_groups)
            words = [word for word in overrides if not word.lstrip("+~").startswith(keys)]
            raw = hydra.compose(config_name, words, return_hydra_config=True)
            more = _wanted(raw, overrides)
            if more or len(words) < len(overrides):
                raw = hydra.compose(config_name, [*overrides, *more], return_hydra_config=True)
            listed = _listed(config_name, [*overrides, *more], raw)
        with_choices = OmegaConf.to_container(raw.hydra.runtime.choices)
        OmegaConf.set_struct(raw, False)
        _refuse_idle(raw, overrides)
        del raw["hydra"]
        config = OmegaConf.to_container(raw, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError, AssertionError) as error:
        # Hydra checks some of what users write with bare asserts and ValueErrors; nothing of ours runs in there.
        raise UserError(_one_line(error, overrides, config_name, config_dirs)) from error
    except YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from error
    except RecursionError:
        raise UserError(f"config {config_name}: a defaults list leads back to its own file") from None
    assert isinstance(config, dict)
    assert isinstance(with_choices, dict)
    plain: Node = {str(key): value for key, value in config.items()}
    stored = plain.pop("choices", None)  # of a run's config.yaml, used as a root config
    choices = {str(k): v for k, v in with_choices.items() if not str(k).startswith("hydra/")}
    choices = {**choices, **listed}
    choices = {**stored, **choices} if isinstance(stored, dict) else choices
    for group in ("model", "data"):  # the run folder's name; a root config may hold them itself, without a choice
        if not isinstance(choices.get(group), str):
            node = plain.get(group)
            target = node.get(TARGET) if isinstance(node, dict) else None
            choices[group] = str(target or group).rpartition(".")[2].lower()
    return Composed({"choices": choices, **plain}, tuple(overrides))


def _listed(config_name: str, words: Sequence[str], raw: DictConfig) -> dict[str, str]:
    """The groups that several were chosen of (``model/penalty=[r1,r2]``), which Hydra does not count among its choices:
    ``[r1,r2]`` by group. Those can stand on the command line or in an experiment."""
    if not (raw.hydra.runtime.choices.get("experiment") or any("=[" in word for word in words)):
        return {}
    loader = GlobalHydra.instance().config_loader()
    found: dict[str, list[str]] = {}
    for default in loader.compute_defaults_list(config_name, list(words), RunMode.RUN).defaults:
        group, _, name = (default.config_path or "").rpartition("/")
        beside = group.rpartition("/")[0]
        # What a file of a group brings from a folder beside it (metrics/base) is a part of it and no choice.
        brought = bool(beside) and (default.parent or "").rpartition("/")[0] == beside
        if group and group not in raw.hydra.runtime.choices and not brought:
            found.setdefault(group, []).append(name)
    return {group: f"[{','.join(names)}]" for group, names in found.items() if (conf_dir() / group).is_dir()}


WANTED = {"metrics": "metrics", "net": "model/net"}
"""Keys of ``wants`` that choose an option of a group."""


def _wanted(raw: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The choices that the model asks for, unless the command line has them. No defaults list can say it: the data's
    choice comes behind the model's."""
    wanted = {group: OmegaConf.select(raw, f"wants.{key}") for key, group in WANTED.items()}
    return [f"{group}={name}" for group, name in wanted.items() if name is not None and not _chosen(group, overrides)]


def _refuse_idle(raw: DictConfig, overrides: Sequence[str]) -> None:
    """UserError for a choice that no other key of the config asks for, or that chooses nothing."""
    model = raw.hydra.runtime.choices.get("model")
    for group in ("loss", "turns"):
        if _chosen(group, overrides) and f"${{{group}" not in OmegaConf.to_yaml(raw, resolve=False):
            word = next(word for word in overrides if word.startswith(f"{group}="))
            raise UserError(f"{word}: model={model} depends on no {group}=, it has one of its own: leave it out")
    if raw.hydra.runtime.choices.get("metrics") == "own" and not raw.wants.scores:
        raise UserError(f"metrics=own: model={model} asks for no scores of its own; leave it out, or choose another")


def _chosen(group: str, overrides: Sequence[str]) -> bool:
    return any(word.startswith(f"{group}=") for word in overrides)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a sweep, in Hydra's own sweep grammar: ``seed=0,1 model=dcgan,wgan_gp`` makes four."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise UserError(str(error).splitlines()[0]) from error
    return [list(job) for batch in batches for job in batch]


def hydra_main(flags: Sequence[str], *, config_name: str = "train", config_dirs: Sequence[Path] = ()) -> None:
    """Let Hydra itself answer ``--cfg``, ``--info``, ``--hydra-help``, ``-sc`` and their kin. ``flags``: them and the
    overrides. UserError, in one line, where an override is wrong."""
    _register(config_dirs)

    @hydra.main(config_path=str(conf_dir()), config_name=config_name, version_base="1.3")
    def nothing(_config: DictConfig) -> None:
        """Never reached: the flags that come here answer before a job starts."""

    before, said = sys.argv, io.StringIO()
    sys.argv = ["gentrain", *flags]
    try:
        with contextlib.redirect_stderr(said):
            nothing()
    except ValueError as error:  # two of its flags that do not go together
        raise UserError(str(error)) from error
    except SystemExit as ended:
        if ended.code == 1:  # our own words for it, where there are any
            overrides = [flag for flag in flags if not flag.startswith("-") and ("=" in flag or flag.startswith("~"))]
            compose(overrides, config_name=config_name, config_dirs=config_dirs)
            raise UserError(said.getvalue().split("Set the environment variable")[0]) from None
        sys.stderr.write(said.getvalue())
        raise
    finally:
        sys.argv = before
    sys.stderr.write(said.getvalue())


def _one_line(error: Exception, overrides: Sequence[str], config_name: str, config_dirs: Sequence[Path]) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, (MissingConfigException, OverrideParseException)):
        if isinstance(cause.__cause__, UserError):
            return str(cause.__cause__)
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    if isinstance(cause, OverrideParseException):
        return f"{cause.override}: not of the form key=value ({str(cause).splitlines()[0]})"
    if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
        group, _, name = cause.missing_cfg_file.rpartition("/")
        if group:
            return f"{group}={name}: there is no such option{nearest(name, cause.options or [])}"
        return f"no config called {name} in {', '.join(str(place) for place in (*config_dirs, conf_dir()))}"
    if isinstance(error, InterpolationResolutionError):
        resolver, _, said = str(error).splitlines()[0].rpartition(" raised while resolving interpolation: ")
        return said if resolver == UserError.__name__ else f"{error.full_key}: {said}"
    twice = re.match(r"Multiple values for ([\w/]+)\. ", str(error))
    if twice and any(word.startswith(f"+{twice[1]}=") for word in overrides):
        return f"+{twice[1]}: the group has its place already; {twice[1]}=... chooses, without the +"
    if "Config group override must be" in str(error):
        return _without_option(overrides, config_dirs) or str(error)
    key = _unknown_key(str(error), overrides)
    if key is not None and overrides:  # without overrides it is the root config itself that is wrong
        known = list(_keys(compose([], config_name=config_name, config_dirs=config_dirs).config))
        near = nearest(key, known) if key not in known else ""
        return f"{key}: there is no such key{near}; +{key}=... adds a new one"
    return " ".join(str(error).split())


def _without_option(overrides: Sequence[str], config_dirs: Sequence[Path]) -> str | None:
    """The line about ``data=null`` or ``size=3``, where the name of an option is needed."""
    for override in overrides:
        group, _, value = override.partition("=")
        names = options(group.lstrip("+").split("@")[0], config_dirs)
        if names and value not in names:
            return f"{override}: the name of an option is needed (there are: {', '.join(names)})"
    return None


def _unknown_key(message: str, overrides: Sequence[str]) -> str | None:
    patterns = (r"Could not override '([^']+)'", r"Key '([^']+)' is not in struct", r"full_key: (\S+)")
    found = next((m[1] for p in patterns if (m := re.search(p, message))), None)
    if found is None:
        return None
    return next(
        (o.split("=")[0].lstrip("+~") for o in overrides if o.split("=")[0].lstrip("+~").endswith(found)), found
    )


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        path = f"{prefix}{key}"
        yield path
        if isinstance(value, Mapping):
            yield from _keys(value, f"{path}.")
