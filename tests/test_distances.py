"""Scores against closed forms: Fréchet and kernel distance, Inception score, modes, sliced Wasserstein."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentrain.data.dataset import DataSet
from gentrain.data.sources import ring, swissroll
from gentrain.errors import UserError
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.metrics import inception_score, kernel_distance, subset_size_of
from gentrain.evaluation.modes import ModesCovered, SlicedWasserstein, sliced_wasserstein
from gentrain.evaluation.subject import Subject


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_points(data: DataSet, points: Tensor) -> Subject:
    return Subject(data, None, lambda n: points[:n], n=len(points))


def test_identical_sets_have_no_distance() -> None:
    x = torch.randn(500, 16, generator=generator()) * 3 + 10
    assert frechet_distance(x, x) < 1e-6
    assert frechet_distance(x, x.flip(0)) < 1e-6


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    # Exact sample moments: whitened noise, scaled. Then |m|^2 + sum (s - t)^2 holds to rounding.
    noise = torch.randn(400, 8, generator=generator(), dtype=torch.float64)
    noise -= noise.mean(0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T.cov()).T)
    s, t = torch.linspace(0.5, 3, 8).double(), torch.linspace(2, 0.1, 8).double()
    mean = torch.linspace(-1, 1, 8).double() + 1e7  # sums of squares about 0 would lose it
    found = frechet_distance(white * s + mean + 0.7, white.flip(0) * t + mean)
    assert found == pytest.approx(float(8 * 0.7**2 + (s - t).square().sum()), rel=1e-4)


def test_frechet_distance_of_correlated_gaussians_is_the_float64_formula() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    mix = torch.randn(6, 6, generator=generator(3), dtype=torch.float64)
    x = torch.randn(300, 6, generator=generator(1), dtype=torch.float64) @ mix
    y = torch.randn(200, 6, generator=generator(2), dtype=torch.float64) + 0.3
    root = linalg.sqrtm((x.T.cov() @ y.T.cov()).numpy()).real
    expected = float((x.mean(0) - y.mean(0)).square().sum() + x.T.cov().trace() + y.T.cov().trace()) - 2 * root.trace()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimator_and_near_zero_on_one_distribution() -> None:
    x, y = torch.randn(30, 4, generator=generator(1)).double(), torch.randn(30, 4, generator=generator(2)).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 4 + 1) ** 3

    pairs = 30 * 29
    off = [(k.sum() - k.trace()) / pairs for k in (kernel(x, x), kernel(y, y))]
    expected = float(off[0] + off[1] - 2 * kernel(x, y).mean())
    assert kernel_distance(x, y, subsets=3, subset_size=1000, seed=0)[0] == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_halves_of_one_set_is_unbiased_around_zero() -> None:
    z = torch.randn(400, 16, generator=generator(3))
    halves = []
    for seed in range(50):
        mixed = z[torch.randperm(400, generator=generator(seed))]
        halves.append(kernel_distance(mixed[:200], mixed[200:], subsets=20, subset_size=150, seed=seed)[0])
    values = torch.tensor(halves).double()
    assert float(values.mean().abs()) < 3 * float(values.std()) / 50**0.5  # a biased estimator is at 0.04 here
    assert float(values.mean().abs()) < 0.01
    assert min(halves) < 0 < max(halves)


def test_inception_score_spans_one_to_k() -> None:
    confident = torch.eye(5).repeat(20, 1) * 2000  # underflows in float64 as it stands
    assert inception_score(confident, splits=1, seed=0)[0] == pytest.approx(5.0, rel=1e-6)
    assert inception_score(torch.ones(100, 5), splits=10, seed=0)[0] == pytest.approx(1.0, rel=1e-6)
    assert inception_score(confident[:1].expand(50, 5), splits=2, seed=0)[0] == pytest.approx(1.0, rel=1e-6)


def test_random_parts_follow_the_seed_and_leave_the_generators_alone() -> None:
    x, y = torch.randn(100, 4, generator=generator(1)), torch.randn(100, 4, generator=generator(2)) + 0.5
    before = torch.get_rng_state()
    runs = [kernel_distance(x, y, subsets=4, subset_size=20, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    runs = [inception_score(x, splits=4, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_features_are_refused(bad: float) -> None:
    x = torch.randn(50, 4, generator=generator())
    y = x.clone()
    y[3, 1] = bad
    with pytest.raises(UserError, match="features of 1 of 50 samples"):
        frechet_distance(x, y)
    with pytest.raises(UserError, match="features of 1 of 50 reference"):
        kernel_distance(y, x, subsets=2, subset_size=10, seed=0)
    with pytest.raises(UserError, match="features of 1 of 50"):
        inception_score(y, splits=1, seed=0)


def test_true_samples_show_every_mode_and_a_collapsed_sampler_one() -> None:
    data = ring(train_size=1000, test_size=1000)
    true, modes = data.density, ModesCovered()
    assert true is not None
    assert true.modes is not None
    good = modes.measure(of_points(data, true.sample(1000, generator(7))))
    assert (good["modes_covered"], good["modes_total"]) == (8, 8)
    assert good["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    collapsed = modes.measure(of_points(data, true.modes[:1].repeat(1000, 1)))
    assert (collapsed["modes_covered"], collapsed["high_quality"]) == (1, 1.0)
    between = modes.measure(of_points(data, torch.zeros(100, 2)))
    assert (between["modes_covered"], between["high_quality"]) == (0, 0.0)
    thin = torch.cat([true.modes[:1].repeat(995, 1), true.modes[1:2].repeat(5, 1)])  # 0.5 % on the second
    assert modes.measure(of_points(data, thin))["modes_covered"] == 1
    assert modes.measure(of_points(swissroll(train_size=100, test_size=100), thin)) == {}


def test_sliced_wasserstein_is_the_shift_along_the_directions() -> None:
    x = torch.randn(200, 2, generator=generator(), dtype=torch.float64)
    axes = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    assert sliced_wasserstein(x, x.flip(0), axes) == 0.0
    # (3^2 + 4^2) / 2 over the two axes
    assert sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), axes) == pytest.approx(math.sqrt(12.5), rel=1e-12)
    data = ring(train_size=1000, test_size=1000)
    near, far = (SlicedWasserstein().measure(of_points(data, data.train.all().x + s))["swd"] for s in (0.0, 1.0))
    assert near < 0.2 < 0.6 < far  # 1000 draws are never evenly spread over the modes: real against real is at 0.14


def test_torch_fidelity_agrees_on_the_same_features() -> None:
    """Its own functions as an oracle: FID, KID of whole sets, the Inception score of one part."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    mixing = torch.randn(24, 24, generator=generator(1))
    x = (torch.randn(300, 24, generator=generator(2)) @ mixing).relu()
    y = (torch.randn(260, 24, generator=generator(3)) @ mixing + 0.3).relu()
    statistics = [fid_features_to_statistics(z.double()) for z in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-4)
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    whole = {"kid_kernel_poly_coef0": 1, "kid_subsets": 1, "kid_subset_size": 260, "rng_seed": 0, "verbose": False}
    first = x[:260].double()
    theirs = kid_features_to_metric(first, y.double(), **settings, **whole)["kernel_inception_distance_mean"]
    assert kernel_distance(first, y, subsets=1, subset_size=260, seed=0)[0] == pytest.approx(theirs, rel=1e-4)
    logits = 4 * torch.randn(300, 7, generator=generator(4))
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert inception_score(logits, splits=1, seed=0)[0] == pytest.approx(theirs, rel=1e-4)


def test_the_kernel_distances_sd_is_that_over_draws() -> None:
    """Of 300 against 300 points, where subsets as large as the sets would show no spread at all."""

    def draw(seed: int) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(seed)
        real, fake = torch.randn(2, 300, 8, generator=generator)
        return kernel_distance(real, fake, subsets=50, subset_size=subset_size_of(300, 300, 1000), seed=0)

    means, sds = zip(*(draw(seed) for seed in range(40)), strict=True)
    over_draws, said = torch.tensor(means).std(), torch.tensor(sds).mean()
    assert 0.5 < said / over_draws < 4.0  # of subsets of half the size


def test_parts_of_the_inception_score_are_of_one_size() -> None:
    """Of 25 samples in 10 parts two each count: one of a part's two has class 0, the other class 1, or both one."""
    logits = 100.0 * torch.eye(2).repeat(13, 1)[:25]
    mean, spread = inception_score(logits, splits=10, seed=0)
    shown = (mean - 1.0) * 10  # how many parts show both classes, each then scoring 2 and else 1
    assert shown == pytest.approx(round(shown), abs=1e-4)
    share = shown / 10
    assert spread == pytest.approx((share * (1 - share) * 10 / 9) ** 0.5, abs=1e-4)
