"""The Fréchet distance against closed forms and 50 digits, and what is reported beside it."""

from __future__ import annotations

import importlib
import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from gentrain.data.dataset import DataSet, Split, TensorRows
from gentrain.data.sources import digits, ring
from gentrain.errors import UserError
from gentrain.evaluation import frechet as details
from gentrain.evaluation import gaussian
from gentrain.evaluation.extractors import Features, Keys
from gentrain.evaluation.frechet import FrechetDetails, bootstrap_sd, extrapolated, frechet_distance
from gentrain.evaluation.gaussian import Gaussian, frechet
from gentrain.evaluation.subject import Subject


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def of_spectrum(spectrum: Tensor, turned: Tensor, mean: float = 0.0) -> Gaussian:
    dim = len(spectrum)
    return Gaussian(
        torch.full((dim,), mean, dtype=torch.float64), turned @ torch.diag(spectrum.double()) @ turned.T, 10 * dim
    )


def by_mpmath(real: Gaussian, fake: Gaussian) -> float:
    """The formula as it is printed, with the eigenvalues of the product itself, in 60 digits."""
    with mpmath.workdps(60):
        r, f = (mpmath.matrix(g.covariance.tolist()) for g in (real, fake))
        roots = sum(mpmath.sqrt(abs(value)) for value in mpmath.eig(r * f, left=False, right=False))
        traces = sum(r[i, i] + f[i, i] for i in range(r.rows))
        shift = sum(
            (mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(real.mean.tolist(), fake.mean.tolist(), strict=True)
        )
        return float(shift + traces - 2 * roots)


# The distance


def test_gaussians_that_commute_have_the_closed_form() -> None:
    s, t = torch.linspace(0.5, 3, 12).double(), torch.linspace(2, 0.01, 12).double()
    expected = 12 * 0.7**2 + float((s - t).square().sum())
    for turned in (torch.eye(12).double(), rotation(12, 3)):
        real, fake = of_spectrum(s.square(), turned), of_spectrum(t.square(), turned, mean=0.7)
        assert frechet(real, fake) == pytest.approx(expected, rel=1e-12)
        assert frechet(fake, real) == pytest.approx(expected, rel=1e-12)


def test_correlated_features_have_the_distance_of_a_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(300, 20, seed=1) @ normal(20, 20, seed=2), normal(200, 20, seed=3) + 0.3
    real, fake = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = np.square(x.mean(0).numpy() - y.mean(0).numpy()).sum()
    expected = shift + np.trace(real + fake - 2 * linalg.sqrtm(real @ fake).real)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("decades", [2, 8, 14])
def test_nearly_singular_covariances_keep_their_digits(decades: int) -> None:
    # Far smaller than 1e-8 of the largest, an eigenvalue's square is below the rounding of the product.
    spectrum = torch.logspace(0, -decades, 8).double()
    real, fake = of_spectrum(spectrum, rotation(8, 1)), of_spectrum(spectrum, rotation(8, 2), mean=1e-3)
    assert frechet(real, fake) == pytest.approx(by_mpmath(real, fake), rel=1e-8)
    near = of_spectrum(spectrum * 1.001, rotation(8, 1))
    assert frechet(real, near) == pytest.approx(by_mpmath(real, near), rel=1e-6)


@pytest.mark.parametrize("seed", [1, 10, 168])
def test_features_that_hardly_move_keep_their_digits(seed: int) -> None:
    # By plain eigenvalues these three are wrong by 0.01 % and more: each feature varies less than the next.
    scale = torch.logspace(-6, 0, 12).double()
    x, y = normal(1200, 12, seed=seed) * scale, normal(1200, 12, seed=seed + 1000) * scale
    real, fake = Gaussian.of(x), Gaussian.of(y)
    assert frechet(real, fake) == pytest.approx(by_mpmath(real, fake), rel=1e-6)
    assert frechet(real, fake, rtol=1.0) == pytest.approx(frechet(real, fake), rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(4, 60), (60, 4), (4, 5), (5, 4)])
def test_fewer_samples_than_features(n: int, m: int) -> None:
    x, y = normal(n, 6, seed=1) + 0.5, normal(m, 6, seed=2) * 2
    real, fake = (Gaussian(s.mean(0), s.T.cov(), len(s)) for s in (x, y))
    assert frechet_distance(x, y) == pytest.approx(by_mpmath(real, fake), rel=1e-7)
    # A covariance alone, which does not say how few its samples were, gives the same.
    unknown = (Gaussian(g.mean, g.covariance, 100) for g in (real, fake))
    assert frechet(*unknown) == pytest.approx(frechet_distance(x, y), rel=1e-7)


def test_features_that_never_move() -> None:
    x, y = (torch.cat([normal(50, 3, seed=seed), torch.zeros(50, 4)], dim=1) for seed in (1, 2))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x[:, :3], y[:, :3]), rel=1e-9)
    still = torch.full((50, 7), 0.25)
    assert frechet_distance(still, still) == 0.0
    assert frechet_distance(x, still) == pytest.approx(
        float(x.T.cov().trace() + (x.mean(0) - 0.25).square().sum()), rel=1e-9
    )


@pytest.mark.parametrize("shape", [(500, 16), (9, 16), (17, 16), (16, 16), (2, 1)])
def test_a_set_has_no_distance_from_itself(shape: tuple[int, int]) -> None:
    for scale in (1e-3, 1.0, 10.0):
        x = (normal(*shape, seed=4) @ normal(shape[1], shape[1], seed=5) * scale + 3).float()
        for other in (x, x.flip(0)):
            assert 0.0 <= frechet_distance(x, other) < 1e-6


def test_a_gaussian_is_fitted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "BLOCK", 7)
    for count in (50, 5):
        x = (normal(count, 6, seed=1) * 2).float() + 1e4  # sums of squares about 0 would lose it
        found = Gaussian.of(x)
        assert (found.count, found.covariance.dtype) == (count, torch.float64)
        np.testing.assert_allclose(found.mean.numpy(), x.double().numpy().mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-10)
        assert found.factor.shape == (6, min(count, 6))
        np.testing.assert_allclose((found.factor @ found.factor.T).numpy(), found.covariance.numpy(), atol=1e-12)


def test_the_factor_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fakes = Gaussian.of(normal(50, 6)), [Gaussian.of(normal(50, 6, seed=seed)) for seed in (1, 2)]
    calls = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: calls.append(1) or cholesky(matrix))
    for fake in fakes:
        frechet(real, fake)
    assert calls == [1]
    assert frechet(Gaussian.of(normal(50, 6)), Gaussian.of(normal(4, 6))) > 0
    assert calls == [1]  # four samples are their own factor


def test_what_has_no_distance_is_refused() -> None:
    x = normal(50, 4)
    with pytest.raises(ValueError, match="of 4 and of 3 features"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(UserError, match="1 samples: a covariance needs at least 2"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match=r"\[N D\]"):
        Gaussian.of(x[0])
    with pytest.raises(ValueError, match="float64"):
        Gaussian(torch.zeros(4), torch.eye(4), 9)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        Gaussian(torch.zeros(4).double(), torch.zeros(4, 3).double(), 9)
    with pytest.raises(UserError, match="covariance of the features is nan or inf"):
        frechet_distance(x, x * 1e200)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="features of 1 of 50 samples"):
            frechet_distance(x, x.index_fill(0, torch.tensor([3]), bad))


def test_the_benchmark_compares_what_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    bench = importlib.import_module("frechet")
    assert bench.main(["flat", "--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "frechet.json").read_text(encoding="utf-8"))
    assert list(record["cases"]["flat"]["seconds"]) == ["cached", "ours", "scipy", "torchmetrics"]
    assert record["goals"].keys() <= record["cases"]["flat"]["seconds"].keys()
    monkeypatch.setattr(bench, "by_root", lambda real, fake: 1.0)
    with pytest.raises(SystemExit, match="do not compute the same"):
        bench.main(["flat", "--quick", "--out", str(tmp_path)])


# What is reported beside it


STANDARD = Gaussian(torch.zeros(8).double(), torch.eye(8).double(), 10**9)


def draw(n: int, seed: int) -> Tensor:
    """From N(0.3, 1.5^2) in 8 dimensions: at a distance of 8 (0.3^2 + 0.5^2) = 2.72 from the standard one."""
    return torch.randn(n, 8, generator=generator(seed)) * 1.5 + 0.3


@pytest.mark.parametrize("n", [40, 300])
def test_the_extrapolation_is_nearer_to_the_truth(n: int) -> None:
    found = torch.tensor(
        [
            [frechet(STANDARD, Gaussian.of(x)), extrapolated(STANDARD, x, points=15, generator=generator(seed))]
            for seed, x in ((seed, draw(n, seed)) for seed in range(100))
        ]
    )
    plain, infinite = (found.mean(0) - 2.72).tolist()
    assert plain > 25 / n  # the bias: about (D(D+1)/4 + ...) / N
    assert abs(infinite) < 0.4 * plain


def test_the_line_is_that_of_least_squares_in_one_over_n(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def known(real: Gaussian, fake: Gaussian, *, rtol: float) -> float:
        counts.append(fake.count)
        return 3.0 + 50.0 / fake.count

    monkeypatch.setattr(details, "frechet", known)
    assert extrapolated(STANDARD, draw(1000, 0), points=15, generator=generator()) == pytest.approx(3.0, rel=1e-12)
    assert len(counts) == 15
    assert (counts[0], counts[-1]) == (pytest.approx(100, abs=20), 1000)
    steps = np.diff(counts)
    assert steps.min() > 0.6 * steps.max()  # evenly, to a whole number of groups
    counts.clear()
    extrapolated(STANDARD, draw(12, 0), points=3, generator=generator())
    assert counts == [6, 9, 12]  # N/10 would be less than the features
    bent = iter([5.0, 2.0, 7.0, 1.0])

    def scattered(real: Gaussian, fake: Gaussian, *, rtol: float) -> float:
        counts.append(fake.count)
        return next(bent)

    counts.clear()
    monkeypatch.setattr(details, "frechet", scattered)
    found = extrapolated(STANDARD, draw(500, 0), points=4, generator=generator())
    assert found == pytest.approx(np.polyfit(1 / np.array(counts), [5.0, 2.0, 7.0, 1.0], 1)[1], rel=1e-9)


@pytest.mark.parametrize(("n", "shift", "low", "high"), [(40, 0.3, 0.75, 1.4), (300, 0.3, 0.75, 1.3), (300, 0, 1, 2.2)])
def test_the_error_bar_is_the_spread_over_other_draws(n: int, shift: float, low: float, high: float) -> None:
    # Without a shift the two are one distribution, where what is linear in the samples vanishes: it errs upwards.
    scale = 1.5 if shift else 1.0
    sets = [torch.randn(n, 8, generator=generator(seed)) * scale + shift for seed in range(150)]
    spread = float(torch.tensor([frechet(STANDARD, Gaussian.of(x)) for x in sets]).std())
    bars = [bootstrap_sd(STANDARD, x, replicates=20, generator=generator(seed)) for seed, x in enumerate(sets[:40])]
    assert low < sum(bars) / len(bars) / spread < high
    if shift:
        assert 0.1 < float(torch.tensor(bars).std()) / spread < 0.35  # as much as its docstring says, 18 %


@pytest.mark.parametrize(("n", "dim"), [(50, 6), (7, 6), (6, 6), (5, 6)])
def test_weighted_groups_are_samples_taken_so_often(n: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "GROUPS", 4)
    monkeypatch.setattr(details, "SUMS", 2 * 8 * dim * dim)  # two rows at a time
    x = (normal(n, dim) + 100).float()
    groups = details._groups(x, generator())
    assert sorted(torch.cat(groups).tolist()) == list(range(n))
    weights = torch.tensor([[1, 1, 1, 1], [0, 2, 1, 1], [0, 0, 3, 1], [1, 0, 1, 0], [0, 0, 0, 4]])
    found = list(details._weighted(x, groups, weights))
    assert len(found) == len(weights)
    for row, fitted in zip(weights.tolist(), found, strict=True):
        rows = np.concatenate([np.repeat(x[part].double().numpy(), k, 0) for part, k in zip(groups, row, strict=True)])
        assert fitted.count == len(rows)
        np.testing.assert_allclose(fitted.mean.numpy(), rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(fitted.covariance.numpy(), np.cov(rows.T), rtol=1e-8, atol=1e-10)


@dataclass(frozen=True)
class Corner:
    """Source of an extractor whose features are the middle of the image."""

    name: str = "corner"
    sha256: str = "0" * 64
    num: int = 9
    keys: ClassVar[Keys] = Keys("fd_corner", "_corner", classifier=False)

    def check(self, data: DataSet) -> None: ...

    def num_features(self, data: DataSet) -> int:
        return self.num

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Any:
        return self

    def __call__(self, x: Tensor) -> Features:
        return Features(x[:, :, 2:5, 2:5].flatten(1).float())


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


def noisy(data: DataSet, n: int, seed: int = 0) -> Subject:
    images = data.train.all(n).x.float() + 100 * torch.randn(n, 1, 8, 8, generator=generator(7))
    return Subject(data, None, lambda count: images[:count].clamp(0, 255).to(torch.uint8), n=n, seed=seed)


def middle(x: Tensor) -> Tensor:
    return Corner()(x).features


def test_each_detail_is_what_it_says(data: DataSet) -> None:
    subject, metric = noisy(data, 200), FrechetDetails(Corner())
    before = torch.get_rng_state()
    found = metric.measure(subject)
    assert torch.equal(torch.get_rng_state(), before)
    assert tuple(found) == metric.scores(None, data) == tuple(f"fd_corner_{k}" for k in ("sd", "inf", "train", "floor"))
    fake, test, train = middle(subject.samples()), middle(data.test.all().x), middle(data.train.all().x)
    plain = frechet_distance(test, fake)
    assert found["fd_corner_train"] == pytest.approx(frechet_distance(train, fake), rel=1e-9)
    floors = [
        frechet_distance(test, train[torch.randperm(len(train), generator=generator(k))[:200]]) for k in range(40)
    ]
    assert min(floors) * 0.8 < found["fd_corner_floor"] < max(floors) * 1.2
    assert max(floors) * 1.2 < found["fd_corner_train"]
    assert 0 < found["fd_corner_sd"] < found["fd_corner_inf"] < plain
    few = FrechetDetails(Corner(), bootstrap=0, points=0, train=False).measure(noisy(data, 30))
    assert few["fd_corner_floor"] > 2 * frechet_distance(test, train)  # of as few images as samples
    assert found == metric.measure(noisy(data, 200))
    other = metric.measure(noisy(data, 200, seed=1))
    assert {key for key in found if other[key] != found[key]} == set(found) - {"fd_corner_train"}


@pytest.mark.parametrize("off", ["bootstrap", "points", "train", "floor"])
def test_each_detail_has_its_switch_and_changes_no_other(off: str, data: DataSet) -> None:
    whole = FrechetDetails(Corner(), reference=300).measure(noisy(data, 100))
    metric = FrechetDetails(Corner(), reference=300, **{off: 0})  # type: ignore[arg-type]
    found = metric.measure(noisy(data, 100))
    assert tuple(found) == metric.scores(None, data)
    assert len(found) == 3
    assert found.items() <= whole.items()


def test_against_the_training_split_the_floor_is_of_test_images(data: DataSet) -> None:
    metric = FrechetDetails(Corner(), split="train", bootstrap=0, points=0)
    n = len(data.test)
    subject = noisy(data, n)
    found = metric.measure(subject)
    assert tuple(found) == metric.scores(None, data) == ("fd_corner_floor",)
    train, test = middle(data.train.all().x), middle(data.test.all().x)
    assert found["fd_corner_floor"] == pytest.approx(frechet_distance(train, test), rel=1e-9)
    assert subject.used_splits == {"train": len(data.train), "test": n}


def test_details_that_cannot_be_trusted_are_refused(data: DataSet) -> None:
    metric, loose = FrechetDetails(Corner()), FrechetDetails(Corner(), allow_few=True)
    with pytest.raises(UserError, match=r"9 samples for 9 features: fd_corner needs more.*scores\.frechet\.allow_few"):
        metric.check(data, 9)
    with pytest.raises(UserError, match="9 samples: fd_corner_sd and fd_corner_inf need at least 10"):
        loose.check(data, 9)
    with pytest.raises(UserError, match=r"30 samples for 64 features: fd_corner_inf needs.*frechet\.points=0"):
        FrechetDetails(Corner(num=64), allow_few=True).check(data, 30)
    metric.check(data, 10)
    metric.check(data, len(data.train) + 1)  # the floor is then of all training images
    with pytest.raises(UserError, match="9 images of data 'digits' split=test for 9"):
        FrechetDetails(Corner(), reference=9).check(data, 100)
    few_train = replace(data, train=Split(TensorRows(data.train.all(9).x)))
    for on, refused in (
        ({}, True),
        ({"train": False}, True),
        ({"floor": False}, True),
        ({"train": 0, "floor": 0}, False),
    ):
        with pytest.raises(UserError, match=r"9 images.*split=train for 9") if refused else nullcontext():
            FrechetDetails(Corner(), **on).check(few_train)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="neither train nor test"):
        FrechetDetails(Corner(), split="validation").check(data)
    with pytest.raises(UserError, match="vectors, not images"):
        metric.check(ring(train_size=90, test_size=90))
    for wrong in ({"bootstrap": 1}, {"points": 2}, {"points": -1}, {"reference": 0}):
        (name,) = wrong
        with pytest.raises(UserError, match=rf"metrics\.scores\.frechet\.{name}={wrong[name]}: at least"):
            FrechetDetails(Corner(), **wrong)
    few = FrechetDetails(Corner(num=64), allow_few=True, points=0, bootstrap=2).measure(noisy(data, 30))
    assert all(math.isfinite(value) for value in few.values())
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="features of 1 of 50 samples"):
            extrapolated(STANDARD, draw(50, 0).index_fill(0, torch.tensor([3]), bad), points=5, generator=generator())
