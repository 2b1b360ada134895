"""Residual convolutional networks: critic or encoder, generator or decoder.

Blocks of two 3x3 convolutions with normalisation and activation before each (He et al. 2016, arXiv 1603.05027), and a
1x1 convolution around them where size or channels change; down by 2x2 means behind the convolutions, up by nearest
neighbours before them, as in the residual networks of WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.layers import (
    ACTIVATIONS,
    BASE,
    DECODER_NORMS,
    IMAGE_NORMS,
    choose,
    cropped,
    padded,
    require_batch_norm,
    require_square_images,
)
from gentrain.nets.modulation import Conditional, ConditionalSequential, MakeNorm, modulated
from gentrain.types import Spec


class _Block(Conditional):
    """[B C H W] to [B C' H' W']; c [B condition] goes to normalisations that depend on one. No bias where a
    normalisation behind it, or on the way ahead, would take it out."""

    def __init__(self, c_in: int, c_out: int, middle: int, norm: MakeNorm, activation: str) -> None:
        super().__init__()
        bias, act = not norm(1), ACTIVATIONS[activation]
        self.before1 = ConditionalSequential(*norm(c_in), act())
        self.convolution1 = nn.Conv2d(c_in, middle, 3, padding=1, bias=bias)
        self.before2 = ConditionalSequential(*norm(middle), act())
        self.convolution2 = nn.Conv2d(middle, c_out, 3, padding=1, bias=bias)


class Stay(_Block):
    """A block that keeps size and channels; nothing is done on the way around."""

    def __init__(self, c_in: int, c_out: int, norm: MakeNorm, activation: str) -> None:
        super().__init__(c_in, c_out, c_out, norm, activation)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h: Tensor = self.convolution2(self.before2(self.convolution1(self.before1(x, c)), c))
        return x + h


class Down(_Block):
    """A block that halves the side."""

    def __init__(self, c_in: int, c_out: int, norm: MakeNorm, activation: str) -> None:
        super().__init__(c_in, c_out, c_in, norm, activation)
        self.around = nn.Conv2d(c_in, c_out, 1, bias=not norm(1))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.convolution2(self.before2(self.convolution1(self.before1(x, c)), c))
        around: Tensor = self.around(F.avg_pool2d(x, 2))  # pooled first: the same values for a quarter of the work
        return around + F.avg_pool2d(h, 2)


class Up(_Block):
    """A block that doubles the side."""

    def __init__(self, c_in: int, c_out: int, norm: MakeNorm, activation: str) -> None:
        super().__init__(c_in, c_out, c_out, norm, activation)
        self.around = nn.Conv2d(c_in, c_out, 1, bias=not norm(1))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        grown = self.convolution1(F.interpolate(self.before1(x, c), scale_factor=2, mode="nearest"))
        h: Tensor = self.convolution2(self.before2(grown, c))
        return h + F.interpolate(self.around(x), scale_factor=2, mode="nearest")


@dataclass(frozen=True)
class Residual:
    """An ``Architecture`` for square images of 5 pixels and more.

    From ``width`` channels at the pixels, doubled with each halving of the side and at most ``8 * width``, to 4x4;
    sizes that are no power of two are worked on at the next one, as in DCGAN. ``blocks``: at each size, one of them
    changing it. ``decoder_norm``, ``critic_norm``: batch, instance, layer or none, virtual too for a generator;
    ``activation``: a name of ``layers.ACTIVATIONS``. UserError for other data or values.
    """

    width: int = 32
    blocks: int = 1
    decoder_norm: str = "batch"
    critic_norm: str = "batch"
    activation: str = "relu"

    def __post_init__(self) -> None:
        choose(DECODER_NORMS, self.decoder_norm, "model.net.decoder_norm")
        choose(IMAGE_NORMS, self.critic_norm, "model.net.critic_norm")
        choose(ACTIVATIONS, self.activation, "model.net.activation")
        if self.width < 1:
            raise UserError(f"model.net.width must be 1 or more, got {self.width}")
        if self.blocks < 1:
            raise UserError(f"model.net.blocks must be 1 or more at each size, got {self.blocks}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        return nn.Sequential(*self._decoder_layers(spec, latent, channels, bounded, DECODER_NORMS[self.decoder_norm]))

    def modulated_decoder(self, spec: Spec, latent: int, condition: int, *, one_hot: bool) -> nn.Module:
        """(z [B Z], c [B condition]) -> [B C H W] in [-1, 1]; all of the decoder's batch norms depend on c."""
        require_batch_norm(self.decoder_norm)
        norm = modulated(condition, one_hot=one_hot)
        return ConditionalSequential(*self._decoder_layers(spec, latent, None, True, norm))

    def _decoder_layers(
        self, spec: Spec, latent: int, channels: int | None, bounded: bool, norm: MakeNorm
    ) -> list[nn.Module]:
        widths = self._widths(spec)[::-1]  # from 4x4 to the pixels
        act, top = self.activation, widths[0]
        layers: list[nn.Module] = [
            nn.Linear(latent, top * BASE * BASE, bias=not norm(1)),
            nn.Unflatten(1, (top, BASE, BASE)),
        ]
        for wide, narrow in pairwise(widths):
            layers += [Up(wide, narrow, norm, act), *self._more(narrow, norm)]
        layers += [*norm(widths[-1]), ACTIVATIONS[act]()]
        layers.append(nn.Conv2d(widths[-1], channels or spec.channels, 3, padding=1))
        return [*layers, *cropped(spec, bounded=bounded)]

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> [B F], the last feature map as a vector; and F."""
        widths = self._widths(spec)
        norm, act = IMAGE_NORMS[self.critic_norm], self.activation
        layers = padded(spec)
        layers.append(nn.Conv2d(spec.channels + more, widths[0], 3, padding=1, bias=not norm(1)))
        for narrow, wide in pairwise(widths):
            layers += [Down(narrow, wide, norm, act), *self._more(wide, norm)]
        layers += [*norm(widths[-1]), ACTIVATIONS[act]()]
        layers.append(nn.Flatten())
        return nn.Sequential(*layers), widths[-1] * BASE * BASE

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return nn.Linear(inputs, outputs)

    def _more(self, channels: int, norm: MakeNorm) -> list[nn.Module]:
        """The blocks of a size beyond that which led to it."""
        return [Stay(channels, channels, norm, self.activation) for _ in range(self.blocks - 1)]

    def _widths(self, spec: Spec) -> list[int]:
        """Channels at each side, from the pixels to 4x4."""
        require_square_images(spec)
        halvings = (spec.canvas // BASE).bit_length() - 1
        return [self.width * min(2**i, 8) for i in range(halvings + 1)]
