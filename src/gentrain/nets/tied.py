"""One sigmoid layer and its transpose: the classic autoencoder with tied weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.types import Spec


class SigmoidLayer(nn.Module):
    """h = sigmoid(W x + b): x [B C H W] or [B D] to h [B H], W ``weight`` [H D]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_weights(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(x.flatten(1), self.weight, self.bias))

    def squared_jacobian(self, x: Tensor) -> Tensor:
        """||dh/dx||_F^2 [B]: sum over j of (h_j (1 - h_j))^2 ||W_j||^2 (Rifai et al. 2011, section 5.1)."""
        h = self.forward(x)
        return (h * (1.0 - h)).square() @ self.weight.square().sum(1)


class Transposed(nn.Module):
    """z [B H] to W^T z + c, as [B C H W] or [B D]; W ``weight`` [H D]."""

    def __init__(self, inputs: int, shape: tuple[int, ...], bounded: bool) -> None:
        super().__init__()
        self.shape, self.bounded = shape, bounded
        self.weight = nn.Parameter(_weights(inputs, math.prod(shape)))
        self.bias = nn.Parameter(torch.zeros(math.prod(shape)))

    def forward(self, z: Tensor) -> Tensor:
        x = F.linear(z, self.weight.t(), self.bias).view(-1, *self.shape)
        return torch.tanh(x) if self.bounded else x


@dataclass(frozen=True)
class TiedSigmoid:
    """An ``Architecture`` of one layer, for any data: h = sigmoid(W x + b), and W^T h + c back.

    The width of the layer is that of the code. Autoencoders tie the two (``tie``); a generator and a critic made of it
    share nothing.
    """

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W] (in [-1, 1] where ``bounded``), or [B D'] for vectors, unbounded."""
        return Transposed(latent, (channels or spec.channels, *spec.shape[1:]), bounded and spec.is_image)

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x [B C H W] or [B D] -> [B out] in (0, 1)."""
        return SigmoidLayer(spec.numel, out)

    def tie(self, encoder: nn.Module, decoder: nn.Module) -> None:
        """UserError where the encoder does not make just the code, or the decoder not just the data."""
        assert isinstance(encoder, SigmoidLayer)
        assert isinstance(decoder, Transposed)
        if encoder.weight.shape != decoder.weight.shape:
            (code, data), (z, x) = encoder.weight.shape, decoder.weight.shape
            raise UserError(
                f"model.net: tied weights need a decoder that turns the encoder around, but one makes {code} numbers "
                f"of {data} and the other {x} of {z}: use model/net=mlp, or a code and a loss without further numbers"
            )
        decoder.weight = encoder.weight


def _weights(outputs: int, inputs: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(outputs, inputs))
