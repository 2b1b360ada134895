"""Scores by the classes that a classifier sees in the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.metric import check_images, finite, logits_of
from gentrain.evaluation.subject import Subject

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class ClassesShown:
    """Which of the extractor's classes the samples show: the plainest sign of dropped modes (config target).

    ``classes_shown``: classes that at least ``share`` of the samples are taken for. ``label_entropy_nats``: of the
    histogram of predicted classes, log K where all are equally frequent.
    """

    extractor: ExtractorSource
    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise UserError(f"metrics.scores.classes.share={self.share}: must lie in (0, 1]")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("classes_shown", "label_entropy_nats")

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        if not self.extractor.keys.classifier:
            raise UserError("metrics: classes_shown needs an extractor that is a classifier")
        self.extractor.check(data)

    def measure(self, subject: Subject) -> dict[str, float]:
        logits = logits_of(subject.sample_features(self.extractor))
        counts = finite(logits, "samples").argmax(dim=1).bincount(minlength=logits.shape[1])  # [K]
        frequency = counts.double() / len(logits)
        return {
            "classes_shown": float((frequency >= self.share).sum()),
            "label_entropy_nats": float(torch.special.entr(frequency).sum()),
        }
