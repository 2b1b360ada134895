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

WHOLE, WIDE = "whole", 12.0
"""Name of the prior that nothing is cut from, and the bound that stands for it: of 1e32 numbers one lies beyond it."""
PANELS = ("fd", "precision", "recall")
"""Scores that are drawn, by the beginning of their keys."""


def explore(study: Study, path: Path, *, at: tuple[float, ...], n: int, passes: int, show: int) -> Found:
    """``at``: bounds of each number of the latent; the whole prior is added. ``n``: samples at each, and at most as
    many test images. ``passes``: batches that batch norms' statistics are measured over at each bound; beside them
    the scores under the statistics of training, and with 0 those alone. ``show``: samples in the picture, of the same
    quantiles of the prior at each bound."""
    study.require_images("truncate")
    metrics, cache = _metrics(study, n), FeatureCache.on_disk()
    bounds = [*sorted(at), WIDE]
    names = [*(f"{bound:g}" for bound in bounds[:-1]), WHOLE]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    blocks = []
    for kind, count in {"standing": passes, "training": 0}.items():
        if kind == "standing" and not passes:
            continue
        rows: list[tuple[str, Tensor]] = []
        scores[kind] = {}
        for name, bound in zip(names, bounds, strict=True):
            with truncated(study.system, bound, passes=count, seed=study.seed):
                x = _drawn(study, n)
            subject = _subject(study, x, cache)
            scores[kind][name] = {key: value for metric in metrics for key, value in metric.measure(subject).items()}
            rows.append((name, x[:show]))
        blocks.append((f"samples at each bound, {kind} statistics", strip_block(rows)))
    keys = [key for start in PANELS for key in scores["training"][WHOLE] if key.split("_")[0] == start]
    panels = {key: {kind: [one[key] for one in found.values()] for kind, found in scores.items()} for key in keys}
    stack([("", curves(panels, names, across="bound of each number of the latent")), *blocks], path)
    result: dict[str, Any] = {
        "protocol": {"samples": n, "split": "test", "passes": passes, "extractors": subject.used_extractors},
        "scores": scores,
    }
    return Found(result, _lines(scores, keys, n))


def _subject(study: Study, x: Tensor, cache: FeatureCache) -> Subject:
    return Subject(study.data, study.system, lambda _: x, n=len(x), seed=study.seed, device=study.device, cache=cache)


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


def _lines(scores: dict[str, dict[str, dict[str, float]]], keys: list[str], n: int) -> list[str]:
    lines = [f"{n} samples at each bound"]
    for kind, by_bound in scores.items():
        lines.append(f"  {kind + ' statistics':<20}" + "".join(f"{key:>18}" for key in keys))
        lines += [f"  {name:<20}" + "".join(f"{found[key]:>18.4f}" for key in keys) for name, found in by_bound.items()]
    return lines
