"""Restricted Boltzmann machine: visible and hidden units, connected between the groups and not within.

Paper: Hinton 2002, Training Products of Experts by Minimizing Contrastive Divergence, Neural Computation 14 (CD);
Tieleman 2008, Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient (PCD); Hinton
2012, A Practical Guide to Training Restricted Boltzmann Machines, sections 8 (biases from the data's means) and 13.2
(Gaussian units); Melchior, Fischer and Wiskott 2016, How to Center Deep Boltzmann Machines, JMLR 17.
    E(v, h) = -b v - c h - v W h,    F(v) = -b v - sum_j log(1 + exp(c_j + v W_j)),
    gradient = E_data[dF] - E_model[dF]
Adds: a machine whose likelihood is known but for the constant Z, and two ways to come by samples for the second term.
Departs: ``centred`` takes units less their offsets, which changes the direction of the gradient and not the set of
distributions: chains then mix over the kinds of picture, and do not stay with one. Offsets stay where they began.
The gradient is that of mean F(data) - mean F(samples), the samples held fixed, by autograd: the last hidden
update is then by probabilities, and nothing else differs from the rules in the papers. No weight decay, no sparsity
target, no parallel tempering.
Checked by: tests/test_boltzmann.py (energies, conditionals, probabilities and the gradient against enumeration; a long
chain; chains over a resume), tests/test_likelihood_scores.py (annealed importance sampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gentrain.capabilities import RBM
from gentrain.errors import UserError
from gentrain.objectives.boltzmann import drawn, free_energy, mean_of_hidden, mean_of_visible, mean_under, walk
from gentrain.types import Spec


@dataclass(frozen=True)
class Restricted:
    """``hidden``: binary hidden units. ``centred``: learn the biases of units less their offsets (config target)."""

    hidden: int = 500
    centred: bool = False

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UserError(f"model.net.hidden={self.hidden}: at least 1")

    @property
    def codes(self) -> int:
        return self.hidden

    def machine(self, spec: Spec, *, gaussian: bool) -> nn.Module:
        return RestrictedMachine(spec.numel, self.hidden, gaussian, self.centred)


class RestrictedMachine(nn.Module):
    """Weights start at U(-r, r), r = sqrt(6 / (V + H)), hidden biases at 0."""

    exact = True

    def __init__(self, visible: int, hidden: int, gaussian: bool = False, centred: bool = False) -> None:
        super().__init__()
        self.gaussian, self.centred = gaussian, centred
        reach = math.sqrt(6.0 / (visible + hidden))
        self.weight = nn.Parameter(torch.empty(visible, hidden).uniform_(-reach, reach))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base", torch.zeros(visible))
        self.base: Tensor

    def rbm(self) -> RBM:
        rbm = RBM(self.weight, self.visible_bias, self.hidden_bias, self.gaussian)
        return uncentred(rbm, self.base) if self.centred else rbm

    @torch.no_grad()
    def begin(self, units: Tensor) -> None:
        begin_biases(self.visible_bias, self.base, units, self.gaussian)

    def complete(self, v: Tensor) -> Tensor:
        return v

    def free_energy(self, v: Tensor) -> Tensor:
        return free_energy(self.rbm(), v)


def uncentred(rbm: RBM, base: Tensor) -> RBM:
    """The same distribution without offsets, of a machine that has them: the means that ``base`` [V] gives units alone
    for the first group, 1/2 for the second."""
    return replace(
        rbm,
        visible_bias=rbm.visible_bias - 0.5 * rbm.weight.sum(dim=1),
        hidden_bias=rbm.hidden_bias - mean_under(base, gaussian=rbm.gaussian) @ rbm.weight,
    )


def begin_biases(biases: Tensor, base: Tensor, units: Tensor, gaussian: bool) -> None:
    """Set the first of ``biases`` and ``base`` so that units alone have the means of ``units`` [N V]; binary ones are
    never always on or off: one sample of either kind is added."""
    mean = units.mean(0) if gaussian else torch.logit((units.sum(0) + 1.0) / (len(units) + 2.0))
    for tensor in (biases, base):
        tensor[: len(mean)] = mean


@dataclass(frozen=True)
class ContrastiveDivergence:
    """CD-k: ``steps`` of Gibbs sampling from the data (config target)."""

    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"model.negative.steps={self.steps}: at least 1")

    @torch.no_grad()
    def __call__(self, rbm: RBM, u: Tensor) -> Tensor:
        h = drawn(mean_of_hidden(rbm, u), None)
        if self.steps > 1:
            _, h = walk(rbm, h, self.steps - 1)
        return drawn(mean_of_visible(rbm, h), None, gaussian=rbm.gaussian)


class Persistent(nn.Module):
    """PCD-k: ``chains`` that go on for ``steps`` from where the last iteration left them (config target). They begin at
    hidden units of a fair coin, and travel in the checkpoint as bytes: floating-point state is averaged over ranks, and
    each rank has chains of its own."""

    def __init__(self, steps: int = 1, chains: int = 100) -> None:
        super().__init__()
        for name, value in (("steps", steps), ("chains", chains)):
            if value < 1:
                raise UserError(f"model.negative.{name}={value}: at least 1")
        self.steps, self.count = steps, chains
        self.register_buffer("hidden", torch.empty(0, 0, dtype=torch.uint8))  # [M H], known with the first machine
        self.hidden: Tensor

    @torch.no_grad()
    def forward(self, rbm: RBM, u: Tensor) -> Tensor:
        shape = (self.count, len(rbm.hidden_bias))
        if self.hidden.shape != shape:
            self.hidden = torch.randint(0, 2, shape, dtype=torch.uint8, device=u.device)
        h = self.hidden.to(u.dtype)
        if self.steps > 1:
            _, h = walk(rbm, h, self.steps - 1)
        fake = drawn(mean_of_visible(rbm, h), None, gaussian=rbm.gaussian)
        self.hidden = drawn(mean_of_hidden(rbm, fake), None).to(torch.uint8)
        return fake

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *rest: object) -> None:
        held = state_dict.get(prefix + "hidden")
        if isinstance(held, Tensor):  # how many units there are is not known before the first machine
            self.hidden = torch.empty_like(held, device=self.hidden.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
