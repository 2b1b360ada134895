"""Fidelity against diversity: samples whose latents are kept nearer and nearer to 0, scored at each bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.manifold import Manifold
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.reference import FeatureCache
from gentrain.evaluation.subject import Subject
from gentrain.evaluation.truncation import truncated
from gentrain.explore.study import BATCH, Found, Study
from gentrain.report.charts import curves
from gentrain.report.strips import stack, strip_block
from gentrain.types import to_bytes

WHOLE = "whole"
"""Name of the prior that nothing is cut from."""


def explore(study: Study, path: Path, *, at: tuple[float, ...], n: int, passes: int, show: int) -> Found:
    """``at``: bounds of each number of the latent; the whole prior is added. ``n``: samples at each, and at most as many
    test images. ``passes``: batches that batch norms' statistics are measured over at each bound, 0 for those of
    training. ``show``: samples in the picture, of the same quantiles of the prior at each bound."""
    study.require_images("truncate")
    metrics = _metrics(study, n)
    cache = FeatureCache.on_disk()
    scores: dict[str, dict[str, float]] = {}
    rows: list[tuple[str, Tensor]] = []
    for bound in [*sorted(at), None]:
        name = WHOLE if bound is None else f"{bound:g}"
        with truncated(study.system, bound, passes=passes, seed=study.seed):
            x = _drawn(study, n)
            subject = Subject(
                study.data, study.system, lambda _, x=x: x, n=n, seed=study.seed, device=study.device, cache=cache  # type: ignore[misc]
            )  # fmt: skip
            scores[name] = {key: value for metric in metrics for key, value in metric.measure(subject).items()}
        rows.append((name, x[:show]))
    panels: dict[str, dict[str, list[float]]] = {}
    for key in next(iter(scores.values())):
        title = _panel(key)
        if title:
            panels.setdefault(title, {})[key] = [found[key] for found in scores.values()]
    chart = curves(panels, list(scores), across="bound of each number of the latent")
    # Each row is centred under words at its left, and as wide as the chart or narrower.
    stack([("", chart), (f"the first {show} samples at each bound", strip_block(rows))], path)
    result: dict[str, Any] = {
        "protocol": {"samples": n, "split": "test", "passes": passes, "extractors": subject.used_extractors},
        "scores": scores,
    }
    return Found(result, _lines(scores, n))


def _metrics(study: Study, n: int) -> tuple[Distances, Manifold]:
    """UserError for data that no domain extractor serves, and for too few samples."""
    extractor = Domain()
    distances = Distances(extractor, reference=n, splits=1, allow_few=True)
    manifold = Manifold(extractor, reference=n)
    try:
        for metric in (distances, manifold):
            metric.check(study.data, n)
    except UserError as error:
        raise UserError(f"explore truncate: {error}") from None
    return distances, manifold


def _drawn(study: Study, n: int) -> Tensor:
    """uint8 [n C H W] on the CPU; the same places in the prior's quantiles at each bound."""
    generator = torch.Generator(study.device).manual_seed(study.seed)
    parts = [
        study.system.sample(min(BATCH, n - start), generator=generator).float().cpu() for start in range(0, n, BATCH)
    ]
    return to_bytes(torch.cat(parts))


def _panel(key: str) -> str | None:
    """Where a score is drawn."""
    for start, title in (
        ("precision", "samples where real images lie"),
        ("recall", "real images that samples reach"),
        ("coverage", "real images that samples reach"),
        ("density", "samples where real images lie"),
        ("fd_", "Fréchet distance"),
    ):
        if key.startswith(start):
            return title
    return None


def _lines(scores: dict[str, dict[str, float]], n: int) -> list[str]:
    keys = [key for key in next(iter(scores.values())) if _panel(key)]
    lines = [f"{n} samples at each bound", "  " + " ".join(f"{key:>18}" for key in ["bound", *keys])]
    for name, found in scores.items():
        lines.append("  " + " ".join([f"{name:>18}", *(f"{found[key]:>18.4f}" for key in keys)]))
    return lines
