"""What one process holds while it trains a run: config, data, metrics, who listens, and its place among ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gentrain.config import Node
from gentrain.data.dataset import DataSet
from gentrain.engine.health import Health
from gentrain.engine.loggers import Logger
from gentrain.engine.progress import RichProgress
from gentrain.errors import UserError
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.protocol import possible
from gentrain.folder import RunFolder


@dataclass(frozen=True)
class Budget:
    """The ``train`` section of the config. Intervals are in iterations; 0 turns one off; None divides the run in ten.

    ``batch_size`` counts all ranks together, so a paper's number holds whatever the number of devices;
    ``accumulate`` cuts each batch into so many parts. ``on_nonfinite``: when a loss or weight becomes NaN or infinite,
    ``stop``, or ``rollback`` to the last checkpoint and go on with half the learning rate, three times at most.
    ``patience``: end the run after so many scores in training in a row without a better one; None: never.
    """

    batch_size: int
    iterations: int
    accumulate: int = 1
    log_every: int = 50
    validate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    flip: bool = False
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    patience: int | None = None

    @property
    def validation_interval(self) -> int:
        return max(self.iterations // 10, 1) if self.validate_every is None else self.validate_every

    def scoring_interval(self, scoring: Scoring) -> int:
        """Iterations between scores in training: ``metrics.during_every`` is in images; null: with each validation."""
        if scoring.during_every is None:
            return self.validation_interval
        return max(round(scoring.during_every / self.batch_size), 1)

    @property
    def checkpoint_interval(self) -> int:
        return self.validation_interval if self.checkpoint_every is None else self.checkpoint_every


@dataclass(frozen=True)
class SweepSettings:
    """The ``sweep`` section: how many jobs run at a time, and how often one that fails is tried again. Of an experiment
    that is a comparison: ``over``, words such as ``model=dcgan,wgan`` of which every combination is run, and
    ``variants``, words of each by name; a word on the command line wins over one of ``over`` for the same key."""

    parallel: int = 1
    retry: int = 0
    over: Sequence[str] = ()
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.over, str) or not all(isinstance(word, str) and "=" in word for word in self.over):
            raise UserError("sweep.over: a list of words such as model=dcgan,wgan")
        for name, words in self.variants.items():
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise UserError(f"sweep.variants.{name}: a list of words such as [model.joint_batch=true]")
        if self.parallel < 1:
            raise UserError(f"sweep.parallel={self.parallel}: at least 1")
        if self.retry < 0:
            raise UserError(f"sweep.retry={self.retry}: at least 0")


@dataclass(frozen=True)
class Callbacks:
    """The ``callbacks`` section: what looks at a run from outside. None leaves it out."""

    health: Health | None = None


@dataclass(frozen=True)
class Devices:
    """The ``trainer`` section: where a run takes place. ``timeout``: seconds until a silent rank ends the run."""

    accelerator: str = "auto"
    devices: int | str = 1
    backend: Literal["gloo", "nccl", "mpi", "ucc"] | None = None
    timeout: float = 300.0
    threads: int | None = None
    workers: int = 0
    deterministic: bool = False


@dataclass(frozen=True)
class Scoring:
    """The ``metrics`` section: what is measured, on how many samples, and which score ``best`` follows.

    At the end of a run all of ``scores`` and ``at_end`` are measured on ``samples`` samples and whole splits. While it
    trains only ``scores`` are, on ``during_samples`` samples and as many images of a split at most (None: ``samples``,
    whole splits), after every ``during_every`` images seen (None: with each validation). ``during_seconds``: what they
    may cost in all, by an estimate at the start; the schedule is thinned out to fit. ``also``: what the model asks
    for; it joins ``scores``, where a metric of the same name, here or in ``at_end``, stays as it is.
    """

    scores: Mapping[str, Metric] = field(default_factory=dict)
    at_end: Mapping[str, Metric] = field(default_factory=dict)
    also: Mapping[str, Metric] = field(default_factory=dict)
    samples: int = 1000
    during_samples: int | None = None
    during_every: int | None = None
    during_seconds: float | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        wanted = {name: m for name, m in self.also.items() if name not in self.scores and name not in self.at_end}
        object.__setattr__(self, "scores", {**self.scores, **wanted})
        twice = sorted(set(self.scores) & set(self.at_end))
        if twice:
            raise UserError(f"metrics.at_end.{twice[0]}: metrics.scores has a metric of this name: give it another")
        for name in ("during_samples", "during_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"metrics.{name}={value}: at least 1, or null")
        if self.during_seconds is not None and not self.during_seconds >= 0:
            raise UserError(f"metrics.during_seconds={self.during_seconds}: 0 or more, or null for no bound")

    def possible(self, system: object, data: DataSet) -> tuple[Scoring, list[str]]:
        """Without the metrics that leave themselves out for this system and these data, and a line about each."""
        scores, lines = possible(self.scores, system, data)
        at_end, more = possible(self.at_end, system, data, section="metrics.at_end")
        return replace(self, scores=scores, at_end=at_end, also={}), lines + more

    @property
    def all(self) -> dict[str, Metric]:
        """What is measured at the end."""
        return {**self.scores, **self.at_end}

    @property
    def smaller(self) -> bool:
        """Whether less is measured while it trains than at the end."""
        return bool(self.at_end) or (self.during_samples is not None and self.during_samples != self.samples)

    def better(self, value: float, best: float | None) -> bool:
        if best is None:
            return True
        return value < best if self.mode == "min" else value > best


@dataclass
class Session:
    folder: RunFolder
    config: Node
    data: DataSet
    budget: Budget
    scoring: Scoring
    loggers: Sequence[Logger]
    progress: RichProgress
    health: Health | None
    seed: int
    rank: int
    world: int
    identity: str | None = None
    """Of the run, from its card: no other run's checkpoint is taken for its own."""
    resumed: Mapping[str, Any] | None = None
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0

    @property
    def is_first(self) -> bool:
        """Only the first rank writes files, logs and evaluates."""
        return self.rank == 0

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all of its resumptions."""
        return self.seconds_before + time.monotonic() - self.started


def place() -> tuple[int, int]:
    """(rank, world) that the launcher wrote into the environment; (0, 1) in a process of its own."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
