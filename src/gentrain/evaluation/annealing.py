"""Likelihood of Boltzmann machines, their constant Z estimated by annealed importance sampling."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gentrain.capabilities import RBM, Boltzmann
from gentrain.errors import UserError
from gentrain.evaluation.likelihood import nats_of
from gentrain.evaluation.metric import Work
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.reference import BLOCK
from gentrain.evaluation.subject import Subject, split_of
from gentrain.objectives.boltzmann import LogPartition as LogPartition
from gentrain.objectives.boltzmann import in_double, log_partition

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

BASE_IMAGES = 10_000
"""Training images whose mean the base model has."""


@dataclass(frozen=True)
class AnnealedLikelihood:
    """Likelihood of a Boltzmann machine, with its constant by ``log_partition`` (config target).

    ``nll_nats_ais``: mean of the free energy over the split plus log Z, in nats per sample, smaller is better; of the
    units that images become (binarised: ``likelihood`` in the protocol). Of a deep machine the free energy is but
    bounded from above. ``log_z`` and its standard deviation ``log_z_sd``, both in nats. The estimate of log Z is too
    low rather than too high, as its mean is (Jensen) and as chains that miss a mode make it, so the likelihood is
    flattering where ``log_z_sd`` is large or the temperatures are few: it should stay the same with more of them.
    ``chains``: independent runs; ``temperatures``: steps from the base model, independent pixels with the means of the
    training images, to the machine itself.

    ``split``, ``limit`` and ``batch`` are those of ``LikelihoodBound``.
    """

    chains: int = 100
    temperatures: int = 10_000
    split: str = "test"
    limit: int | None = None
    batch: int = 1024

    def __post_init__(self) -> None:
        for name, least in (("chains", 2), ("temperatures", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"metrics.scores.annealed.{name}={getattr(self, name)}: at least {least}")
        if self.limit is not None and self.limit < 2:
            raise UserError(f"metrics.scores.annealed.limit={self.limit}: at least 2, or null for all")

    needs: ClassVar[frozenset[str]] = frozenset({"rbm"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("nll_nats_ais", "log_z", "log_z_sd")

    def check(self, data: DataSet, n: int | None = None) -> None:
        split_of(data, self.split)

    def facts(self, system: object, data: DataSet) -> dict[str, Any]:
        """What it is the likelihood of."""
        return asdict(replace(system.likelihood_on, exact=False)) if isinstance(system, Boltzmann) else {}

    def work(self, data: DataSet, n: int) -> Work:
        # The hidden units are not known here: as many as visible ones.
        return Work(products=self.chains * self.temperatures * 4 * data.spec.numel**2)

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, float]:
        system = subject.system
        if not isinstance(system, Boltzmann):
            raise UserError(f"metrics: {type(system).__name__} is no restricted Boltzmann machine: it has no rbm")
        rbm = in_double(system.rbm(), subject.device)
        constant = log_partition(
            rbm,
            chains=self.chains,
            temperatures=self.temperatures,
            seed=subject.seed,
            base=None if rbm.gaussian else self._base(subject, system, rbm),
        )

        def log_weight(x: Tensor) -> Tensor:
            return -system.free_energy(x)

        known = nats_of(subject, self.split, self.limit, self.batch, "free energy", log_weight)
        return {
            "nll_nats_ais": constant.estimate - float(known.mean()),
            "log_z": constant.estimate,
            "log_z_sd": constant.sd,
        }

    def _base(self, subject: Subject, system: Boltzmann, rbm: RBM) -> Tensor:
        """Biases float64 [U] of independent units that are on as often as in the training images, never or always
        excepted: one image of either kind is added. Hidden units behind them are on half of the time."""
        rows = split_of(subject.data, "train").x
        index = subject.reference_index("train", BASE_IMAGES)
        with isolated_rng(subject.seed):
            counts = sum(
                _units(system, rows.take(part).to(subject.device)).sum(dim=0) for part in torch.split(index, BLOCK)
            )
        assert isinstance(counts, Tensor)
        base = torch.zeros_like(rbm.visible_bias)
        base[: len(counts)] = torch.logit((counts + 1.0) / (len(index) + 2.0))
        return base


def _units(system: Boltzmann, x: Tensor) -> Tensor:
    """float64 [B V]."""
    v = system.units(x).double()
    if v.ndim != 2 or len(v) != len(x) or not bool(((v == 0) | (v == 1)).all()):
        raise ValueError(f"units of {len(x)} images are {list(v.shape)}: [B V] of 0 and 1 are due")
    return v
