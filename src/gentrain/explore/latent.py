"""A map of the codes of test images in two dimensions, with their classes, and what the decoder makes of the plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.study import Found, Study
from gentrain.report.canvas import as_images, fitting_scale, magnify, sheet
from gentrain.report.charts import point_map
from gentrain.report.strips import side_by_side_of

Floats = npt.NDArray[np.float64]

PRIOR_DRAWS = 10_000
RANGE = (0.01, 0.99)
"""Quantiles of the codes between which the plane is decoded where there is no prior."""


def explore(study: Study, path: Path, *, method: str, n: int, side: int) -> Found:
    """``method``: auto (codes of two numbers as they are, else PCA), pca or tsne. ``n``: test images spread over the
    split. ``side``: the decoded grid has so many images a side; only codes of two numbers have one."""
    seen = study.look("test", n)
    codes = study.encode(seen.x)
    points, how = project(codes, method, study.seed)
    y = seen.y if seen.y is not None and seen.y.ndim == 1 and study.data.spec.classes else None
    words = {"pca": ("first component", "second component"), "tsne": ("t-SNE 1", "t-SNE 2")}
    labels = None if y is None else y.numpy()
    at = words.get(how["method"], ("z0", "z1" if codes.shape[1] > 1 else ""))
    parts = [point_map(points, labels, study.data.spec.class_names, axes_names=at)]
    grid: dict[str, Any] = {}
    if codes.shape[1] == 2 and how["method"] == "codes" and study.can("decode") and study.data.spec.is_image:
        picture, grid = _plane(study, codes, side)
        parts.append(picture)
    side_by_side_of(parts, path)
    agreement = {} if y is None or len(seen) < 2 else _agreement(points, codes, y)
    result = {
        "protocol": {"images": len(seen), "split": "test", "code": codes.shape[1], **how},
        "nearest_neighbour_of_the_same_class": agreement,
        "grid": grid,
        "points": [[round(float(v), 4) for v in point] for point in points],
        "index": seen.index.tolist(),
    }
    lines = [f"{len(seen)} test images, codes of {codes.shape[1]} numbers, shown by {how['method']}"]
    if agreement:
        lines.append(
            f"  nearest neighbour of the same class: {agreement['in_the_map']:.3f} in the map, "
            f"{agreement['in_the_codes']:.3f} in the codes"
        )
    return Found(result, lines)


def project(codes: Tensor, method: str, seed: int) -> tuple[Floats, dict[str, Any]]:
    """float64 [N 2] of codes [N Z], and how they were made. UserError for too few."""
    values: Floats = codes.double().numpy()
    count, dimensions = values.shape
    if method == "tsne" and dimensions > 1:
        from sklearn.manifold import TSNE

        if count < 4:
            raise UserError(f"n={count}: t-SNE needs at least 4 images")
        perplexity = min(30.0, (count - 1) / 3)
        found = TSNE(init="pca", perplexity=perplexity, random_state=seed % 2**32).fit_transform(values)
        return found.astype(np.float64), {"method": "tsne", "perplexity": perplexity}
    if dimensions == 1:
        return np.column_stack([values, np.zeros(count)]), {"method": "codes"}
    if dimensions == 2 and method == "auto":
        return values, {"method": "codes"}
    from sklearn.decomposition import PCA

    if count < 2:
        raise UserError(f"n={count}: principal components need at least 2 images")
    pca = PCA(2, random_state=seed % 2**32)
    points: Floats = pca.fit_transform(values)
    return points, {"method": "pca", "explained_variance_ratio": [float(v) for v in pca.explained_variance_ratio_]}


def quantile_lines(draws: Tensor, side: int) -> list[Tensor]:
    """For each dimension of draws [n Z] the ``side`` quantiles in the middles of equal shares, float32 [side]."""
    shares = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return [torch.quantile(column.double(), shares).float() for column in draws.T]


def _plane(study: Study, codes: Tensor, side: int) -> tuple[Image.Image, dict[str, Any]]:
    """The decoded plane: z0 grows to the right, z1 upwards."""
    draws = study.prior_codes(PRIOR_DRAWS)
    if draws is not None:
        across, up = quantile_lines(draws, side)
    else:
        limits = torch.tensor(RANGE, dtype=torch.float64)
        ends = [torch.quantile(column.double(), limits) for column in codes.T]
        across, up = (torch.linspace(float(low), float(high), side) for low, high in ends)
    z = torch.stack(torch.meshgrid(across, up.flip(0), indexing="xy"), dim=-1).reshape(-1, 2)  # row by row, from above
    images = as_images(study.decode(z))
    facts = {
        "from": "quantiles of the prior" if draws is not None else "range of the codes, 1st to 99th percentile",
        "side": side, "z0": across.tolist(), "z1": up.tolist(),
    }  # fmt: skip
    return sheet(magnify(images, fitting_scale(images, side)), side), facts


def _agreement(points: Floats, codes: Tensor, y: Tensor) -> dict[str, float]:
    return {"in_the_map": same_class(points, y), "in_the_codes": same_class(codes.double().numpy(), y)}


def same_class(values: Floats, y: Tensor) -> float:
    """Share of samples [N D] whose nearest other sample has their class."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=1).fit(values).kneighbors(return_distance=False)[:, 0]
    return float((y[torch.from_numpy(near)] == y).double().mean())
