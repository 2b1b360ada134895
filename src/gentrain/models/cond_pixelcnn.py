"""Conditional PixelCNN: a Gated PixelCNN that is told the class of the picture, in every gate.

Paper: van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, arXiv 1606.05328, eq. 4 (the same
at every pixel) and eq. 5 (a map s = m(h)).
Adds: two values for ``model.condition``. How they enter the gates is in ``models.gated_pixelcnn``.
Departs: the layers of m are ours; they have no biases, so that no class is no map.
Checked by: tests/test_gated_pixelcnn.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.conditioning import OneHot
from gentrain.types import Spec

BASE = 4
"""The map's side before it is doubled, at most."""


@dataclass(frozen=True)
class ClassVector:
    """h [B K], one-hot."""

    def width(self, spec: Spec) -> int:
        return _classes(spec)

    def build(self, spec: Spec) -> nn.Module:
        return OneHot(_classes(spec))


@dataclass(frozen=True)
class ClassMap:
    """s [B ``channels`` H W] of the one-hot class, by transposed convolutions. UserError for fewer than one channel."""

    channels: int

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"model.condition.channels={self.channels}: at least 1")

    def width(self, spec: Spec) -> int:
        return self.channels

    def build(self, spec: Spec) -> nn.Module:
        return MapOfClass(_classes(spec), self.channels, spec.shape[1], spec.shape[2])


class MapOfClass(nn.Module):
    """int64 [B] -> [B F H W]: a base of at most 4x4, doubled until it covers the picture, and cut."""

    def __init__(self, classes: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.sides = height, width
        self.one_hot = OneHot(classes)
        doublings = 0
        while max(self.sides) > BASE << doublings:
            doublings += 1
        base = [-(-side >> doublings) for side in self.sides]  # rounded up
        self.first = nn.ConvTranspose2d(classes, channels, (base[0], base[1]), bias=False)
        self.doubled = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False) for _ in range(doublings)
        )

    def forward(self, labels: Tensor) -> Tensor:
        return self.of(self.one_hot(labels))

    def of(self, h: Tensor) -> Tensor:
        """The map of a vector [B K]."""
        found: Tensor = self.first(h[:, :, None, None])
        for layer in self.doubled:
            found = layer(F.relu(found))
        return found[:, :, : self.sides[0], : self.sides[1]]


def _classes(spec: Spec) -> int:
    if spec.classes < 2:
        raise UserError("model.condition: data= gives no classes: choose other data, or model=gated_pixelcnn")
    return spec.classes
