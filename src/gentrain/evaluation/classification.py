"""How often a system that classifies is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gentrain.errors import UserError
from gentrain.evaluation.metric import finite
from gentrain.evaluation.subject import Subject, counted, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class ClassificationError:
    """Share of held-out samples whose most likely class is not their label (config target): ``classification_error``,
    0..1, lower is better.

    ``split``; ``limit``: so many samples spread over it, None for all; ``batch``: per call.
    """

    split: str = "test"
    limit: int | None = None
    batch: int = 250

    needs: ClassVar[frozenset[str]] = frozenset({"classify"})

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"metrics.scores.classification.batch={self.batch}: at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"metrics.scores.classification.limit={self.limit}: at least 1, or null for all")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("classification_error",)

    def check(self, data: DataSet, n: int | None = None) -> None:
        y = split_of(data, self.split).y
        if y is None or y.ndim != 1:
            raise UserError(f"metrics: split={self.split} of data {data.name!r} has no class labels to be wrong about")

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return counted(data, self.split, self.limit, limit)

    def measure(self, subject: Subject) -> dict[str, float]:
        rows = split_of(subject.data, self.split)
        wrong = count = 0
        for index in torch.split(
            subject.reference_index(self.split, self.looks_at(subject.data, subject.limit)), self.batch
        ):
            images = rows.take(index)
            assert images.y is not None
            logits = subject.system.classify(images.x.to(subject.device)).float().cpu()  # type: ignore[attr-defined]
            wrong += int((finite(logits, "classified images").argmax(1) != images.y).sum())
            count += len(images)
        return {"classification_error": wrong / count}
