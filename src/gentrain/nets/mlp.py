"""Dense networks: for vectors, and for images as long vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import nn

from gentrain.errors import UserError
from gentrain.nets.layers import ACTIVATIONS, INITS, VECTOR_DECODER_NORMS, VECTOR_NORMS, choose, set_biases
from gentrain.types import Spec

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class MLP:
    """An ``Architecture`` for any data.

    ``hidden``: widths from the data to the code; the decoder takes them in reverse. ``activation``: a name of
    ``layers.ACTIVATIONS``. ``norm``: batch, layer or none, behind every hidden layer; virtual too for a generator.
    ``critic_norm``: the same for the encoder alone, where it must differ. ``dropout``: probability behind every hidden
    activation. ``init``: a name of ``layers.INITS``. UserError for other values.
    """

    hidden: Sequence[int] = (512, 512)
    activation: str = "relu"
    norm: str = "none"
    critic_norm: str | None = None
    dropout: float = 0.0
    init: str = "default"

    def __post_init__(self) -> None:
        choose(ACTIVATIONS, self.activation, "model.net.activation")
        choose(VECTOR_DECODER_NORMS, self.norm, "model.net.norm")
        choose(VECTOR_NORMS, self._encoder_norm, "model.net.critic_norm")
        choose(INITS, self.init, "model.net.init")
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.net.hidden needs widths of 1 or more, got {list(self.hidden)}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.net.dropout must lie in [0, 1), got {self.dropout}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W] (in [-1, 1] where ``bounded``), or [B D'] for vectors, unbounded."""
        shape = (channels or spec.channels, *spec.shape[1:])
        outputs = spec.numel // spec.channels * shape[0]
        widths = [latent, *reversed(self.hidden)]
        layers = [*self._dense(widths, self.norm), nn.Linear(widths[-1], outputs)]
        if spec.is_image:
            layers.append(nn.Unflatten(1, shape))
            if bounded:
                layers.append(nn.Tanh())
        return self._initialised(nn.Sequential(*layers))

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x [B C H W] or [B D] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] or [B D+more] -> the last hidden layer [B F], and F."""
        inputs = spec.numel // spec.channels * (spec.channels + more)
        layers: list[nn.Module] = [nn.Flatten()] if spec.is_image else []
        layers += self._dense([inputs, *self.hidden], self._encoder_norm)
        return self._initialised(nn.Sequential(*layers)), self.hidden[-1] if self.hidden else inputs

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return self._initialised(nn.Linear(inputs, outputs))

    @property
    def _encoder_norm(self) -> str:
        return self.norm if self.critic_norm is None else self.critic_norm

    def _dense(self, widths: list[int], norm: str) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            # A bias in front of batch normalisation would be taken out again with the mean.
            bias = norm not in ("batch", "virtual")
            layers += [nn.Linear(before, after, bias=bias), *VECTOR_DECODER_NORMS[norm](after)]
            layers.append(ACTIVATIONS[self.activation]())
            if self.dropout > 0:
                layers.append(nn.Dropout(self.dropout))
        return layers

    def _initialised(self, net: Net) -> Net:
        if self.init == "default":
            return net
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                INITS[self.init](layer.weight)
        set_biases(net)
        return net
