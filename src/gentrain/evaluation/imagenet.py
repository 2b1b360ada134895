"""From bytes to what networks that were trained on ImageNet-like pictures expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.errors import UserError

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

SIDE = 224
RESIZE = f"bicubic antialiased to {SIDE}, rounded to bytes"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels in 0..1, by colour."""


def imagenet_input(x: Tensor) -> Tensor:
    """uint8 [B 1|3 H W] to float32 [B 3 224 224] with ImageNet's mean and deviation taken out; grey is repeated.

    Resized with the bicubic filter that image libraries use (a = -0.5, wide enough for the scale: Parmar et al. 2022,
    arXiv 2104.11222, shows what a filter without that does to FID), stretched if not square, rounded to bytes.
    """
    pixels = F.interpolate(x.float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    pixels = pixels.round_().clamp_(0, 255).expand(-1, 3, -1, -1).div(255)  # [B 3 224 224]
    mean = torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=x.device).view(1, 3, 1, 1)
    return pixels.sub(mean).div(std)


def check_channels(data: DataSet, extractor: str) -> None:
    """Raises UserError for vectors and for images that are neither grey nor RGB."""
    if not data.spec.is_image or data.spec.channels not in (1, 3):
        what = f"{data.spec.channels} channels" if data.spec.is_image else "no channels: they are vectors"
        raise UserError(f"metrics: {extractor} takes images of 1 or 3 channels, data {data.name!r} have {what}")
