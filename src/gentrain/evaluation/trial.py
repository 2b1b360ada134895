"""What an evaluation may cost, from a few samples, so that it can be said before a run begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.metric import Metric, Work
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.subject import FeatureCache

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

COUNT = 32
"""Samples drawn and images looked at in a trial."""

PRODUCT = (512, 256, 1024)
"""Sides of the matrices whose product is timed."""


@runtime_checkable
class Probed(Protocol):
    """A metric that asks the system for more than samples, and says what that is."""

    def probe(self, system: object, x: Tensor) -> None:
        """Do for images x what ``measure`` does for each image."""
        ...

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        """How many images ``measure`` does it for."""
        ...


@runtime_checkable
class Worked(Protocol):
    """A metric whose own arithmetic, or passes of real images, take time."""

    def work(self, data: DataSet, n: int) -> Work:
        """What there is to do for ``n`` samples."""
        ...


@dataclass(frozen=True)
class Cost:
    """Seconds of one evaluation. ``first``: what only the first one of these has to do: real images that no cache
    knows, by extractor, split and count."""

    each: float
    first: Mapping[Any, float]

    def sum(self, times: int) -> float:
        return times * self.each + (sum(self.first.values()) if times else 0.0)


class Trial:
    """Times the costly parts once: drawing a sample, the features of an image, the likelihood of an image, a product of
    matrices.

    An estimate, not a promise. Nothing is scored, no random state is touched, and what was timed is thrown away.
    """

    def __init__(
        self, data: DataSet, system: object, draw: Callable[[int], Tensor], cache: FeatureCache | None = None
    ) -> None:
        self.data, self.system, self._draw, self._cache = data, system, draw, cache or FeatureCache()
        self._device = getattr(system, "device", "cpu")
        self._known: dict[Any, float] = {}

    def cost(self, metrics: Mapping[str, Metric], n: int, limit: int | None) -> Cost:
        """Of measuring ``metrics`` on ``n`` samples, with the likelihood of at most ``limit`` images of a split."""
        seconds, first = 0.0, dict[Any, float]()
        if any("sample" in metric.needs for metric in metrics.values()):
            seconds += n * self._each("draw", self._draw)
        extractors = (getattr(metric, "extractor", None) for metric in metrics.values())
        for used in dict.fromkeys(extractor for extractor in extractors if extractor is not None):
            seconds += n * self._each(used, partial(self._extract, used))
        for metric in metrics.values():
            if isinstance(metric, Probed):
                seconds += metric.looks_at(self.data, limit) * self._each(metric, partial(self._probe, metric))
            if isinstance(metric, Worked):
                work = metric.work(self.data, n)
                source: ExtractorSource | None = getattr(metric, "extractor", None)
                seconds += work.products * self._product()
                if source is None:
                    continue
                for split, count in work.passes.items():
                    if not self._cache.has(self._extractor(source), self.data, split, count, self._device):
                        first[source, split, count] = count * self._each(source, partial(self._extract, source))
        return Cost(seconds, first)

    def _probe(self, metric: Probed, count: int) -> None:
        metric.probe(self.system, self._images(count))

    def _extract(self, source: ExtractorSource, count: int) -> None:
        self._extractor(source)(self._images(count))

    def _extractor(self, source: ExtractorSource) -> Any:
        return self._cache.extractor(source, self.data, self._device)

    def _images(self, count: int) -> Tensor:
        return self.data.test.x.take(torch.arange(count) % len(self.data.test))

    def _product(self) -> float:
        """Seconds for one multiplication in a product of float64 matrices."""
        rows, inner, columns = PRODUCT
        a, b = torch.ones(rows, inner, dtype=torch.float64), torch.ones(inner, columns, dtype=torch.float64)
        return self._each("product", lambda count: [a @ b for _ in range(count // 4)]) / (rows * inner * columns / 4)

    def _each(self, key: Any, work: Callable[[int], object]) -> float:
        """Seconds for one of a batch, warm."""
        if key not in self._known:
            with isolated_rng(0), torch.no_grad():
                work(4)
                started = time.perf_counter()
                work(COUNT)
                self._known[key] = (time.perf_counter() - started) / COUNT
        return self._known[key]
