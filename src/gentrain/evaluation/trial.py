"""What an evaluation may cost, from a few samples, so that it can be said before a run begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.subject import FeatureCache, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

COUNT = 32
"""Samples drawn and images looked at in a trial."""


@runtime_checkable
class Probed(Protocol):
    """A metric that asks the system for more than samples, and says what that is."""

    def probe(self, system: object, x: Tensor) -> None:
        """Do for images x what ``measure`` does for each image."""
        ...

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        """How many images ``measure`` does it for."""
        ...


class Trial:
    """Times the costly parts once: drawing a sample, the features of an image, the likelihood of an image.

    Sorting, eigenvalues and the like are left out: an estimate, not a promise. Nothing is scored, no random state is
    touched, and what was timed is thrown away.
    """

    def __init__(
        self, data: DataSet, system: object, draw: Callable[[int], Tensor], cache: FeatureCache | None = None
    ) -> None:
        self.data, self.system, self._draw, self._cache = data, system, draw, cache or FeatureCache()
        self._known: dict[Any, float] = {}

    def seconds(self, metrics: Mapping[str, Metric], n: int, limit: int | None) -> float:
        """Of measuring ``metrics`` on ``n`` samples, with the likelihood of at most ``limit`` images of a split."""
        total = 0.0
        if any("sample" in metric.needs for metric in metrics.values()):
            total += n * self._each("draw", self._draw)
        passes: dict[ExtractorSource, dict[str, int]] = {}
        for metric in metrics.values():
            source = getattr(metric, "extractor", None)
            if source is not None:
                split = getattr(metric, "split", "test")
                there = len(split_of(self.data, split))
                passes.setdefault(source, {})[split] = min(there, getattr(metric, "reference", None) or there)
            if isinstance(metric, Probed):
                count = metric.looks_at(self.data, limit)
                total += count * self._each(metric, partial(self._probe, metric))
        for source, splits in passes.items():
            total += (n + sum(splits.values())) * self._each(source, partial(self._extract, source))
        return total

    def _probe(self, metric: Probed, count: int) -> None:
        metric.probe(self.system, self._images(count))

    def _extract(self, source: ExtractorSource, count: int) -> None:
        device = getattr(self.system, "device", "cpu")
        self._cache.extractor(source, self.data, device)(self._images(count))

    def _images(self, count: int) -> Tensor:
        return self.data.test.x.take(torch.arange(count) % len(self.data.test))

    def _each(self, key: Any, work: Callable[[int], object]) -> float:
        """Seconds for one of a batch, warm."""
        if key not in self._known:
            with isolated_rng(0), torch.no_grad():
                work(2)
                started = time.perf_counter()
                work(COUNT)
                self._known[key] = (time.perf_counter() - started) / COUNT
        return self._known[key]
