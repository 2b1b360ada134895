"""One evaluation: all metrics on one subject, and beside the scores all that is needed to read them.

A score without its data, split, counts, extractor and weights is no score. ``Protocol`` is that record; two reports
are comparable where their protocols are equal.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, runtime_checkable
from typing import Protocol as Contract

import torch
from torch import nn

import gentrain
from gentrain.capabilities import CAPABILITIES
from gentrain.errors import UserError
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.randomness import at_evaluation, isolated_rng
from gentrain.evaluation.subject import Subject

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

MOST = 1 << 35
"""Numbers in all samples of one evaluation: 32 GiB of 8-bit images."""

OFFERS: tuple[tuple[str, str, bool], ...] = (
    ("domain", "sample", True),
    ("inception", "sample", True),
    ("dinov2", "sample", True),
    ("mobilenetv2", "sample", True),
    ("modes", "sample", False),
    ("likelihood", "log_likelihood", True),
    ("likelihood", "log_likelihood", False),
    ("reconstruction", "encode", True),
    ("reconstruction", "encode", False),
)
"""(file of conf/metrics, the capability it needs, whether it is for images), to suggest what would work."""


@runtime_checkable
class Particular(Contract):
    """A metric whose demands on data and samples depend on the system."""

    def check_system(self, system: object, data: DataSet, n: int | None = None) -> None:
        """Raise UserError if the metric cannot work with this system. Called at start-up, after ``check``."""
        ...


@runtime_checkable
class Explained(Contract):
    """A metric that says more than its settings do: how a likelihood is to be read."""

    def facts(self, system: object, data: DataSet) -> dict[str, Any]:
        """Plain types only, for the protocol."""
        ...


@runtime_checkable
class Dispensable(Contract):
    """A metric that may be left out where the data cannot give it."""

    def left_out(self, system: object, data: DataSet) -> str | None:
        """Why it is left out for this system and these data; None where it is measured."""
        ...


@dataclass(frozen=True)
class Protocol:
    """What a set of scores was measured on and with."""

    data: str
    fingerprint: str
    splits: dict[str, str]
    """By metric: reference splits and how many of their samples were used, such as ``test 10000``."""
    samples: int
    """Samples drawn from the system; 0 where no metric asked for any."""
    shape: tuple[int, ...]
    """[C H W] of the images that were compared, or [D]."""
    limit: int | None
    """Where scores were made in training: at most so many images of a split for a likelihood; None: all."""
    bits: int
    """Depth of the images that were compared: samples are rounded to 2^bits levels, as stored images are."""
    extractors: dict[str, dict[str, str | float]]
    """By name: ``sha256`` of the weights and how images are resized for it; of a domain extractor that was trained on
    other data, ``trained_on`` and its ``accuracy`` there."""
    weights: str
    """Of the system: ema or raw; given for pictures made elsewhere."""
    labels: str | None
    """Of a system that is asked by class: how the classes were chosen."""
    truncation: float | None
    """Of the latents, where the system truncates them; None: the whole prior."""
    temperature: float | None
    """Of the samples, where the system has one; None: 1."""
    precision: str
    """What the system computed in: 32-true or bf16-mixed."""
    device: str
    """Kind of device it computed on: the same weights differ in the last digits between cpu and cuda."""
    seed: int
    metrics: dict[str, dict[str, Any]]
    """Class and settings of each metric."""
    likelihood: dict[str, dict[str, Any]]
    """Of each metric of a likelihood: what it is the likelihood of, and how exact it is."""
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON and checkpoints. ``size`` (pixels) and ``channels`` are added for images."""
        plain = asdict(self) | {"shape": list(self.shape)}
        if len(self.shape) == 3:
            plain |= {"channels": self.shape[0], "size": self.shape[-1]}
        return plain


@dataclass(frozen=True)
class Report:
    """``scores``: by key. ``protocol``: ``Protocol.to_dict()``. ``seconds``: of the evaluation, sampling included.
    ``samples_per_second``: of sampling alone; None where nothing was drawn."""

    scores: dict[str, float]
    protocol: dict[str, Any]
    seconds: float
    samples_per_second: float | None = None


def require(
    metrics: Mapping[str, Metric],
    system: object,
    data: DataSet,
    n: int | None = None,
    key: str = "metrics.samples",
    section: str = "metrics.scores",
) -> None:
    """Raise UserError, before anything is trained, if a metric cannot work with this system, these data or ``n``
    samples (which ``key`` of the config says), or if two metrics give one score. ``section``: where they stand."""
    has = {name for name, capability in CAPABILITIES.items() if isinstance(system, capability)}
    for name, metric in metrics.items():
        lacking = sorted(metric.needs - has)
        if lacking:
            works = sorted({offer for offer, need, images in OFFERS if need in has and images == data.spec.is_image})
            raise UserError(
                f"{section}.{name} ({type(metric).__name__}) needs {' and '.join(lacking)}, which "
                f"{type(system).__name__} cannot do (it can: {', '.join(sorted(has)) or 'nothing'}): "
                f"use metrics={'|'.join([*works, 'none'])}"
            )
        if "sample" in metric.needs and n is not None and n < 1:
            raise UserError(
                f"{key}={n}: {section}.{name} ({type(metric).__name__}) scores samples, at least 1 is "
                "needed; metrics=none scores nothing"
            )
        if "sample" in metric.needs and n is not None and n * data.spec.numel > MOST:
            raise UserError(
                f"{key}={n}: so many samples take {n * data.spec.numel / 2**30:,.0f} GiB of memory as bytes alone; "
                f"at most {MOST // data.spec.numel:,} of {'x'.join(map(str, data.spec.shape))} are taken"
            )
        try:
            metric.check(data, n)
            if isinstance(metric, Particular):
                metric.check_system(system, data, n)
        except UserError as error:  # metrics know of one place only
            raise UserError(_placed(str(error), key, section, name)) from error
    promised(metrics, system, data)


def _placed(said: str, key: str, section: str, name: str) -> str:
    """What a metric says, with the keys that it stands under. ``distances`` alone is spoken of by others, too."""
    own = rf"metrics\.scores\.({re.escape(name)}|(?!distances\b)[A-Za-z0-9_]+)"
    return re.sub(own, f"{section}.{name}", said.replace("metrics.samples", key))


def possible(
    metrics: Mapping[str, Metric],
    system: object,
    data: DataSet,
    key: str = "metrics.samples",
    section: str = "metrics.scores",
) -> tuple[dict[str, Metric], list[str]]:
    """``metrics`` without those that leave themselves out, and one line about each of these. Keys as in ``require``."""
    kept, lines = dict(metrics), []
    for name, metric in metrics.items():
        why = metric.left_out(system, data) if isinstance(metric, Dispensable) else None
        if why is not None:
            del kept[name]
            why = _placed(why.removeprefix("metrics: "), key, section, name)
            lines.append(f"{section}.{name} ({type(metric).__name__}) is left out: {why}")
    return kept, lines


def promised(metrics: Mapping[str, Metric], system: object, data: DataSet) -> list[str]:
    """The scores that will appear. UserError if two metrics give one of them."""
    coming: list[str] = []
    for name, metric in metrics.items():
        keys = metric.scores(system, data)
        _refuse_twice(name, set(coming) & set(keys))
        coming += keys
    return coming


def follow(monitor: str | None, metrics: Mapping[str, Metric], system: object, data: DataSet) -> None:
    """UserError if ``monitor`` is none of the scores that will appear."""
    if monitor is not None and monitor not in (coming := promised(metrics, system, data)):
        raise UserError(
            f"metrics.monitor={monitor} would never appear with this model, loss and data; "
            f"there will be: {', '.join(coming) or 'no scores (metrics.monitor=null)'}"
        )


def evaluate(metrics: Mapping[str, Metric], subject: Subject, weights: str) -> Report:
    """Measure everything. ``weights``: ``ema`` or ``raw``, those the system holds now (the caller puts them there), or
    ``given`` for pictures made elsewhere.

    The system is in evaluation mode meanwhile; its modes and all global random states are afterwards as they were.
    Each metric starts from ``subject.seed``, so adding one does not change another's value. Raises UserError if two
    metrics give one key.
    """
    if weights not in ("ema", "raw", "given"):
        raise ValueError(f"weights={weights!r}: ema, raw or given")
    started = time.perf_counter()
    scores: dict[str, float] = {}
    splits: dict[str, str] = {}
    for name, metric in metrics.items():
        system = subject.system
        resting = at_evaluation(system) if isinstance(system, nn.Module) else nullcontext()
        subject.used_splits.clear()
        with isolated_rng(subject.seed), resting, torch.no_grad():
            found = metric.measure(subject)
        if subject.used_splits:
            splits[name] = ", ".join(f"{split} {count}" for split, count in sorted(subject.used_splits.items()))
        _refuse_twice(name, scores.keys() & found.keys())
        scores |= found
    speed = subject.drawn / subject.seconds_drawing if subject.drawn and subject.seconds_drawing else None
    protocol = record(metrics, subject, weights, splits).to_dict()
    return Report(scores, protocol, time.perf_counter() - started, speed)


def _refuse_twice(name: str, keys: AbstractSet[str]) -> None:
    if keys:
        raise UserError(
            f"metrics.scores.{name}: another metric gives {', '.join(sorted(keys))} already: drop one of them"
        )


def record(metrics: Mapping[str, Metric], subject: Subject, weights: str, splits: Mapping[str, str]) -> Protocol:
    """The protocol of what ``subject`` was used for so far."""
    data = subject.data
    return Protocol(
        data=data.name,
        fingerprint=data.fingerprint,
        splits=dict(splits),
        samples=subject.drawn,
        shape=tuple(data.spec.shape),
        limit=subject.limit,
        bits=8,
        extractors={name: dict(facts) for name, facts in subject.used_extractors.items()},
        weights=weights,
        labels=None if subject.labels is None else "given" if weights == "given" else "training frequencies",
        truncation=getattr(subject.system, "truncation", None),
        temperature=getattr(subject.system, "temperature", None),
        precision=subject.precision,
        device=subject.device.type,
        seed=subject.seed,
        metrics={name: {"metric": type(metric).__name__, **_settings(metric)} for name, metric in metrics.items()},
        likelihood={
            name: metric.facts(subject.system, data)
            for name, metric in metrics.items()
            if isinstance(metric, Explained)
        },
        versions={
            "torch": str(torch.__version__),  # of a class of its own, which a checkpoint would refuse
            "torchmetrics": version("torchmetrics"),
            "gentrain": gentrain.__version__,
        },
    )


def _settings(value: object) -> dict[str, Any]:
    """Fields of a dataclass, an inner one with its class name, so that two extractors of equal keys differ."""
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    plain: dict[str, Any] = {}
    for key, inner in vars(value).items():
        if is_dataclass(inner):
            plain[key] = {"source": type(inner).__name__, **_settings(inner)}
        else:
            plain[key] = inner
    return plain
