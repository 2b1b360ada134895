"""The classification accuracy score: what a classifier learns of the data from labelled samples alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.errors import UserError
from gentrain.evaluation.classes import asked_labels, asks_by_class
from gentrain.evaluation.domain import DomainNet
from gentrain.evaluation.extractors import full_precision
from gentrain.evaluation.metric import Work, check_images
from gentrain.evaluation.randomness import isolated_rng
from gentrain.evaluation.reference import BLOCK
from gentrain.evaluation.subject import Subject

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class ClassificationAccuracyScore:
    """Top-1 accuracy on the real test split of a classifier trained on labelled samples only, key ``cas`` (Ravuri and
    Vinyals 2019, arXiv 1905.10887), and of the same one trained on as many real images, ``cas_real`` (config target).

    Both in 0..1. A generator that drops or mixes up classes, or shows a narrow part of each, scores far below
    ``cas_real``; one that ignores its labels scores chance. No score where the system is not asked by class (its
    ``conditional`` is not true) or the data have no class labels.

    The paper trains a ResNet-50 on ImageNet; this one is small (``width`` channels in the first of ``stages`` stages of
    convolutions, doubled in each, ``features`` averaged in the end), so only scores of one recipe may be compared.
    ``epochs`` over the samples in batches of ``batch``, AdamW with ``lr`` falling along a cosine and ``weight_decay``.
    One thread and own random numbers: a function of the samples, the seed and the kind of device. As many samples are
    used as there are, but no more than training images.
    """

    width: int = 16
    stages: int = 2
    features: int = 32
    epochs: int = 10
    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("stages", 1), ("features", 1), ("epochs", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise UserError(f"metrics.scores.cas.{name}={getattr(self, name)}: at least {least}")
        if not self.lr > 0:
            raise UserError(f"metrics.scores.cas.lr={self.lr}: must be above 0")
        if not self.weight_decay >= 0:
            raise UserError(f"metrics.scores.cas.weight_decay={self.weight_decay}: 0 or more")

    needs: ClassVar[frozenset[str]] = frozenset({"sample"})

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("cas", "cas_real") if asks_by_class(system, data) else ()

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        least = 2 ** (self.stages - 1)  # each stage but the first halves the image
        if data.spec.size < least:
            raise UserError(
                f"metrics.scores.cas.stages={self.stages} need images of {least} pixels, data {data.name!r} have "
                f"{data.spec.size}: use fewer stages"
            )

    def check_system(self, system: object, data: DataSet, n: int | None = None) -> None:
        """Raise UserError if there are too few of ``n`` samples, or no labels to test on."""
        if not asks_by_class(system, data):
            return
        _labelled_test(data)
        if n is not None:
            _enough(n, data)

    def work(self, data: DataSet, n: int) -> Work:
        # Each stage works on a quarter of the pixels of the one before, with twice the channels on either side.
        each = data.spec.size**2 * 9 * self.width * (data.spec.channels + self.width * self.stages)
        trained = 2 * self.epochs * min(n, len(data.train))
        return Work(products=each * (3 * trained + 2 * len(data.test)))

    def measure(self, subject: Subject) -> dict[str, float]:
        data = subject.data
        if not self.scores(subject.system, data):
            return {}
        labels = asked_labels(subject)
        _labelled_test(data)
        count = min(subject.n, len(data.train))
        _enough(count, data)
        real = data.train.take(subject.reference_index("train", count))
        if real.y is None:
            raise UserError(f"metrics: split=train of data {data.name!r} has no class labels")
        return {
            "cas": self._accuracy(subject, subject.samples(count), labels[:count]),
            "cas_real": self._accuracy(subject, real.x, real.y),
        }

    def _accuracy(self, subject: Subject, x: Tensor, y: Tensor) -> float:
        with isolated_rng(subject.seed), _repeatable(subject.device):
            net = self._net(subject.data).to(subject.device)
            with torch.enable_grad():
                self._train(net, x, y, subject)
            return _tested(net.eval(), subject)

    def _net(self, data: DataSet) -> DomainNet:
        return DomainNet(
            channels=data.spec.channels,
            widths=tuple(self.width * 2**stage for stage in range(self.stages)),
            features=self.features,
            classes=data.spec.classes,
        )

    def _train(self, net: DomainNet, x: Tensor, y: Tensor, subject: Subject) -> None:
        """x: uint8 [N C H W], y: int64 [N]. The last, smaller batch of an epoch is left out."""
        generator = torch.Generator().manual_seed(subject.seed)
        batch = min(self.batch, len(x))
        steps = self.epochs * (len(x) // batch)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(self.epochs):
            order = torch.randperm(len(x), generator=generator)[: len(x) // batch * batch]
            for index in torch.split(order, batch):
                _, logits = net(x[index].to(subject.device))
                loss = F.cross_entropy(logits, y[index].to(subject.device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()


@torch.no_grad()
def _tested(net: DomainNet, subject: Subject) -> float:
    test = subject.data.test
    right = 0
    for index in torch.split(subject.reference_index("test"), BLOCK):
        images = test.take(index)
        _, logits = net(images.x.to(subject.device))
        right += int((logits.argmax(dim=1).cpu() == images.y).sum())
    return right / len(test)


def _enough(n: int, data: DataSet) -> None:
    least = 2 * data.spec.classes
    if n < least:
        raise UserError(
            f"metrics: cas of {n} samples of {data.spec.classes} classes says nothing: raise metrics.samples to "
            f"{least} at the least, better thousands"
        )


def _labelled_test(data: DataSet) -> None:
    if data.test.y is None or data.test.y.ndim != 1:
        raise UserError(f"metrics: cas is tested on split=test of data {data.name!r}, which has no class labels")


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """True float32 with one order of its sums: one thread, and of the algorithms of a GPU those that repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            full_precision(device),
            torch.backends.cudnn.flags(
                enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
