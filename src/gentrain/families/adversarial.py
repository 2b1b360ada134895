"""A generator and a critic."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.families.generating import Generating, Made, Prior
from gentrain.game import Aim, Codes, Replay, Round, Verdict, View, Watching
from gentrain.nets.architecture import Architecture
from gentrain.nets.conditioning import Labels
from gentrain.nets.critic import MakesCritic, Scoring, held_estimate, one_estimate, spectral_norm
from gentrain.objectives.adversarial import GameLoss
from gentrain.objectives.constraints import Constraint
from gentrain.objectives.penalties import Penalty, refuse_mixing
from gentrain.types import Images, Spec, Terms


class Adversarial(Generating):
    """A GAN (Goodfellow et al. 2014) whose loss, penalties, constraint, conditions and networks are values.

    The critic moves first and sees samples that carry no gradient to the generator; the generator's move goes through
    the critic, whose weights stand still. ``fresh_noise``: the generator moves on samples of its own, as in
    Goodfellow's Algorithm 1; otherwise on those that the critic has just seen, which saves a pass (the DCGAN authors'
    code) unless ``turns`` showed it samples of predicted weights. ``joint_batch``: the critic sees real and generated
    samples as one batch; equal in result, and faster, for a critic without batch norm, and shared statistics for one
    with it. ``constraint`` acts on the critic after each of its steps. ``critic``: what it is, by default one score.
    ``labels``: where classes enter; samples for training are made for the labels of the batch, so that theirs come as
    often as the data's. ``codes`` stand behind the noise;
    ``aims`` are further terms, ``views`` what is done to samples before the critic sees them, ``replay`` older samples
    that it sees again. ``spectral``: networks whose weights are divided by their largest singular value.
    ``weights``: of the loss, for each player; 0 leaves it to the aims. ``reference``: samples of the reference batch of
    virtual batch norm, for a generator that has it. UserError where the loss needs a Lipschitz critic and nothing makes
    one, and for parts that do not go together.
    """

    reads_images: ClassVar[bool] = False
    """Whether the critic is asked about images without labels when training is over."""

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: GameLoss,
        players: Mapping[str, Moves],
        latent: int = 128,
        prior: Prior = "normal",
        penalties: Mapping[str, Penalty] | None = None,
        constraint: Constraint | None = None,
        fresh_noise: bool = True,
        joint_batch: bool = False,
        critic: MakesCritic | None = None,
        labels: Labels | None = None,
        codes: Codes | None = None,
        aims: Mapping[str, Aim] | None = None,
        views: Mapping[str, View] | None = None,
        replay: Replay | None = None,
        spectral: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        reference: int = 64,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, latent, prior, codes, labels, turns, ema)
        if reference < 1:
            raise UserError(f"model.reference={reference}: at least 1")
        if replay is not None and (labels is not None or codes is not None):
            raise UserError("model.replay: older samples would stand beside labels or codes that they were not made of")
        if loss.needs_lipschitz and not penalties and constraint is None and "critic" not in spectral:
            raise UserError(
                "model.loss: this loss needs a Lipschitz critic, and neither model.penalties nor model.constraint "
                "nor model.spectral makes one: choose a model that brings one (model=wgan_gp, model=wgan, "
                "model=sngan), or another loss"
            )
        if loss.needs_energy and not getattr(critic, "gives_energy", False):
            raise UserError(
                "model.loss: this loss needs a critic whose score is minus an energy, and model.critic makes none: "
                "choose a model that brings one (model=ebgan, model=began), or another loss"
            )
        self.loss, self.constraint = loss, constraint
        self.penalties, self.aims, self.views = dict(penalties or {}), dict(aims or {}), dict(views or {})
        self.fresh_noise, self.joint_batch, self.replay = fresh_noise, joint_batch, replay
        self.weights_of_loss = _weights_of_loss(weights)
        for name, view in self.views.items():
            view.require(spec)
            if getattr(view, "reads_sign", False) and not loss.centred:
                raise UserError(
                    f"model.views.{name}: it learns from the sign of the critic's scores, which says nothing under "
                    "this loss: choose loss=nonsaturating or hinge, or model/view=diffaugment"
                )
        _refuse_lazy(players, self.penalties)
        self._build(net, labels, critic or Scoring(), spectral, reference)
        named = [*self.aims.items(), *self.views.items(), ("replay", replay), ("loss", loss)]
        self.rules.update({name: part for name, part in named if isinstance(part, nn.Module)})
        self.watching = [part for part in (loss, *self.aims.values()) if isinstance(part, Watching)]
        self._kept: dict[int, Made] = {}

    def _build(
        self, net: Architecture, labels: Labels | None, critic: MakesCritic, spectral: Sequence[str], reference: int
    ) -> None:
        self.build_generator(net, reference)
        width = 0 if self.codes is None else self.codes.width
        heads: dict[str, int] = {}
        for aim in self.aims.values():
            heads |= aim.heads(self.spec, width)
        self.nets["critic"] = critic.build(self.spec, net, labels, heads)
        if self.reads_images and getattr(self.nets["critic"], "labels", None) is not None:
            raise UserError(
                f"model.labels.critic: the critic of {type(self).__name__} has to tell what an image is, and must "
                "not be shown its label: set it to none"
            )
        if any(penalty.per_sample for penalty in self.penalties.values()):
            x = torch.randn(3, *self.spec.shape, generator=torch.Generator().manual_seed(0))
            refuse_mixing(self.nets["critic"], x, None if labels is None else torch.arange(3) % self.spec.classes)
        if self.joint_batch:
            _refuse_comparing(self.nets["critic"])
        for name in spectral:
            if name not in self.nets:
                raise UserError(f"model.spectral: {name} is no network of a GAN; they are generator and critic")
            spectral_norm(self.nets[name])

    def players(self) -> Sequence[Player]:
        after = None if self.constraint is None else self._constrain
        return (
            Player("critic", nets=("critic",), loss=self.critic_loss, after=after),
            Player("generator", nets=("generator",), loss=self.generator_loss),
        )

    def further_part(self) -> contextlib.AbstractContextManager[object]:
        return held_estimate(self.nets)

    def critic_loss(self, batch: Images) -> Terms:
        made = self._fakes_for_critic(batch)
        with one_estimate():
            return self._judged(batch, made)

    def _judged(self, batch: Images, made: Made) -> Terms:
        shown = made.x if self.replay is None else self.replay(made.x)
        real, fake = self._viewed(batch.signed), self._viewed(shown)
        on_real, on_fake = self._judge(real, fake, made.labels)
        terms = self._weighted("critic", self.loss.critic(on_real.score, on_fake.score))
        critic = self._asked(made.labels)
        for name, penalty in self.penalties.items():
            if (self.clock.iteration + 1) % penalty.every == 0:
                _add(terms, penalty(critic, real, fake), f"model.penalties.{name}")
        seen = self._round(batch, made, real, fake, on_real, on_fake)
        self._aim("critic", terms, seen)
        self._watch(seen)
        for view in self.views.values():
            for name, value in view.learn(on_real).items():
                self.note(f"view/{name}", value)
        self._note_scores(on_real.score, on_fake.score)
        return terms

    def generator_loss(self, batch: Images) -> Terms:
        made = self._kept.pop(id(batch), None)
        if made is None:
            made = self.generate(len(batch), self.labels_of(batch))
        with one_estimate():
            return self._answered(batch, made)

    def _answered(self, batch: Images, made: Made) -> Terms:
        fake = self._viewed(made.x)
        on_fake = self.nets["critic"].judge(fake, made.labels)  # type: ignore[operator]
        if not self.aims and not self.loss.relative:  # nobody asks about real samples
            return self._weighted("generator", self.loss.generator(on_fake.score))
        real, on_real = batch.signed, None
        if self.loss.relative or any(aim.needs_real for aim in self.aims.values()):
            with torch.no_grad():  # the critic stands still, and the generator has no part in these
                real = self._viewed(real)
                on_real = self.nets["critic"].judge(real, made.labels)  # type: ignore[operator]
        scores = None if on_real is None else on_real.score
        terms = self._weighted("generator", self.loss.generator(on_fake.score, scores))
        self._aim("generator", terms, self._round(batch, made, real, fake, on_real, on_fake))
        return terms

    # ----------------------------------------------------------------

    def _fakes_for_critic(self, batch: Images) -> Made:
        labels = self.labels_of(batch)
        if self.fresh_noise or not self.turns.true_weights or not self._generator_moves():
            with torch.no_grad():
                return self.generate(len(batch), labels)
        with _open(self.nets["generator"]):
            made = self.generate(len(batch), labels)
        self._kept[id(batch)] = made
        return Made(made.x.detach(), made.labels, made.codes)

    def _generator_moves(self) -> bool:
        return any(s.player.name == "generator" and s.moves_at(self.clock.iteration + 1) for s in self.seats)

    def _viewed(self, x: Tensor) -> Tensor:
        for view in self.views.values():
            x = view(x, self.clock.iteration + 1, self.clock.total)
        return x

    def _judge(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Verdict, Verdict]:
        judge = self.nets["critic"].judge
        if not self.joint_batch:
            return judge(real, labels), judge(fake, labels)  # type: ignore[operator]
        both = torch.cat([real, fake.to(real.dtype)])
        verdict: Verdict = judge(both, None if labels is None else torch.cat([labels, labels]))  # type: ignore[operator]
        return verdict.parted(len(real))

    def _asked(self, labels: Tensor | None) -> nn.Module | partial[Tensor]:
        """The critic as a function of samples alone."""
        return self.nets["critic"] if labels is None else partial(self.nets["critic"], labels=labels)

    def _round(
        self, batch: Images, made: Made, real: Tensor, fake: Tensor, on_real: Verdict | None, on_fake: Verdict
    ) -> Round:
        critic = self.nets["critic"]
        return Round(
            real, fake, made.labels, made.codes, on_real, on_fake, critic.judge, critic, self.nets["generator"],  # type: ignore[arg-type]
            batch.index, self.clock.iteration + 1,
        )  # fmt: skip

    def _aim(self, player: str, terms: Terms, seen: Round) -> None:
        for name, aim in self.aims.items():
            _add(terms, aim.critic(seen) if player == "critic" else aim.generator(seen), f"model.aims.{name}")

    def _weighted(self, player: str, terms: Terms) -> Terms:
        weight = self.weights_of_loss[player]
        return terms if weight == 1 else {name: weight * term for name, term in terms.items() if weight > 0}

    @torch.no_grad()
    def _watch(self, seen: Round) -> None:
        for part in self.watching:
            for key, value in part.watch(seen).items():
                self.note(key, value)

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


def _add(terms: Terms, more: Terms, where: str) -> None:
    """Put further terms to the others. UserError where two have one name: the one would take the other's place."""
    for name, term in more.items():
        if name in terms:
            raise UserError(f"{where}: the player has a term '{name}' already; leave out one of the two")
        terms[name] = term


def _refuse_lazy(players: Mapping[str, Moves], penalties: Mapping[str, Penalty]) -> None:
    rests = "critic" in players and players["critic"].every != 1
    for name, penalty in penalties.items():
        if rests and penalty.every != 1:
            raise UserError(
                f"model.penalties.{name}.every={penalty.every}: counted in iterations, and weighed for a critic that "
                "moves in each of them: set it to 1, or model.players.critic.every to 1"
            )


def _refuse_comparing(critic: nn.Module) -> None:
    for name, layer in critic.named_modules():
        if getattr(layer, "compares_samples", False):
            raise UserError(
                f"model.joint_batch: the critic's layer '{name}' compares the samples of a batch, and real and "
                "generated ones must not meet in it: set model.joint_batch=false"
            )


def _weights_of_loss(weights: Mapping[str, float] | None) -> dict[str, float]:
    chosen = {"critic": 1.0, "generator": 1.0} | dict(weights or {})
    for name, value in chosen.items():
        if name not in ("critic", "generator") or not value >= 0:
            raise UserError(f"model.weights.{name}={value}: critic and generator, 0 or more each")
    return chosen


@contextlib.contextmanager
def _open(net: nn.Module) -> Iterator[None]:
    """Build a graph through a network whose turn it is not yet."""
    net.requires_grad_(True)
    try:
        yield
    finally:
        net.requires_grad_(False)
