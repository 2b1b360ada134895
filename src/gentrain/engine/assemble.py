"""From a resolved config to the parts of a run that fit together, or one line about the first thing that does not."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from gentrain.capabilities import BeginsFromData, CountsClasses, LearnsFromFewLabels
from gentrain.check import bind, check, fits, misfit
from gentrain.config import Node, build, nearest, options
from gentrain.data.dataset import DataSet, class_counts, few_labelled, spread
from gentrain.data.stream import stream
from gentrain.engine.health import Health
from gentrain.engine.loggers import Logger
from gentrain.engine.player import parameter_counts
from gentrain.engine.precision import Precision
from gentrain.engine.session import Budget, Callbacks, Devices, Scoring, SweepSettings
from gentrain.engine.state import seed_all
from gentrain.engine.strategy import count_devices
from gentrain.engine.system import System
from gentrain.errors import UserError, one_line
from gentrain.evaluation.protocol import follow, promised, require

GIVEN = {"model": frozenset({"spec"})}
SCALARS: dict[str, Any] = {"seed": int, "precision": Precision, "trust": bool, "name": str | None, "output": str}
SCALARS["resume"] = Literal["never", "auto"]
BOUND = {"train": Budget, "metrics": Scoring, "trainer": Devices, "sweep": SweepSettings, "callbacks": Callbacks}
SECTIONS = (
    *("choices", "about", "published", "seed", "precision", "size", "kind", "wants", "data_root", "output", "name"),
    *(
        "resume",
        "trust",
        "train",
        "sweep",
        "trainer",
        "metrics",
        "callbacks",
        "logger",
        "turns",
        "loss",
        "model",
        "data",
    ),
)
"""Every key at the root of a config."""

NEEDED = tuple(
    key for key in SECTIONS if key not in ("about", "published", "size", "kind", "wants", "data_root", "turns", "loss")
)
"""Those that are read by name; of the others, other keys may be made."""


def check_config(config: Node, *, trusted: bool = True) -> None:
    """Everything that can be known to be wrong before data are read or networks built."""
    for key in config:
        if key not in SECTIONS:
            raise UserError(f"{key}: there is no such key{nearest(key, SECTIONS)}")
    for key in NEEDED:
        if key not in config:
            raise UserError(f"{key}: every config needs this key; {_remedy(key)}")
    about = config.get("about") or {}
    if about.get("kind", config.get("kind")) != config.get("kind"):
        chosen, needed = config["choices"], [f'"{word}"' if " " in word else word for word in about.get("data", [])]
        wanted = " ".join(needed) or f"data of {about['kind']}"
        raise UserError(
            f"data={chosen['data']}: {config['kind']}, and model={chosen['model']} is for {about['kind']}: "
            f"choose {wanted}, or another model"
        )
    check(config, GIVEN, trusted=trusted)
    for key, section in BOUND.items():
        bind(section, config[key], key)
    SweepSettings(**config["sweep"])
    if config["logger"] and not fits(config["logger"], Logger):
        raise UserError(misfit("logger", config["logger"], Logger))
    for key, kind in SCALARS.items():
        if not fits(config[key], kind):
            raise UserError(misfit(key, config[key], kind))
    budget = build_budget(config)
    for name in ("batch_size", "iterations", "accumulate", "keep", "log_every"):
        if getattr(budget, name) < 1:
            raise UserError(f"train.{name}={getattr(budget, name)}: at least 1")
    if budget.patience is not None and budget.patience < 1:
        raise UserError(f"train.patience={budget.patience}: at least 1, or null for a run that ends with its budget")
    for name in ("validate_every", "checkpoint_every"):
        value = getattr(budget, name)
        if value is not None and value < 0:
            raise UserError(f"train.{name}={value}: at least 1, or 0 for never")
    for name, least in (("threads", 1), ("workers", 0), ("timeout", 1)):
        value = config["trainer"].get(name)
        if value is not None and value < least:
            raise UserError(f"trainer.{name}={value}: at least {least}")
    _, world = count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
    if budget.batch_size % (world * budget.accumulate):
        parts = f"{world} ranks" if world > 1 else f"train.accumulate={budget.accumulate} parts"
        both = f" of train.accumulate={budget.accumulate} parts each" if world > 1 and budget.accumulate > 1 else ""
        raise UserError(
            f"train.batch_size={budget.batch_size}: {parts}{both} would be unequal; use a multiple of"
            f" {world * budget.accumulate}"
        )


def _remedy(key: str) -> str:
    names = options(key)
    if names:
        return f"choose {key}= one of {', '.join(names)}"
    return f"leave out ~{key}, or write it into your root config"


def build_budget(config: Node) -> Budget:
    return Budget(**config["train"])


def build_system(config: Node, data: DataSet, *, seed: int, trusted: bool = True) -> System:
    """The untrained system; its weights, and which labels it is given where it asks for few, are functions of the
    seed."""
    seed_all(seed)
    system: object = build(config["model"], trusted=trusted, where="model", spec=data.spec)
    if not isinstance(system, System):
        raise UserError(f"model: {config['model'].get('_target_')} makes {type(system).__name__}, not a System")
    if isinstance(system, LearnsFromFewLabels) and system.labels_per_class is not None:
        system.give_labelled(few_labelled(data, system.labels_per_class, seed=seed))
    if isinstance(system, CountsClasses) and system.conditional:
        system.give_class_counts(class_counts(data))
    if isinstance(system, BeginsFromData):
        system.begin_from(data.train.take(spread(len(data.train), system.first_images)).x)
    return system


@dataclass
class Parts:
    """What a config describes, built and found to fit together."""

    data: DataSet
    budget: Budget
    scoring: Scoring
    system: System
    health: Health | None
    left_out: list[str]
    """One line about each metric that is not measured, though the config has it."""


def assemble(config: Node, *, trusted: bool = True) -> Parts:
    """Read the data and build the system. UserError for whatever would end a training of it before its first step."""
    check_config(config, trusted=trusted)
    data = build(config["data"], trusted=trusted, where="data")
    budget = build_budget(config)
    if budget.batch_size // budget.accumulate % data.train.group:
        raise UserError(
            f"train.batch_size={budget.batch_size}: train.accumulate={budget.accumulate} parts would cut the data's "
            f"groups of {data.train.group} rows; use a multiple of {budget.accumulate * data.train.group}"
        )
    # The first batch, not drawn: refuses data smaller than a batch, and vectors that would be flipped.
    stream(data.train, batch_size=budget.batch_size, seed=config["seed"], flip=budget.flip)
    scoring = Scoring(**build(config["metrics"], trusted=trusted, where="metrics"))
    system = build_system(config, data, seed=config["seed"], trusted=trusted)
    _refuse_single(system, budget, config)
    scoring, left_out = scoring.possible(system, data)
    if scoring.smaller:
        require(scoring.scores, system, data, n=scoring.during_samples, key="metrics.during_samples")
    require(scoring.scores, system, data, n=scoring.samples)
    require(scoring.at_end, system, data, n=scoring.samples, section="metrics.at_end")
    promised(scoring.all, system, data)
    follow(scoring.monitor, scoring.scores, system, data)
    if budget.patience is not None:
        _require_scores(budget, scoring)
    health = build(config["callbacks"], trusted=trusted, where="callbacks").get("health")
    return Parts(data, budget, scoring, system, health, left_out)


def _refuse_single(system: System, budget: Budget, config: Node) -> None:
    """UserError where batch norm of vectors would be shown one sample at a time: it has nothing to normalise by."""
    _, world = count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
    if budget.batch_size > world * budget.accumulate:
        return
    for name, layer in system.nets.named_modules():
        if isinstance(layer, nn.BatchNorm1d):
            raise UserError(
                f"train.batch_size={budget.batch_size}: parts of one sample, and the batch norm {name} needs two or "
                "more: a larger batch, or a smaller train.accumulate"
            )


def _require_scores(budget: Budget, scoring: Scoring) -> None:
    """UserError where ``train.patience`` would wait for scores that never come."""
    said = f"train.patience={budget.patience}"
    if scoring.monitor is None or not scoring.scores:
        raise UserError(f"{said}: metrics.monitor names no score to stop by; choose metrics= that have one")
    if not 0 < budget.scoring_interval(scoring) < budget.iterations:
        raise UserError(f"{said}: there are no scores before the run's end; set train.validate_every or during_every")


def say_left_out(lines: list[str]) -> None:
    for line in lines:
        print(f"gentrain: {one_line(line)}", file=sys.stderr)


def rehearse(config: Node) -> str:
    """Check a config, read its data and build its system, train nothing. Says what was found in one line."""
    parts = assemble(config)
    say_left_out(parts.left_out)
    build(config["logger"], where="logger")
    parts.system.prepare(total=parts.budget.iterations)
    next(iter(stream(parts.data.train, batch_size=parts.budget.batch_size, seed=0)))
    counts_of = parameter_counts(dict(parts.system.nets.items()))
    parameters = ", ".join(f"{name} {count:,}" for name, count in counts_of.items())
    train, test = parts.data.train, parts.data.test
    counts = f"{len(train)} training samples of {tuple(parts.data.spec.shape)}, {len(test)} to test"
    return f"{counts}; parameters: {parameters}"
