"""DiffAugment: the same random changes for real and generated images, in both players' turns.

Paper: Zhao, Liu, Lin, Zhu and Han 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv
2006.10738, eq. 4-6 and section 3.3; ranges as in the authors' code.
Adds: a view. The gradient passes through the changes, so that the generator is asked for images that look real once
changed, and does not learn to make changed ones.
Departs: saturation is left out for images of one channel, where it changes nothing.
Checked by: tests/test_views.py (each change by its definition, gradients, separate draws, 8x8 images).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.game import Verdict
from gentrain.nets.layers import choose
from gentrain.types import Spec


def colour(x: Tensor) -> Tensor:
    """Brightness by U(-0.5, 0.5), distance to the pixel's grey by a factor of U(0, 2), distance to the image's mean by
    one of U(0.5, 1.5)."""
    x = x + (_uniform(x) - 0.5)
    if x.shape[1] > 1:
        x = torch.lerp(x.mean(1, keepdim=True), x, 2.0 * _uniform(x))
    return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, 0.5 + _uniform(x))


def translation(x: Tensor, share: float = 0.125) -> Tensor:
    """Shifted by whole pixels, up to ``share`` of each side; 0, a middle grey, comes in at the border."""
    for dim in (2, 3):
        side = x.shape[dim]
        most = int(side * share + 0.5)
        shift = torch.randint(-most, most + 1, (len(x), 1), device=x.device)
        source = torch.arange(side, device=x.device) + shift  # [B side]
        inside = (source >= 0) & (source < side)
        # One pixel goes to one place, and all that reach the border's index count for nothing: no order of adding can
        # change the gradient, on a GPU either.
        place = source.clamp(0, side - 1)
        lines = (len(x), 1, side, 1) if dim == 2 else (len(x), 1, 1, side)
        x = x.gather(dim, place.view(lines).expand_as(x)) * inside.view(lines).to(x.dtype)
    return x


def cutout(x: Tensor, share: float = 0.5) -> Tensor:
    """A square of ``share`` of the side put to 0, its middle anywhere in the image."""
    keep = []
    for dim in (2, 3):
        side = x.shape[dim]
        size = int(side * share + 0.5)
        start = torch.randint(0, side + (1 - size % 2), (len(x), 1), device=x.device) - size // 2
        place = torch.arange(side, device=x.device)
        keep.append((place < start) | (place >= start + size))  # [B side]
    mask = keep[0][:, None, :, None] | keep[1][:, None, None, :]  # [B 1 H W]
    return x * mask.to(x.dtype)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {"colour": colour, "translation": translation, "cutout": cutout}


@dataclass(frozen=True)
class DiffAugment:
    """``changes``, in this order: colour, translation, cutout. UserError for others, and for vectors."""

    changes: Sequence[str] = ("colour", "translation", "cutout")

    def __post_init__(self) -> None:
        for name in self.changes:
            choose(CHANGES, name, "model.views.diffaugment.changes")

    def require(self, spec: Spec) -> None:
        if not spec.is_image:
            raise UserError("model.views: DiffAugment changes images, and the data are vectors: use instance_noise")

    def __call__(self, x: Tensor, iteration: int, total: int) -> Tensor:
        for name in self.changes:
            x = CHANGES[name](x)
        return x

    def learn(self, on_real: Verdict) -> Mapping[str, Tensor]:
        """Nothing: the changes are always made."""
        return {}


def _uniform(x: Tensor) -> Tensor:
    """U[0, 1) of shape [B 1 1 1]."""
    return torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
