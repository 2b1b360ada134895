"""InfoGAN: part of the noise is a code that the critic's features must tell again, so that it comes to mean something.

Paper: Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, InfoGAN: Interpretable Representation Learning by
Information Maximizing Generative Adversarial Nets, arXiv 1606.03657: eq. 5 and 6 (the lower bound L_I of the mutual
information, L_I = E log Q(c|G(z, c)) + H(c)); networks and numbers of the authors' code for MNIST.
Adds to the adversarial family: codes behind z (one-hot categories, then U(-1, 1)), Q as a head with one hidden layer on
the critic's features, and L_I, which both players maximise; Q learns with the critic's optimiser, as in the code.
Departs: Q(c|x) of a continuous code is a Gaussian of variance 1 (their MNIST setting), whose L_I lies below 0 however
good Q is, so that what is logged takes the variance of the batch; samples come from averaged weights.
Checked by: tests/test_infogan.py (L_I by hand and its limit, what training makes of it, who moves Q, where the codes
stand), tests/test_contract.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.game import CODE_HEAD, Round, Walk
from gentrain.nets.architecture import Architecture, Trunked
from gentrain.nets.conditioning import CriticLabels
from gentrain.nets.critic import Critic, Scoring
from gentrain.nets.layers import require_square_images, set_biases
from gentrain.types import Spec, Terms


@dataclass(frozen=True)
class CategoriesAndNumbers:
    """Codes [B A]: a one-hot vector for each of ``categories``, drawn uniformly, then ``continuous`` numbers of
    U(-1, 1). Read off a sample [B A], they are logits and means. UserError for no code at all."""

    categories: Sequence[int] = (10,)
    continuous: int = 2

    def __post_init__(self) -> None:
        if any(count < 2 for count in self.categories) or self.continuous < 0:
            raise UserError(
                f"model.codes: categories={list(self.categories)} of 2 or more each, continuous={self.continuous} of 0 "
                "or more"
            )
        if not self.width:
            raise UserError("model.codes: categories=[] and continuous=0 are no code: leave out codes, or give one")

    @property
    def width(self) -> int:
        return sum(self.categories) + self.continuous

    @property
    def entropy(self) -> float:
        """H of all categorical codes in nats: no code can tell more."""
        return sum(math.log(count) for count in self.categories)

    def draw(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        parts = [
            F.one_hot(torch.randint(count, (n,), device=device, generator=generator), count).float()
            for count in self.categories
        ]
        numbers = torch.rand(n, self.continuous, device=device, generator=generator).mul_(2.0).sub_(1.0)
        return torch.cat([*parts, numbers], dim=1)

    def categorical_information(self, codes: Tensor, read: Tensor) -> Tensor:
        """L_I of the categorical codes, the sum over them, in nats: at most ``entropy``."""
        known = read.new_tensor(self.entropy)
        for start, count in self._places():
            of = slice(start, start + count)
            known = known + (codes[:, of] * read[:, of].log_softmax(1)).sum(1).mean()
        return known

    def continuous_information(self, codes: Tensor, read: Tensor, *, fitted: bool) -> Tensor:
        """L_I of the continuous codes, the sum over them, in nats, with Q of variance 1, or ``fitted``: that of the
        batch, which makes the bound as high as it can be."""
        start = sum(self.categories)
        error = (codes[:, start:] - read[:, start:]).square()  # [B continuous]
        if fitted:
            nll = 0.5 * (1.0 + math.log(2.0 * math.pi) + error.mean(0).clamp_min(1e-12).log())
        else:
            nll = 0.5 * (math.log(2.0 * math.pi) + error).mean(0)
        return (math.log(2.0) - nll).sum()

    def probabilities(self, read: Tensor) -> Tensor:
        if not self.categories:
            raise UserError("model.codes.categories=[]: nothing to sort samples by")
        return read[:, : self.categories[0]].softmax(1)

    def walks(self, steps: int, reach: float) -> list[Walk]:
        found = []
        for i, (start, count) in enumerate(self._places()):
            found.append(Walk(f"category {i}", start, torch.eye(count), tuple(map(str, range(count)))))
        values = torch.linspace(-reach, reach, steps)[:, None] / math.sqrt(3.0)  # U(-1, 1) has variance 1/3
        for i in range(self.continuous):
            words = tuple(f"{float(value):+.2f}" for value in values)
            found.append(Walk(f"number {i}", sum(self.categories) + i, values, words))
        return found

    def _places(self) -> list[tuple[int, int]]:
        """Start and width of each categorical code."""
        starts = [sum(self.categories[:i]) for i in range(len(self.categories))]
        return list(zip(starts, self.categories, strict=True))


@dataclass(frozen=True)
class MutualInformation:
    """An ``Aim``: both players maximise L_I of ``codes``, which are those of ``model.codes``; ``categorical`` and
    ``continuous`` weigh its parts (lambda). Logs ``information/categorical_nats`` and ``information/continuous_nats``,
    the latter with the variance of the batch. UserError for weights below 0 and for other codes than the game's."""

    codes: CategoriesAndNumbers
    categorical: float = 1.0
    continuous: float = 1.0
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("categorical", "continuous"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.aims: mutual information: {name}={getattr(self, name)}: 0 or more")

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        if codes != self.codes.width:
            raise UserError(
                f"model.aims: mutual information is about codes of {self.codes.width} numbers, and model.codes has "
                f"{codes}: give both the same"
            )
        return {CODE_HEAD: self.codes.width}

    def critic(self, seen: Round) -> Terms:
        return self._terms(seen)

    def generator(self, seen: Round) -> Terms:
        return self._terms(seen)

    def watch(self, seen: Round) -> Terms:
        drawn, read = _told(seen)
        figures: Terms = {}
        if self.codes.categories:
            figures["information/categorical_nats"] = self.codes.categorical_information(drawn, read)
        if self.codes.continuous:
            figures["information/continuous_nats"] = self.codes.continuous_information(drawn, read, fitted=True)
        return figures

    def _terms(self, seen: Round) -> Terms:
        drawn, read = _told(seen)
        terms: Terms = {}
        if self.codes.categories:
            terms["categorical"] = -self.categorical * self.codes.categorical_information(drawn, read)
        if self.codes.continuous:
            terms["continuous"] = -self.continuous * self.codes.continuous_information(drawn, read, fitted=False)
        return terms


def _told(seen: Round) -> tuple[Tensor, Tensor]:
    """The codes of the samples and what is read of them, float32 [B A]."""
    assert seen.codes is not None  # heads() has seen to it
    return seen.codes.float(), seen.on_fake.more[CODE_HEAD].float()


@dataclass(frozen=True)
class HiddenHeads:
    """A ``MakesCritic``: the usual critic, its further heads behind a layer of ``hidden`` units each, with batch
    normalisation (not with ``batch_norm=false``: gradient penalties refuse it) and leaky ReLU 0.01."""

    hidden: int = 128
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UserError(f"model.critic.hidden={self.hidden}: at least 1")

    def build(self, spec: Spec, net: Architecture, labels: CriticLabels | None, heads: Mapping[str, int]) -> nn.Module:
        critic = Scoring().build(spec, net, labels, dict.fromkeys(heads, self.hidden))
        if not isinstance(critic, Critic) or not isinstance(net, Trunked):
            return critic
        for name, outputs in heads.items():
            norm = [nn.BatchNorm1d(self.hidden)] if self.batch_norm else []
            last = net.head(self.hidden, outputs)
            critic.heads[name] = nn.Sequential(critic.heads[name], *norm, nn.LeakyReLU(0.01), last)
        return critic


@dataclass(frozen=True)
class InfoGANNet:
    """An ``Architecture`` for square images whose side is a multiple of 4: the authors' for MNIST.

    ``width``: channels at half the side, twice as many at a quarter; ``hidden``: a dense layer between these and the
    code. Batch normalisation everywhere but in the critic's first and in the last layers, leaky ReLU 0.01 in the
    critic, weights of N(0, 0.02^2). UserError for other data or values.
    """

    width: int = 64
    hidden: int = 1024

    def __post_init__(self) -> None:
        for name in ("width", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"model.net.{name} must be 1 or more, got {getattr(self, name)}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        side, wide = _quarter(spec), 2 * self.width
        layers: list[nn.Module] = []
        for before, after in pairwise([latent, self.hidden, wide * side * side]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        layers += [
            nn.Unflatten(1, (wide, side, side)),
            nn.ConvTranspose2d(wide, self.width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(self.width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(self.width, channels or spec.channels, 4, stride=2, padding=1),
        ]
        return _initialised(nn.Sequential(*layers, nn.Tanh()) if bounded else nn.Sequential(*layers))

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> the dense layer [B hidden], and its width."""
        side, wide = _quarter(spec), 2 * self.width
        trunk = nn.Sequential(
            nn.Conv2d(spec.channels + more, self.width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(self.width, wide, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Flatten(),
            nn.Linear(wide * side * side, self.hidden, bias=False),
            nn.BatchNorm1d(self.hidden),
            nn.LeakyReLU(0.01, inplace=True),
        )
        return _initialised(trunk), self.hidden

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """[B inputs] -> [B outputs]."""
        return _initialised(nn.Sequential(nn.Linear(inputs, outputs)))


def _quarter(spec: Spec) -> int:
    """A quarter of the side of the images."""
    require_square_images(spec)
    if spec.size % 4:
        raise UserError(f"model.net: this one needs images whose side is a multiple of 4, got {spec.size}: use dcgan")
    return spec.size // 4


def _initialised(net: nn.Sequential) -> nn.Sequential:
    for layer in net.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter):
            nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.02)  # gains are the only vectors
    set_biases(net)
    return net
