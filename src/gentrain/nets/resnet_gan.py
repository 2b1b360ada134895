"""The residual generator and critic of SNGAN and SAGAN.

Papers: Miyato, Kataoka, Koyama, Yoshida 2018, "Spectral Normalization for Generative Adversarial Networks", arXiv
1802.05957, appendix B.4; Zhang et al. 2019, arXiv 1805.08318, for the attention.
Adds to the residual networks of WGAN-GP: a critic without normalisation whose first block has no activation in front
and whose features are summed over places; blocks at the end that keep the side; normalisation that may depend on a
class; self-attention at one side.
Departs: data that are no power of two (28 pixels) are worked on at the next one; weights start as Glorot's, without the
factor of the square root of 2 that the authors' code gives the 3x3 convolutions of a block (behind spectral norm and
batch norm it has no effect but on the sum with the shortcut); no bias before a batch norm (the authors' first
dense layer has one, which differs by place).
Checked by: tests/test_resnet_gan.py (parameters by hand, shapes, one block by its formula, ReLU that changes nothing in
place, attention where it was asked for).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.attention import SelfAttention, at_sides
from gentrain.nets.layers import (
    BASE,
    IMAGE_NORMS,
    INITS,
    choose,
    cropped,
    padded,
    require_batch_norm,
    require_square_images,
    set_biases,
)
from gentrain.nets.modulation import Conditional, ConditionalSequential, MakeNorm, modulated
from gentrain.types import Spec

Net = TypeVar("Net", bound=nn.Module)


class Growing(Conditional):
    """[B C H W] -> [B C' 2H 2W]: norm, ReLU, nearest neighbours, 3x3, norm, ReLU, 3x3, and a 1x1 around.
    c [B condition] or None goes to normalisations that depend on one."""

    def __init__(self, c_in: int, c_out: int, norm: MakeNorm) -> None:
        super().__init__()
        bias = not norm(1)
        self.norm1, self.norm2 = ConditionalSequential(*norm(c_in)), ConditionalSequential(*norm(c_out))
        self.convolution1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)
        self.convolution2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=bias)
        self.around = nn.Conv2d(c_in, c_out, 1, bias=bias)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h: Tensor = F.interpolate(F.relu(self.norm1(x, c)), scale_factor=2, mode="nearest")
        h = self.convolution2(F.relu(self.norm2(self.convolution1(h), c)))
        # The 1x1 first: the same values, for a quarter of the work.
        around: Tensor = F.interpolate(self.around(x), scale_factor=2, mode="nearest")
        return h + around


class Shrinking(nn.Module):
    """[B C H W] -> [B C' H W], of half the side where ``halve``. ``first``: of a network, nothing is done to the image
    in front of its first convolution, and C' channels lie between. ``wide``: C' in other blocks too, where SNGAN has C.
    Nothing is done on the way around where neither channels nor side change.

    No ReLU is in place: what goes around is the block's input as it came, not what the ReLU left of it."""

    def __init__(self, c_in: int, c_out: int, *, halve: bool, first: bool = False, wide: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        middle = c_out if first or wide else c_in
        self.convolution1 = nn.Conv2d(c_in, middle, 3, padding=1)
        self.convolution2 = nn.Conv2d(middle, c_out, 3, padding=1)
        self.around = nn.Conv2d(c_in, c_out, 1) if halve or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.convolution2(F.relu(self.convolution1(x if self.first else F.relu(x))))
        if self.halve:  # means first, the 1x1 behind: the same values, for a quarter of the work
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        around: Tensor = self.around(x)
        return h + around


class Summed(nn.Module):
    """[B C H W] -> relu, and the sum over places [B C]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).sum((2, 3))


@dataclass(frozen=True)
class Stages:
    """Widths of both networks at one side of the canvas, in multiples of the net's ``width``.

    ``generator``: from the 4x4 map to the pixels, one for each side. ``critic``: of each block from the pixels;
    ``halvings``: so many of them halve the side, the later ones keep it."""

    generator: Sequence[int]
    critic: Sequence[int]
    halvings: int


@dataclass(frozen=True)
class ResNetGAN:
    """An ``Architecture`` for square images, with a critic's ``trunk`` and a ``modulated_decoder``.

    ``stages``: by side of the canvas, as text (Hydra's keys are). ``width``: channels that its multiples are of.
    ``attention``: side of the feature map that networks attend over (those that have one of that side), ``half`` of the
    canvas, or null for none; ``pool``: over keys and values of half that side. ``wide``: see ``Shrinking``.
    ``decoder_norm``: batch, instance, layer or none. ``init``: a name of ``layers.INITS``. UserError for a canvas
    without stages, and for other values.
    """

    stages: Mapping[str, Stages]
    width: int = 64
    attention: int | str | None = None
    pool: bool = True
    wide: bool = False
    decoder_norm: str = "batch"
    init: str = "xavier"

    def __post_init__(self) -> None:
        choose(IMAGE_NORMS, self.decoder_norm, "model.net.decoder_norm")
        choose(INITS, self.init, "model.net.init")
        if self.width < 1:
            raise UserError(f"model.net.width={self.width}: at least 1")
        for canvas, stages in self.stages.items():
            check_stages(canvas, stages)

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        return self._decoder(spec, latent, channels, bounded, IMAGE_NORMS[self.decoder_norm])

    def modulated_decoder(self, spec: Spec, latent: int, condition: int, *, one_hot: bool) -> nn.Module:
        """(z [B Z], c [B condition]) -> [B C H W] in [-1, 1]; c modulates the two normalisations of each block."""
        require_batch_norm(self.decoder_norm)
        return self._decoder(spec, latent, None, True, modulated(condition, one_hot=one_hot))

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> sums over places of the last feature map [B F], and F."""
        stages = stages_of(self.stages, spec)
        _, sides = sides_of(stages, spec)
        attend = self._attended(spec)
        layers = padded(spec)
        channels = spec.channels + more
        for i, (multiple, side) in enumerate(zip(stages.critic, sides, strict=True)):
            wide = multiple * self.width
            layers.append(Shrinking(channels, wide, halve=i < stages.halvings, first=not i, wide=self.wide))
            channels = wide
            if side == attend and side not in sides[:i]:
                layers.append(SelfAttention(wide, pool=self.pool))
        return self.initialised(nn.Sequential(*layers, Summed())), channels

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return self.initialised(nn.Linear(inputs, outputs))

    def _decoder(
        self, spec: Spec, latent: int, channels: int | None, bounded: bool, norm: MakeNorm
    ) -> ConditionalSequential:
        top = stages_of(self.stages, spec).generator[0] * self.width
        bias = not norm(1)
        first = [nn.Linear(latent, top * BASE * BASE, bias=bias), nn.Unflatten(1, (top, BASE, BASE))]
        blocks = self.growing(spec, norm)
        last = self.to_pixels(spec, channels, bounded)
        return self.initialised(ConditionalSequential(*first, *blocks, *last))

    def growing(self, spec: Spec, norm: MakeNorm) -> list[nn.Module]:
        """Blocks from 4x4 to the pixels, and the attention between them."""
        widths = [multiple * self.width for multiple in stages_of(self.stages, spec).generator]
        attend = self._attended(spec)
        layers: list[nn.Module] = [SelfAttention(widths[0], pool=self.pool)] if attend == BASE else []
        for i, (wide, narrow) in enumerate(pairwise(widths), start=1):
            layers.append(Growing(wide, narrow, norm))
            if attend == BASE << i:
                layers.append(SelfAttention(narrow, pool=self.pool))
        return layers

    def _attended(self, spec: Spec) -> int | None:
        growing, shrinking = sides_of(stages_of(self.stages, spec), spec)
        return at_sides(self.attention, spec.canvas, [*growing, *shrinking])

    def to_pixels(self, spec: Spec, channels: int | None = None, bounded: bool = True) -> list[nn.Module]:
        """Normalisation (of no condition, as in the authors' networks), ReLU and a 3x3 convolution."""
        narrow = stages_of(self.stages, spec).generator[-1] * self.width
        layers = [*IMAGE_NORMS[self.decoder_norm](narrow), nn.ReLU()]
        layers.append(nn.Conv2d(narrow, channels or spec.channels, 3, padding=1))
        return [*layers, *cropped(spec, bounded=bounded)]

    def initialised(self, net: Net) -> Net:
        """Weights of convolutions and dense layers as ``init`` says, biases 0."""
        if self.init != "default":
            for layer in net.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    INITS[self.init](layer.weight)
            set_biases(net)
        return net


def sides_of(stages: Stages, spec: Spec) -> tuple[list[int], list[int]]:
    """Sides of the generator's feature maps, from 4x4, and of those behind each of the critic's blocks."""
    growing = [BASE << i for i in range(len(stages.generator))]
    return growing, [spec.canvas >> min(i + 1, stages.halvings) for i in range(len(stages.critic))]


def check_stages(canvas: str, stages: Stages) -> None:
    """UserError for stages that do not lead from 4x4 to the canvas, or from it to 4x4 or more."""
    where = f"model.net.stages.{canvas}"
    side = int(canvas) if canvas.isdecimal() else 0
    steps = (side // BASE).bit_length() - 1
    if side < 2 * BASE or side & (side - 1):
        raise UserError(f"{where}: the side of a canvas is a power of two, {2 * BASE} or more")
    if len(stages.generator) != steps + 1:
        raise UserError(f"{where}.generator={list(stages.generator)}: {steps + 1} widths lead from 4x4 to {canvas}")
    if not 1 <= stages.halvings <= min(steps, len(stages.critic)):
        raise UserError(f"{where}.halvings={stages.halvings}: from 1 to {min(steps, len(stages.critic))}")
    if min(*stages.generator, *stages.critic) < 1:
        raise UserError(f"{where}: widths are 1 or more")


def stages_of(stages: Mapping[str, Stages], spec: Spec) -> Stages:
    """Those of the data's canvas. UserError where there are none."""
    require_square_images(spec)
    found = stages.get(str(spec.canvas))
    if found is None:
        raise UserError(
            f"model.net.stages: none for images of {spec.size} pixels (canvas {spec.canvas}); there are "
            f"{', '.join(stages)}: choose a data.size, or give model.net.stages.{spec.canvas}"
        )
    return found
