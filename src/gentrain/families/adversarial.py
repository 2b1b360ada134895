"""A generator and a critic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.nets.architecture import Architecture
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.objectives.constraints import Constraint
from gentrain.objectives.penalties import Penalty, refuse_batch_norm
from gentrain.types import Images, Spec, Terms

Prior = Literal["normal", "uniform"]


def prior_noise(prior: Prior, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """[n Z] from N(0, I) or from U(-1, 1)."""
    if prior == "normal":
        return torch.randn(n, latent, device=device, generator=generator)
    return torch.rand(n, latent, device=device, generator=generator).mul_(2.0).sub_(1.0)


@final
class Adversarial(System):
    """A GAN (Goodfellow et al. 2014) whose loss, penalties, constraint and networks are values.

    The critic moves first and sees samples that carry no gradient to the generator; the generator's move goes through
    the critic, whose weights stand still. ``fresh_noise``: the generator moves on samples of its own, as in
    Goodfellow's Algorithm 1; otherwise on those that the critic has just seen, which saves a pass (the DCGAN authors'
    code). ``joint_batch``: the critic sees real and generated samples as one batch; equal in result, and faster, for a
    critic without batch norm, and shared statistics for one with it. ``constraint`` acts on the critic after each of
    its steps. UserError where the loss needs a Lipschitz critic and neither a penalty nor a constraint makes one.
    """

    sampled = ("generator",)

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: AdversarialLoss,
        players: Mapping[str, Moves],
        latent: int = 128,
        prior: Prior = "normal",
        penalties: Mapping[str, Penalty] | None = None,
        constraint: Constraint | None = None,
        fresh_noise: bool = True,
        joint_batch: bool = False,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        if latent < 1:
            raise UserError(f"model.latent={latent}: at least 1")
        if loss.needs_lipschitz and not penalties and constraint is None:
            raise UserError(
                "model.loss: this loss needs a Lipschitz critic, and neither model.penalties nor model.constraint "
                "makes one: choose a model that brings one (model=wgan_gp, model=wgan), or another loss"
            )
        self.loss = loss
        self.latent = latent
        self.prior: Prior = prior
        self.penalties = dict(penalties or {})
        self.constraint = constraint
        self.fresh_noise = fresh_noise
        self.joint_batch = joint_batch
        self.nets["generator"] = net.decoder(spec, latent)
        self.nets["critic"] = net.encoder(spec, 1)
        if any(penalty.per_sample for penalty in self.penalties.values()):
            refuse_batch_norm(self.nets["critic"])
        self._kept: dict[int, Tensor] = {}

    def players(self) -> Sequence[Player]:
        after = None if self.constraint is None else self._constrain
        return (
            Player("critic", nets=("critic",), loss=self.critic_loss, after=after),
            Player("generator", nets=("generator",), loss=self.generator_loss),
        )

    def critic_loss(self, batch: Images) -> Terms:
        real = batch.signed
        fake = self._fakes_for_critic(batch)
        on_real, on_fake = self._judge(real, fake)
        terms = self.loss.critic(on_real, on_fake)
        for penalty in self.penalties.values():
            terms |= penalty(self.nets["critic"], real, fake)
        self._note_scores(on_real, on_fake)
        return terms

    def generator_loss(self, batch: Images) -> Terms:
        fake = self._kept.pop(id(batch), None)
        if fake is None:
            fake = self.generate(len(batch))
        return self.loss.generator(self.nets["critic"](fake))

    def generate(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """[n C H W] in [-1, 1] (or [n D]) from new noise."""
        made: Tensor = self.nets["generator"](prior_noise(self.prior, n, self.latent, self.device, generator))
        return made

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(n, generator)

    # ----------------------------------------------------------------

    def _fakes_for_critic(self, batch: Images) -> Tensor:
        if self.fresh_noise or not self._generator_moves():
            with torch.no_grad():
                return self.generate(len(batch))
        with _open(self.nets["generator"]):
            fake = self.generate(len(batch))
        self._kept[id(batch)] = fake
        return fake.detach()

    def _generator_moves(self) -> bool:
        return any(s.player.name == "generator" and s.moves_at(self.clock.iteration + 1) for s in self.seats)

    def _judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        critic = self.nets["critic"]
        if self.joint_batch:
            both: Tensor = critic(torch.cat([real, fake.to(real.dtype)]))
            return both[: len(real)], both[len(real) :]
        return critic(real), critic(fake)

    def _note_scores(self, on_real: Tensor, on_fake: Tensor) -> None:
        means = torch.stack([on_real.detach().float(), on_fake.detach().float()]).flatten(1)
        if self.loss.probabilistic:
            means = means.sigmoid()
        real, fake = means.mean(1).unbind()
        self.note("score/real", real)
        self.note("score/fake", fake)

    def _constrain(self) -> None:
        assert self.constraint is not None
        self.constraint(self.nets["critic"])


@contextlib.contextmanager
def _open(net: nn.Module) -> Iterator[None]:
    """Build a graph through a network whose turn it is not yet."""
    net.requires_grad_(True)
    try:
        yield
    finally:
        net.requires_grad_(False)
