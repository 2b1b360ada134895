"""Scores of pictures that other tools have made: they stand where a system stands, and all they can do is be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gentrain.data.given import OneSet
from gentrain.evaluation.frechet import FrechetDetails
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.protocol import Report, evaluate, possible, promised, require
from gentrain.evaluation.subject import FeatureCache, Subject

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet
    from gentrain.data.given import Pictures as Given

COUNT = "the number of pictures"


class Pictures:
    """In a system's place. ``conditional``: each is known to be of a class."""

    def __init__(self, x: Tensor, labels: Tensor | None) -> None:
        self.x, self.conditional = x, labels is not None

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """uint8 [n C H W]: the first n, as they are."""
        return self.x[:n]


def score_pictures(
    given: Given,
    data: DataSet,
    sections: Mapping[str, Mapping[str, Metric]],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    cache: FeatureCache | None = None,
) -> tuple[Report, list[str]]:
    """Scores, and one line about each metric that was left out. ``sections``: metrics by the section of the config that
    they stand in. The protocol has what is known of the pictures under
    ``made_elsewhere``. Raises UserError if no metric is left, or if one cannot work with these pictures and data."""
    labels = given.labels(data.spec)
    system = Pictures(given.x, labels)
    able: dict[str, Metric] = {}
    left_out = []
    for section, metrics in sections.items():
        here = {name: metric for name, metric in metrics.items() if metric.needs <= {"sample"}}
        left_out += [
            f"{section}.{name} ({type(metric).__name__}) is left out: it needs {' and '.join(sorted(metric.needs))}, "
            "and pictures have none"
            for name, metric in metrics.items()
            if name not in here
        ]
        if isinstance(data, OneSet):
            here, more = _of_one_set(here)
            left_out += more
        here, more = possible(here, system, data, COUNT, section)
        left_out += more
        require(here, system, data, n=len(given), key=COUNT, section=section)
        able |= here
    if not able:
        for section, metrics in sections.items():
            require(metrics, system, data, n=len(given), key=COUNT, section=section)
    promised(able, system, data)
    subject = Subject(data, system, system.sample, n=len(given), seed=seed, device=device, labels=labels, cache=cache)
    report = evaluate(able, subject, "given")
    source = given.facts | {"labels": _about(given, labels)}
    return replace(report, protocol={**report.protocol, "made_elsewhere": source}, samples_per_second=None), left_out


def _about(given: Given, labels: Tensor | None) -> str:
    if given.y is None:
        return "none"
    if labels is not None:
        return f"of {int(labels.bincount().count_nonzero())} classes"
    return "not used: they are no classes of the data"


def _of_one_set(metrics: Mapping[str, Metric]) -> tuple[dict[str, Metric], list[str]]:
    """Without what holds training and held-out images against each other."""
    kept, left_out = dict(metrics), []
    for name, metric in metrics.items():
        if isinstance(metric, FrechetDetails) and (metric.train or metric.floor):
            kept[name] = replace(metric, train=False, floor=False)
            key = metric.extractor.keys.distance
            left_out.append(f"{key}_train and {key}_floor are left out: reference= is one set, without training images")
    return kept, left_out
