"""Autoencoders whose codes critics hold against priors that can be drawn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player, total
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.families.autoencoder import EncoderDecoder
from gentrain.nets.architecture import Architecture
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.objectives.autoencoding import Code, Corruption, Reconstruction, Regulariser
from gentrain.objectives.priors import Prior, dense, labelled
from gentrain.types import Images, Spec, Terms

MATCH = "critic"
"""Names of critics begin with it; what follows names the part of the code that they look at."""


class MatchedAutoencoder(EncoderDecoder, ABC):
    """An autoencoder and critics of its codes, told apart from draws of a prior (Makhzani et al. 2016, section 2).

    Autoencoder first, then each critic, on codes that carry no gradient, then the encoder alone against all of them:
    the decoder gets no gradient from a critic. Each has its own optimiser: one shared state would mix the sizes of two
    gradients. ``weight`` multiplies what the encoder minimises against the critics; where it has an Adam of its own
    (not ``joint``) that changes next to nothing, for Adam divides by the gradient's size. ``joint``: that term stands
    in the autoencoder's own objective, so that one step of one optimiser does both (WAE-GAN: Tolstikhin et al. 2018,
    arXiv 1711.01558, Algorithm 1), and there is no player ``encoder``.
    """

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        adversarial: AdversarialLoss,
        code: Callable[[int], Code],
        critic: Architecture,
        inputs: Mapping[str, int],
        players: Mapping[str, Moves],
        latent: int,
        weight: float,
        joint: bool,
        regularisers: Mapping[str, Regulariser] | None,
        corruption: Corruption | None,
        turns: Turns | None,
        ema: Ema | None,
    ) -> None:
        super().__init__(spec, net, loss, code, players, latent, regularisers, corruption, turns, ema)
        if adversarial.needs_lipschitz:
            raise UserError(
                "model.adversarial: this loss needs a Lipschitz critic, and nothing here makes one: choose "
                "nonsaturating, least_squares or hinge"
            )
        if adversarial.needs_energy:
            raise UserError("model.adversarial: this loss needs critics that give an energy; choose nonsaturating")
        if adversarial.relative:
            raise UserError("model.adversarial: a relativistic loss compares pairs of samples, and codes have no pairs")
        if not weight > 0:
            raise UserError(f"model.weight={weight}: above 0")
        self.adversarial, self.weight, self.joint = adversarial, weight, joint
        self.critics = tuple(inputs)
        if joint:
            self.regularisers["adversarial"] = lambda way: total(self.fooling(way.batch, way.z))
        for name, width in inputs.items():
            self.nets[name] = critic.encoder(Spec((width,)), 1)

    @abstractmethod
    def code_seen(self, critic: str, batch: Images, z: Tensor) -> Tensor:
        """[B I]: what the critic sees of codes z [B Z]."""

    @abstractmethod
    def prior_seen(self, critic: str, batch: Images) -> Tensor:
        """[B I]: what it sees of as many draws from the prior."""

    def players(self) -> Sequence[Player]:
        critics = [Player(name, nets=(name,), loss=partial(self.critic_loss, name)) for name in self.critics]
        alone = [] if self.joint else [Player("encoder", nets=("encoder",), loss=self.encoder_loss)]
        return (*super().players(), *critics, *alone)

    def critic_loss(self, critic: str, batch: Images) -> Terms:
        with torch.no_grad():  # neither codes nor draws move for the critic's sake
            fake = self.code_seen(critic, batch, self.codes(batch))
            real = self.prior_seen(critic, batch)
        on_real, on_fake = self.judge(critic, real), self.judge(critic, fake)
        self._note_scores(critic.removeprefix(MATCH), on_real, on_fake)
        return self.adversarial.critic(on_real, on_fake)

    def encoder_loss(self, batch: Images) -> Terms:
        return self.fooling(batch, self.codes(batch))

    def fooling(self, batch: Images, z: Tensor) -> Terms:
        """``weight`` times what a generator minimises, for the codes against each critic."""
        terms = {}
        for critic in self.critics:
            scores = self.judge(critic, self.code_seen(critic, batch, z))
            for name, term in self.adversarial.generator(scores).items():
                terms[name + critic.removeprefix(MATCH)] = self.weight * term
        return terms

    def codes(self, batch: Images) -> Tensor:
        """Codes drawn as in training: [B Z]."""
        return self.code.draw(self.nets["encoder"](self.corrupted(batch)).float())

    def judge(self, critic: str, seen: Tensor) -> Tensor:
        """Scores [B 1] of what a critic sees."""
        scores: Tensor = self.nets[critic](seen)
        return scores

    def _note_scores(self, part: str, on_real: Tensor, on_fake: Tensor) -> None:
        for name, scores in (("real", on_real), ("fake", on_fake)):
            scores = scores.detach().float()
            self.note(f"score/{name}{part}", (scores.sigmoid() if self.adversarial.probabilistic else scores).mean())


@final
class AdversarialAutoencoder(MatchedAutoencoder):
    """One critic of the whole code against any prior: AAE, and WAE-GAN with ``joint``.

    ``known_prior``: the prior's log-density is added to the critic's logit, so that it has to learn that of the codes
    alone (the WAE authors' code; the optimal logit is log p(z) - log q(z)). ``label_conditioned``: the critic sees the
    class beside the code, and each class has its part of the prior (Makhzani et al. 2016, section 2.3);
    ``labels_per_class``: only so many images of each class keep their label, the others are held against the whole
    prior under the sign "no label"; None: all keep it.
    """

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        adversarial: AdversarialLoss,
        code: Callable[[int], Code],
        prior: Prior,
        critic: Architecture,
        players: Mapping[str, Moves],
        latent: int = 8,
        weight: float = 1.0,
        joint: bool = False,
        known_prior: bool = False,
        label_conditioned: bool = False,
        labels_per_class: int | None = None,
        regularisers: Mapping[str, Regulariser] | None = None,
        corruption: Corruption | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        signs = spec.classes + 1 if label_conditioned else 0
        super().__init__(
            spec, net, loss, adversarial, code, critic, {MATCH: latent + signs}, players, latent, weight, joint,
            regularisers, corruption, turns, ema,
        )  # fmt: skip
        prior.require(latent)
        self.prior = prior
        self.density = dense(prior, probabilistic=adversarial.probabilistic) if known_prior else None
        self.parts = labelled(prior, spec.classes) if label_conditioned else None
        if labels_per_class is not None and not label_conditioned:
            raise UserError("model.labels_per_class: labels are for model.label_conditioned=true")
        if known_prior and label_conditioned:
            raise UserError("model.known_prior: the density of a part of the prior is not known; leave out one of both")
        self.labels_per_class = labels_per_class
        self.conditional = label_conditioned
        self.labelled: Images | None = None

    def give_labelled(self, images: Images) -> None:
        self.labelled = images

    def code_seen(self, critic: str, batch: Images, z: Tensor) -> Tensor:
        return z if self.parts is None else torch.cat([z, self._sign(self.known_labels(batch)).to(z)], dim=1)

    def prior_seen(self, critic: str, batch: Images) -> Tensor:
        if self.parts is None:
            return self.prior.draw(len(batch), self.latent, self.device, None)
        # The batch's own labels: others would let the critic tell draws from codes by how often a label comes.
        labels = self.known_labels(batch)
        z = self.parts.draw_labelled(labels, self.spec.classes, None)
        return torch.cat([z, self._sign(labels).to(z)], dim=1)

    def judge(self, critic: str, seen: Tensor) -> Tensor:
        scores = super().judge(critic, seen)
        return scores if self.density is None else scores + self.density.log_prob(seen)[:, None]

    def known_labels(self, batch: Images) -> Tensor:
        """int64 [B]: classes, and K (the number of classes) where the label is not to be known."""
        if batch.y is None:
            raise UserError("model.label_conditioned: the training split has no labels: choose other data, or false")
        if self.labels_per_class is None:
            return batch.y
        if self.labelled is None or self.labelled.index is None or batch.index is None:
            raise ValueError("give_labelled was not called, or the batch comes from no split")
        known = torch.isin(batch.index.cpu(), self.labelled.index).to(batch.y.device)
        return torch.where(known, batch.y, self.spec.classes)

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z from the prior [n Z] on the system's device."""
        return self.prior.draw(n, self.latent, self.device, generator)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        if self.parts is not None and labels is not None:
            return self.decode(self.parts.draw_labelled(labels, self.spec.classes, generator))
        return self.decode(self.prior_codes(n, generator))

    def _sign(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.spec.classes + 1)


class ClassCode(Code, Protocol):
    """A code whose first K numbers are class probabilities."""

    def logits(self, output: Tensor) -> Tensor:
        """[B K] of the encoder's output [B outputs]."""
        ...


@final
class SemiSupervisedAutoencoder(MatchedAutoencoder):
    """A code of classes and style, each with its critic, and a classification phase on few labelled images (Makhzani et
    al. 2016, section 5).

    Behind the autoencoder, the critics and the encoder moves the classifier: the encoder again, on the cross-entropy of
    as many labelled images as the batch has, drawn with replacement from the ``labels_per_class`` of each class. The
    classes' prior is a uniform one-hot code, ``prior`` that of the ``style`` numbers.
    """

    conditional = True

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        adversarial: AdversarialLoss,
        code: Callable[[int, int], ClassCode],
        prior: Prior,
        critic: Architecture,
        players: Mapping[str, Moves],
        style: int = 10,
        labels_per_class: int = 10,
        weight: float = 1.0,
        corruption: Corruption | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        if spec.classes < 2:
            raise UserError("model: this model needs images of two classes or more, and data= gives none")
        if style < 1:
            raise UserError(f"model.style={style}: at least 1")
        prior.require(style)
        classes, latent = spec.classes, spec.classes + style
        made = code(latent, classes)
        inputs = {f"{MATCH}_classes": classes, f"{MATCH}_style": style}
        super().__init__(
            spec, net, loss, adversarial, lambda _: made, critic, inputs, players, latent, weight, False,
            None, corruption, turns, ema,
        )  # fmt: skip
        self.prior, self.style = prior, style
        self.labels_per_class = labels_per_class
        self._class_code = made
        self.labelled: Images | None = None

    def players(self) -> Sequence[Player]:
        return (*super().players(), Player("classifier", nets=("encoder",), loss=self.classification))

    def give_labelled(self, images: Images) -> None:
        self.labelled = images

    def code_seen(self, critic: str, batch: Images, z: Tensor) -> Tensor:
        classes = self.spec.classes
        return z[:, :classes] if critic == self.critics[0] else z[:, classes:]

    def prior_seen(self, critic: str, batch: Images) -> Tensor:
        if critic == self.critics[0]:
            return self._one_hot(None, len(batch), None)
        return self.prior.draw(len(batch), self.style, self.device, None)

    def classification(self, batch: Images) -> Terms:
        if self.labelled is None or self.labelled.y is None:
            raise ValueError("give_labelled was not called")
        # From the global generator, whose state a checkpoint holds.
        place = torch.randint(len(self.labelled), (len(batch),))
        some = Images(self.labelled.x[place]).to(self.device)
        output = self.nets["encoder"](self.corrupted(some)).float()
        labels = self.labelled.y[place].to(self.device)
        return {"cross_entropy": F.cross_entropy(self._class_code.logits(output), labels)}

    def classify(self, x: Tensor) -> Tensor:
        """Logits [B K] for x uint8 [B C H W]."""
        return self._class_code.logits(self.encoder_output(x))

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Class, as often as any other, and style from its prior: [n Z] on the system's device."""
        return self._codes(None, n, generator)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.decode(self._codes(labels, n, generator))

    def _codes(self, labels: Tensor | None, n: int, generator: torch.Generator | None) -> Tensor:
        style = self.prior.draw(n, self.style, self.device, generator)
        return torch.cat([self._one_hot(labels, n, generator), style], dim=1)

    def _one_hot(self, labels: Tensor | None, n: int, generator: torch.Generator | None) -> Tensor:
        classes = self.spec.classes
        if labels is None:
            labels = torch.randint(classes, (n,), device=self.device, generator=generator)
        return F.one_hot(labels, classes).float()
