"""The convolutional networks of the semi-supervised GAN.

Salimans et al. 2016, arXiv 1606.03498, as the authors' code for CIFAR-10 has them (train_cifar_feature_matching.py): a
critic of nine weight-normalised layers with dropout in front of each three, two of them network in network (1x1), and
the mean over places as features; DCGAN's generator with kernel 5 and a weight-normalised last layer.
Departs: the scales of weight normalisation are learned in all layers, where theirs but the last layers' are set once
from 500 images and stay; batch norm has a gain (theirs a bias alone); images of other sizes than 32, by one doubling
of the generator per power of two, and a second part of the critic that keeps the side of an 8x8 canvas.
Checked by: tests/test_ssgan.py (layers by hand, shapes, noise at rest).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.layers import BASE, cropped, padded, require_square_images, weight_normalised
from gentrain.types import Spec

LEAK = 0.2


@dataclass(frozen=True)
class SalimansConv:
    """An ``Architecture`` for square images. ``width``: channels of the critic's first three layers, the others have
    twice as many. ``generator_width``: of the 4x4 map, halved with each doubling of the side. ``input_dropout``,
    ``dropout``: shares of the pixels, and of the maps in front of the second and third part. UserError for other data
    or values."""

    width: int = 96
    generator_width: int = 512
    input_dropout: float = 0.2
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("width", "generator_width"):
            if getattr(self, name) < 1:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least 1")
        for name in ("input_dropout", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.net.{name}={getattr(self, name)}: from 0 to below 1")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        require_square_images(spec)
        doublings = (spec.canvas // BASE).bit_length() - 1
        widths = [max(self.generator_width >> i, 1) for i in range(doublings)]
        top = widths[0]
        dense = nn.Linear(latent, top * BASE * BASE, bias=False)
        layers: list[nn.Module] = [dense, nn.Unflatten(1, (top, BASE, BASE)), nn.BatchNorm2d(top), nn.ReLU()]
        for wide, narrow in pairwise(widths):
            layers += [_doubling(wide, narrow, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.05)
        # A standard deviation of 0.1 at first, as theirs: a quarter of the taps meet a pixel, of mean square 1/2.
        last = weight_normalised(_doubling(widths[-1], channels or spec.channels, bias=True), 0.1 * 8**0.5)
        return nn.Sequential(*layers, last, *cropped(spec, bounded=bounded))

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> means over places of the last feature map [B F], and F."""
        require_square_images(spec)
        one, two = self.width, 2 * self.width
        again = 2 if spec.canvas >= 4 * BASE else 1  # the last 3x3, without a border, needs a map of 3x3
        shapes = [
            [(spec.channels + more, one, 3, 1), (one, one, 3, 1), (one, one, 3, 2)],
            [(one, two, 3, 1), (two, two, 3, 1), (two, two, 3, again)],
        ]
        layers = padded(spec)
        for share, part in zip((self.input_dropout, self.dropout), shapes, strict=True):
            layers.append(nn.Dropout(share))
            for c_in, c_out, kernel, stride in part:
                layers += _layer(nn.Conv2d(c_in, c_out, kernel, stride, padding=1))
        layers += [nn.Dropout(self.dropout), *_layer(nn.Conv2d(two, two, 3))]
        for _ in range(2):
            layers += _layer(nn.Conv2d(two, two, 1))
        return nn.Sequential(*layers, MeanOverPlaces()), two

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """[B inputs] -> [B outputs]."""
        return weight_normalised(nn.Linear(inputs, outputs), 1.0)


class MeanOverPlaces(nn.Module):
    """[B C H W] -> [B C]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(x, dim=(2, 3))


def _layer(convolution: nn.Conv2d) -> list[nn.Module]:
    """With the length of weights that keeps the size of what passes (He et al. 2015), which the authors reach by
    looking at the data."""
    return [weight_normalised(convolution, (2.0 / (1.0 + LEAK**2)) ** 0.5), nn.LeakyReLU(LEAK)]


def _doubling(c_in: int, c_out: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(c_in, c_out, 5, stride=2, padding=2, output_padding=1, bias=bias)
