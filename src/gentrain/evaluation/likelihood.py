"""Likelihood of held-out data, for systems that have one or a bound on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gentrain.capabilities import Likelihood
from gentrain.errors import UserError
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.subject import Subject, counted, split_of
from gentrain.types import LikelihoodOn

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class LikelihoodBound:
    """Mean over a split, each sample once (config target).

    ``nll_nats``: nats per sample, smaller is better; an upper bound where the system has but a lower one on its
    likelihood. ``nll_nats_se``: standard error of that mean over the samples. ``bits_per_dim``: nll_nats / (ln 2 *
    C*H*W), for images of 8 bits; of 5 bits it is ``bits_per_dim_5bit``, and pixels that were binarised have none
    (``gentrain.types.LikelihoodOn``). Where the system has ``elbo(x) -> [B]``: ``elbo_nats``; where it has
    ``importance_bound(x, samples=K) -> [B]`` (Burda et al. 2016, arXiv 1509.00519, eq. 8): ``iw_bound_nats``. Both are
    lower bounds on the log-likelihood in nats per sample: larger is better.

    What it is the likelihood of, whether it is exact, and K stand in the protocol under ``likelihood``: nats may only
    be compared where these are equal.

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
        if self.limit is not None and self.limit < 2:
            raise UserError(f"metrics.scores.likelihood.limit={self.limit}: at least 2, or null for all")

    needs: ClassVar[frozenset[str]] = frozenset({"log_likelihood"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        keys = ["nll_nats", "nll_nats_se"]
        if data.spec.is_image and (bits := likelihood_on(system, data).bits_key) is not None:
            keys.append(bits)
        if hasattr(system, "elbo"):
            keys.append("elbo_nats")
        if self._weighs(system):
            keys.append("iw_bound_nats")
        return tuple(keys)

    def check(self, data: DataSet, n: int | None = None) -> None:
        _enough(self.looks_at(data, None), self.split)

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return counted(data, self.split, self.limit, limit)

    def probe(self, system: object, x: Tensor) -> None:
        x = x.to(getattr(system, "device", "cpu"))
        if self._weighs(system):
            system.importance_bound(x, samples=self.importance_samples)  # type: ignore[attr-defined]
        elif isinstance(system, Likelihood):
            system.log_likelihood(x)

    def facts(self, system: object, data: DataSet) -> dict[str, Any]:
        """What ``nll_nats`` is the likelihood of, and ``importance_samples``: K of the bound that stands for it."""
        on = likelihood_on(system, data)
        own = self.importance_samples if self._weighs(system) else getattr(system, "bound_samples", None)
        return asdict(on) | {"importance_samples": None if on.exact else own}

    def measure(self, subject: Subject) -> dict[str, float]:
        system = subject.system
        if not isinstance(system, Likelihood):
            raise UserError(f"metrics: {type(system).__name__} has no log_likelihood")
        on, found = likelihood_on(system, subject.data), {}
        weighed = None
        if self._weighs(system):

            def bound(x: Tensor) -> Tensor:
                nats: Tensor = system.importance_bound(x, samples=self.importance_samples)  # type: ignore[attr-defined]
                return nats

            weighed = self._nats(subject, "importance_bound", bound)
            found["iw_bound_nats"] = float(weighed.mean())
        # Where there is no more than bounds, the tightest stands for the likelihood; it is not computed twice.
        nats = (
            weighed
            if weighed is not None and not on.exact
            else self._nats(subject, "log_likelihood", system.log_likelihood)
        )
        found |= {"nll_nats": -float(nats.mean()), "nll_nats_se": standard_error(nats)}
        if subject.data.spec.is_image and on.bits_key is not None:
            found[on.bits_key] = found["nll_nats"] / (math.log(2.0) * subject.data.spec.numel)
        if hasattr(system, "elbo"):
            found["elbo_nats"] = float(self._nats(subject, "elbo", system.elbo).mean())
        return found

    def _weighs(self, system: object) -> bool:
        return hasattr(system, "importance_bound") and self.importance_samples > 0

    def _nats(self, subject: Subject, name: str, value: Callable[[Tensor], Tensor]) -> Tensor:
        return nats_of(subject, self.split, self.limit, self.batch, name, value)


def likelihood_on(system: object, data: DataSet) -> LikelihoodOn:
    """What the system says its likelihood is of, or what it is of when nothing is said: 8-bit images, vectors of no
    levels; exact where the system has no bounds."""
    default = LikelihoodOn(exact=not hasattr(system, "elbo") and not hasattr(system, "importance_bound"))
    said = getattr(system, "likelihood_on", default)
    if not isinstance(said, LikelihoodOn):
        raise TypeError(f"{type(system).__name__}.likelihood_on is {type(said).__name__}, not a LikelihoodOn")
    return said if data.spec.is_image else LikelihoodOn(bits=None, exact=said.exact)


@torch.no_grad()
def nats_of(
    subject: Subject, split: str, limit: int | None, batch: int, name: str, value: Callable[[Tensor], Tensor]
) -> Tensor:
    """``value(x) -> [B]`` of each sample of a split, or of ``limit`` spread over it (of ``subject.limit`` if that is
    less): float64 [N]. What is drawn on the way starts from the subject's seed each time, so that two bounds see one
    and the same binarised images. Raises UserError where a value is nan or inf, with the place of the sample."""
    rows = split_of(subject.data, split)
    places = subject.reference_index(split, counted(subject.data, split, limit, subject.limit))
    _enough(len(places), split)
    parts = []
    with isolated_rng(subject.seed):
        for index in torch.split(places, batch):
            nats = value(rows.take(index).x.to(subject.device))
            if nats.shape != index.shape:
                raise ValueError(f"{name} returned {list(nats.shape)} for {len(index)} samples: one value each is due")
            if not bool(nats.isfinite().all()):
                raise UserError(
                    f"metrics: {name} of sample {int(index[int((~nats.isfinite()).nonzero()[0])])} of split="
                    f"{split} is not finite: the model has diverged"
                )
            parts.append(nats.cpu().double())
    return torch.cat(parts)


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values [N], N > 1."""
    return float(values.std() / math.sqrt(len(values)))


def _enough(count: int, split: str) -> None:
    if count < 2:
        raise UserError(
            f"metrics: the likelihood of {count} samples of split={split} has no standard error: use 2 or more"
        )
