"""DCGAN: the all-convolutional generator and critic, also used as decoder and encoder.

Paper: Radford, Metz, Chintala 2016, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", arXiv 1511.06434, section 3 and figure 1.
Adds over GAN: strided and transposed convolutions instead of dense layers and pooling, batch normalisation in all
layers but the critic's first and the generator's last, ReLU in the generator, leaky ReLU in the critic, weights from
N(0, 0.02).
Departs: images under 32 pixels get further 3x3 stages of stride 1 at 4x4 until there are ``depth`` of them (a critic of
one layer sees no shapes); kernel 4 by default, as in the authors' Torch release (the paper's figure has 5; ``kernel=5``
builds it); any square image from 5 to 128 pixels and beyond, by one stage per power of two; data that are no power of
two (28 pixels) are worked on at the next one, inside the network; other normalisations, for critics under a gradient
penalty; no bias in front of a normalisation.
Checked by: tests/test_nets.py (parameter counts by hand, shapes at every size, gradients, per-sample independence).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

from torch import nn

from gentrain.errors import UserError
from gentrain.nets.layers import (
    BASE,
    DECODER_NORMS,
    IMAGE_NORMS,
    ToOneChannel,
    choose,
    cropped,
    padded,
    require_batch_norm,
    require_square_images,
    set_biases,
)
from gentrain.nets.modulation import ConditionalSequential, MakeNorm, modulated
from gentrain.types import Spec

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class DCGAN:
    """An ``Architecture`` for square images.

    Stage i of n = log2(canvas / 4), but at least ``depth``, counted from the pixels, has ``width * 2**i`` channels and
    at most ``8 * width``.
    ``upsample``: how the decoder doubles a side, by a ``transposed`` convolution or by ``nearest`` neighbours and a 3x3
    convolution. ``decoder_norm``, ``critic_norm``: batch, instance, layer or none; virtual too for a generator.
    ``depth``: stages at least. ``init_std``: of all weights and of the gains around 1; None keeps PyTorch's
    initialisation (better for deep critics without normalisation). UserError for other data or values.
    """

    width: int = 64
    decoder_norm: str = "batch"
    critic_norm: str = "batch"
    kernel: int = 4
    depth: int = 3
    init_std: float | None = 0.02
    upsample: Literal["transposed", "nearest"] = "transposed"

    def __post_init__(self) -> None:
        choose(DECODER_NORMS, self.decoder_norm, "model.net.decoder_norm")
        choose(IMAGE_NORMS, self.critic_norm, "model.net.critic_norm")
        choose({"transposed": 0, "nearest": 0}, self.upsample, "model.net.upsample")
        if self.width < 1:
            raise UserError(f"model.net.width must be 1 or more, got {self.width}")
        if self.kernel < 2:
            raise UserError(f"model.net.kernel must be 2 or more (stride is 2), got {self.kernel}")
        if self.depth < 0:
            raise UserError(f"model.net.depth must be 0 (as many as the size needs) or more, got {self.depth}")
        if self.init_std is not None and not self.init_std > 0:
            raise UserError(f"model.net.init_std must be above 0, or null for torch's own, got {self.init_std}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        norm = DECODER_NORMS[self.decoder_norm]
        return self._initialised(nn.Sequential(*self._decoder_layers(spec, latent, channels, bounded, norm)))

    def modulated_decoder(self, spec: Spec, latent: int, condition: int, *, one_hot: bool) -> nn.Module:
        """(z [B Z], c [B condition]) -> [B C H W] in [-1, 1]; all of the decoder's batch norms depend on c."""
        require_batch_norm(self.decoder_norm)
        norm = modulated(condition, one_hot=one_hot)
        return self._initialised(ConditionalSequential(*self._decoder_layers(spec, latent, None, True, norm)))

    def _decoder_layers(
        self, spec: Spec, latent: int, channels: int | None, bounded: bool, norm: MakeNorm
    ) -> list[nn.Module]:
        widths = self._widths(spec)[::-1]  # from 4x4 to the pixels
        bias = not norm(1)
        top = widths[0]
        layers: list[nn.Module] = [
            nn.Linear(latent, top * BASE * BASE, bias=bias),
            nn.Unflatten(1, (top, BASE, BASE)),
            *norm(top),
            nn.ReLU(inplace=True),
        ]
        flat = len(widths) - self._halvings(spec)  # stages that stay at 4x4
        for i, (wide, narrow) in enumerate(pairwise(widths)):
            up = [self._level(wide, narrow, bias)] if i < flat else self._up(wide, narrow, bias)
            layers += [*up, *norm(narrow), nn.ReLU(inplace=True)]
        layers += self._up(widths[-1], channels or spec.channels, bias=True)
        return [*layers, *cropped(spec, bounded=bounded)]

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> [B F], the last feature map as a vector; and F."""
        widths = self._widths(spec)
        norm = IMAGE_NORMS[self.critic_norm]
        bias = not norm(1)
        layers = padded(spec)
        # In place: a leaky ReLU's derivatives, the second one too, can be had from its result, and no normalisation
        # needs its own output. It saves a third of the activations.
        layers += [self._down(spec.channels + more, widths[0], bias=True), nn.LeakyReLU(0.2, inplace=True)]
        for i, (narrow, wide) in enumerate(pairwise(widths), start=1):
            down = self._down(narrow, wide, bias) if i < self._halvings(spec) else self._level(narrow, wide, bias)
            layers += [down, *norm(wide), nn.LeakyReLU(0.2, inplace=True)]
        layers.append(nn.Flatten())
        return self._initialised(nn.Sequential(*layers)), widths[-1] * BASE * BASE

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return self._initialised(nn.Linear(inputs, outputs))

    def _widths(self, spec: Spec) -> list[int]:
        """Channels of each stage, from the pixels to 4x4."""
        require_square_images(spec)
        return [self.width * min(2**i, 8) for i in range(max(self._halvings(spec), self.depth))]

    @staticmethod
    def _halvings(spec: Spec) -> int:
        """Steps of two between the canvas and 4x4."""
        return (spec.canvas // BASE).bit_length() - 1

    @staticmethod
    def _level(c_in: int, c_out: int, bias: bool) -> nn.Module:
        """Convolution that keeps the side."""
        return nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)

    def _down(self, c_in: int, c_out: int, bias: bool) -> nn.Module:
        """Convolution that halves an even side, whatever the kernel."""
        return nn.Conv2d(c_in, c_out, self.kernel, stride=2, padding=(self.kernel - 1) // 2, bias=bias)

    def _up(self, c_in: int, c_out: int, bias: bool) -> list[nn.Module]:
        """Layers that double the side; the transposed convolution does so whatever its kernel."""
        if self.upsample == "nearest":
            return [nn.Upsample(scale_factor=2, mode="nearest"), self._level(c_in, c_out, bias)]
        pad, rest = (self.kernel - 1) // 2, self.kernel % 2
        kind = ToOneChannel if c_out == 1 else nn.ConvTranspose2d
        return [kind(c_in, c_out, self.kernel, stride=2, padding=pad, output_padding=rest, bias=bias)]

    def _initialised(self, net: Net) -> Net:
        if self.init_std is None:
            return net
        for layer in net.modules():
            weight = getattr(layer, "weight", None)
            if isinstance(weight, nn.Parameter):
                # Gains are the only vectors among the weights.
                nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, self.init_std)
        set_biases(net)
        return net
