"""Samples of each class side by side, and how often a classifier of the data takes them for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gentrain.errors import UserError
from gentrain.evaluation.classes import asks_by_class
from gentrain.explore.judge import judge
from gentrain.explore.study import Found, Study
from gentrain.report.strips import Row, stack, strip_block


def explore(study: Study, path: Path, *, n: int, show: int) -> Found:
    """``n``: samples of each class that are judged; ``show``: of each so many are in the picture. Where no domain
    extractor knows the classes there is a picture and no accuracy."""
    study.require_images("classes")
    if not asks_by_class(study.system, study.data):
        raise UserError(f"explore classes: data {study.data.name!r} have no class labels to ask for")
    names = study.data.spec.class_names
    labels = torch.arange(len(names)).repeat_interleave(n)
    x = study.sample(len(labels), labels)
    by_class = torch.unflatten(x, 0, (len(names), n))
    judged = judge(study)
    counts, said = None, [""] * len(names)
    if judged is not None:
        taken = torch.cat([judged(part).argmax(1) for part in torch.split(x, 2000)])
        counts = (labels * len(names) + taken).bincount(minlength=len(names) ** 2).view(len(names), -1)  # [K K]
        said = [f" {float(share):.0%}" for share in counts.diagonal() / n]
    rows: list[Row] = [(f"{name}{words}", some[:show]) for name, words, some in zip(names, said, by_class, strict=True)]
    stack([("", strip_block(rows))], path)
    result: dict[str, Any] = {
        "protocol": {"samples_per_class": n, "judge": judged.facts if judged else None},
        "classes": list(names),
        "label_accuracy": None,
        "by_class": None,
        "taken_for": None,
    }
    if counts is None:
        return Found(result, [f"{len(names)} classes; no domain extractor knows them: accuracy is not measured"])
    accuracy = (counts.diagonal().double() / n).tolist()
    result |= {
        "label_accuracy": sum(accuracy) / len(accuracy),
        "by_class": dict(zip(names, accuracy, strict=True)),
        "taken_for": counts.tolist(),
    }
    lines = [f"{n} samples of each of {len(names)} classes: accuracy {result['label_accuracy']:.3f}"]
    wrong = counts - torch.diag(counts.diagonal())
    for place in sorted(range(len(names)), key=lambda place: accuracy[place])[:3]:
        most = int(wrong[place].argmax())
        other = f", taken for {names[most]} {float(wrong[place, most]) / n:.0%}" if accuracy[place] < 1 else ""
        lines.append(f"  {names[place]:<12} {accuracy[place]:.3f}{other}")
    return Found(result, lines)
