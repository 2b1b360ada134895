"""Likelihood of restricted Boltzmann machines, their constant Z estimated by annealed importance sampling."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.capabilities import RBM, Boltzmann
from gentrain.errors import UserError
from gentrain.evaluation.likelihood import nats_of
from gentrain.evaluation.metric import Work
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.reference import BLOCK
from gentrain.evaluation.subject import Subject, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

BASE_IMAGES = 10_000
"""Training images whose mean the base model has."""


class LogPartition(NamedTuple):
    """An estimate of log Z in nats. ``lower``, ``upper``: log of the estimate of Z minus and plus three standard
    deviations of it, -inf where these are more than the estimate. ``sd``: of log Z, to first order."""

    estimate: float
    lower: float
    upper: float
    sd: float


@dataclass(frozen=True)
class AnnealedLikelihood:
    """Likelihood of a restricted Boltzmann machine, with its constant by ``log_partition`` (config target).

    ``nll_nats_ais``: mean of the free energy over the split plus log Z, in nats per sample, smaller is better; of the
    units that images become (binarised: ``likelihood`` in the protocol). ``log_z`` and its standard deviation
    ``log_z_sd``, both in nats. The estimate of log Z is too low rather than too high, as its mean is (Jensen) and as
    chains that miss a mode make it, so the likelihood is flattering where ``log_z_sd`` is large or the temperatures
    are few: it should stay the same with more of them. ``chains``: independent runs; ``temperatures``: steps from the
    base model, independent pixels with the means of the training images, to the machine itself.

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
        rbm = _in_double(system.rbm(), subject.device)
        base = self._base(subject, system)
        constant = log_partition(
            rbm, chains=self.chains, temperatures=self.temperatures, seed=subject.seed, base=base.to(subject.device)
        )

        def log_weight(x: Tensor) -> Tensor:
            return -free_energy(rbm, _units(system, x))

        known = nats_of(subject, self.split, self.limit, self.batch, "free energy", log_weight)
        return {
            "nll_nats_ais": constant.estimate - float(known.mean()),
            "log_z": constant.estimate,
            "log_z_sd": constant.sd,
        }

    def _base(self, subject: Subject, system: Boltzmann) -> Tensor:
        """Biases float64 [V] of independent units that are on as often as in the training images, never or always
        excepted: one image of either kind is added."""
        rows = split_of(subject.data, "train").x
        index = subject.reference_index("train", BASE_IMAGES)
        with isolated_rng(subject.seed):
            counts = sum(
                _units(system, rows.take(part).to(subject.device)).sum(dim=0) for part in torch.split(index, BLOCK)
            )
        assert isinstance(counts, Tensor)
        return torch.logit((counts + 1.0) / (len(index) + 2.0))


def free_energy(rbm: RBM, v: Tensor) -> Tensor:
    """F(v) = -b v - sum_j log(1 + exp(v W_j + c_j)), [B] nats for v [B V]: log p(v) = -F(v) - log Z."""
    return -(v @ rbm.visible_bias) - _softplus(v @ rbm.weight + rbm.hidden_bias).sum(dim=1)


@torch.no_grad()
def log_partition(
    rbm: RBM, *, chains: int = 100, temperatures: int = 10_000, seed: int = 0, base: Tensor | None = None
) -> LogPartition:
    """log Z of a restricted Boltzmann machine by annealed importance sampling (Neal 2001, arXiv physics/9803008;
    Salakhutdinov and Murray 2008, On the quantitative analysis of deep belief networks, section 4.1).

    ``base``: visible biases a [V] of independent units, from which each of ``chains`` runs starts; None: all 0. The
    model at inverse temperature t has the unnormalised probability

        p_t(v) = exp((1 - t) a v + t b v) prod_j (1 + exp(t (v W_j + c_j)))

    whose constant is known at t = 0 and wanted at t = 1. t rises in ``temperatures`` equal steps, with one step of
    block Gibbs sampling between two of them. Weights are unbiased for Z at any number of chains and steps, log Z is
    not. The standard deviation is that of the weights, which knows nothing of a mode that no chain has seen. float64.
    Raises UserError for parameters that are nan or inf.
    """
    if chains < 2 or temperatures < 1:
        raise ValueError(f"chains={chains}, temperatures={temperatures}: at least 2 and 1")
    rbm = _in_double(rbm, rbm.weight.device)
    weight, b, c = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    a = torch.zeros_like(b) if base is None else base.to(b)
    if a.shape != b.shape or not bool(a.isfinite().all()):
        raise ValueError(f"base is {list(a.shape)}: finite {list(b.shape)} are due")
    generator = torch.Generator(b.device).manual_seed(seed)

    def bernoulli(logits: Tensor) -> Tensor:
        return torch.bernoulli(logits.sigmoid(), generator=generator)

    times = torch.linspace(0.0, 1.0, temperatures + 1, dtype=torch.float64).tolist()
    v = bernoulli(a.expand(chains, -1))  # [M V]
    log_weight = b.new_zeros(chains)
    for before, t in pairwise(times):
        drive = v @ weight + c  # [M H]
        log_weight += (t - before) * (v @ (b - a)) + (_softplus(t * drive) - _softplus(before * drive)).sum(dim=1)
        if t < 1.0:  # the last state is not asked for
            hidden = bernoulli(t * drive)
            v = bernoulli((1 - t) * a + t * (b + hidden @ weight.T))
    log_base = len(c) * math.log(2.0) + float(_softplus(a).sum())
    mean = float(torch.logsumexp(log_weight, dim=0)) - math.log(chains)
    # Standard deviation of the estimate of Z over that estimate: that of log Z to first order.
    sd = float((log_weight - mean).exp().std()) / math.sqrt(chains)
    estimate = log_base + mean
    lower = estimate + math.log1p(-3.0 * sd) if 3.0 * sd < 1.0 else -math.inf
    return LogPartition(estimate, lower, estimate + math.log1p(3.0 * sd), sd)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to the last digit: torch's own is x itself above 20."""
    return -F.logsigmoid(-x)


def _in_double(rbm: RBM, device: torch.device) -> RBM:
    weight, b, c = (part.detach().to(device, torch.float64) for part in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
    if b.ndim != 1 or c.ndim != 1 or weight.shape != (len(b), len(c)):
        raise ValueError(
            f"an RBM has W [V H], b [V], c [H], not {list(weight.shape)}, {list(b.shape)}, {list(c.shape)}"
        )
    if not all(bool(part.isfinite().all()) for part in (weight, b, c)):
        raise UserError("metrics: weights or biases of the Boltzmann machine are nan or inf: the model has diverged")
    return RBM(weight, b, c)


def _units(system: Boltzmann, x: Tensor) -> Tensor:
    """float64 [B V]."""
    v = system.units(x).double()
    if v.ndim != 2 or len(v) != len(x) or not bool(((v == 0) | (v == 1)).all()):
        raise ValueError(f"units of {len(x)} images are {list(v.shape)}: [B V] of 0 and 1 are due")
    return v
