"""What a family may ask of a choice of network."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from gentrain.types import Spec


class Architecture(Protocol):
    """Builds networks for roles, so that one ``model/net`` choice serves GANs and autoencoders alike."""

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """Generator or decoder: z [B Z] -> [B C' H W], or [B D] for vectors.

        ``channels``: C', the data's own C (or D) by default. ``bounded``: images end in [-1, 1] instead of raw numbers;
        vectors are never bounded.
        """
        ...

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """Critic or encoder: float images in [-1, 1] [B C H W], or vectors [B D] -> [B out]."""
        ...


@runtime_checkable
class Tying(Protocol):
    """An architecture whose decoder works with the encoder's weights."""

    def tie(self, encoder: nn.Module, decoder: nn.Module) -> None:
        """Put the encoder's parameters in place of the decoder's own, for networks that this architecture made.
        UserError where they do not fit."""
        ...


@runtime_checkable
class Trunked(Architecture, Protocol):
    """An architecture whose critic comes in two parts, so that several heads can stand on the same features."""

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Module, int]:
        """Features: images [B C+more H W] in [-1, 1], or vectors [B D+more] -> [B F], and F. ``encoder`` is it with
        ``head(F, out)`` behind."""
        ...

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """A last layer [B inputs] -> [B outputs], initialised as the network's own."""
        ...


@runtime_checkable
class Modulated(Architecture, Protocol):
    """An architecture whose generator's normalisation can depend on a condition."""

    def modulated_decoder(self, spec: Spec, latent: int, condition: int, *, one_hot: bool) -> nn.Module:
        """(z [B Z], c [B condition]) -> samples in [-1, 1] [B C H W]; c is the one-hot label (``one_hot``: gain 1 and
        bias 0 for each class at the start) or an embedding, and gain and bias of each normalisation are a linear
        function of it. UserError where the network is set to have no batch norm."""
        ...
