"""Scores by classes: those that a classifier sees in the samples, and those that the samples were asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.capabilities import LearnsFromFewLabels
from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.metric import EIGEN, Work, check_images, finite, logits_of
from gentrain.evaluation.subject import Subject, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class ClassesShown:
    """Which of the extractor's classes the samples show: the plainest sign of dropped modes (config target).

    ``classes_shown``: classes that at least ``share`` of the samples are taken for. ``label_entropy_nats``: of the
    histogram of predicted classes, log K where all are equally frequent. ``reverse_kl_nats``: KL(samples || data) of
    the histograms of classes (as in Srivastava et al. 2017, arXiv 1705.07761), smaller is better. The data's
    are the labels of ``split`` where the extractor's classes are theirs, and what the extractor takes its images for
    elsewhere. Frequencies are put in for probabilities, so n samples of the data themselves do not score 0 but about
    (K - 1) / 2n, more by what the classifier takes for another class.
    """

    extractor: ExtractorSource
    share: float = 0.01
    split: str = "test"

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise UserError(f"metrics.scores.classes.share={self.share}: must lie in (0, 1]")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("classes_shown", "label_entropy_nats", "reverse_kl_nats")

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        if not self.extractor.keys.classifier:
            raise UserError("metrics: classes_shown needs an extractor that is a classifier")
        self.extractor.check(data)
        split_of(data, self.split)

    def work(self, data: DataSet, n: int) -> Work:
        return Work({} if knows_labels(self.extractor, data) else {self.split: len(split_of(data, self.split))})

    def measure(self, subject: Subject) -> dict[str, float]:
        logits = logits_of(subject.sample_features(self.extractor))
        counts = finite(logits, "samples").argmax(dim=1).bincount(minlength=logits.shape[1])  # [K]
        frequency = counts.double() / len(logits)
        return {
            "classes_shown": float((frequency >= self.share).sum()),
            "label_entropy_nats": float(torch.special.entr(frequency).sum()),
            "reverse_kl_nats": reverse_kl(counts, self._data_counts(subject, len(counts))),
        }

    def _data_counts(self, subject: Subject, classes: int) -> Tensor:
        """float64 [K]: images of the split in each of the extractor's classes."""
        if knows_labels(self.extractor, subject.data):
            labels = _labels(subject.data, self.split)
            subject.used_splits.setdefault(self.split, len(labels))
        else:
            real = logits_of(subject.reference_features(self.extractor, self.split))
            labels = finite(real, "reference").argmax(dim=1)
        # A class that the data do not show would be infinitely far: it counts as half an image of theirs.
        return labels.bincount(minlength=classes).double().clamp(min=0.5)


@dataclass(frozen=True)
class ByClass:
    """Whether samples that were asked by class are of that class (config target). No score where the system is not
    asked by class (its ``conditional`` is not true) or the data have no class labels.

    ``label_accuracy``: share of the samples that the classifier takes for the class that was asked; only where its
    classes are those of the data. ``fd_domain_by_class`` (``fid_by_class`` under Inception): mean over the classes of
    the Fréchet distance between the samples asked to be a class and the images of ``split`` that are of it, all
    classes weighing the same: high also where the samples as a whole look like the data and their classes are mixed up.
    ``allow_few``: compute it although a class has no more samples or images than there are features.
    ``optional``: where ``split`` has too few images of a class, which no count of samples mends, it is left out and
    one line says so.
    """

    extractor: ExtractorSource
    split: str = "test"
    allow_few: bool = False
    optional: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        if not asks_by_class(system, data):
            return ()
        distance = f"{self.extractor.keys.distance}_by_class"
        return (distance, "label_accuracy") if knows_labels(self.extractor, data) else (distance,)

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        self.extractor.check(data)
        split_of(data, self.split)

    def check_system(self, system: object, data: DataSet, n: int | None = None) -> None:
        """Raise UserError if a class has too few images, or would have too few of ``n`` samples."""
        if not asks_by_class(system, data):
            return
        self._enough_images(data, _labels(data, self.split))
        if n is not None:
            frequency = _labels(data, "train").bincount(minlength=data.spec.classes) / len(data.train)
            expected = (n * frequency.double()).round().long()  # [K]
            self._enough_samples(data, torch.arange(len(expected)).repeat_interleave(expected))

    def left_out(self, system: object, data: DataSet) -> str | None:
        if not self.optional or not asks_by_class(system, data):
            return None
        try:
            self._enough_images(data, _labels(data, self.split))
        except UserError as error:
            return str(error)
        return None

    def work(self, data: DataSet, n: int) -> Work:
        dim = self.extractor.num_features(data)
        return Work({self.split: len(split_of(data, self.split))}, data.spec.classes * EIGEN * dim**3)

    def measure(self, subject: Subject) -> dict[str, float]:
        wanted = self.scores(subject.system, subject.data)
        if not wanted:
            return {}
        asked = asked_labels(subject)
        real_labels = _labels(subject.data, self.split)[subject.reference_index(self.split)]
        self._enough_images(subject.data, real_labels)
        self._enough_samples(subject.data, asked)
        real = subject.reference_features(self.extractor, self.split)
        fake = subject.sample_features(self.extractor)
        apart = [
            frechet_distance(real.features[real_labels == label], fake.features[asked == label])
            for label in range(subject.data.spec.classes)
        ]
        found = {wanted[0]: sum(apart) / len(apart)}
        if "label_accuracy" in wanted:
            taken = finite(logits_of(fake), "samples").argmax(dim=1)
            found["label_accuracy"] = float((taken == asked).double().mean())
        return found

    def _enough_images(self, data: DataSet, labels: Tensor) -> None:
        what = f"images of data {data.name!r} split={self.split}"
        self._enough(data, labels, what, "use another split (metrics.scores.by_class.split) or data with more images")

    def _enough_samples(self, data: DataSet, labels: Tensor) -> None:
        self._enough(data, labels, "samples", "raise metrics.samples")

    def _enough(self, data: DataSet, labels: Tensor, what: str, remedy: str) -> None:
        dim = self.extractor.num_features(data)
        count, label = labels.bincount(minlength=data.spec.classes).min(dim=0)
        if count <= dim and not (self.allow_few and count > 1):
            raise UserError(
                f"metrics: {int(count)} {what} of class {data.spec.class_names[int(label)]!r} for {dim} features: "
                f"{self.extractor.keys.distance}_by_class needs more than {dim} of each class: {remedy}, or set "
                "metrics.scores.by_class.allow_few=true"
            )


def reverse_kl(samples: Tensor, data: Tensor) -> float:
    """KL(p || q) in nats of the frequencies p and q of counts or weights [K] of any scale: inf where p shows what q
    does not. Raises ValueError for an empty histogram."""
    p, q = samples.double(), data.double()
    if not (p.sum() > 0 and q.sum() > 0):
        raise ValueError("an empty histogram has no frequencies")
    p, q = p / p.sum(), q / q.sum()
    return max(float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()), 0.0)  # below 0 by rounding only


def asks_by_class(system: object, data: DataSet) -> bool:
    """Whether the system can be asked for classes (attribute ``conditional``) and the data have some."""
    y = data.train.y
    return bool(getattr(system, "conditional", False)) and y is not None and y.ndim == 1 and data.spec.classes > 0


def labels_seen(system: object, data: DataSet) -> dict[str, int] | None:
    """Of each class, by name, how many labels of training images the system is trained with; None for one that sees
    none. What its codes or clusters know of the classes is then no find of its own."""
    if isinstance(system, LearnsFromFewLabels) and system.labels_per_class is not None:
        return dict.fromkeys(data.spec.class_names, system.labels_per_class)
    if not asks_by_class(system, data) or data.train.y is None:
        return None
    counts = data.train.y.bincount(minlength=data.spec.classes).tolist()
    return dict(zip(data.spec.class_names, counts, strict=True))


def asked_labels(subject: Subject) -> Tensor:
    """The classes that the samples were asked to be: int64 [n], each one of the data's."""
    labels, n, classes = subject.labels, subject.n, subject.data.spec.classes
    if labels is None:
        raise ValueError("the system is conditional, and the samples were drawn without labels")
    if (
        labels.dtype != torch.int64
        or tuple(labels.shape) != (n,)
        or not bool(((labels >= 0) & (labels < classes)).all())
    ):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: int64 [{n}] in 0..{classes - 1} are due")
    return labels.cpu()


def knows_labels(source: ExtractorSource, data: DataSet) -> bool:
    """Whether the source's classes are those of the data's labels, so that the two may be compared. A source says them
    by ``classes(data)``; one that does not was trained on other data."""
    y, classes = data.test.y, getattr(source, "classes", None)
    return y is not None and y.ndim == 1 and classes is not None and tuple(classes(data)) == data.spec.class_names


def _labels(data: DataSet, split: str) -> Tensor:
    y = split_of(data, split).y
    if y is None or y.ndim != 1:
        raise UserError(f"metrics: split={split} of data {data.name!r} has no class labels")
    return y
