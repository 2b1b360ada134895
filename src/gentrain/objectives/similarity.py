"""Multi-scale structural similarity of images: its scales, and a form of it to descend along."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang et al. 2003, section 3.2)."""
WINDOW, SIGMA = 11, 1.5
"""Of the Gaussian window as published, in pixels."""
FLOOR = 1e-3
"""A scale whose mean similarity is less counts as this much: fractional powers have no slope at 0 and below."""


def most_scales(size: int, window: int) -> int:
    """How often images of ``size`` pixels can be halved, plus one, so that the window fits, up to 5; 0: not at all.
    At the fourth scale torchmetrics wants a ninth of the image, where an eighth would be enough."""
    fits = [s for s in range(1, len(WEIGHTS) + 1) if size // max(2 ** (s - 1), (s - 1) ** 2) >= window]
    return max(fits, default=0)


def window_and_scales(size: int) -> tuple[int, int]:
    """(window, scales) that fit images of ``size`` pixels: the published window where there is room for it."""
    window = min(WINDOW, size - 1 + size % 2)
    return window, most_scales(size, window)


def multi_scale(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM of each pair (Wang et al. 2003, eq. 7), [N] up to 1, of images [N C H W] on the scale 0 to 255, with as
    many scales as fit and the first exponents scaled to sum 1. The slope is finite everywhere: a scale that is less
    alike than ``FLOOR`` stands still, and the others go on. float32 or wider."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    window, scales = window_and_scales(x.shape[-1])
    parts = []
    with torch.autocast(x.device.type, enabled=False):
        x, y = (image if image.dtype == torch.float64 else image.float() for image in (x, y))
        for scale in range(scales):
            found = structural_similarity_index_measure(
                x, y, sigma=SIGMA * window / WINDOW, kernel_size=window, reduction="none", data_range=255.0,
                return_contrast_sensitivity=True,
            )  # fmt: skip
            whole, contrast = found  # with the comparison of brightness, which is for the coarsest scale alone
            parts.append(whole if scale == scales - 1 else contrast)
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        weights = torch.tensor(WEIGHTS[:scales], dtype=x.dtype, device=x.device)[:, None]
        logs: Tensor = torch.stack(parts).clamp_min(FLOOR).log() * (weights / weights.sum())
        return logs.sum(0).exp()
