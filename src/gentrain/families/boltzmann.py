"""A Boltzmann machine: an energy of visible and hidden units, and chains that sample from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast, final

import torch
from torch import Tensor, nn

from gentrain.capabilities import RBM
from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.objectives.boltzmann import (
    Annealing,
    Machine,
    MakesMachine,
    MakesUnits,
    Negative,
    Visible,
    detached,
    drawn,
    enumerable,
    exact_log_partition,
    free_energy,
    in_double,
    log_partition,
    mean_of_hidden,
    mean_of_visible,
    mean_under,
    softplus,
    walk,
)
from gentrain.types import Images, LikelihoodOn, Spec, Terms

FIRST_IMAGES = 10_000
"""Training images whose means the machine begins from."""


@final
class BoltzmannMachine(System):
    """One player that minimises mean F(data) - mean F(samples): its gradient is that of minus the log-likelihood as far
    as the samples are the model's.

    ``net``: restricted, or with a second hidden layer. ``loss``: how data become units. ``negative``: where the
    samples of training come from (CD-k, PCD-k). ``steps``: of a chain from independent pixels with the data's means to
    a sample, of which the last mean is shown. ``annealing``: of the constant in ``log_likelihood``, where the machine
    is too large to be enumerated. ``watch_every``: iterations between looks at how well it reconstructs and at its
    pseudo-likelihood. Float32 under any precision.
    """

    sampled = ("machine",)
    first_images = FIRST_IMAGES

    def __init__(
        self,
        spec: Spec,
        net: MakesMachine,
        loss: MakesUnits,
        negative: Negative,
        players: Mapping[str, Moves],
        steps: int = 1000,
        annealing: Annealing | None = None,
        watch_every: int = 10,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        for name, value in (("steps", steps), ("watch_every", watch_every)):
            if value < 1:
                raise UserError(f"model.{name}={value}: at least 1")
        self.visible: Visible = loss.units(spec)
        self.negative = negative
        for name, part in (("visible", self.visible), ("negative", negative)):
            if isinstance(part, nn.Module):  # with state: the data's scales, persistent chains
                self.rules[name] = part
        self.steps, self.watch_every = steps, watch_every
        self.annealing = Annealing() if annealing is None else annealing
        self.latent = net.codes
        self.nets["machine"] = net.machine(spec, gaussian=self.visible.gaussian)
        self._constant: tuple[RBM, float] | None = None

    @property
    def machine(self) -> Machine:
        return cast("Machine", self.nets["machine"])

    def begin_from(self, x: Tensor) -> None:
        self.visible.begin(x)
        self.machine.begin(self.visible.prepare(x, fixed=True))

    def players(self) -> Sequence[Player]:
        return (Player("machine", nets=("machine",), loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        with torch.autocast(self.device.type, enabled=False):
            rbm, v = self.machine.rbm(), self.visible.prepare(batch.x)
            known = self.machine.complete(v)
            fake = self.negative(detached(rbm), known)
            if (self.clock.iteration + 1) % self.watch_every == 0:
                self._watch(detached(rbm), known, v.shape[1])
            return {"data": free_energy(rbm, known).mean(), "model": -free_energy(rbm, fake).mean()}

    @torch.no_grad()
    def _watch(self, rbm: RBM, u: Tensor, pixels: int) -> None:
        """``reconstruction/error``: mean square per unit between data and what their hidden means give back.
        ``pseudo_likelihood/nats``: V log p(v_i | the other units) of one random pixel in each sample, where all of the
        first group is data (Hinton 2012 has the first, Besag 1975 the second)."""
        back = mean_of_visible(rbm, mean_of_hidden(rbm, u))[:, :pixels]
        self.note("reconstruction/error", (u[:, :pixels] - back).square().mean())
        if rbm.gaussian or not self.machine.exact:
            return
        place = torch.randint(pixels, (len(u),), device=u.device)
        flip = 1.0 - 2.0 * u.gather(1, place[:, None])  # [B 1]
        drive = u @ rbm.weight + rbm.hidden_bias
        # F(v) - F(v with that pixel flipped)
        less = (softplus(drive + flip * rbm.weight[place]) - softplus(drive)).sum(1)
        less = less + flip[:, 0] * rbm.visible_bias[place]
        self.note("pseudo_likelihood/nats", -pixels * softplus(less).mean())

    # ---------------------------------------------------------------- capabilities

    def chain(
        self,
        n: int,
        *,
        length: int,
        stride: int,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            machine, rbm = self.machine, detached(self.machine.rbm())
            if start is None:
                mean = mean_under(machine.base, gaussian=rbm.gaussian)
                u = drawn(mean.expand(n, -1), generator, gaussian=rbm.gaussian)
            else:
                u = machine.complete(self.visible.prepare(start.to(self.device), fixed=True))
            h = drawn(mean_of_hidden(rbm, u), generator)
            states = []
            for _ in range(length):
                mean, h = walk(rbm, h, stride, generator)
                states.append(self._shown(mean))
            return torch.stack(states, dim=1)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.chain(n, length=1, stride=self.steps, generator=generator)[:, 0]

    def encode(self, x: Tensor) -> Tensor:
        """p(h = 1 | x) of the first hidden layer [B H]."""
        with torch.autocast(self.device.type, enabled=False):
            return mean_of_hidden(self.machine.rbm(), self.machine.complete(self.units(x).float()))

    def decode(self, z: Tensor) -> Tensor:
        """Means given the first hidden layer."""
        with torch.autocast(self.device.type, enabled=False):
            return self._shown(mean_of_visible(self.machine.rbm(), z.float()))

    def reconstruct(self, x: Tensor) -> Tensor:
        """[B C H W] in [-1, 1] for x uint8 [B C H W]; vectors for vectors."""
        return self.decode(self.encode(x))

    @property
    def likelihood_on(self) -> LikelihoodOn:
        """That of the units; exact where nothing is bounded and the constant is no estimate."""
        exact = self.machine.exact and enumerable(self.machine.rbm())
        return replace(self.visible.likelihood_on, exact=exact)

    def rbm(self) -> RBM:
        return self.machine.rbm()

    def units(self, x: Tensor) -> Tensor:
        return self.visible.prepare(x, fixed=True)

    @torch.no_grad()
    def free_energy(self, x: Tensor) -> Tensor:
        """In float64; of a density, that of the data in their own unit."""
        machine = copy.deepcopy(self.nets["machine"]).double()
        v = self.units(x).double()
        return cast("Machine", machine).free_energy(v) + self.visible.log_volume

    def log_likelihood(self, x: Tensor) -> Tensor:
        return -self.free_energy(x) - self.log_constant()

    def log_constant(self) -> float:
        """log Z in nats: exact for at most 20 units in one group, else annealed from the data's means, with the same
        noise each time. It is computed once for one set of weights."""
        now = in_double(self.machine.rbm())
        parts = ("weight", "visible_bias", "hidden_bias")
        if self._constant is not None and all(
            torch.equal(getattr(now, part), getattr(self._constant[0], part)) for part in parts
        ):
            return self._constant[1]
        if enumerable(now):
            value = exact_log_partition(now)
        else:
            numbers = self.annealing
            found = log_partition(
                now, chains=numbers.chains, temperatures=numbers.temperatures, base=self.machine.base.detach()
            )
            value = found.estimate
        self._constant = (now, value)
        return value

    def _shown(self, mean: Tensor) -> Tensor:
        """Of means of the first group [B U]."""
        return self.visible.show(mean[:, : self.spec.numel])
