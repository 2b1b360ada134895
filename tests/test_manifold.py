"""Neighbourhood scores against loops and expectations, and copies that a Fréchet distance does not tell of."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.sources import digits, ring
from gentrain.errors import UserError
from gentrain.evaluation import manifold as module
from gentrain.evaluation import neighbours as blocks
from gentrain.evaluation.domain import SHIPPED, Domain, read_card
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.manifold import Manifold, Memorisation, expected_coverage, manifold_scores
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.neighbours import Known, averaged, neighbours
from gentrain.evaluation.protocol import evaluate, require
from gentrain.evaluation.subject import FeatureCache, Subject
from gentrain.types import Spec

CACHE = FeatureCache()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, blocks):
        monkeypatch.setattr(place, "QUERIES", 7)
        monkeypatch.setattr(place, "POINTS", 5)


def of_images(data: DataSet, images: Tensor) -> Subject:
    return Subject(data, None, lambda n: images[:n], n=len(images), cache=CACHE)


# Nearest neighbours


def by_hand(samples: Tensor, train: Tensor, k: int, own: bool) -> tuple[list[list[int]], list[list[float]]]:
    places, distances = [], []
    for i, x in enumerate(samples.flatten(1).tolist()):
        found = sorted((math.dist(x, y), j) for j, y in enumerate(train.flatten(1).tolist()) if not (own and i == j))[
            :k
        ]
        places.append([j for _, j in found])
        distances.append([d for d, _ in found])
    return places, distances


@pytest.mark.parametrize("offset", [0.0, 1e9])
@pytest.mark.parametrize("own", [False, True])
def test_neighbours_are_those_of_a_loop(small_blocks: None, offset: float, own: bool) -> None:
    train = normal(23, 2, 3) + offset
    samples = train if own else normal(17, 2, 3, seed=1) + offset
    places, distances = neighbours(samples, train, 4, exclude=torch.arange(23) if own else None)
    expected = by_hand(samples, train, 4, own)
    assert places.tolist() == expected[0]
    torch.testing.assert_close(distances, torch.tensor(expected[1], dtype=torch.float64), rtol=1e-12, atol=0)


def test_copies_are_at_distance_zero_and_ties_keep_their_order(small_blocks: None) -> None:
    train = torch.rand(40, 50, generator=generator()) * 1e4
    train[[3, 31, 38]] = train[12].clone()
    places, distances = neighbours(train[12:13], train, 5)
    assert places[0, :4].tolist() == [3, 12, 31, 38]
    assert distances[0, :4].tolist() == [0, 0, 0, 0]
    assert distances[0, 4] > 0
    places, distances = neighbours(train, train, 3, exclude=torch.arange(40))
    assert places[12].tolist() == [3, 31, 38]
    assert (distances[torch.tensor([3, 12, 31, 38])] == 0).all()
    assert (places != torch.arange(40)[:, None]).all()
    pixels = torch.randint(0, 256, (9, 1, 4, 4), generator=generator()).to(torch.uint8)
    assert neighbours(pixels, pixels.flip(0))[0][:, 0].tolist() == list(range(8, -1, -1))


def test_distances_closer_than_a_product_can_tell_are_told_apart() -> None:
    ways = torch.nn.functional.normalize(normal(5, 8))
    near = 1e6 + ways * (1 + 1e-7 * torch.tensor([[3.0], [1], [4], [0], [2]]))  # and far from the mean of all points
    train = torch.cat([torch.zeros(40, 8).double(), near])
    places, _ = neighbours(torch.full((1, 8), 1e6, dtype=torch.float64), train, 2)
    assert places.tolist() == [[43, 41]]


def test_neighbours_that_cannot_be_found_are_refused() -> None:
    x = normal(5, 3)
    for k, own in ((6, False), (5, True), (0, False)):
        with pytest.raises(UserError, match="nearest neighbours among"):
            neighbours(x, x, k, exclude=torch.arange(5) if own else None)
    broken = x.clone()
    broken[2, 0] = math.nan
    with pytest.raises(UserError, match="1 of 5 samples are nan"):
        neighbours(broken, x)
    with pytest.raises(UserError, match="1 of 5 reference points are nan"):
        neighbours(x, broken)


def test_a_moved_image_is_found_by_what_both_have_in_common() -> None:
    train = torch.randint(0, 256, (30, 3, 6, 6), generator=generator()).to(torch.uint8)
    for move in ((1, 0), (0, -1), (-1, 1)):
        copy = train.roll(move, (2, 3))  # what leaves at one edge comes back at the other, and must not count
        place, distance = Known(train, shift=1).nearest(copy)
        assert place.tolist() == list(range(30))
        assert (distance == 0).all()
        assert (Known(train).nearest(copy)[1] > 100).all()
    x, y = (torch.full((1, 1, 6, 6), value, dtype=torch.uint8) for value in (10, 13))
    assert float(Known(y, shift=2).nearest(x)[1]) == pytest.approx(3 * 6)  # of every part, scaled to the whole
    assert Known(train, shift=1).nearest(train[4:5], torch.tensor([4]))[0] != 4


def test_large_images_are_averaged() -> None:
    x = torch.randint(0, 256, (3, 1, 8, 8), generator=generator()).to(torch.uint8)
    wide = x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert averaged(wide, 8).equal(x)
    assert averaged(x, 8) is x


# Precision, recall, density, coverage


def scores_by_hand(real: Tensor, fake: Tensor, k: int, k_density: int) -> dict[str, float]:
    """The papers' sums, point by point."""

    def reach(points: list[list[float]], k: int) -> list[float]:
        return [sorted(math.dist(x, y) for j, y in enumerate(points) if i != j)[k - 1] for i, x in enumerate(points)]

    X, Y = real.tolist(), fake.tolist()
    R, S, T = reach(X, k), reach(Y, k), reach(X, k_density)
    return {
        "precision": sum(any(math.dist(x, y) <= r for x, r in zip(X, R, strict=True)) for y in Y) / len(Y),
        "recall": sum(any(math.dist(x, y) <= s for y, s in zip(Y, S, strict=True)) for x in X) / len(X),
        "density": sum(math.dist(x, y) <= t for y in Y for x, t in zip(X, T, strict=True)) / (k_density * len(Y)),
        "coverage": sum(any(math.dist(x, y) <= t for y in Y) for x, t in zip(X, T, strict=True)) / len(X),
    }


@pytest.mark.parametrize(("n", "m", "k", "k_density"), [(30, 30, 3, 5), (40, 17, 1, 2), (12, 33, 5, 3)])
def test_scores_are_the_papers_sums(small_blocks: None, n: int, m: int, k: int, k_density: int) -> None:
    real, fake = normal(n, 4) + 100, normal(m, 4, seed=1) * 0.7 + 100.5
    found = manifold_scores(real, fake, k=k, k_density=k_density)
    assert found == pytest.approx(scores_by_hand(real, fake, k, k_density), rel=1e-12)
    assert len({0.0, 1.0} & set(found.values())) < 2  # says something


def test_equal_and_far_apart_sets_score_the_extremes() -> None:
    x = torch.rand(200, 300, generator=generator()) * 50  # float32, as features are
    for copy in (x, x.flip(0)):
        found = manifold_scores(x, copy, k=3, k_density=5)
        # Each ball holds its centre and five more.
        assert found == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(6 / 5), "coverage": 1.0}
    assert set(manifold_scores(x, x + 1e3).values()) == {0.0}


def test_what_is_dropped_and_what_is_added_are_told_apart() -> None:
    mode = [normal(100, 2, seed=i) * 0.1 + torch.tensor([5.0 * i, 0.0]) for i in range(4)]
    both, one = torch.cat(mode[:2]), normal(200, 2, seed=7) * 0.1
    dropped, added = (
        manifold_scores(both, one),
        manifold_scores(one, torch.cat([normal(100, 2, seed=8) * 0.1, mode[1]])),
    )
    assert dropped["precision"] > 0.9
    assert dropped["recall"] < 0.6
    assert dropped["coverage"] == pytest.approx(0.5, abs=0.03)
    assert added["precision"] == pytest.approx(0.5, abs=0.05)
    assert added["density"] == pytest.approx(0.5, abs=0.1)
    assert added["recall"] > 0.9


def test_points_on_the_edge_count_whatever_rounding_says(small_blocks: None) -> None:
    real = torch.rand(12, 400, generator=generator()) * 1e3
    real[4:] = real[:4].clone().repeat(2, 1)  # each point three times: balls of radius 0 up to the second neighbour
    found = manifold_scores(real, real[:4], k=2, k_density=2)
    assert found == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(3 / 2), "coverage": 1.0}
    assert manifold_scores(real, real[:4] + 1e-3, k=2, k_density=2)["precision"] == 0.0


@pytest.mark.parametrize(("n", "m", "k"), [(60, 60, 3), (40, 100, 2)])
def test_expectations_under_one_distribution_are_those_of_the_lemmas(n: int, m: int, k: int) -> None:
    drawn = [
        manifold_scores(normal(n, 3, seed=2 * i), normal(m, 3, seed=2 * i + 1), k=k, k_density=k) for i in range(200)
    ]
    for key, expected in (("density", 1.0), ("coverage", expected_coverage(n, m, k))):
        values = torch.tensor([row[key] for row in drawn], dtype=torch.float64)
        error = float(values.std() / math.sqrt(len(values)))
        assert abs(float(values.mean()) - expected) < 4 * error
        assert error < 0.02
    if n == m:
        a, b = (math.prod(range(top - k, top)) for top in (n, 2 * n))
        assert expected_coverage(n, n, k) == pytest.approx(1 - a / b, rel=1e-12)


def test_the_metric_uses_equal_counts_and_names_its_extractor(data: DataSet) -> None:
    metric = Manifold(Domain(), reference=100)
    subject = of_images(data, data.train.all(150).x)
    report = evaluate({"m": metric}, subject, "raw")
    real, fake = subject.reference_features(Domain(), "test", 100), subject.sample_features(Domain())
    expected = manifold_scores(real.features, fake.features[:100])
    assert report.scores == {f"{base}_domain": value for base, value in expected.items()}
    assert report.protocol["splits"] == {"m": "test 100"}
    assert metric.scores(None, data) == tuple(report.scores)
    few = of_images(data, data.train.all(40).x)
    expected = manifold_scores(real.features[torch.arange(40) * 100 // 40], few.sample_features(Domain()).features)
    assert metric.measure(few) == {f"{base}_domain": value for base, value in expected.items()}


@pytest.mark.parametrize(
    ("make", "n", "says"),
    [
        (lambda: Manifold(Domain(), k=0), 9, r"manifold\.k=0"),
        (lambda: Manifold(Domain(), k_density=0), 9, r"manifold\.k_density=0"),
        (lambda: Manifold(Domain(), reference=0), 9, r"manifold\.reference=0"),
        (lambda: Manifold(Domain(), split="validation"), 9, "neither train nor test"),
        (
            lambda: Manifold(Domain()),
            5,
            r"5 samples for 5 .*precision_domain needs more than 5: raise metrics\.samples",
        ),
        (lambda: Manifold(Domain(), reference=5), 9, r"5 images of data 'digits' split=test for 5"),
        (lambda: Manifold(Domain(), k=9), 9, "needs more than 9"),
        (lambda: Memorisation(Domain(), quantile=0.0), 9, r"memorisation\.quantile=0"),
        (lambda: Memorisation(Domain(), limit=0), 9, r"memorisation\.limit=0"),
        (lambda: Memorisation(Domain(), reference=1), 9, r"memorisation\.reference=1"),
        (lambda: Memorisation(Domain(), shift=32), 9, r"memorisation\.shift=32"),
        (lambda: Memorisation(Domain(), shift=8), 9, "below the 8 pixels"),
        (lambda: Memorisation(Domain(), limit=100), 9, r"50 of 100 held-out.*needs 99: raise .*quantile or limit"),
    ],
)
def test_settings_that_cannot_work_are_one_line(data: DataSet, make: object, n: int, says: str) -> None:
    class Painter:
        def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
            return torch.zeros(n, 1, 8, 8)

    with pytest.raises(UserError, match=says) as caught:
        require({"m": cast("Metric", make())}, Painter(), data, n)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    for metric in (Manifold(Domain()), Memorisation(Domain())):
        require({"m": metric}, Painter(), data, n=9)
        with pytest.raises(UserError, match="vectors, not images"):
            metric.check(ring(train_size=9, test_size=9))


def test_features_that_are_not_finite_are_refused() -> None:
    x = normal(20, 3)
    broken = x.clone()
    broken[3] = math.inf
    for pair in ((x, broken), (broken, x)):
        with pytest.raises(UserError, match="1 of 20"):
            manifold_scores(*pair)


# Copies


def fd(data: DataSet, images: Tensor) -> float:
    subject = of_images(data, images)
    real = subject.reference_features(Domain(), "test").features
    return frechet_distance(real, subject.sample_features(Domain()).features)


def noisy(x: Tensor, levels: float) -> Tensor:
    noise = levels * torch.randn(x.shape, generator=generator())
    return (x.float() + noise).round().clamp(0, 255).to(torch.uint8)


def moved(x: Tensor) -> Tensor:
    """Each image by one pixel to the right, with a dark edge."""
    return torch.nn.functional.pad(x, (1, 0))[..., :-1]


def test_copies_are_found_that_the_frechet_distance_takes_for_perfect(data: DataSet) -> None:
    images = data.train.all(1000).x
    card = read_card(SHIPPED / "digits.safetensors")
    floor = next(row["fd_domain"] for row in card.floor if row["n"] == 1000)  # what a perfect model would get
    metric = Memorisation(Domain())
    assert fd(data, images) <= floor
    exact = metric.measure(of_images(data, images))
    assert exact["copy_rate_pixels"] == exact["copy_rate_domain"] == 1.0
    assert exact["authenticity_pixels"] == exact["authenticity_domain"] == 0.0
    assert exact["copy_rate_real_pixels"] < 0.05
    assert exact["copy_rate_real_domain"] < 0.05
    disguised = noisy(images, 4.0)
    assert fd(data, disguised) <= floor, "its FID alone would not have told"
    found = metric.measure(of_images(data, disguised))
    assert found["copy_rate_pixels"] == 1.0
    assert found["copy_rate_domain"] > 0.5
    assert found["authenticity_pixels"] == 0.0
    assert found["authenticity_real_pixels"] > 0.3
    assert {key: found[key] for key in found if "real" in key} == {key: exact[key] for key in exact if "real" in key}
    assert fd(data, moved(images)) <= floor
    shifted = metric.measure(of_images(data, moved(images)))
    assert shifted["copy_rate_pixels"] > 0.95
    assert shifted["authenticity_pixels"] < 0.05
    assert replace(metric, shift=0).measure(of_images(data, moved(images)))["copy_rate_pixels"] < 0.05


def test_a_model_that_copies_a_part_is_told_by_how_much(data: DataSet) -> None:
    half = data.train.take(torch.arange(0, len(data.train), 2))
    others = data.train.take(torch.arange(1, len(data.train), 2))
    learnt = in_memory("digits", data.spec, (half.x, half.y), (data.test.all().x, None))
    mixed = torch.cat([noisy(half.x[:150], 4.0), others.x[:350]])
    found = Memorisation(Domain()).measure(of_images(learnt, mixed))
    assert found["copy_rate_pixels"] == pytest.approx(0.3, abs=0.03)


def test_an_honest_set_is_not_accused(data: DataSet) -> None:
    half = data.train.take(torch.arange(0, len(data.train), 2))
    others = data.train.take(torch.arange(1, len(data.train), 2))
    learnt = in_memory("digits", data.spec, (half.x, half.y), (data.test.all().x, None))
    metric = Memorisation(Domain())
    found = metric.measure(of_images(learnt, others.x))
    for space in ("pixels", "domain"):
        assert found[f"copy_rate_{space}"] < 0.03
        assert found[f"authenticity_{space}"] == pytest.approx(found[f"authenticity_real_{space}"], abs=0.1)
    assert tuple(sorted(found)) == tuple(sorted(metric.scores(None, data)))


def authenticity_by_hand(train: Tensor, samples: Tensor) -> float:
    places, distances = by_hand(samples, train, 1, own=False)
    own = by_hand(train, train, 1, own=True)[1]
    return sum(d[0] > own[at[0]][0] for at, d in zip(places, distances, strict=True)) / len(samples)


@pytest.mark.parametrize("seed", [0, 1])
def test_copying_is_counted_as_in_a_loop(seed: int) -> None:
    train, held_out, samples = normal(50, 3), normal(40, 3, seed=1), normal(30, 3, seed=2) * 1.1
    samples[:6] = train[:6]
    found = module.copying(Known(train), samples, held_out, quantile=0.2, seed=seed)
    distances = [d[0] for d in by_hand(held_out, train, 1, own=False)[1]]
    order = torch.randperm(40, generator=generator(seed)).tolist()
    threshold = sorted(distances[i] for i in order[:20])[3]  # 0.2 * 21 = 4.2: the fourth smallest
    near = [d[0] for d in by_hand(samples, train, 1, own=False)[1]]
    expected = (
        sum(d <= threshold for d in near) / 30,
        sum(distances[i] <= threshold for i in order[20:]) / 20,
        authenticity_by_hand(train, samples),
        authenticity_by_hand(train, held_out),
    )
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] >= 0.2


def test_a_copy_of_an_image_that_the_data_hold_twice_is_a_copy() -> None:
    train = torch.tensor([[0.0], [0.0], [1.0], [1.0], [3.0]])
    held_out, samples = torch.tensor([[0.0], [1.0]]).repeat(20, 1), torch.tensor([[0.0], [1.0], [0.0], [2.5]])
    found = module.copying(Known(train), samples, held_out, quantile=0.1, seed=0)
    assert found == (0.75, 1.0, 0.0, 0.0)  # 2.5 is nearer to 3 than any other training point is


def test_of_honest_samples_the_quantile_is_accused_on_average() -> None:
    rates = torch.tensor(
        [
            module.copying(
                Known(normal(40, 2, seed=3 * i)),
                normal(60, 2, seed=3 * i + 1),
                normal(58, 2, seed=3 * i + 2),
                quantile=0.1,
                seed=0,
            )[:2]
            for i in range(150)
        ],
        dtype=torch.float64,
    )  # [150 2]: of samples, of held-out points
    # 29 points set the threshold, the third smallest of them: 3 of 30.
    assert (rates.mean(0) - 0.1).abs().max() < 4 * float(rates.std(0).max()) / math.sqrt(150)
    assert float(rates.std(0).max()) / math.sqrt(150) < 0.01


def test_pixels_are_compared_at_a_size_that_fits(data: DataSet) -> None:
    wide = data.train.all(300).x.repeat_interleave(5, 2).repeat_interleave(5, 3)
    test = data.test.all().x.repeat_interleave(5, 2).repeat_interleave(5, 3)
    large = in_memory("large", Spec((1, 40, 40)), (wide, None), (test, None))
    subject = of_images(large, wide[:50])
    train, samples, held_out = Memorisation(Domain(), size=8, limit=200)._pixels(subject)
    assert train.points.equal(data.train.all(300).x)
    assert samples.equal(data.train.all(300).x[:50])
    assert held_out.equal(data.test.all(200).x)
    assert subject.used_splits == {"train": 300, "test": 200}
