"""Clusters in the codes against the classes that nobody told the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.evaluation.clustering import cluster_scores, confident_accuracy, kmeans, principal_components
from gentrain.explore.study import BATCH, Found, Study, spread_of
from gentrain.report.charts import bars
from gentrain.report.strips import stack, strip_block

SHOWN, ROWS = 9, 20
TITLES = {"accuracy": "accuracy", "nmi": "NMI"}
"""Scores that are drawn."""


def explore(study: Study, path: Path, *, k: int, repeats: int, n: int) -> Found:
    """k-means on the codes, the pixels and as many principal components as a code has numbers, of ``n`` test images.
    ``k``: clusters, 0 for as many as classes. ``repeats``: seeds. Writes the scores, and the images nearest to the
    middle of each cluster of codes (of the first seed)."""
    seen = study.look("test", n)
    labels = study.classes(seen, "cluster")
    k = k or study.data.spec.classes
    codes = study.encode(seen.x)
    values = {
        "codes": codes,
        "PCA": principal_components(seen.flat, codes.shape[1], study.seed),
        "pixels": seen.flat,
    }
    found = {name: [kmeans(value, k, study.seed + i) for i in range(repeats)] for name, value in values.items()}
    scores = {name: _spread([cluster_scores(each, labels) for each in clusters]) for name, clusters in found.items()}
    own: dict[str, Any] = {}
    if study.can("cluster"):
        probabilities = torch.cat(
            [study.system.cluster(x.to(study.device)).float().cpu() for x in torch.split(seen.x, BATCH)]
        )
        mine = probabilities.argmax(1)
        scores["own clusters"] = _spread([cluster_scores(mine, labels)])
        own = {
            "accuracy_confident": confident_accuracy(probabilities, labels),
            "clusters_used": int((mine.bincount() > 0).sum()),
            "clusters": probabilities.shape[1],
        }
    groups = {
        name: {TITLES[score]: (by["mean"], by["sd"]) for score, by in of.items() if score in TITLES}
        for name, of in scores.items()
    }
    blocks = [("", bars(groups, up="agreement with the classes"))]
    if study.data.spec.is_image:
        first = found["codes"][0]
        rows = [
            _row(study, seen.x, codes, labels, (first == c).nonzero().flatten()) for c in torch.unique(first)[:ROWS]
        ]
        blocks.append(("nearest to the middle of each cluster of codes", strip_block(_even(rows))))
    stack(blocks, path)
    result = {
        "protocol": {
            "clusters": k, "seeds": [study.seed + i for i in range(repeats)], "images": len(seen), "split": "test",
            "code": codes.shape[1], "standardised": False,
        },
        "scores": scores,
        "own": own,
    }  # fmt: skip
    lines = [
        f"  {name:<13} accuracy {of['accuracy']['mean']:.3f} ± {of['accuracy']['sd']:.3f}  "
        f"NMI {of['nmi']['mean']:.3f} ± {of['nmi']['sd']:.3f}"
        for name, of in scores.items()
    ]
    return Found(result, [f"{k} clusters of {len(seen)} test images", *lines])


def _spread(scores: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in scores[0]:
        values = [each[name] for each in scores]
        found[name] = {"mean": sum(values) / len(values), "sd": spread_of(values), "values": values}
    return found


def _row(study: Study, x: Tensor, codes: Tensor, labels: Tensor, members: Tensor) -> tuple[str, Tensor]:
    """The commonest class of a cluster and its share, and the members nearest to their mean code."""
    distance = (codes[members] - codes[members].mean(0)).square().sum(1)
    near = members[distance.argsort(stable=True)[:SHOWN]]
    counts = labels[members].bincount(minlength=study.data.spec.classes)
    name = study.data.spec.class_names[int(counts.argmax())]
    return f"{name} {int(counts.max()) / len(members):.0%}", x[near]


def _even(rows: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Rows of one length; a small cluster's is filled up with mid-grey."""
    longest = max(len(x) for _, x in rows)
    return [(words, torch.cat([x, x.new_full((longest - len(x), *x.shape[1:]), 84)])) for words, x in rows]
