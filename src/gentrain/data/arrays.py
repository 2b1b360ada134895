"""Sets that come as arrays of small images: brought to the wanted size and channels, held in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.decode import Recipe, check_size, fitted, planes
from gentrain.data.leave_out import leaving_out
from gentrain.types import Spec

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Images uint8 [N H W] or [N H W 3], and class labels uint8 [N]."""


def image_set(
    name: str,
    classes: tuple[str, ...],
    train: Pair,
    test: Pair,
    *,
    size: int,
    channels: int,
    resample: str = "bicubic",
    leave_out: Sequence[str | int] = (),
) -> DataSet:
    """Both splits at ``size`` pixels with 1 or 3 channels. ``leave_out``: classes that are not trained on. Raises
    UserError for sizes and classes that are not on offer."""
    check_size(size, native=train[0].shape[1])
    recipe = Recipe(size, channels, "crop", resample)
    splits = [(_fit(x, recipe), torch.from_numpy(y.astype(np.int64))) for x, y in (train, test)]
    data = in_memory(name, Spec((channels, size, size), class_names=classes), splits[0], splits[1])
    return leaving_out(data, leave_out)


def _fit(x: NDArray[np.uint8], recipe: Recipe) -> Tensor:
    """uint8 [N C size size], by the rules of ``data/decode.py``."""
    deep = x.ndim == 4  # [N H W 3] or [N H W]
    if x.shape[1] == recipe.size and deep == (recipe.channels == 3):
        return torch.from_numpy(np.array(x.transpose(0, 3, 1, 2) if deep else x[:, None], order="C"))
    out = np.empty((len(x), recipe.channels, recipe.size, recipe.size), dtype=np.uint8)
    mode = "L" if recipe.channels == 1 else "RGB"
    for place, pixels in enumerate(x):
        out[place] = planes(fitted(Image.fromarray(pixels).convert(mode), "array", recipe))
    return torch.from_numpy(out)
