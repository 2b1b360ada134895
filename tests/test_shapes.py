"""Made shapes: factors are what the pixels show, bytes are the same everywhere, groups vary in one thing."""

from __future__ import annotations

import hashlib
import re
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, words
from torch import Tensor

from gentrain.data.dataset import DataSet, Split, TensorRows, Truth
from gentrain.data.order import Order
from gentrain.data.raster import COSINE, FRACTION, SHAPES, SINE, SYMMETRY, TURN, UNIT, paint, points_per_side
from gentrain.data.scenes import FACTORS, PALETTES, TOP_SPEED
from gentrain.data.sources import shapes
from gentrain.data.stream import stream
from gentrain.errors import UserError
from gentrain.types import Images

WHITE = np.array([[255]], dtype=np.int32)
SMALL: dict[str, Any] = {"train_size": 48, "test_size": 24}
VARIED = {"size": 1, "x": 2, "intrinsic": 1}


def truth(split: Split) -> Truth:
    assert split.truth is not None
    return split.truth


def one(shape: int, size: float, x: float, y: float, degrees: float, side: int) -> torch.Tensor:
    """A white object [H W], 0 to 1."""
    numbers = [shape, 0, round(size * UNIT), round(x * UNIT), round(y * UNIT), round(degrees * TURN / 360)]
    return torch.from_numpy(paint(np.array([numbers], dtype=np.int32), WHITE, side)[0][0] / 255.0)


def moments(image: Tensor) -> tuple[float, float, float]:
    """Area, and centroid (x, y), in parts of the side."""
    side = len(image)
    places = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    total = image.sum()
    return (
        float(total) / side**2,
        float((image.sum(0) * places).sum() / total),
        float((image.sum(1) * places).sum() / total),
    )


class TestPixels:
    @pytest.mark.parametrize("shape", range(len(SHAPES)))
    @pytest.mark.parametrize("side", [28, 64, 100])
    def test_area_is_the_square_of_the_size_and_the_centroid_is_the_position(self, shape: int, side: int) -> None:
        for size, x, y, degrees in (
            (0.2, 0.5, 0.45, 0),
            (0.3, 0.44, 0.6, 37),
            (0.4, 0.5, 0.5, 200),
            (0.25, 0.3, 0.7, 90),
        ):
            area, across, down = moments(one(shape, size, x, y, degrees, side))
            point = 1 / (side * points_per_side(side))
            assert area == pytest.approx(size**2, rel=2.5 * point / size)
            assert across == pytest.approx(x, abs=0.6 * point)
            assert down == pytest.approx(y, abs=0.6 * point)

    @pytest.mark.parametrize("shape", range(len(SHAPES)))
    def test_angles_turn_clockwise_with_the_symmetry_of_the_shape(self, shape: int) -> None:
        turned = [one(shape, 0.35, 0.5, 0.5, degrees, 64) for degrees in (20, 110, 200, 290)]
        for quarter, image in enumerate(turned):
            expected = torch.rot90(turned[0], -quarter)  # rot90 turns against the clock
            assert float((image - expected).abs().mean()) < 1e-3
            same = float((image - turned[0]).abs().mean()) < 1e-3
            assert same == (quarter * SYMMETRY[shape] % 4 == 0)

    def test_shapes_point_up_at_no_angle(self) -> None:
        widths = {name: (one(number, 0.4, 0.5, 0.5, 0, 64) > 0.5).sum(1) for number, name in enumerate(SHAPES)}
        used = {name: w[w > 0] for name, w in widths.items()}
        assert used["square"].unique().numel() <= 2
        assert used["ellipse"].max() > 1.8 * len(used["ellipse"])  # lies on its side, twice as wide as high
        assert used["triangle"][0] < 4 < used["triangle"][-1]  # stands on its base
        assert used["heart"][-1] < 4 < used["heart"][len(used["heart"]) // 3]  # stands on its tip
        lobes = one(3, 0.4, 0.5, 0.5, 0, 64)
        assert lobes[: 32 - 10, 32].sum() < lobes[: 32 - 10, 32 - 8].sum()  # with a dent between its lobes

    def test_edges_are_smooth(self) -> None:
        levels = one(1, 0.3, 0.5, 0.5, 10, 32).unique()
        assert len(levels) > 8

    @pytest.mark.parametrize("channels", [1, 3])
    def test_colours_are_the_colours_and_masks_are_what_is_painted(self, channels: int) -> None:
        split = shapes(size=32, channels=channels, **SMALL).train
        index = torch.arange(len(split))
        x, known, masks = split.x.take(index), truth(split).values(index)[:, 0], truth(split).masks(index)
        palette = torch.tensor(list(PALETTES[channels].values()))
        for image, values, mask in zip(x, known, masks, strict=True):
            colour = palette[int(values[1])]
            assert torch.equal(image.flatten(1).max(1).values, colour)
            share = image[colour.argmax()].float() / colour.max()
            # The brightest channel has 100 levels or more, a pixel 16 points: rounding cannot hide a half.
            assert torch.equal(mask > 0, share > 0.49)
            assert mask.unique().tolist() == [0, 1 + int(values[0])]

    def test_upper_objects_hide_lower_ones(self) -> None:
        below, above = [0, 0, 5000, 8192, 8192, 0], [1, 1, 2500, 8192, 8192, 0]
        palette = np.array([[255], [100]], dtype=np.int32)
        pixels, classes = paint(np.array([below, above], dtype=np.int32), palette, 32)
        assert (pixels[0, 16, 16], classes[16, 16]) == (100, 2)
        assert (pixels[0, 12, 12], classes[12, 12]) == (255, 1)
        assert (pixels[0, 2, 2], classes[2, 2]) == (0, 0)

    def test_no_object_is_cut_off(self) -> None:
        split = shapes(size=32, channels=1, smallest=0.39, largest=0.4, train_size=400, test_size=1).train
        x, sizes = split.all().x.float(), truth(split).values(torch.arange(400))[:, 0, 2]
        areas = (x / x.amax((1, 2, 3), keepdim=True)).mean((1, 2, 3))
        assert ((areas / sizes.square()) - 1).abs().max() < 0.02


class TestSameBytes:
    def test_hash_of_the_bytes(self) -> None:
        data = shapes(size=28, objects=3, **SMALL)
        clip = truth(data.test).clips(torch.arange(2), 5)
        parts = [data.train.all().x, data.test.all().x, truth(data.train).masks(torch.arange(48)), clip]
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
        assert digest == "30d4b3416863df7f2128a8b79c2fd6cb7f5b0c0166fa48f334513b6b05dac0ba"

    def test_no_sine_lies_where_its_last_digits_decide(self) -> None:
        exact = np.cos(np.arange(TURN) * (2 * np.pi / TURN)) * (1 << FRACTION)
        assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-4  # doubles err by 1e-12 here
        assert (COSINE[[0, TURN // 4, TURN // 2]].tolist(), SINE[[0, TURN // 4]].tolist()) == (
            [4096, 0, -4096],
            [0, 4096],
        )

    @pytest.mark.parametrize("kept", [0, 1 << 30])
    def test_reading_order_and_keeping_change_nothing(self, kept: int) -> None:
        whole = shapes(in_memory_bytes=1 << 30, **SMALL).train.all().x
        split = shapes(in_memory_bytes=kept, **SMALL).train
        for index in (torch.tensor([7, 3, 3, 40]), torch.tensor([40, 0]), torch.arange(48).flip(0)):
            assert torch.equal(split.x.take(index), whole[index])
        taken = split.x.take(torch.tensor([5]))
        taken.zero_()
        assert torch.equal(split.x.take(torch.tensor([5])), whole[5:6])  # what is kept is not handed out

    def test_workers_change_no_byte(self) -> None:
        split = shapes(vary=VARIED, group=4, **SMALL).train
        alone, helped = (list(islice(stream(split, batch_size=8, seed=1, workers=w), 8)) for w in (0, 2))
        for left, right in zip(alone, helped, strict=True):
            assert torch.equal(left.x, right.x)
            assert left.varied is not None
            assert right.varied is not None
            assert torch.equal(left.varied, right.varied)

    def test_splits_differ_and_every_parameter_tells_in_the_fingerprint(self) -> None:
        plain = shapes(**SMALL)
        assert plain.fingerprint == shapes(**SMALL).fingerprint
        assert not torch.equal(truth(plain.train).values(torch.arange(24)), truth(plain.test).values(torch.arange(24)))
        changes: list[dict[str, Any]] = [
            {"size": 33}, {"channels": 1}, {"objects": 2}, {"smallest": 0.16}, {"largest": 0.31}, {"seed": 1},
            {"train_size": 32}, {"test_size": 25}, {"vary": {"size": 1}}, {"vary": {"x": 1}},
            {"vary": {"size": 1}, "group": 8}, {"vary": {"size": 1, "x": 1}}, {"vary": {"size": 2, "x": 1}},
        ]  # fmt: skip
        found = [shapes(**(SMALL | change)).fingerprint for change in changes]
        assert len({plain.fingerprint, *found}) == 1 + len(changes)
        assert shapes(in_memory_bytes=0, **SMALL).fingerprint == plain.fingerprint  # it changes no byte

    def test_a_large_set_costs_nothing_before_it_is_read(self) -> None:
        data = shapes(size=64, train_size=50_000)
        assert data.train.truth._kept["drawn"].sum() <= 16  # type: ignore[union-attr]


class TestTruth:
    def test_factors_are_spread_over_their_ranges_and_unrelated(self) -> None:
        scenes = truth(shapes(train_size=8000, test_size=1).train)
        values = scenes.values(torch.arange(8000))[:, 0].double()
        assert tuple(factor.name for factor in scenes.factors) == FACTORS
        for column, factor in enumerate(scenes.factors):
            if factor.names:
                counts = values[:, column].long().bincount(minlength=len(factor.names)) / 8000
                assert (counts * len(factor.names) - 1).abs().max() < 0.12
            else:
                unit = (values[:, column] - factor.low) / (factor.high - factor.low)
                assert 0 <= unit.min() < 0.01
                assert 0.99 < unit.max() <= 1
                assert float(unit.mean()) == pytest.approx(0.5, abs=0.02)
        assert (torch.corrcoef(values.T) - torch.eye(6)).abs().max() < 0.05

    def test_several_objects_are_known_one_by_one(self) -> None:
        data = shapes(objects=3, train_size=300, test_size=1)
        values = truth(data.train).values(torch.arange(300))
        there = ~values[..., 0].isnan()
        assert there.sum(1).bincount().tolist()[1:] == pytest.approx([100, 100, 100], abs=25)
        assert data.spec.attribute_names == SHAPES
        assert data.train.y is not None
        for row, present in zip(values, data.train.y, strict=True):
            assert present.nonzero().flatten().tolist() == sorted(set(row[~row[:, 0].isnan(), 0].int().tolist()))
        assert [len(text.split(" and ")) for text in truth(data.train).captions(torch.arange(300))] == there.sum(
            1
        ).tolist()

    def test_captions_say_what_is_there(self) -> None:
        scenes = truth(shapes(train_size=600, test_size=1).train)
        places = {(0, 0): "at the upper left", (1, 0): "at the top", (1, 1): "in the centre", (2, 1): "at the right"}
        places |= {(1, 2): "at the bottom", (2, 2): "at the lower right", (0, 1): "at the left"}
        texts = scenes.captions(torch.arange(600))
        seen = set()
        for text, values in zip(texts, scenes.values(torch.arange(600))[:, 0], strict=True):
            ranges = [(float(values[c]), scenes.factors[c]) for c in (2, 3, 4)]
            parts = [3 * (value - factor.low) / (factor.high - factor.low) for value, factor in ranges]
            thirds = [int(part) for part in parts]
            if min(abs(part - round(part)) for part in parts) < 1e-3:
                continue  # on the border between two words
            kind, colour = ("small", "medium-sized", "large")[thirds[0]], list(PALETTES[3])[int(values[1])]
            place = places.get((thirds[1], thirds[2]))
            if place is not None:
                assert text == f"a {kind} {colour} {SHAPES[int(values[0])]} {place}"
            seen.add(text.split(" ", 4)[-1])
        assert len(seen) == 9

    def test_clips_move_at_one_speed_and_bounce(self) -> None:
        split = shapes(size=64, largest=0.2, channels=1, train_size=6, test_size=1).train
        clips = truth(split).clips(torch.arange(6), 40)  # [B T C H W]
        assert torch.equal(clips[:, 0], split.all().x)
        near, far = truth(split).factors[3].low, truth(split).factors[3].high
        turns = 0
        for clip in clips[:, :, 0].double():
            places = torch.tensor([moments(frame)[1:] for frame in clip])  # [T 2]
            assert places.min() > near - 0.01
            assert places.max() < far + 0.01
            steps = places.diff(dim=0)
            for axis in (0, 1):
                speeds = steps[:, axis].abs()
                usual = speeds.median()
                assert usual < TOP_SPEED / UNIT + 0.002
                bounces = (speeds < usual - 0.004).sum()
                assert ((speeds - usual).abs() < 0.004).sum() + bounces == 39
                turns += int((steps[1:, axis] * steps[:-1, axis] < 0).sum())
        assert turns > 5
        with pytest.raises(UserError, match="frames=0"):
            truth(split).clips(torch.arange(1), 0)


def varied_data() -> DataSet:
    return shapes(vary=VARIED, group=6, train_size=96, test_size=24)


class TestGroups:
    def test_one_factor_varies_in_each_group_and_the_ratio_holds(self) -> None:
        data = varied_data()
        values = truth(data.train).values(torch.arange(96))[:, 0].view(16, 6, 6)  # [group row factor]
        changes = (values != values[:, :1]).any(1)  # [group factor]
        assert data.spec.varied_names == tuple(VARIED)
        assert data.train.varied is not None
        kinds = data.train.varied.view(16, 6)
        assert (kinds == kinds[:, :1]).all()
        assert kinds[:, 0].bincount().tolist() == [4, 8, 4]
        columns = {0: ["size"], 1: ["x"], 2: ["shape", "colour", "y", "angle"]}
        for kind, change in zip(kinds[:, 0].tolist(), changes, strict=True):
            assert [name for name, changed in zip(FACTORS, change, strict=True) if changed] == columns[kind]
        assert len(values[:, 0].unique(dim=0)) == 16
        assert (data.test.group, data.test.varied) == (1, None)

    def test_batches_keep_groups_whole_and_permute_them(self) -> None:
        data = varied_data()
        straight = list(islice(stream(data.train, batch_size=12, seed=3), 20))  # 8 batches an epoch
        for batch in straight:
            assert batch.index is not None
            blocks = batch.index.view(2, 6)
            assert torch.equal(blocks, blocks[:, :1] // 6 * 6 + torch.arange(6))
            assert batch.group == 6
            assert torch.equal(batch.varied, data.train.varied[batch.index])  # type: ignore[arg-type, index]
            assert torch.equal(batch.x, data.train.x.take(batch.index))
        epochs = [torch.cat([b.index for b in straight[8 * e : 8 * e + 8]]) for e in (0, 1)]  # type: ignore[misc]
        assert all(torch.equal(epoch.sort().values, torch.arange(96)) for epoch in epochs)
        assert not torch.equal(*epochs)
        resumed = list(islice(stream(data.train, batch_size=12, seed=3, start=11), 9))
        assert all(torch.equal(a.x, b.x) for a, b in zip(resumed, straight[11:], strict=True))
        parts = list(straight[0].chunks(2))
        assert [part.group for part in parts] == [6, 6]
        assert torch.equal(torch.cat([p.varied for p in parts]), straight[0].varied)  # type: ignore[misc, arg-type]

    def test_memory_gives_the_same_batches(self) -> None:
        data = varied_data()
        split = Split(TensorRows(data.train.all().x), data.train.y, group=6, varied=data.train.varied)
        for drawn, held in islice(
            zip(stream(data.train, batch_size=12, seed=0), stream(split, batch_size=12, seed=0), strict=False), 9
        ):
            assert torch.equal(drawn.x, held.x)
            assert torch.equal(drawn.varied, held.varied)  # type: ignore[arg-type]
            assert held.group == 6

    def test_an_order_without_groups_is_what_it_was(self) -> None:
        generator = torch.Generator().manual_seed(int.from_bytes(
            hashlib.blake2b(repr(("order", 5, 0)).encode(), digest_size=8).digest(), "little") >> 1)  # fmt: skip
        assert torch.equal(Order(20, 4, 5).permutation(0), torch.randperm(20, generator=generator))

    def test_groups_that_do_not_fit_are_one_line(self) -> None:
        data = varied_data()
        with pytest.raises(UserError, match=r"train\.batch_size=16: .* groups of 6 .* multiple of 6"):
            stream(data.train, batch_size=16, seed=0)
        with pytest.raises(UserError, match=r"train\.batch_size=12: 4 ranks .* multiple of 24"):
            stream(data.train, batch_size=12, seed=0, world=4)
        with pytest.raises(UserError, match="no whole number of groups of 5"):
            Split(data.train.x, group=5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("size=7", r"data\.size=7: 8 to 512"),
        ("size=600", r"data\.size=600"),
        ("channels=2", r"data\.channels=2.*1, 3"),
        ("objects=0", r"data\.objects=0"),
        ("smallest=0.01", r"data\.smallest=0\.01"),
        ("largest=0.5", r"data\.largest=0\.5"),
        ("smallest=0.3", r"data\.smallest=0\.3: less than data\.largest=0\.3"),
        ("train_size=0", r"data\.train_size=0"),
        ("in_memory_bytes=-1", r"data\.in_memory_bytes=-1"),
        ("vary={sise: 1}", r"data\.vary.*sise.*size"),
        ("vary={}", r"data\.vary: name a factor"),
        ("vary={size: 0}", r"data\.vary\.size=0"),
        ("vary={size: 1.5}", r"data\.vary\.size: 1\.5 .*int"),
        ("vary={shape: 1, colour: 1, size: 1, x: 1, y: 1, angle: 1, intrinsic: 1}", r"data\.vary: all factors"),
        ("vary={size: 1}; data.objects=2", r"data\.objects=2"),
        ("vary={size: 1}; data.group=7", r"data\.train_size=50000: .* multiple of data\.group=7"),
        ("vary={size: 1}; data.group=1", r"data\.group=1"),
        ("vary={size: 1}; data.group=10", r"train\.batch_size=\d+: .* groups of 10"),
        ("vary={size: 1}; train.accumulate=2; train.batch_size=16", r"train\.batch_size=16: .* multiple of 32"),
    ],
)
def test_wrong_values_are_one_line(run: Run, change: str, named: str) -> None:
    given = ["model=vae", "data=shapes", "metrics=none", *f"data.{change}".split("; ")]
    ended = run("check", *(word for word in words(*given) if word != "data=digits"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert re.search(named, ended.err), ended.err


def test_images_without_groups_say_so() -> None:
    batch = Images(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))
    assert (batch.varied, batch.group) == (None, 1)
    assert [part.group for part in batch.chunks(2)] == [1, 1]


def test_the_same_name_serves_training_and_extractors(run: Run) -> None:
    small = ["data=shapes", "data.size=16", "data.train_size=400", "data.test_size=80"]
    ended = run("extractor", *small, "epochs=1", "out=made")
    assert ended.code == 0, ended.err
    assert "shapes-3x16x16" in ended.out
    given = words("model=vae", *small, "train.iterations=3", "metrics=none")
    assert run(*(word for word in given if word != "data=digits")).code == 0
