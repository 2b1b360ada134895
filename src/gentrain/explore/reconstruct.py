"""What comes back of test images: usual ones, the worst and the best."""

from __future__ import annotations

from pathlib import Path

import torch

from gentrain.data.dataset import spread
from gentrain.explore.study import Found, Study, mean_square
from gentrain.report.pictures import reconstruction_sheet
from gentrain.report.strips import stack


def explore(study: Study, path: Path, *, n: int, show: int) -> Found:
    """``n``: test images spread over the split. ``show``: of each kind so many are in the picture."""
    study.require_images("reconstruct")
    seen = study.look("test", n)
    back = study.decode(study.encode(seen.x))
    errors = mean_square(seen.x, back)
    order = errors.argsort(stable=True)
    kinds = {
        "spread over the test split": spread(len(seen), show),
        "largest errors": order.flip(0)[:show],
        "smallest errors": order[:show],
    }
    stack([(title, reconstruction_sheet(seen.x[at], back[at])) for title, at in kinds.items()], path)
    shares = (0.0, 0.05, 0.5, 0.95, 1.0)
    by_class = {}
    if seen.y is not None and seen.y.ndim == 1:
        names = study.data.spec.class_names
        by_class = {names[int(c)]: float(errors[seen.y == c].mean()) for c in torch.unique(seen.y)}
    result = {
        "protocol": {
            "images": len(seen), "split": "test",
            "error": "mean squared error per pixel, images in [0, 1], both of 256 levels",
        },
        "mean": float(errors.mean()),
        "quantiles": {str(q): float(torch.quantile(errors, q)) for q in shares},
        "by_class": by_class,
        "worst": [_entry(seen.index, errors, int(i)) for i in kinds["largest errors"]],
        "best": [_entry(seen.index, errors, int(i)) for i in kinds["smallest errors"]],
        "index": seen.index.tolist(),
        "errors": errors.tolist(),
    }  # fmt: skip
    lines = [
        f"mean squared error of {len(seen)} test images: mean {errors.mean():.5f}, median {errors.median():.5f}, "
        f"largest {errors.max():.5f} (image {int(seen.index[order[-1]])})"
    ]
    return Found(result, lines)


def _entry(index: torch.Tensor, errors: torch.Tensor, place: int) -> dict[str, float | int]:
    return {"index": int(index[place]), "error": float(errors[place])}
