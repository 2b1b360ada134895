"""Likelihood of held-out data, for systems that have one or a bound on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.subject import Subject, split_of
from gentrain.types import Likelihood

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class LikelihoodBound:
    """Mean over a split, each sample once (config target).

    ``nll_nats``: nats per sample, smaller is better; an upper bound where the system's ``log_likelihood`` is a lower
    one. ``bits_per_dim``: the same / (ln 2 * C*H*W), for images whose likelihood is that of 8-bit data (a system whose
    ``bits_per_dim_defined`` is false, such as one of binarised pixels, has none).
    Where the system has ``elbo(x) -> [B]``: ``elbo_nats``; where it has ``importance_bound(x, samples=K) -> [B]``
    (Burda et al. 2016, arXiv 1509.00519, eq. 8): ``iw_bound_nats``. Both are lower bounds on the log-likelihood in
    nats per sample: larger is better.

    ``split``; ``limit``: so many samples spread over it, None for all; ``batch``: per call, no influence on an exact
    likelihood (one that draws noise sees other noise at another batch size); ``importance_samples``: K, 0 leaves the
    importance bound out.
    """

    split: str = "test"
    limit: int | None = None
    batch: int = 128
    importance_samples: int = 64

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"metrics.scores.likelihood.batch={self.batch}: at least 1")
        if self.importance_samples < 0:
            raise UserError(f"metrics.scores.likelihood.importance_samples={self.importance_samples}: 0 or more")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"metrics.scores.likelihood.limit={self.limit}: at least 1, or null for all")

    needs: ClassVar[frozenset[str]] = frozenset({"log_likelihood"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        there = {
            "nll_nats": True,
            "bits_per_dim": data.spec.is_image and bool(getattr(system, "bits_per_dim_defined", True)),
            "elbo_nats": hasattr(system, "elbo"),
            "iw_bound_nats": hasattr(system, "importance_bound") and self.importance_samples > 0,
        }
        return tuple(key for key, appears in there.items() if appears)

    def check(self, data: DataSet, n: int | None = None) -> None:
        split_of(data, self.split)

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return min(n for n in (len(split_of(data, self.split)), self.limit, limit) if n is not None)

    def probe(self, system: object, x: Tensor) -> None:
        x = x.to(getattr(system, "device", "cpu"))
        if hasattr(system, "importance_bound") and self.importance_samples > 0:
            system.importance_bound(x, samples=self.importance_samples)
        elif isinstance(system, Likelihood):
            system.log_likelihood(x)

    def measure(self, subject: Subject) -> dict[str, float]:
        system = subject.system
        if not isinstance(system, Likelihood):
            raise UserError(f"metrics: {type(system).__name__} has no log_likelihood")
        wanted = self.scores(system, subject.data)
        found: dict[str, float] = {}
        if "iw_bound_nats" in wanted:
            # The tightest bound there is stands for the likelihood; it is not computed twice.
            found["iw_bound_nats"] = self._mean(
                subject,
                "importance_bound",
                lambda x: system.importance_bound(x, samples=self.importance_samples),  # type: ignore[attr-defined]
            )
            nll = -found["iw_bound_nats"]
        else:
            nll = -self._mean(subject, "log_likelihood", system.log_likelihood)
        found["nll_nats"] = nll
        if "bits_per_dim" in wanted:
            found["bits_per_dim"] = nll / (math.log(2.0) * subject.data.spec.numel)
        if "elbo_nats" in wanted:
            found["elbo_nats"] = self._mean(subject, "elbo", system.elbo)  # type: ignore[attr-defined]
        return found

    @torch.no_grad()
    def _mean(self, subject: Subject, name: str, value: Callable[[Tensor], Tensor]) -> float:
        """Sum over all samples / their number: a mean of batch means would weigh a short last batch too much."""
        rows = split_of(subject.data, self.split)
        limits = [limit for limit in (self.limit, subject.limit) if limit is not None]
        places = subject.reference_index(self.split, min(limits, default=None))
        total = 0.0
        for index in torch.split(places, self.batch):
            nats = value(rows.take(index).x.to(subject.device))
            if nats.shape != index.shape:
                raise ValueError(f"{name} returned {list(nats.shape)} for {len(index)} samples: one value each is due")
            if not bool(nats.isfinite().all()):
                raise UserError(
                    f"metrics: {name} of sample {int(index[int((~nats.isfinite()).nonzero()[0])])} of split="
                    f"{self.split} is not finite: the model has diverged"
                )
            total += float(nats.double().sum())
        return total / len(places)
