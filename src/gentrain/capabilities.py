"""What a system may be able to do, as protocols that evaluation and the commands ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.types import Images, LikelihoodOn


@runtime_checkable
class Sampler(Protocol):
    """Can make new samples."""

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """[n C H W] in [-1, 1], or [n D] for vectors. ``generator`` lives on the system's device."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """Has a tractable density, or a bound on it. An attribute ``likelihood_on: LikelihoodOn`` says of what; without it,
    of 8-bit images or of vectors, exact where the system has neither ``elbo`` nor ``importance_bound``."""

    def log_likelihood(self, x: Tensor) -> Tensor:
        """[B] nats per image for integer data x (uint8 [B C H W])."""
        ...


@dataclass(frozen=True, eq=False)
class RBM:
    """Parameters of a restricted Boltzmann machine of units that are 0 or 1: p(v, h) = exp(v W h + b v + c h) / Z;
    where the visible ones are ``gaussian``, real numbers: exp(v W h - |v - b|^2 / 2 + c h) / Z.

    ``weight``: W [V H]. ``visible_bias``: b [V]. ``hidden_bias``: c [H].
    """

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    gaussian: bool = False


@runtime_checkable
class FreeEnergy(Protocol):
    """Knows its likelihood but for a constant."""

    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) [B] nats for x uint8 [B C H W] or vectors [B D]: log p(x) = -F(x) - log Z, or at least that."""
        ...


@runtime_checkable
class Boltzmann(FreeEnergy, Protocol):
    """A Boltzmann machine of two groups of units without connections within either, whose likelihood is known but for
    the constant Z. The first units of the first group are the data's; behind them a deep machine has hidden ones."""

    @property
    def likelihood_on(self) -> LikelihoodOn:
        """How images become ``units``."""
        ...

    def rbm(self) -> RBM:
        """Its ``visible_bias`` is that of the first group."""
        ...

    def units(self, x: Tensor) -> Tensor:
        """The data's units, 0 or 1 (real numbers where ``rbm`` is ``gaussian``), [B V] of any float type for x uint8
        [B C H W]."""
        ...


@runtime_checkable
class Walks(Protocol):
    """Its samples are states of Markov chains."""

    steps: int
    """Of a chain, from its start to a sample."""

    def chain(
        self,
        n: int,
        *,
        length: int,
        stride: int,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """States [n length C H W] in [-1, 1], or [n length D], of ``n`` chains after ``stride``, 2 ``stride``, ...
        steps from ``start``, uint8 [n C H W] or vectors [n D], or from noise."""
        ...


@runtime_checkable
class Encoder(Protocol):
    def encode(self, x: Tensor) -> Tensor:
        """[B Z] for x uint8 [B C H W]."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """One that is ``conditional`` and has no encoder is told the classes too: ``decode(z, labels)``."""

    def decode(self, z: Tensor) -> Tensor:
        """[B C H W] in [-1, 1] for z [B Z]."""
        ...


@dataclass(frozen=True, eq=False)
class Varied:
    """A number, or a choice, with a meaning of its own: ``z`` [n T Z] for ``decode``, n rows along which it alone
    changes, and ``words`` for its T values."""

    name: str
    words: tuple[str, ...]
    z: Tensor


@runtime_checkable
class Varies(Protocol):
    """Some of what it decodes was given a meaning in training, each apart from the rest."""

    def vary(self, n: int, *, steps: int, reach: float, generator: torch.Generator | None = None) -> Sequence[Varied]:
        """``n`` random rows for each of them: over all categories of a choice, or from -reach to +reach standard
        deviations of a number in ``steps``."""
        ...


@runtime_checkable
class Clusterer(Protocol):
    """Has clusters of its own, found without labels."""

    def cluster(self, x: Tensor) -> Tensor:
        """Probability of each cluster [B K] for x uint8 [B C H W], or [B D] for vectors."""
        ...


@runtime_checkable
class Classifier(Protocol):
    def classify(self, x: Tensor) -> Tensor:
        """Logits [B K] of the classes for x uint8 [B C H W]."""
        ...


@runtime_checkable
class LearnsFromFewLabels(Protocol):
    """Sees the labels of a few training images only; it is given those when it is built, and no others."""

    labels_per_class: int | None
    """How many images of each class; None: it wants none of them."""

    def give_labelled(self, images: Images) -> None:
        """Those images, with ``y`` and ``index``, on the CPU."""
        ...


@runtime_checkable
class BeginsFromData(Protocol):
    """Sets some of its first numbers by training images: means, scales."""

    first_images: int
    """How many of them, spread over the training split."""

    def begin_from(self, x: Tensor) -> None:
        """Those images, uint8 [N C H W], or vectors [N D], on the CPU; given when it is built."""
        ...


@runtime_checkable
class CountsClasses(Protocol):
    """Makes samples of a class, and must know how frequent each is to make samples of all."""

    conditional: bool

    def give_class_counts(self, counts: Tensor) -> None:
        """Training images of each class, int64 [K] on the CPU; given when it is built, if it is ``conditional``."""
        ...


@runtime_checkable
class Compressor(Protocol):
    """Writes pictures to bytes and reads them back, with loss."""

    def compress(self, x: Tensor) -> list[bytes]:
        """One string for each of x uint8 [B C H W]. UserError where the coder's library is not installed."""
        ...

    def decompress(self, streams: Sequence[bytes]) -> Tensor:
        """uint8 [B C H W]: the pixels of ``decode(encode(x))``."""
        ...

    def code_bits(self, x: Tensor) -> Tensor:
        """[B] bits for x uint8 [B C H W] that a perfect coder of the system's density would write; needs no library."""
        ...


CAPABILITIES: dict[str, type[Any]] = {
    "sample": Sampler,
    "log_likelihood": Likelihood,
    "free_energy": FreeEnergy,
    "rbm": Boltzmann,
    "chain": Walks,
    "encode": Encoder,
    "decode": Decoder,
    "vary": Varies,
    "cluster": Clusterer,
    "classify": Classifier,
    "compress": Compressor,
}
"""What evaluation and the commands may ask of a system, by the method's name."""
