"""What is being scored: a system and its samples, the data it is held against, and the features of both.

Samples are drawn once, features are computed once per extractor, so that all scores of an evaluation speak of the
same images and cost one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gentrain.data.dataset import spread
from gentrain.errors import UserError
from gentrain.evaluation.extractors import Extractor, ExtractorSource, Features
from gentrain.evaluation.gaussian import Gaussian
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.reference import FeatureCache as FeatureCache
from gentrain.evaluation.reference import counted as counted
from gentrain.evaluation.reference import split_of as split_of
from gentrain.types import to_bytes

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


class Subject:
    """One system (or a set of images made elsewhere) under evaluation.

    ``system``: anything with the capabilities that the metrics ask for; None for images made elsewhere.
    ``n``: how many samples, 0 where no score needs any. ``draw(n)``: [n C H W] float in [-1, 1] or uint8 in 0..255, or
    [n D] for vectors; called once with ``n``, with the global generators at ``seed``. ``labels``: int64 [n], the
    classes that the samples were asked to be, if any. ``device``: where extractors run and likelihoods are asked.
    ``limit``: at most so many images of a split are asked for their likelihood (scores in training); None: as many as
    the metric says. ``precision``: what the system computes in, for the record (extractors are float32 always). In a
    run over several processes, ``draw`` returns the gathered samples and one process evaluates: nothing here
    communicates.
    """

    def __init__(
        self,
        data: DataSet,
        system: object,
        draw: Callable[[int], Tensor],
        *,
        n: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
        labels: Tensor | None = None,
        limit: int | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        if n < 0:
            raise UserError(f"metrics.samples={n}: 0 (none are drawn) or more")
        self.data, self.system, self.n, self.seed, self.labels = data, system, n, seed, labels
        self.device, self.precision, self.limit = torch.device(device), precision, limit
        self.used_extractors: dict[str, dict[str, str | float]] = {}
        """Of each extractor that a score was made with, by name: SHA-256, how it resizes, and its ``record``."""
        self.used_splits: dict[str, int] = {}
        """Split and number of its samples that the metric at work has used."""
        self.seconds_drawing = 0.0
        self._draw = draw
        self._cache = cache or FeatureCache()
        self._samples: Tensor | None = None
        self._features: dict[ExtractorSource, Features] = {}

    @property
    def drawn(self) -> int:
        """How many samples were drawn so far: ``n``, or 0 where no metric asked for any."""
        return 0 if self._samples is None else self.n

    def samples(self, n: int | None = None) -> Tensor:
        """The first ``n`` (default: all) samples: uint8 [n C H W] for images, float32 [n D] for vectors.
        Raises UserError where none are to be drawn."""
        if self.n < 1:
            raise UserError("metrics.samples=0: a score of samples needs at least one")
        if self._samples is None:
            started = time.perf_counter()
            with isolated_rng(self.seed), torch.no_grad():
                drawn = self._draw(self.n)
            self.seconds_drawing = time.perf_counter() - started
            self._samples = self._accept(drawn)
        if n is not None and n > self.n:
            raise ValueError(f"{n} samples asked for, {self.n} drawn")
        return self._samples[:n]

    def reference(self, split: str = "test", limit: int | None = None) -> Tensor:
        """x of a split, all of it or ``limit`` spread over it: uint8 [N C H W] or float32 [N D]."""
        return split_of(self.data, split).take(self.reference_index(split, limit)).x

    def reference_index(self, split: str = "test", limit: int | None = None) -> Tensor:
        """int64 [N]: the places of those samples. Noted in ``used_splits``."""
        index = spread(len(split_of(self.data, split)), limit)
        self.used_splits[split] = len(index)
        return index

    def extractor(self, source: ExtractorSource) -> Extractor:
        extractor = self._cache.extractor(source, self.data, self.device)
        resize = getattr(extractor, "resize", "none")
        facts = {"sha256": extractor.sha256, "resize": resize}
        self.used_extractors[extractor.name] = facts | getattr(extractor, "record", {})
        return extractor

    def sample_features(self, source: ExtractorSource) -> Features:
        """Features of all n samples."""
        if source not in self._features:
            self._features[source] = self.extractor(source)(self.samples())
        return self._features[source]

    def reference_features(self, source: ExtractorSource, split: str = "test", limit: int | None = None) -> Features:
        """Features of a split, all of it or ``limit`` spread over it."""
        count = len(self.reference_index(split, limit))
        return self._cache.reference(self.extractor(source), self.data, split, count, self.device)

    def reference_gaussian(self, source: ExtractorSource, split: str = "test", limit: int | None = None) -> Gaussian:
        """The Gaussian fitted to ``reference_features``."""
        count = len(self.reference_index(split, limit))
        return self._cache.gaussian(self.extractor(source), self.data, split, count, self.device)

    def _accept(self, drawn: Tensor) -> Tensor:
        """Refuse samples that are not what the data look like; images become uint8 on the CPU."""
        spec = self.data.spec
        if tuple(drawn.shape) != (self.n, *spec.shape):
            raise ValueError(f"samples have shape {tuple(drawn.shape)}, wanted {(self.n, *spec.shape)}")
        drawn = drawn.detach().cpu()
        if spec.is_image and drawn.dtype == torch.uint8:
            return drawn
        if not drawn.is_floating_point():
            raise TypeError(f"samples are {drawn.dtype}: wanted floats in [-1, 1], or uint8 for images")
        broken = int((~drawn.isfinite()).flatten(1).any(1).sum())
        if broken:
            raise UserError(
                f"samples: {broken} of {self.n} hold nan or inf: the model has diverged; "
                "take an earlier checkpoint, or train with a lower learning rate"
            )
        if not spec.is_image:
            return drawn.float()
        if drawn.min() >= 0.0 and drawn.max() > 2.0:
            # A model without a bounded last layer strays outside [-1, 1] on both sides; this is another unit.
            raise ValueError(f"samples lie in 0..{float(drawn.max()):.4g}: floats must be in [-1, 1], bytes uint8")
        return to_bytes(drawn)
