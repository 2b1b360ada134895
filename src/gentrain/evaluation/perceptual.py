"""Frozen networks that losses compare pictures by, as values of a config: ImageNet's VGG-19, or a domain extractor.

VGG-19: Simonyan and Zisserman 2015, arXiv 1409.1556, table 1, column E. Its convolutions are written here, so that the
core needs no torchvision; the names of its tensors are torchvision's, whose file it loads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.evaluation.domain import SHIPPED, DomainNet, load_extractor, read_card
from gentrain.evaluation.imagenet import MEAN, STD
from gentrain.evaluation.weight_files import VGG19 as FILE
from gentrain.evaluation.weight_files import fetch, load_into, locate
from gentrain.nets.frozen import Frozen
from gentrain.types import PathText, Spec

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and convolutions of each block; a pooling by 2 lies between blocks."""


class Tapped(nn.Module):
    """A chain of layers whose outputs at some places are kept. ``taps``: places in the chain, rising."""

    def __init__(self, chain: Sequence[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*chain)
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        kept = []
        for place, layer in enumerate(self.features[: self.taps[-1] + 1]):
            x = layer(x)
            if place in self.taps:
                kept.append(x)
        return tuple(kept)


class VGG19Net(nn.Module):
    """Feature maps of float [B 1|3 H W] in [-1, 1] at ``layers`` (``relu1_1``), times ``scale``; grey is repeated."""

    def __init__(self, layers: Sequence[str], scale: float) -> None:
        super().__init__()
        places, chain, before = {}, [], 3
        for block, (width, count) in enumerate(BLOCKS, start=1):
            for number in range(1, count + 1):
                # Not in place: a map that is kept must not be written over.
                chain += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                places[f"relu{block}_{number}"] = len(chain) - 1
                before = width
            chain.append(nn.MaxPool2d(2))
        taps = sorted(places[layer] for layer in layers)
        self.tapped, self.scale = Tapped(chain[: taps[-1] + 1], taps), scale
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        unit = x.expand(-1, 3, -1, -1).add(1.0).div(2.0)
        return tuple(self.scale * kept for kept in self.tapped((unit - self.mean) / self.std))


class Grouped(nn.Module):
    """Looks at ``channels`` of the C of [B C H W] at a time: maps [B C*C'/channels H' W'], times ``scale``."""

    def __init__(self, net: nn.Module, channels: int, scale: float) -> None:
        super().__init__()
        self.net, self.channels, self.scale = net, channels, scale

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.net(x.reshape(-1, self.channels, *x.shape[2:]))
        return tuple(self.scale * kept.reshape(len(x), -1, *kept.shape[2:]) for kept in maps)


@dataclass(frozen=True)
class DomainFeatures:
    """Feature maps of a domain extractor behind each of its stages (config target).

    ``weights``: its .safetensors file, with its card beside it; None: the shipped one whose images are nearest in size.
    One of grey images looks at each colour on its own. ``scale``: the features are multiplied by it. Raises UserError
    where the file is none, or is of images of other channels.
    """

    weights: PathText | None = None
    scale: float = 1.0

    def build(self, spec: Spec) -> Frozen:
        path = self._nearest(spec) if self.weights is None else Path(self.weights).expanduser()
        card = read_card(path)
        if card.shape[0] not in (1, spec.channels):
            raise UserError(
                f"model.loss.features: {path} is of images of {card.shape[0]} channels, these have {spec.channels}: "
                "give another file as weights"
            )
        load_extractor(path)  # refuses bytes that are not those of the card
        net = card.net()
        net.load_state_dict(load_file(path))
        tapped = Tapped(list(net.body), _stage_ends(net))
        whole = Grouped(tapped, card.shape[0], self.scale)
        return Frozen(whole, name=f"domain extractor {card.name} (stages 1-{len(card.widths)})", sha256=card.sha256)

    @staticmethod
    def _nearest(spec: Spec) -> Path:
        paths = sorted(SHIPPED.glob("*.safetensors"))
        return min(paths, key=lambda path: abs(read_card(path).shape[-1] - spec.size))


@dataclass(frozen=True)
class VGG19:
    """Feature maps of ImageNet's VGG-19 (config target).

    ``layers``: ``relu1_1`` .. ``relu5_4``, block and convolution. ``weights_path``: torchvision's file or a folder that
    holds it; None looks into $GENTRAIN_WEIGHTS, gentrain's cache and torch's. ``otherwise``: what stands in where the
    file is in none of these; None: it is downloaded. ``scale``: the features are multiplied by it. Raises UserError for
    a layer that does not exist or that so small images do not reach, and for a file that is not the published one.
    """

    layers: Sequence[str] = ("relu1_1", "relu2_1", "relu3_1")
    weights_path: PathText | None = None
    otherwise: DomainFeatures | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        for layer in self.layers:
            found = re.fullmatch(r"relu(\d)_(\d)", layer)
            block, number = map(int, found.groups()) if found else (0, 0)
            if not (1 <= block <= len(BLOCKS) and 1 <= number <= BLOCKS[block - 1][1]):
                raise UserError(f"model.loss.features.layers: {layer}: relu1_1 to relu5_4 are there")
        if not self.layers:
            raise UserError("model.loss.features.layers: empty, relu1_1 to relu5_4 are there")

    def build(self, spec: Spec) -> Frozen:
        try:
            if self.weights_path is None and self.otherwise is not None and locate(FILE) is None:
                return self.otherwise.build(spec)
            self._require(spec)
            found = fetch(FILE, self.weights_path)
            net = VGG19Net(self.layers, self.scale)
            load_into(net.tapped, found, FILE, part=True)
        except UserError as error:
            raise UserError(str(error).replace("metrics: ", "model.loss.features: ", 1)) from error
        return Frozen(net, name=f"{FILE.extractor} ({', '.join(self.layers)})", sha256=found.sha256)

    def _require(self, spec: Spec) -> None:
        if spec.channels not in (1, 3):
            raise UserError(f"model.loss.features: VGG-19 takes images of 1 or 3 channels, these have {spec.channels}")
        deepest = max(self.layers)
        least = 1 << (int(deepest[4]) - 1)
        if spec.size < least:
            raise UserError(f"model.loss.features.layers: {deepest} needs images of {least} pixels, got {spec.size}")


def _stage_ends(net: DomainNet) -> list[int]:
    """Places of the last activation of each stage: in front of each pooling, and of the 1x1 convolution at the end."""
    chain = list(net.body)
    return [
        place - 1
        for place, layer in enumerate(chain)
        if isinstance(layer, nn.MaxPool2d) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]
