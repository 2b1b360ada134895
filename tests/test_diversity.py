"""Patches of a pyramid and similarity of pairs, against closed forms and sums written out."""

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
from gentrain.evaluation import diversity as module
from gentrain.evaluation.diversity import (
    MultiScaleSimilarity,
    SlicedWassersteinImages,
    levels,
    most_scales,
    normalised,
    patches,
    pyramid,
    random_pairs,
    similarity,
    sliced_distance,
    widened,
)
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.protocol import evaluate, require
from gentrain.evaluation.subject import Subject
from gentrain.types import Spec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, size: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Smooth random images: uint8 [n C size size]."""
    coarse = torch.rand(n, channels, 5, 5, generator=generator(seed))
    return (255 * torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")).to(torch.uint8)


def made(train: Tensor, test: Tensor, y: Tensor | None = None) -> DataSet:
    return in_memory("made", Spec(tuple(train.shape[1:])), (train, None), (test, y))


def of_images(data: DataSet, images: Tensor, labels: Tensor | None = None, seed: int = 0) -> Subject:
    return Subject(data, None, lambda n: images[:n], n=len(images), labels=labels, seed=seed)


# The pyramid and its patches


@pytest.mark.parametrize(
    ("size", "smallest", "sides"),
    [(64, 16, (64, 32, 16)), (28, 16, (28,)), (28, 7, (28, 14, 7)), (29, 7, (29, 15, 8)), (8, 16, ()), (16, 16, (16,))],
)
def test_levels_halve_down_to_the_smallest_and_add_up_to_the_image(
    size: int, smallest: int, sides: tuple[int, ...]
) -> None:
    assert levels(size, smallest) == sides
    if not sides:
        return
    x = torch.rand(2, 3, size, size, generator=generator(), dtype=torch.float64)
    found = pyramid(x, sides)
    assert [part.shape[-1] for part in found] == list(sides)
    whole = found[-1]
    for part in reversed(found[:-1]):
        whole = widened(whole, part.shape[-1]) + part
    torch.testing.assert_close(whole, x)


def test_each_level_holds_what_the_next_coarser_one_does_not() -> None:
    flat = pyramid(torch.full((1, 1, 64, 64), 77.0), (64, 32, 16))
    for part in flat[:-1]:
        assert part.abs().max() < 1e-4
    torch.testing.assert_close(flat[-1], torch.full((1, 1, 16, 16), 77.0))
    waves = [torch.sin(torch.arange(64) * math.tau / length).expand(1, 1, 64, 64).clone() for length in (3, 10, 40)]
    for place, wave in enumerate(waves):
        energy = [float(part.square().mean()) for part in pyramid(wave, (64, 32, 16))]
        assert energy.index(max(energy)) == place
    # One step down by hand: the binomial weights, every second pixel.
    x = torch.rand(1, 1, 9, 9, generator=generator(), dtype=torch.float64)
    weights = torch.tensor([1, 4, 6, 4, 1.0]).double() / 16
    low = pyramid(x, (9, 5))[1]
    assert float(low[0, 0, 1, 2]) == pytest.approx(float(weights @ x[0, 0, 0:5, 2:7] @ weights), rel=1e-12)


def test_patches_are_squares_of_their_image_from_all_over() -> None:
    x = torch.arange(3 * 2 * 9 * 9).reshape(3, 2, 9, 9).float()
    found = patches(x, 7, 200, generator())
    assert found.shape == (600, 2, 7, 7)
    corners = set()
    for i, patch in enumerate(found):
        image = x[i // 200]
        top, left = divmod(int(patch[0, 0, 0]) - int(image[0, 0, 0]), 9)
        assert patch.equal(image[:, top : top + 7, left : left + 7])
        corners.add((top, left))
    assert len(corners) == 9


def test_channels_are_normalised_over_the_whole_set() -> None:
    x = torch.rand(50, 3, 7, 7, generator=generator()) * torch.tensor([1, 10, 100]).view(1, 3, 1, 1) + 5
    found = normalised(x.clone()).unflatten(1, (3, 49))
    torch.testing.assert_close(found.mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.square().mean((0, 2)), torch.ones(3))
    assert normalised(torch.full((5, 1, 7, 7), 9.0)).abs().max() == 0
    rounded = 1e-5 * torch.randn(5, 1, 7, 7, generator=generator())  # what is left of a level where nothing is
    assert normalised(rounded).abs().max() < 0.1


def test_sliced_distance_of_moved_sets_is_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIRECTIONS", 3)
    x = torch.randn(60, 4, generator=generator(), dtype=torch.float64)
    directions = torch.randn(7, 4, generator=generator(1), dtype=torch.float64)
    move = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    unit = directions / directions.norm(dim=1, keepdim=True)
    assert sliced_distance(x, x.flip(0) + move, directions) == pytest.approx(
        float((unit @ move).abs().mean()), rel=1e-9
    )
    assert sliced_distance(x, x.flip(0), directions) == 0.0
    # Two points against two: each goes to the nearer one. In one dimension |0 - 1| and |10 - 14|.
    a, b = torch.tensor([[0.0], [10.0]]), torch.tensor([[14.0], [1.0]])
    assert sliced_distance(a, b, torch.tensor([[-3.0]])) == pytest.approx(2.5)


def test_swd_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level, patches that are whole images: nothing is left to chance but the directions."""
    monkeypatch.setattr(module, "BLOCK", 4)
    real, fake = pictures(10, 7, 3), pictures(10, 7, 3, seed=1)
    metric = SlicedWassersteinImages(patches=1, smallest=7, directions=5)
    found = metric.measure(of_images(made(real, real), fake, seed=3))
    directions = torch.randn(5, 147, generator=generator(3))
    vectors = []
    for x in (fake.double(), real.double()):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        vectors.append((centred / centred.square().mean((0, 2, 3), keepdim=True).sqrt()).flatten(1))
    total = 0.0
    for direction in directions.double():
        first, second = (sorted((v @ (direction / direction.norm())).tolist()) for v in vectors)
        total += sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 10
    assert found["swd_7"] == pytest.approx(1000 * total / 5, rel=1e-4)
    assert found["swd_mean"] == found["swd_7"]


def test_patches_are_of_the_level_and_their_places_of_the_seed() -> None:
    x = pictures(6, 32, 3)
    for place, level in enumerate(pyramid(x.float(), (32, 16))):
        side = level.shape[-1]
        whole = SlicedWassersteinImages(patches=1, patch=side, smallest=side)
        torch.testing.assert_close(whole._described(x, (32, 16), place, 0), normalised(level))
    metric = SlicedWassersteinImages(patches=5)
    first, same, other = (metric._described(x, (32, 16), 0, seed) for seed in (0, 0, 1))
    assert first.equal(same)
    assert not first.equal(other)


def test_equal_sets_have_no_swd_and_the_level_that_differs_shows() -> None:
    x, other = pictures(120, 32), pictures(120, 32, seed=1)
    data = made(x, x)
    metric = SlicedWassersteinImages(patches=16, directions=64)
    assert set(metric.measure(of_images(data, x)).values()) == {0.0}
    near = metric.measure(of_images(data, other))
    assert near.keys() == {"swd_32", "swd_16", "swd_mean"} == set(metric.scores(None, data))
    assert near["swd_mean"] == pytest.approx((near["swd_32"] + near["swd_16"]) / 2)
    noise = 40 * torch.randn(other.shape, generator=generator())
    rough = metric.measure(of_images(data, (other.float() + noise).clamp(0, 255).to(torch.uint8)))
    assert rough["swd_32"] > 3 * near["swd_32"]
    assert rough["swd_32"] > 2 * rough["swd_16"]
    collapsed = metric.measure(of_images(data, x[:1].expand(120, -1, -1, -1)))
    assert collapsed["swd_16"] > 2 * near["swd_16"]
    blank = metric.measure(of_images(data, torch.full_like(x, 90)))
    assert all(math.isfinite(value) and value > near["swd_mean"] for value in blank.values())


def test_swd_follows_the_seed_and_notes_its_counts() -> None:
    x, other = pictures(60, 16), pictures(50, 16, seed=1)
    metric = SlicedWassersteinImages(patches=4, directions=8, images=40)
    reports = [evaluate({"s": metric}, of_images(made(x, x), other, seed=s), "raw") for s in (0, 0, 1)]
    assert reports[0].scores == reports[1].scores
    assert reports[0].scores != reports[2].scores
    assert reports[0].protocol["splits"] == {"s": "test 40"}
    more = evaluate({"s": replace(metric, images=1000)}, of_images(made(x, x), other), "raw")
    assert more.protocol["splits"] == {"s": "test 50"}


# Similarity


def ssim_by_hand(x: Tensor, y: Tensor, window: int) -> tuple[float, float]:
    """Luminance times contrast over the mirrored image, and the contrast where the window fits: pixel by pixel."""
    half, sigma = window // 2, 1.5 * window / 11
    line = torch.exp(-((torch.arange(window) - half).double() ** 2) / (2 * sigma**2))
    weights = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    a, b = (torch.nn.functional.pad(z[None, None].double(), [half] * 4, mode="reflect")[0, 0] for z in (x, y))
    side = len(x)
    both, contrast = [], []
    for i in range(side):
        for j in range(side):
            p, q = a[i : i + window, j : j + window], b[i : i + window, j : j + window]
            mp, mq = float((weights * p).sum()), float((weights * q).sum())
            vp, vq = float((weights * (p - mp) ** 2).sum()), float((weights * (q - mq) ** 2).sum())
            cov = float((weights * (p - mp) * (q - mq)).sum())
            cs = (2 * cov + c2) / (vp + vq + c2)
            both.append(cs * (2 * mp * mq + c1) / (mp**2 + mq**2 + c1))
            if half <= i < side - half and half <= j < side - half:
                contrast.append(cs)
    return sum(both) / len(both), sum(contrast) / len(contrast)


@pytest.mark.parametrize(("size", "scales", "window"), [(8, 1, 7), (12, 2, 5), (28, 2, 11)])
def test_similarity_is_the_product_over_scales(size: int, scales: int, window: int) -> None:
    x, y = pictures(2, size)[:, 0]
    y = (y.float() * 0.5 + x.float() * 0.5).to(torch.uint8)
    found = float(similarity(x[None, None], y[None, None], scales=scales, window=window))
    exponents = [w / sum(module.WEIGHTS[:scales]) for w in module.WEIGHTS[:scales]]
    expected, a, b = 1.0, x.double(), y.double()
    for scale in range(scales):
        both, contrast = ssim_by_hand(a, b, window)
        expected *= (both if scale == scales - 1 else contrast) ** exponents[scale]
        a, b = (torch.nn.functional.avg_pool2d(z[None], 2)[0] for z in (a, b))
    assert found == pytest.approx(expected, rel=1e-5)
    assert 0.2 < found < 0.99


def test_similarity_of_flat_images_is_the_closed_form() -> None:
    x, y = (torch.full((1, 3, 28, 28), value, dtype=torch.uint8) for value in (10, 100))
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 10 * 100 + c1) / (10**2 + 100**2 + c1)
    assert float(similarity(x, y, scales=1, window=11)) == pytest.approx(luminance, rel=1e-9)
    weight = module.WEIGHTS[1] / sum(module.WEIGHTS[:2])  # of the coarsest scale, which alone sees the luminance
    assert float(similarity(x, y, scales=2, window=11)) == pytest.approx(luminance**weight, rel=1e-6)
    assert float(similarity(x, x, scales=2, window=11)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("window", [3, 5, 7, 9, 11])
def test_the_scales_that_fit_are_computed(window: int) -> None:
    for size in (8, 9, 16, 28, 32, 64, 88, 96, 128, 176):
        most = most_scales(size, window)
        assert most == 0 or size // 2 ** (most - 1) >= window
        if most:
            x = pictures(1, size)
            assert float(similarity(x, x, scales=most, window=window)) == pytest.approx(1.0, rel=1e-9)
    assert [most_scales(size, 11) for size in (8, 11, 28, 32, 64, 128, 176, 1024)] == [0, 1, 2, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("size", [8, 28])
def test_one_image_over_and_over_has_similarity_one(size: int) -> None:
    x, other = pictures(60, size), pictures(60, size, seed=1)
    data = made(x, x)
    metric = MultiScaleSimilarity(pairs=100)
    same = metric.measure(of_images(data, other[:1].expand(60, -1, -1, -1)))
    assert same["ms_ssim"] == pytest.approx(1.0, abs=1e-9)
    assert same["ms_ssim_real"] < 0.9
    honest = metric.measure(of_images(data, other))
    assert honest["ms_ssim"] == pytest.approx(honest["ms_ssim_real"], abs=0.1)
    few = metric.measure(of_images(data, torch.cat([other[:2].repeat(30, 1, 1, 1)])))
    assert few["ms_ssim"] == pytest.approx(
        0.5
        + 0.5 * float(similarity(other[:1], other[1:2], scales=1 if size == 8 else 2, window=7 if size == 8 else 11)),
        abs=0.1,
    )


def test_pairs_are_of_different_images_and_of_one_class_where_classes_were_asked() -> None:
    i, j = random_pairs(5, None, None, 4000, generator())
    assert (i != j).all()
    counts = torch.bincount(i * 5 + j, minlength=25).double() / 4000
    assert ((counts > 0) == ~torch.eye(5, dtype=torch.bool).flatten()).all()
    assert counts.max() < 1.3 / 20
    labels, real = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]), torch.tensor([0, 1, 1, 0, 3, 2, 2, 4, 4])
    i, j = random_pairs(8, labels, real, 99, generator())
    assert (i != j).all()
    assert labels[i].equal(labels[j])
    assert labels[i].bincount().tolist() == [50, 50]  # 2 is there once here, 3 once among the real
    with pytest.raises(UserError, match="no class has two"):
        random_pairs(2, torch.tensor([0, 1]), real, 9, generator())


def test_a_model_that_collapses_within_classes_is_seen_by_class() -> None:
    x, y = pictures(80, 28), torch.arange(80) % 2
    data, one_each = made(x, x, y), pictures(2, 28, seed=1)
    metric = MultiScaleSimilarity(pairs=200)
    labels = torch.arange(50) % 2
    by_class = metric.measure(of_images(data, one_each[labels], labels))
    assert by_class["ms_ssim"] == pytest.approx(1.0, abs=1e-9)
    assert by_class["ms_ssim_real"] < 0.9
    assert metric.measure(of_images(data, one_each[labels]))["ms_ssim"] < 0.95
    assert metric.measure(of_images(made(x, x), one_each[labels], labels))["ms_ssim"] < 0.95  # no classes to compare
    marks = torch.zeros(80, 3, dtype=torch.uint8)
    assert metric.measure(of_images(made(x, x, marks), one_each[labels], labels))["ms_ssim"] < 0.95


def test_blocks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(40, 28)
    subject, metric = of_images(made(x, x), pictures(30, 28, seed=1)), MultiScaleSimilarity(pairs=20)
    whole = metric.measure(subject)
    monkeypatch.setattr(module, "PIXELS", 28 * 28 * 3)
    assert metric.measure(subject) == pytest.approx(whole, rel=1e-12)
    assert subject.used_splits == {"test": 40}


@pytest.mark.parametrize(
    ("make", "n", "says"),
    [
        (lambda: SlicedWassersteinImages(), 9, r"no level for images of 8 pixels with smallest=16.*smallest=8$"),
        (lambda: SlicedWassersteinImages(patch=9), 9, r"smallest=8 and patch=8"),
        (lambda: SlicedWassersteinImages(smallest=6), 9, r"swd_images\.smallest=6: at least 7, the side of a patch"),
        (lambda: SlicedWassersteinImages(images=1), 9, r"swd_images\.images=1: at least 2"),
        (lambda: SlicedWassersteinImages(patches=0), 9, r"patches=0: at least 1"),
        (lambda: SlicedWassersteinImages(patch=0), 9, r"patch=0: at least 1"),
        (lambda: SlicedWassersteinImages(directions=0), 9, r"directions=0: at least 1"),
        (lambda: SlicedWassersteinImages(smallest=8), 1, "1 samples: swd of patches needs at least 2"),
        (lambda: SlicedWassersteinImages(smallest=8, split="all"), 9, "neither train nor test"),
        (lambda: MultiScaleSimilarity(pairs=0), 9, r"ms_ssim\.pairs=0"),
        (lambda: MultiScaleSimilarity(scales=6), 9, r"ms_ssim\.scales=6: 1 to 5"),
        (lambda: MultiScaleSimilarity(window=4), 9, r"ms_ssim\.window=4: odd"),
        (lambda: MultiScaleSimilarity(window=11), 9, r"8 pixels hold 0 scales of a window of 11: set .*window=null"),
        (lambda: MultiScaleSimilarity(scales=2), 9, r"8 pixels hold 1 scales of a window of 7: set .*scales=1 or null"),
        (lambda: MultiScaleSimilarity(), 1, "1 samples: ms_ssim compares pairs"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_one_line(make: object, n: int, says: str) -> None:
    class Painter:
        def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
            return torch.zeros(n, 1, 8, 8)

    data = digits()
    with pytest.raises(UserError, match=says) as caught:
        require({"m": cast("Metric", make())}, Painter(), data, n)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    for metric in (SlicedWassersteinImages(smallest=8), MultiScaleSimilarity()):
        require({"m": metric}, Painter(), data, n=9)
        with pytest.raises(UserError, match="vectors, not images"):
            metric.check(ring(train_size=9, test_size=9))
