"""Boltzmann machines of two groups of units without connections within either: energies, conditionals, chains and the
constant Z.

Both groups may hold anything: of a restricted machine they are the visible and the hidden units, of one with two hidden
layers the visible and the second hidden layer against the first, so that the same lines serve both (Salakhutdinov and
Hinton 2009, Deep Boltzmann Machines, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.capabilities import RBM
from gentrain.errors import UserError
from gentrain.types import LikelihoodOn, Spec

ENUMERABLE = 20
"""Binary units whose states are all visited for an exact constant: a million states."""

AT_ONCE = 1 << 12
"""States in memory at a time."""


class Visible(Protocol):
    """How data become units and back."""

    @property
    def gaussian(self) -> bool: ...

    @property
    def likelihood_on(self) -> LikelihoodOn: ...

    def begin(self, x: Tensor) -> None:
        """See training data, uint8 [N C H W] or vectors [N D], before the first iteration."""
        ...

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        """Units float32 [B V] of data; ``fixed``: where they are drawn, a sample always gets the same draw."""
        ...

    def show(self, mean: Tensor) -> Tensor:
        """Means of units [B V] as data in [-1, 1] [B C H W], or vectors [B D]."""
        ...

    @property
    def log_volume(self) -> Tensor:
        """Nats by which a density of units is more than that of the data."""
        ...


class MakesUnits(Protocol):
    """A choice of units that waits for the data."""

    def units(self, spec: Spec) -> Visible: ...


class Machine(Protocol):
    """The parameters, and what stands for the units of the first group that are not the data's."""

    exact: bool
    """Whether ``free_energy`` is it, or no more than a bound."""

    base: Tensor
    """Biases [U] of independent units with the data's means: where chains and annealing begin."""

    def rbm(self) -> RBM: ...

    def begin(self, units: Tensor) -> None:
        """Start from the means of training units [N V]."""
        ...

    def complete(self, v: Tensor) -> Tensor:
        """First group [B U] for the data's units [B V], with means for what is not known; no gradient goes back."""
        ...

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) [B] nats of the data's units [B V], or an upper bound on it."""
        ...


class MakesMachine(Protocol):
    """A choice of machine that waits for the data."""

    @property
    def codes(self) -> int:
        """Hidden units of the second group."""
        ...

    def machine(self, spec: Spec, *, gaussian: bool) -> nn.Module:
        """A ``Machine`` for data of this shape."""
        ...


class Negative(Protocol):
    """Where the model's samples of a training step come from."""

    def __call__(self, rbm: RBM, u: Tensor) -> Tensor:
        """Samples of the first group [M U] for the data's [B U]; none carries a gradient."""
        ...


def free_energy(rbm: RBM, v: Tensor) -> Tensor:
    """F(v) = -b v - sum_j log(1 + exp(v W_j + c_j)), [B] nats for v [B V]: log p(v) = -F(v) - log Z. With Gaussian
    units |v - b|^2 / 2 stands for -b v."""
    own = 0.5 * (v - rbm.visible_bias).square().sum(dim=1) if rbm.gaussian else -(v @ rbm.visible_bias)
    return own - softplus(v @ rbm.weight + rbm.hidden_bias).sum(dim=1)


def mean_of_hidden(rbm: RBM, v: Tensor) -> Tensor:
    """p(h = 1 | v) [B H]."""
    return torch.sigmoid(v @ rbm.weight + rbm.hidden_bias)


def mean_of_visible(rbm: RBM, h: Tensor) -> Tensor:
    """E[v | h] [B V]."""
    return mean_under(h @ rbm.weight.T + rbm.visible_bias, gaussian=rbm.gaussian)


def mean_under(drive: Tensor, *, gaussian: bool) -> Tensor:
    """Mean of units by what drives them: their biases, where nothing else does."""
    return drive if gaussian else torch.sigmoid(drive)


def drawn(mean: Tensor, generator: torch.Generator | None, *, gaussian: bool = False) -> Tensor:
    """Units with this mean: 0 or 1, or of variance 1."""
    if gaussian:
        return mean + torch.empty_like(mean).normal_(generator=generator)
    return torch.bernoulli(mean, generator=generator)


@torch.no_grad()
def walk(rbm: RBM, h: Tensor, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """``steps`` of block Gibbs sampling, each v given h and h given v, from h [M H]: the mean of the last v given its
    h [M V], and the last h."""
    mean = h
    for _ in range(steps):
        mean = mean_of_visible(rbm, h)
        h = drawn(mean_of_hidden(rbm, drawn(mean, generator, gaussian=rbm.gaussian)), generator)
    return mean, h


def detached(rbm: RBM) -> RBM:
    return replace(
        rbm,
        weight=rbm.weight.detach(),
        visible_bias=rbm.visible_bias.detach(),
        hidden_bias=rbm.hidden_bias.detach(),
    )


def in_double(rbm: RBM, device: torch.device | None = None) -> RBM:
    """On the device, without gradients. UserError for parameters that are nan or inf."""
    device = rbm.weight.device if device is None else device
    weight, b, c = (part.detach().to(device, torch.float64) for part in (rbm.weight, rbm.visible_bias, rbm.hidden_bias))
    if b.ndim != 1 or c.ndim != 1 or weight.shape != (len(b), len(c)):
        raise ValueError(
            f"an RBM has W [V H], b [V], c [H], not {list(weight.shape)}, {list(b.shape)}, {list(c.shape)}"
        )
    if not all(bool(part.isfinite().all()) for part in (weight, b, c)):
        raise UserError("metrics: weights or biases of the Boltzmann machine are nan or inf: the model has diverged")
    return RBM(weight, b, c, rbm.gaussian)


# -------------------------------------------------------------------- the constant


class LogPartition(NamedTuple):
    """An estimate of log Z in nats. ``lower``, ``upper``: log of the estimate of Z minus and plus three standard
    deviations of it, -inf where these are more than the estimate. ``sd``: of log Z, to first order."""

    estimate: float
    lower: float
    upper: float
    sd: float


@dataclass(frozen=True)
class Annealing:
    """Numbers of ``log_partition`` (config target)."""

    chains: int = 100
    temperatures: int = 10_000

    def __post_init__(self) -> None:
        for name, least in (("chains", 2), ("temperatures", 1)):
            if getattr(self, name) < least:
                raise UserError(f"model.annealing.{name}={getattr(self, name)}: at least {least}")


def enumerable(rbm: RBM) -> bool:
    """Whether ``exact_log_partition`` is a matter of seconds."""
    return min(len(rbm.hidden_bias), math.inf if rbm.gaussian else len(rbm.visible_bias)) <= ENUMERABLE


@torch.no_grad()
def exact_log_partition(rbm: RBM) -> float:
    """log Z in nats by visiting all states of the smaller group of binary units, the other summed over in closed form.
    float64. ValueError for more than 20 of them."""
    if not enumerable(rbm):
        raise ValueError(f"{list(rbm.weight.shape)}: one group of at most {ENUMERABLE} binary units is due")
    rbm = in_double(rbm)
    if not rbm.gaussian and len(rbm.visible_bias) < len(rbm.hidden_bias):
        rbm = RBM(rbm.weight.T, rbm.hidden_bias, rbm.visible_bias)
    parts = []
    for h in _states(len(rbm.hidden_bias), rbm.weight.device):
        drive = rbm.visible_bias + h @ rbm.weight.T  # [S V]
        if rbm.gaussian:
            rest = 0.5 * (drive.square() - rbm.visible_bias.square() + math.log(2.0 * math.pi)).sum(dim=1)
        else:
            rest = softplus(drive).sum(dim=1)
        parts.append(torch.logsumexp(h @ rbm.hidden_bias + rest, dim=0))
    return float(torch.logsumexp(torch.stack(parts), dim=0))


def _states(count: int, device: torch.device) -> Iterator[Tensor]:
    """All states of ``count`` binary units in parts, float64 [S count]."""
    places = torch.arange(count, device=device)
    for part in torch.split(torch.arange(2**count, device=device), AT_ONCE):
        yield (part[:, None] >> places & 1).double()


@torch.no_grad()
def log_partition(
    rbm: RBM, *, chains: int = 100, temperatures: int = 10_000, seed: int = 0, base: Tensor | None = None
) -> LogPartition:
    """log Z of a restricted Boltzmann machine by annealed importance sampling (Neal 2001, arXiv physics/9803008;
    Salakhutdinov and Murray 2008, On the quantitative analysis of deep belief networks, section 4.1).

    ``base``: visible biases a [V] of independent units, from which each of ``chains`` runs starts; None: all 0, or of
    Gaussian units their own. The model at inverse temperature t has the unnormalised probability

        p_t(v) = exp((1 - t) a v + t b v) prod_j (1 + exp(t (v W_j + c_j)))

    (Gaussian units: -|v - a|^2 / 2 and -|v - b|^2 / 2 for a v and b v) whose constant is known at t = 0 and wanted at
    t = 1. t rises in ``temperatures`` equal steps, with one step of block Gibbs sampling between two of them. Weights
    are unbiased for Z at any number of chains and steps, log Z is not. The standard deviation is that of the weights,
    which knows nothing of a mode that no chain has seen. float64. Raises UserError for parameters that are nan or inf.
    """
    if chains < 2 or temperatures < 1:
        raise ValueError(f"chains={chains}, temperatures={temperatures}: at least 2 and 1")
    rbm = in_double(rbm)
    weight, b, c = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    own = b if rbm.gaussian else torch.zeros_like(b)
    a = own if base is None else base.to(b)
    if a.shape != b.shape or not bool(a.isfinite().all()):
        raise ValueError(f"base is {list(a.shape)}: finite {list(b.shape)} are due")
    generator = torch.Generator(b.device).manual_seed(seed)

    def visible(drive: Tensor) -> Tensor:
        mean = drive if rbm.gaussian else drive.sigmoid()
        return drawn(mean, generator, gaussian=rbm.gaussian)

    times = torch.linspace(0.0, 1.0, temperatures + 1, dtype=torch.float64).tolist()
    v = visible(a.expand(chains, -1))  # [M V]
    offset = 0.5 * float((a.square() - b.square()).sum()) if rbm.gaussian else 0.0
    log_weight = b.new_zeros(chains)
    for before, t in pairwise(times):
        drive = v @ weight + c  # [M H]
        log_weight += (t - before) * (v @ (b - a) + offset)
        log_weight += (softplus(t * drive) - softplus(before * drive)).sum(dim=1)
        if t < 1.0:  # the last state is not asked for
            hidden = drawn((t * drive).sigmoid(), generator)
            v = visible((1 - t) * a + t * (b + hidden @ weight.T))
    log_base = len(c) * math.log(2.0)
    log_base += 0.5 * len(b) * math.log(2.0 * math.pi) if rbm.gaussian else float(softplus(a).sum())
    mean = float(torch.logsumexp(log_weight, dim=0)) - math.log(chains)
    # Standard deviation of the estimate of Z over that estimate: that of log Z to first order.
    sd = float((log_weight - mean).exp().std()) / math.sqrt(chains)
    estimate = log_base + mean
    lower = estimate + math.log1p(-3.0 * sd) if 3.0 * sd < 1.0 else -math.inf
    return LogPartition(estimate, lower, estimate + math.log1p(3.0 * sd), sd)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to the last digit: torch's own is x itself above 20."""
    return -F.logsigmoid(-x)
