"""Deep Boltzmann machine of two hidden layers, the second connected to the first alone.

Paper: Salakhutdinov and Hinton 2009, Deep Boltzmann Machines, AISTATS: section 2 (mean field, persistent chains), 3
(two layers), 3.2 (annealed importance sampling with one layer summed over, lower bound). Montavon and Mueller 2012,
Learning Feature Hierarchies with Centered Deep Boltzmann Machines, arXiv 1203.3783: units minus offsets.
    E(v, h1, h2) = -b v - c1 h1 - c2 h2 - v W1 h1 - h1 W2 h2,    ``centred``: each unit less its first mean
Adds to the restricted machine: a second hidden layer, whose posterior is approximated by a product of means that are
iterated to a fixed point; the likelihood is bounded from below. Given h1 the pixels and h2 are independent, so it is a
restricted machine of (v, h2) against h1: chains, gradient and annealing are its own.
Departs: no greedy pretraining of the layers (section 3.1), which the paper credits with better models: here both layers
learn together from the first iteration, which centring makes possible; its offsets stay where they began.
Checked by: tests/test_boltzmann.py (the bound below the enumerated log p, tight without the second layer's weights,
better with more iterations of the mean field; its gradient; annealing against enumeration).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentrain.capabilities import RBM
from gentrain.errors import UserError
from gentrain.models.rbm import begin_biases, uncentred
from gentrain.objectives.boltzmann import free_energy, mean_of_visible
from gentrain.types import Spec


@dataclass(frozen=True)
class TwoLayers:
    """``hidden``: units of the first and of the second layer; ``mean_field``: iterations; ``centred``: learn the biases
    of units less their offsets (config target)."""

    hidden: Sequence[int] = (500, 1000)
    mean_field: int = 10
    centred: bool = False

    def __post_init__(self) -> None:
        if len(self.hidden) != 2 or min(self.hidden) < 1:
            raise UserError(f"model.net.hidden={list(self.hidden)}: two numbers of 1 or more")
        if self.mean_field < 1:
            raise UserError(f"model.net.mean_field={self.mean_field}: at least 1")

    @property
    def codes(self) -> int:
        return self.hidden[0]

    def machine(self, spec: Spec, *, gaussian: bool) -> nn.Module:
        if gaussian:
            raise UserError("loss=unit_gaussian: this machine is of binary units; model=rbm has Gaussian ones")
        return TwoLayerMachine(spec.numel, self.hidden[0], self.hidden[1], self.mean_field, self.centred)


class TwoLayerMachine(nn.Module):
    """``weight`` [V+H2 H1]: W1 above W2's transpose. All weights start at N(0, 0.01^2), hidden biases at 0.

    ``centred``: the biases are those of pixels less their means in the data, of hidden units less 1/2. It is the same
    set of distributions as without, and another direction of steepest descent.
    """

    exact = False

    def __init__(self, visible: int, first: int, second: int, mean_field: int, centred: bool = False) -> None:
        super().__init__()
        self.visible, self.mean_field, self.centred = visible, mean_field, centred
        self.weight = nn.Parameter(0.01 * torch.randn(visible + second, first))
        self.outer_bias = nn.Parameter(torch.zeros(visible + second))  # of the pixels and of the second layer
        self.first_bias = nn.Parameter(torch.zeros(first))
        self.register_buffer("base", torch.zeros(visible + second))
        self.base: Tensor

    def rbm(self) -> RBM:
        rbm = RBM(self.weight, self.outer_bias, self.first_bias)
        return uncentred(rbm, self.base) if self.centred else rbm

    @torch.no_grad()
    def begin(self, units: Tensor) -> None:
        begin_biases(self.outer_bias, self.base, units, gaussian=False)

    @torch.no_grad()
    def complete(self, v: Tensor) -> Tensor:
        """Coordinate ascent on the bound, from a second layer that knows nothing: each half step raises it."""
        rbm, pixels = self.rbm(), self.visible
        from_data = v @ rbm.weight[:pixels] + rbm.hidden_bias
        above = RBM(rbm.weight[pixels:], rbm.visible_bias[pixels:], rbm.hidden_bias)
        second = torch.full((len(v), len(above.visible_bias)), 0.5, dtype=v.dtype, device=v.device)
        for _ in range(self.mean_field):
            first = torch.sigmoid(from_data + second @ above.weight)
            second = mean_of_visible(above, first)
        return torch.cat([v, second], dim=1)

    def free_energy(self, v: Tensor) -> Tensor:
        """The variational one: with the best first layer for the second's means mu it is the free energy of
        (v, mu) minus the entropy of mu."""
        u = self.complete(v)
        mu = u[:, self.visible :]
        entropy: Tensor = torch.special.entr(mu) + torch.special.entr(1.0 - mu)
        return free_energy(self.rbm(), u) - entropy.sum(dim=1)
