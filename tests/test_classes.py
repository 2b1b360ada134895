"""Scores by classes: reverse KL of histograms, samples asked by class, a classifier trained on them alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from scipy.stats import entropy  # type: ignore[import-untyped]
from torch import Tensor, nn

from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.sources import digits, ring
from gentrain.errors import UserError
from gentrain.evaluation.accuracy import ClassificationAccuracyScore
from gentrain.evaluation.classes import ByClass, ClassesShown, reverse_kl
from gentrain.evaluation.domain import Domain, DomainNet
from gentrain.evaluation.extractors import FrozenExtractor, Keys
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.modes import ModesCovered
from gentrain.evaluation.protocol import evaluate, possible, require
from gentrain.evaluation.subject import Subject
from gentrain.types import Spec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Colours(nn.Module):
    """Images of one pixel of two channels: the first is the class, both are features."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        return flat.float(), torch.nn.functional.one_hot(flat[:, 0].long(), 4).float()


@dataclass(frozen=True)
class Seen:
    keys: ClassVar[Keys] = Keys("fd_seen", "_seen")
    names: tuple[str, ...] = ("a", "b", "c", "d")

    def check(self, data: DataSet) -> None: ...

    def num_features(self, data: DataSet) -> int:
        return 2

    def classes(self, data: DataSet) -> tuple[str, ...]:
        return self.names

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> FrozenExtractor:
        return FrozenExtractor(
            Colours(), name="seen", sha256="0" * 64, num_features=2, classes=self.names, shape=(2, 1, 1)
        )


def pictures(classes: Tensor, seed: int = 0) -> Tensor:
    """uint8 [N 2 1 1]: the class, and a number that depends on it."""
    noise = torch.randint(0, 20, (len(classes),), generator=generator(seed)) + 40 * classes
    return torch.stack([classes, noise], 1).to(torch.uint8)[:, :, None, None]


def coloured(train: Tensor, test: Tensor, *, labelled: bool = True) -> DataSet:
    parts = [(pictures(y, seed), y if labelled else None) for seed, y in enumerate((train, test))]
    return in_memory("coloured", Spec((2, 1, 1), ("a", "b", "c", "d")), parts[0], parts[1])


class Conditional:
    """Gives pictures of the classes it is asked for, or of what ``becomes`` makes of them."""

    conditional = True

    def __init__(self, becomes: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        self.becomes = becomes

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        assert labels is not None
        return pictures(self.becomes(labels), seed=7)


def asked(data: DataSet, system: Conditional, labels: Tensor) -> Subject:
    return Subject(data, system, lambda n: system.sample(n, labels=labels), n=len(labels), labels=labels)


UNEVEN = torch.arange(4).repeat_interleave(torch.tensor([40, 30, 20, 10]))


# Reverse KL


def test_reverse_kl_of_histograms_is_the_textbook_one() -> None:
    p, q = torch.tensor([7, 0, 1, 2]), torch.tensor([3.0, 1.0, 1.0, 5.0])
    assert reverse_kl(p, q) == pytest.approx(float(entropy(p.numpy(), q.numpy())), rel=1e-12)
    assert reverse_kl(q, q * 10) == 0.0
    assert reverse_kl(torch.tensor([1, 1]), torch.tensor([1, 0])) == math.inf
    with pytest.raises(ValueError, match="empty"):
        reverse_kl(torch.zeros(3), q[:3])


def test_classes_are_held_against_the_labels_of_the_split_that_was_chosen() -> None:
    even = torch.arange(4).repeat(25)
    data = coloured(even, UNEVEN)
    only_a = Subject(data, None, lambda n: pictures(torch.zeros(n, dtype=torch.int64)), n=50)
    for split, share in (("test", 0.4), ("train", 0.25)):
        found = ClassesShown(Seen(), split=split).measure(only_a)["reverse_kl_nats"]
        assert found == pytest.approx(-math.log(share), rel=1e-12)
    same = Subject(data, None, lambda n: data.test.all(n).x, n=100)
    assert ClassesShown(Seen()).measure(same)["reverse_kl_nats"] == 0.0
    assert same.used_splits == {"test": 100}
    with pytest.raises(UserError, match="neither train nor test"):
        ClassesShown(Seen(), split="val").check(data)


@pytest.mark.parametrize("source", [Seen(names=("cat", "dog", "car", "hut")), Seen()])
def test_without_labels_of_the_extractors_classes_its_own_eyes_see_both_sides(source: Seen) -> None:
    labels = torch.tensor([3, 3, 0, 0]).repeat(25)  # of the pictures; those of the data lie
    data = coloured(UNEVEN, labels, labelled=False)
    if source.names != data.spec.class_names:
        data = replace(data, test=replace(data.test, y=UNEVEN))
    shown = Subject(data, None, lambda n: pictures(torch.arange(4).repeat(n // 4)), n=40)
    # A class that no image shows counts as half an image: 50, 0.5, 0.5, 50.
    expected = entropy([0.25] * 4, [50, 0.5, 0.5, 50])
    assert ClassesShown(source).measure(shown)["reverse_kl_nats"] == pytest.approx(float(expected), rel=1e-12)


def test_the_data_themselves_score_what_is_said_of_a_finite_sample() -> None:
    true, n = torch.tensor([0.4, 0.3, 0.2, 0.1]), 500
    draws = torch.multinomial(true.expand(2000, 4), n, replacement=True, generator=generator())  # [T n]
    scores = [reverse_kl(row.bincount(minlength=4), true) for row in draws]
    assert sum(scores) / len(scores) == pytest.approx(3 / (2 * n), rel=0.1)


def test_modes_have_the_reverse_kl_of_their_frequencies() -> None:
    data = ring(train_size=9, test_size=9)
    assert data.density is not None
    assert data.density.modes is not None
    centres = data.density.modes

    def score(which: Tensor, some: DataSet = data, far: int = 0) -> float:
        points = torch.cat([centres[which], torch.full((far, 2), 99.0)])
        metric = ModesCovered()
        found = metric.measure(Subject(some, None, lambda n: points[:n], n=len(points)))
        assert tuple(found) == metric.scores(None, some)
        return found["reverse_kl_nats"]

    every, half = torch.arange(8).repeat(5), torch.arange(4).repeat(5)
    assert score(every) == 0.0
    assert score(half) == pytest.approx(math.log(2), rel=1e-12)
    assert score(half, far=20) == score(half)  # those of low quality have no mode
    assert score(half[:0], far=3) == pytest.approx(math.log(8), rel=1e-12)

    class Uneven:
        modes, mode_std = centres, data.density.mode_std
        weights = torch.tensor([5.0, 1, 1, 1, 1, 1, 1, 1]) / 12

    some = replace(data, density=Uneven())  # type: ignore[arg-type]
    uneven = torch.tensor([3, 1, 1])
    expected = entropy([1 / 3, 2 / 3, 0, 0, 0, 0, 0, 0], Uneven.weights.numpy().astype(float)[[3, 1, 2, 0, 4, 5, 6, 7]])
    assert score(uneven, some) == pytest.approx(float(expected), rel=1e-6)
    assert score(half[:0], some, far=3) == pytest.approx(math.log(12), rel=1e-6)


# Samples that were asked by class


def test_a_system_that_keeps_to_its_labels_is_told_from_one_that_mixes_them_up() -> None:
    data, metric = coloured(UNEVEN, UNEVEN), ByClass(Seen())
    good, mixed = Conditional(), Conditional(lambda y: y[torch.randperm(len(y), generator=generator(3))])
    scores = {}
    for system in (good, mixed):
        require({"m": metric}, system, data, n=100)
        scores[system] = evaluate({"m": metric}, asked(data, system, UNEVEN), "raw").scores
        assert tuple(scores[system]) == metric.scores(system, data) == ("fd_seen_by_class", "label_accuracy")
    assert scores[good]["label_accuracy"] == 1.0
    assert scores[mixed]["label_accuracy"] == pytest.approx(0.3, abs=0.12)  # sum of squared frequencies
    assert scores[good]["fd_seen_by_class"] < 10 < 100 < scores[mixed]["fd_seen_by_class"]
    # As a whole the two are the same pictures, up to the noise.
    whole = frechet_distance(
        data.test.all().x.flatten(1).float(), asked(data, mixed, UNEVEN).samples().flatten(1).float()
    )
    assert whole < 10


def test_distance_by_class_is_the_mean_over_classes_of_their_own() -> None:
    data = coloured(UNEVEN, UNEVEN.flip(0))
    subject = asked(data, Conditional(), torch.arange(4).repeat(9))
    real, fake = data.test.all(), subject.samples().flatten(1).float()
    assert real.y is not None
    apart = [
        frechet_distance(real.x[real.y == k].flatten(1).float(), fake[torch.arange(36) % 4 == k]) for k in range(4)
    ]
    found = ByClass(Seen()).measure(subject)["fd_seen_by_class"]
    assert found == pytest.approx(sum(apart) / 4, rel=1e-9)
    assert min(apart) < max(apart) * 0.9  # so that a mean over samples would be another number


def test_classes_too_small_are_refused_at_the_start_and_when_measured() -> None:
    data, metric = coloured(UNEVEN, UNEVEN), ByClass(Seen())
    with pytest.raises(UserError, match=r"2 samples of class 'd' for 2 features.*allow_few"):
        require({"m": metric}, Conditional(), data, n=20)
    require({"m": metric}, Conditional(), data, n=40)
    require({"m": ByClass(Seen(), allow_few=True)}, Conditional(), data, n=20)
    few = coloured(UNEVEN, UNEVEN[:-8])
    with pytest.raises(UserError, match=r"2 images of data 'coloured' split=test of class 'd' for 2"):
        require({"m": metric}, Conditional(), few, n=100)
    with pytest.raises(UserError, match=r"2 samples of class 'b' for 2"):
        metric.measure(asked(data, Conditional(), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3])))
    with pytest.raises(UserError, match=r"1 samples of class 'b'"):  # a covariance of one is none
        ByClass(Seen(), allow_few=True).measure(asked(data, Conditional(), torch.tensor([0, 0, 1, 2, 2, 3, 3])))


def test_a_reference_too_small_by_class_is_left_out_where_it_was_not_asked_for_by_name() -> None:
    few, plenty = coloured(UNEVEN, UNEVEN[:-8]), coloured(UNEVEN, UNEVEN)
    named, by_the_way = {"own": ByClass(Seen())}, {"own": ByClass(Seen(), optional=True)}
    (line,) = possible(by_the_way, Conditional(), few, "n", "metrics.at_end")[1]
    assert line.startswith("metrics.at_end.own (ByClass) is left out: 2 images of data 'coloured' split=test of class")
    assert "another split (metrics.at_end.own.split) or data with more images" in line
    assert "metrics.at_end.own.allow_few=true" in line
    assert "raise" not in line, "no count of samples mends a small reference"
    assert possible(by_the_way, Conditional(), few)[0] == {}
    unlabelled = replace(few, test=replace(few.test, y=None))
    assert "has no class labels" in possible(by_the_way, Conditional(), unlabelled)[1][0]
    for metrics, data in ((named, few), (by_the_way, plenty)):
        assert possible(metrics, Conditional(), data) == (metrics, [])
    with pytest.raises(UserError, match=r"2 images of .* or set metrics\.at_end\.own\.allow_few=true"):
        require(named, Conditional(), few, n=100, section="metrics.at_end")
    with pytest.raises(
        UserError, match=r"2 samples .*: raise the number of pictures, or set metrics\.scores\.own\.allow"
    ):
        require(by_the_way, Conditional(), plenty, n=20, key="the number of pictures")


def test_systems_that_are_not_asked_by_class_have_no_such_scores() -> None:
    class Plain(Conditional):
        conditional = False

    data, metric = coloured(UNEVEN, UNEVEN), ByClass(Seen())
    unlabelled = coloured(UNEVEN, UNEVEN, labelled=False)
    for system, some in ((Plain(), data), (Conditional(), unlabelled), (None, data)):
        metric.check_system(system, some, 4)
        assert metric.scores(system, some) == ()
        assert metric.measure(Subject(some, system, pictures, n=4)) == {}  # type: ignore[arg-type]
    foreign = Seen(names=("cat", "dog", "car", "hut"))
    assert ByClass(foreign).scores(Conditional(), data) == ("fd_seen_by_class",)
    with pytest.raises(ValueError, match="without labels"):
        metric.measure(Subject(data, Conditional(), pictures, n=4))  # type: ignore[arg-type]
    for labels in (UNEVEN.float(), UNEVEN[:5], UNEVEN + 1):
        with pytest.raises(ValueError, match=r"int64 \[100\] in 0\.\.3 are due"):
            metric.measure(Subject(data, Conditional(), lambda n: pictures(UNEVEN), n=100, labels=labels))


def test_the_shipped_extractors_classes_are_those_of_its_data() -> None:
    data = digits()
    with pytest.raises(UserError, match="21 images of data 'digits' split=test of class '1' for 32 features"):
        require({"m": ByClass(Domain())}, Conditional(), data)
    require({"m": ByClass(Domain(), split="train")}, Conditional(), data, n=500)
    seen = data.train.all()
    real = Subject(data, Conditional(), lambda n: seen.x, n=len(seen), labels=seen.y)
    found = ByClass(Domain(), split="train").measure(real)
    assert found["fd_domain_by_class"] < 1e-6
    assert found["label_accuracy"] >= 0.98
    assert ClassesShown(Domain(), split="train").measure(real)["reverse_kl_nats"] < 1e-3


# A classifier trained on the samples alone


class Photocopier:
    """A conditional system that gives real images of the classes it is asked for, with noise: grey levels."""

    conditional = True

    def __init__(self, data: DataSet, noise: float = 0.0, *, deaf: bool = False) -> None:
        self.images, self.noise, self.deaf = data.train.all(), noise, deaf

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        assert labels is not None
        assert self.images.y is not None
        if self.deaf:
            labels = labels[torch.randperm(n, generator=generator)]
        of_class = [(self.images.y == label).nonzero()[:, 0] for label in range(10)]
        chosen = [of_class[label][torch.randint(len(of_class[label]), (1,), generator=generator)] for label in labels]
        x = self.images.x[torch.cat(chosen)].float()
        return (x + self.noise * torch.randn(x.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def photocopied(data: DataSet, system: Photocopier, n: int = 500, seed: int = 0) -> Subject:
    assert data.train.y is not None
    labels = data.train.y[torch.randint(len(data.train), (n,), generator=generator(5))]
    return Subject(
        data, system, lambda n: system.sample(n, labels=labels, generator=generator(6)), n=n, seed=seed, labels=labels
    )


def test_a_classifier_learns_from_samples_of_their_classes_and_nothing_from_others() -> None:
    data, metric = digits(), ClassificationAccuracyScore(epochs=12, batch=32)
    scores = []
    for system in (Photocopier(data, noise=20), Photocopier(data, deaf=True)):
        require({"m": metric}, system, data, n=500)
        scores.append(metric.measure(photocopied(data, system)))
        assert tuple(scores[-1]) == metric.scores(system, data) == ("cas", "cas_real")
    faithful, deaf = scores
    assert faithful["cas_real"] == deaf["cas_real"] > 0.9
    assert faithful["cas"] > 0.85
    assert deaf["cas"] < 0.25  # chance is 0.1


def test_the_classifiers_score_follows_samples_and_seed_alone() -> None:
    data, metric = digits(), ClassificationAccuracyScore(epochs=2, batch=32)
    subject = photocopied(data, Photocopier(data, noise=60), 200)
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    first = metric.measure(subject)
    assert torch.get_rng_state().equal(before)
    torch.rand(3)
    torch.set_num_threads(2)
    try:
        assert metric.measure(subject) == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert evaluate({"m": metric}, subject, "raw").scores == first  # gradients are off there
    assert subject.used_splits == {"train": 200, "test": len(data.test)}
    other = metric.measure(photocopied(data, Photocopier(data, noise=60), 200, seed=1))
    assert other != first


def test_the_classifier_trains_on_one_thread_in_the_seeds_order_and_is_tested_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, int, Tensor]] = []
    forward = DomainNet.forward

    def watched(net: DomainNet, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((net.training, torch.get_num_threads(), x))
        return forward(net, x)

    monkeypatch.setattr(DomainNet, "forward", watched)
    data, threads = digits(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for seed in (0, 1):
            metric = ClassificationAccuracyScore(epochs=2, batch=32)
            metric.measure(photocopied(data, Photocopier(data), 70, seed))
    finally:
        torch.set_num_threads(threads)
    each = [True] * 4 + [False]  # two epochs of two whole batches, then the test split
    assert [training for training, _, _ in seen] == each * 4
    assert {threads for _, threads, _ in seen} == {1}
    assert [len(x) for _, _, x in seen[:5]] == [32] * 4 + [len(data.test)]
    firsts = [seen[start][2] for start in (0, 5, 10, 15)]  # samples and real images under one seed and another
    assert not firsts[0].equal(firsts[2])
    assert not firsts[1].equal(firsts[3])


def test_the_classifier_needs_labels_samples_and_pixels() -> None:
    data, metric = digits(), ClassificationAccuracyScore()
    system = Photocopier(data)
    with pytest.raises(UserError, match=r"cas of 19 samples of 10 classes.*metrics\.samples to 20"):
        require({"m": metric}, system, data, n=19)
    with pytest.raises(UserError, match="cas of 19 samples"):
        metric.measure(photocopied(data, system, 19))
    blind = replace(data, test=replace(data.test, y=None))
    with pytest.raises(UserError, match="no class labels"):
        require({"m": metric}, system, blind, n=50)
    with pytest.raises(UserError, match=r"stages=5 need images of 16 pixels, data 'digits' have 8"):
        ClassificationAccuracyScore(stages=5).check(data)
    with pytest.raises(UserError, match="vectors"):
        metric.check(ring(train_size=9, test_size=9))
    for wrong in ({"epochs": 0}, {"batch": 1}, {"lr": 0.0}, {"weight_decay": math.nan}):
        with pytest.raises(UserError, match=rf"metrics\.scores\.cas\.{next(iter(wrong))}="):
            ClassificationAccuracyScore(**wrong)  # type: ignore[arg-type]
    plain = Photocopier(data)
    plain.conditional = False
    require({"m": metric}, plain, data, n=4)
    assert metric.scores(plain, data) == ()
    assert metric.measure(photocopied(data, plain, 19)) == {}
