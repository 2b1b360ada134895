"""The guards of a score, what is drawn and remembered for it, the record beside it, and likelihoods."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import Run, tiny, words
from torch import Tensor, nn

from gentrain.config import conf_dir
from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.sources import digits, ring, swissroll
from gentrain.engine.session import Scoring
from gentrain.errors import UserError
from gentrain.evaluation.accuracy import ClassificationAccuracyScore
from gentrain.evaluation.classes import ByClass, ClassesShown
from gentrain.evaluation.clustering import Clustering
from gentrain.evaluation.diversity import MultiScaleSimilarity, SlicedWassersteinImages
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.extractors import FrozenExtractor, Keys
from gentrain.evaluation.frechet import FrechetDetails
from gentrain.evaluation.likelihood import LikelihoodBound
from gentrain.evaluation.manifold import Manifold, Memorisation
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.modes import ModesCovered, SlicedWasserstein
from gentrain.evaluation.protocol import evaluate, follow, require
from gentrain.evaluation.randomness import at_evaluation, isolated_rng
from gentrain.evaluation.rate_distortion import RateDistortion
from gentrain.evaluation.reconstruction import ReconstructionDistance, ReconstructionError
from gentrain.evaluation.subject import FeatureCache, Subject
from gentrain.folder import RunFolder
from gentrain.types import LikelihoodOn, to_signed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


class Bytes(nn.Module):
    """Pixels as features, and as logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1).float()
        return flat, flat


@dataclass(frozen=True)
class Pixels:
    """Source of an extractor that is its input."""

    dim: int = 64
    keys: ClassVar[Keys] = Keys("fd_pixels", "_pixels")

    def check(self, data: DataSet) -> None: ...

    def num_features(self, data: DataSet) -> int:
        return self.dim

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> FrozenExtractor:
        return FrozenExtractor(
            Bytes(), name="pixels", sha256="0" * 64, num_features=self.dim, classes=(), shape=(1, 8, 8), device=device
        )


class Noise(nn.Module):
    """Draws from every global generator, and has a likelihood that depends on the mode and on each image."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.calls: list[int] = []

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        self.calls.append(n)
        offset = random.random() + float(np.random.rand())  # noqa: NPY002
        return torch.rand(n, 1, 8, 8).mul(2).add(offset - 2)

    def log_likelihood(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.drop(x.float().flatten(1))
        return -dropped.sum(1)

    def elbo(self, x: Tensor) -> Tensor:
        return self.log_likelihood(x) - 1.0

    def importance_bound(self, x: Tensor, samples: int) -> Tensor:
        return self.log_likelihood(x) - 1.0 / samples


class Density(Noise):
    """A likelihood without bounds."""

    elbo = importance_bound = property()  # type: ignore[assignment]


class Coder:
    """Gives back what it was shown, knows a cluster for it, and writes it whole."""

    def encode(self, x: Tensor) -> Tensor:
        return to_signed(x).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (1, 8, 8)) if z.shape[1] == 64 else z

    def cluster(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.flatten(1).argmax(1) % 10, 10).float()

    def compress(self, x: Tensor) -> list[bytes]:
        return [image.numpy().tobytes() for image in x]

    def decompress(self, streams: Sequence[bytes]) -> Tensor:
        return torch.stack([torch.frombuffer(bytearray(s), dtype=torch.uint8).view(1, 8, 8) for s in streams])

    def code_bits(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), 8.0 * x[0].numel())


def of_images(data: DataSet, images: Tensor) -> Subject:
    return Subject(data, None, lambda n: images[:n], n=len(images))


# Guards


def test_few_samples_are_refused_with_both_numbers(data: DataSet) -> None:
    pixels, loose = Distances(Pixels()), Distances(Pixels(), splits=1, allow_few=True)
    with pytest.raises(UserError, match=r"64 samples for 64 features.*metrics\.samples"):
        pixels.check(data, 64)
    pixels.check(data, 65)
    with pytest.raises(UserError, match="64 samples for 64 features"):
        pixels.measure(of_images(data, data.train.all(64).x))
    with pytest.raises(UserError, match=r"50 images of data 'digits' split=test for 64"):
        Distances(Pixels(), reference=50).check(data, 100)
    assert math.isfinite(loose.measure(of_images(data, data.train.all(64).x))["fd_pixels"])
    with pytest.raises(UserError, match="neither train nor test"):
        Distances(Pixels(), split="validation").check(data)


# The subject


def test_samples_are_drawn_once_and_reach_the_extractor_as_bytes(data: DataSet) -> None:
    system = Noise()
    subject = Subject(data, system, system.sample, n=70)
    metrics: dict[str, Metric] = {"a": Distances(Pixels(), splits=1), "b": ClassesShown(Pixels())}
    evaluate(metrics, subject, "raw")
    assert subject.samples().dtype == torch.uint8
    assert subject.samples(5).equal(subject.samples()[:5])
    assert system.calls == [70]
    # Wherever the generators stand, the samples are those of the seed, and nothing moves.
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    before = states()
    assert Subject(data, system, system.sample, n=70).samples().equal(subject.samples())
    assert states() == before
    exact = data.test.all(70).x
    floats = Subject(data, None, lambda n: exact.float() / 127.5 - 1, n=70)
    assert floats.samples().equal(exact)


@pytest.mark.parametrize(
    ("drawn", "error"),
    [
        (torch.zeros(4, 3, 8, 8), ValueError),
        (torch.zeros(3, 1, 8, 8), ValueError),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), TypeError),
        (torch.full((4, 1, 8, 8), 255.0), ValueError),
        (torch.full((4, 1, 8, 8), math.nan), UserError),
    ],
)
def test_samples_unlike_the_data_are_refused(data: DataSet, drawn: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        Subject(data, None, lambda n: drawn, n=4).samples()


def test_reference_features_are_cached_by_data_and_split(data: DataSet) -> None:
    cache, source = FeatureCache(), Pixels()
    first, second = (Subject(data, None, lambda n: data.test.all(n).x, n=70, cache=cache) for _ in range(2))
    test = first.reference_features(source)
    assert second.reference_features(source) is test
    assert len(second.reference_features(source, "train")) == len(data.train)
    few = second.reference_features(source, "test", 10)
    assert few.features.equal(data.test.all(10).x.flatten(1).float())
    other = in_memory("digits", data.spec, (data.train.all().x, None), (255 - data.test.all().x, None))
    changed = Subject(other, None, lambda n: data.test.all(n).x, n=70, cache=cache).reference_features(source)
    assert not changed.features.equal(test.features)


# Evaluation as a whole


def states() -> tuple[object, ...]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(legacy, dict)
    return random.getstate(), legacy["state"]["key"].tobytes(), legacy["state"]["pos"], torch.get_rng_state().tolist()


def test_evaluation_leaves_no_trace_and_repeats_itself(data: DataSet) -> None:
    system = Noise().train()
    metrics: dict[str, Metric] = {"d": Distances(Pixels(), splits=1), "l": LikelihoodBound()}
    before = states()
    reports = [evaluate(metrics, Subject(data, system, system.sample, n=70, seed=s), "raw") for s in (0, 0, 1)]
    assert states() == before
    assert system.training
    assert system.drop.training
    assert reports[0].scores == reports[1].scores
    assert reports[0].scores["fd_pixels"] != reports[2].scores["fd_pixels"]
    alone = evaluate({"d": metrics["d"]}, Subject(data, system, system.sample, n=70), "raw")
    assert alone.scores["fd_pixels"] == reports[0].scores["fd_pixels"]  # whatever is measured beside it
    inner = nn.Sequential(nn.Dropout().eval(), nn.Dropout())
    with at_evaluation(inner):
        assert not any(part.training for part in inner.modules())
    assert [part.training for part in inner.modules()] == [True, False, True]
    with contextlib.suppress(RuntimeError), isolated_rng(3):
        torch.rand(1)
        raise RuntimeError
    assert states() == before


def test_the_protocol_says_what_was_done(data: DataSet) -> None:
    system = Noise()
    metrics = {"d": Distances(Pixels(), reference=100, splits=1)}
    protocol = evaluate(metrics, Subject(data, system, system.sample, n=70, seed=5), "ema").protocol
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["fingerprint"] == data.fingerprint
    assert protocol["splits"] == {"d": "test 100"}
    assert protocol["extractors"] == {"pixels": {"sha256": "0" * 64, "resize": "none"}}
    assert protocol["metrics"]["d"]["extractor"] == {"source": "Pixels", "dim": 64}
    wanted = {
        "samples": 70,
        "size": 8,
        "channels": 1,
        "weights": "ema",
        "seed": 5,
        "data": "digits",
        "precision": "32-true",
    }
    assert wanted.items() <= protocol.items()
    assert set(protocol["versions"]) == {"torch", "torchmetrics", "gentrain"}
    likelihood = evaluate({"l": LikelihoodBound()}, Subject(data, system, system.sample, n=70), "raw").protocol
    assert likelihood["samples"] == 0  # none were drawn
    with pytest.raises(UserError, match="gives fd_pixels"):
        evaluate({"a": metrics["d"], "b": metrics["d"]}, Subject(data, system, system.sample, n=70), "raw")


def test_a_missing_capability_is_named_at_start(data: DataSet) -> None:
    class Painter:
        def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
            return torch.zeros(n, 1, 8, 8)

    with pytest.raises(
        UserError, match=r"scores\.l .*log_likelihood.*Painter.*can: sample.*metrics=dinov2\|domain\|inception"
    ):
        require({"l": LikelihoodBound()}, Painter(), data)
    require({"d": Distances(Domain())}, Painter(), data, n=64)
    follow("fd_domain", {"d": Distances(Domain())}, Painter(), data)
    with pytest.raises(UserError, match=r"metrics=modes\|none"):
        require({"l": LikelihoodBound()}, Painter(), ring(train_size=9, test_size=9))
    with pytest.raises(UserError, match=r"would never appear.*there will be: fd_domain, kid_domain, kid_domain_sd"):
        follow("fd_doman", {"d": Distances(Domain())}, Painter(), data)
    with pytest.raises(UserError, match="vectors, not images"):
        require({"d": Distances(Domain())}, Painter(), ring(train_size=9, test_size=9))
    with pytest.raises(UserError, match=r"gives fd_domain, is_domain, .*kid_domain_sd already"):
        require({"d": Distances(Domain()), "e": Distances(Domain())}, Painter(), data)
    with pytest.raises(UserError, match="unknown"):
        require({"m": ModesCovered()}, Painter(), data)


class Binary(Noise):
    likelihood_on = LikelihoodOn(bits=1, binarisation="static", exact=False)


class Classless(Pixels):
    keys: ClassVar[Keys] = Keys("fd_pixels", "_pixels", classifier=False)


SHIPPED: list[Metric] = [
    Distances(Pixels(), splits=1),
    Distances(Classless()),
    Distances(Domain(), splits=1),
    ClassesShown(Pixels()),
    LikelihoodBound(),
    LikelihoodBound(importance_samples=0),
    ModesCovered(),
    SlicedWasserstein(),
    FrechetDetails(Pixels()),
    ByClass(Pixels()),
    ClassificationAccuracyScore(),
    Manifold(Pixels()),
    Memorisation(Domain(), limit=None),
    SlicedWassersteinImages(smallest=8, patches=4, directions=8),
    MultiScaleSimilarity(pairs=20),
    ReconstructionError(),
    ReconstructionDistance(Pixels()),
    Clustering(restarts=1),
    Clustering(restarts=1, baselines=False, optional=True),
    RateDistortion(limit=20),
]


@pytest.mark.parametrize("metric", SHIPPED, ids=str)
def test_what_a_metric_promises_is_what_it_measures(metric: Metric, data: DataSet) -> None:
    points = [ring(train_size=90, test_size=90), swissroll(train_size=90, test_size=90)]
    tried = 0
    for some in (data, *points):
        for system in (Noise(), Binary(), Density(), Coder()):
            try:
                require({"m": metric}, system, some, n=70)
            except UserError:  # refused before anything is promised
                continue
            subject = Subject(some, system, lambda n, some=some: some.test.all(n).x, n=70)  # type: ignore[misc]
            assert tuple(sorted(metric.measure(subject))) == tuple(sorted(metric.scores(system, some)))
            tried += 1
    assert tried > 0


def test_every_shipped_metric_keeps_its_promise_in_a_test() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in (conf_dir() / "metrics").rglob("*.yaml"))
    shipped = {target.rsplit(".", 1)[1] for target in re.findall(r"_target_: (gentrain[\w.]+)", text)}
    assert shipped - {"Domain", "Inception", "MobileNetV2", "DINOv2"} == {type(metric).__name__ for metric in SHIPPED}


@pytest.mark.parametrize(
    ("metric", "monitor", "some"),
    [
        (LikelihoodBound(), "bits_per_dim", digits()),
        (LikelihoodBound(importance_samples=0), "iw_bound_nats", digits()),
        (ModesCovered(), "modes_covered", swissroll(train_size=9, test_size=9)),
    ],
)
def test_a_monitor_that_would_never_appear_is_refused(metric: Metric, monitor: str, some: DataSet) -> None:
    with pytest.raises(UserError, match=rf"metrics\.monitor={monitor} would never appear") as refusal:
        follow(monitor, {"m": metric}, Binary(), some)
    assert ", ".join(metric.scores(Binary(), some)) in str(refusal.value)


def test_no_samples_are_needed_where_no_metric_draws_any(data: DataSet) -> None:
    scores = evaluate({"l": LikelihoodBound()}, Subject(data, Noise(), torch.zeros, n=0), "raw").scores
    assert scores.keys() == {"nll_nats", "nll_nats_se", "bits_per_dim", "elbo_nats", "iw_bound_nats"}
    require({"l": LikelihoodBound()}, Noise(), data, n=0)
    with pytest.raises(UserError, match=r"metrics\.samples=0.*at least one"):
        Subject(data, Noise(), torch.zeros, n=0).samples()
    with pytest.raises(UserError, match=r"metrics\.samples=0: metrics\.scores\.c \(ClassesShown\).*at least 1"):
        require({"c": ClassesShown(Pixels())}, Noise(), data, n=0)


# Likelihood


@pytest.mark.parametrize("batch", [1, 7, 359, 1000])
def test_each_test_sample_counts_once(data: DataSet, batch: int) -> None:
    x = data.test.all().x.double().flatten(1).sum(1)
    exact, bounded = (
        evaluate(
            {"l": LikelihoodBound(batch=batch, importance_samples=k)}, Subject(data, Noise(), torch.zeros, n=1), "raw"
        ).scores
        for k in (0, 4)
    )
    assert exact["nll_nats"] == pytest.approx(float(x.mean()), rel=1e-12)
    assert exact["bits_per_dim"] == pytest.approx(exact["nll_nats"] / (64 * math.log(2)), rel=1e-12)
    assert exact["elbo_nats"] == pytest.approx(-exact["nll_nats"] - 1, rel=1e-6)
    assert "iw_bound_nats" not in exact
    assert bounded["iw_bound_nats"] == pytest.approx(-exact["nll_nats"] - 0.25, rel=1e-6)
    assert bounded["nll_nats"] == -bounded["iw_bound_nats"], "the bound that was computed stands for the likelihood"


def test_binary_pixels_have_no_bits_per_dim(data: DataSet) -> None:
    assert "bits_per_dim" not in LikelihoodBound().measure(Subject(data, Binary(), torch.zeros, n=1))


def test_likelihood_of_vectors_has_no_bits_and_a_broken_one_is_refused(data: DataSet) -> None:
    class Normal:
        def log_likelihood(self, x: Tensor) -> Tensor:
            return -0.5 * x.square().sum(1) - math.log(math.tau)

    class Broken:
        def log_likelihood(self, x: Tensor) -> Tensor:
            return torch.full((len(x),), math.nan)

    assert LikelihoodBound().measure(Subject(ring(train_size=9, test_size=9), Normal(), torch.zeros, n=1)).keys() == {
        "nll_nats",
        "nll_nats_se",
    }
    with pytest.raises(UserError, match="sample 0 of split=test"):
        LikelihoodBound().measure(Subject(data, Broken(), torch.zeros, n=1))


# What is scored in a run is chosen in the config tree


@pytest.mark.parametrize(
    ("chosen", "scored"),
    [
        (["model=vae", "data=fashion_mnist"], ["classes", "distances", "likelihood"]),
        (["data=fashion_mnist", "model=vae"], ["classes", "distances", "likelihood"]),
        (["model=vae", "metrics=likelihood"], ["likelihood"]),
        (["model=vae", "metrics=none"], []),
        (["model=dcgan"], ["classes", "distances"]),
        (["data=ring", "+wants.scores.own._target_=my.Metric"], ["modes", "own", "swd"]),
    ],
)  # fmt: skip
def test_the_models_scores_join_the_chosen_metrics_and_none_means_none(chosen: list[str], scored: list[str]) -> None:
    metrics = tiny(*chosen)["metrics"]
    assert sorted(Scoring(**metrics).scores) == scored


def test_a_vae_trains_without_scores(run: Run, workplace: Path) -> None:
    assert run(*words("model=vae", "metrics=none", "name=run")).code == 0
    assert RunFolder.open(workplace / "outputs" / "run").card()["final"] is None
