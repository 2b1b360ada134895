"""What is done to samples before the critic sees them: each change by its definition, for real and generated alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import differences
from torch import Tensor

from gentrain.config import build
from gentrain.data.stream import stream
from gentrain.engine import checkpoint
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.state import rng_state, set_rng_state
from gentrain.errors import UserError
from gentrain.families.adversarial import Adversarial
from gentrain.game import Round, Verdict, View
from gentrain.models.ada import ADA
from gentrain.models.diffaugment import DiffAugment, colour, cutout, translation
from gentrain.models.instance_noise import InstanceNoise
from gentrain.types import Images, Spec, Terms


def made(*overrides: str) -> tuple[Adversarial, list[Images]]:
    config = tiny("model=dcgan", *overrides)
    check_config(config)
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=20)
    assert isinstance(system, Adversarial)
    return system, list(itertools.islice(stream(data.train, batch_size=16, seed=0), 8))


def on_real(scores: Tensor) -> Verdict:
    return Verdict(scores, scores[:, None], {})


# Where views stand


class Note:
    """Adds 5, and notes when it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.told: list[Verdict] = []

    def require(self, spec: Spec) -> None: ...

    def __call__(self, x: Tensor, iteration: int, total: int) -> Tensor:
        self.asked.append((iteration, total))
        return x + 5.0

    def learn(self, on_real: Verdict) -> Mapping[str, Tensor]:
        self.told.append(on_real)
        return {"told": on_real.score.mean()}


class Watch:
    """An aim that sees what the critic sees."""

    needs_real = True

    def __init__(self) -> None:
        self.seen: list[Round] = []

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        self.seen.append(seen)
        return {}

    generator = critic


@pytest.mark.parametrize("fresh", [True, False])
def test_all_that_the_critic_is_asked_about_goes_through_the_view(fresh: bool) -> None:
    system, batches = made(f"model.fresh_noise={str(fresh).lower()}")
    view, watch = Note(), Watch()
    system.views["note"], system.aims["watch"] = view, watch
    for batch in batches[:2]:
        system.iterate(batch)
    assert len(watch.seen) == 4  # both players, twice
    for seen in watch.seen:
        assert seen.real.min() >= 4.0
        assert seen.fake.min() >= 4.0
    assert view.asked == [(1, 20)] * 4 + [(2, 20)] * 4  # real and generated, in both turns
    assert len(view.told) == 2
    assert "view/told" in system.report()


def test_a_view_sees_the_same_clock_after_a_resume() -> None:
    straight, batches = made()
    view = Note()
    straight.views["note"] = view
    for batch in batches[:6]:
        straight.iterate(batch)
        if straight.clock.iteration == 3:
            middle = straight.state()
    resumed, _ = made()
    again = Note()
    resumed.views["note"] = again
    resumed.restore(middle)
    for batch in batches[3:6]:
        resumed.iterate(batch)
    assert again.asked == [asked for asked in view.asked if asked[0] > 3]
    assert again.asked[0] == (4, 20)


@pytest.mark.parametrize(
    ("loss", "fits"),
    [
        (("loss=nonsaturating",), True),
        (("loss=hinge",), True),
        (("loss=least_squares", "loss.fake=-1", "loss.wanted=0"), True),
        (("loss=least_squares",), False),
        (("loss=relativistic",), False),
        (("loss=relativistic_average",), False),
        (("loss=wasserstein", "model/penalty=clip"), False),
        (("model=ebgan",), False),
        (("model=began",), False),
    ],
)
def test_ada_goes_by_the_sign_of_scores_that_have_one(loss: tuple[str, ...], fits: bool) -> None:
    chosen = loss if loss[0].startswith("model=") else ("model=dcgan", *loss)
    config = tiny(*chosen, "model/view=ada")
    data = build(config["data"])
    if fits:
        assert build_system(config, data, seed=0)
        return
    with pytest.raises(UserError, match=r"^model\.views\.ada: .* sign of the critic's scores"):
        build_system(config, data, seed=0)
    without = tiny(*chosen)
    assert build_system(without, data, seed=0)


EVERYTHING = (
    "model/view=[instance_noise,diffaugment,ada]",
    "model.views.ada.start=0.5",
    "model/replay=pool",
    "model/critic=minibatch_std",
    "model.net.decoder_norm=virtual",
    "model.prior=sphere",
)


def test_a_run_with_every_trick_is_resumed_bit_for_bit(run: Run, workplace: Path) -> None:
    budget = ["train.iterations=9", "train.validate_every=0", "train.checkpoint_every=5", "train.log_every=3"]
    shared = [*words("model=dcgan"), *EVERYTHING, *budget, "train.keep=9", "metrics=none"]
    outputs = workplace / "outputs"
    for name in ("straight", "cut"):
        ended = run(*shared, f"name={name}")
        assert ended.code == 0, ended.err
    end = outputs / "cut" / "checkpoints" / checkpoint.file_name(9)
    end.unlink()
    card = (outputs / "cut" / "run.json").read_text(encoding="utf-8")
    (outputs / "cut" / "run.json").write_text(card.replace('"finished"', '"failed"'), encoding="utf-8")
    assert run("resume", "run=outputs/cut").code == 0
    straight = checkpoint.load(outputs / "straight" / "checkpoints" / end.name)
    assert differences(straight["system"], checkpoint.load(end)["system"]) == []
    rules = straight["system"]["rules"]
    assert len(rules["replay.bits"]) == 32
    assert float(rules["ada.seen"]) == 16  # one turn since p was adjusted
    # Without what the views and the pool remember it would have been another run.
    middle = checkpoint.load(outputs / "cut" / "checkpoints" / checkpoint.file_name(5))
    ends = []
    for forgetful in (False, True):
        system, batches = made(*EVERYTHING)
        system.restore(middle["system"])
        if forgetful:
            system.rules["replay"].bits = torch.empty(0, dtype=torch.int32)
            system.rules["ada"].p.fill_(0.0)  # type: ignore[union-attr, operator]
        set_rng_state(middle["rng"][0])
        for batch in batches[:3]:
            system.iterate(batch)
        ends.append(system.state()["nets"])
    assert differences(ends[0], ends[1])


@pytest.mark.parametrize("view", ["diffaugment", "ada"])
def test_vectors_are_refused_in_one_line(view: str, run: Run) -> None:
    ended = run(*words("model=gan", "data=ring", "model/net=mlp", f"model/view={view}"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "instance_noise" in ended.err


def test_noise_serves_vectors() -> None:
    config = tiny("model=gan", "data=ring", "model/net=mlp", "model/view=instance_noise")
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=20)
    system.iterate(next(iter(stream(data.train, batch_size=16, seed=0))))
    assert system.clock.iteration == 1


VIEWS: list[View] = [InstanceNoise(), DiffAugment(), ADA(start=1.0)]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28)])
def test_each_draw_is_another_and_one_seed_is_one_draw(view: View, shape: tuple[int, ...]) -> None:
    x = torch.rand(6, *shape) * 2 - 1
    before = rng_state()
    first, second = view(x, 1, 10), view(x, 1, 10)
    set_rng_state(before)
    assert torch.equal(view(x, 1, 10), first)
    assert first.shape == x.shape
    assert first.dtype == x.dtype
    for one, other, plain in zip(first, second, x, strict=True):
        assert not torch.equal(one, other)
        assert not torch.equal(one, plain)
    changed = (first - x).flatten(1)  # nor are two samples of a batch changed alike
    assert len(torch.unique(changed, dim=0)) == 6


# Instance noise


def test_the_noise_falls_linearly_to_nothing() -> None:
    view, x = InstanceNoise(sd=0.4, until=0.5), torch.zeros(64, 1, 16, 16)
    for iteration, sd in ((1, 0.4), (26, 0.2), (51, 0.0), (100, 0.0)):
        assert view.deviation(iteration, 100) == pytest.approx(sd)
        assert float(view(x, iteration, 100).std()) == pytest.approx(sd, rel=0.03)
    before = rng_state()
    assert view(x, 60, 100) is x
    assert differences(before, rng_state()) == []


# DiffAugment


def test_colours_are_changed_by_an_affine_map_of_each_image() -> None:
    x = torch.rand(400, 3, 6, 6, dtype=torch.float64) * 2 - 1
    y = colour(x)
    mean, grey = x.mean((1, 2, 3), keepdim=True), x.mean(1, keepdim=True)
    contrast = ((y.mean(1, keepdim=True) - y.mean((1, 2, 3), keepdim=True)) / (grey - mean)).flatten(1)
    both = ((y - y.mean(1, keepdim=True)) / (x - grey)).flatten(1)
    bright = y.mean((1, 2, 3)) - mean.flatten()
    saturation = both / contrast.median(1, keepdim=True).values
    for values, low, high in ((contrast, 0.5, 1.5), (saturation, 0.0, 2.0), (bright[:, None], -0.5, 0.5)):
        assert (values.std(1, unbiased=False) < 1e-6).all(), "one number for all pixels of an image"
        of_image = values.median(1).values
        width = high - low
        assert low <= of_image.min() < low + 0.05 * width
        assert high - 0.05 * width < of_image.max() <= high
    grey_image = torch.rand(5, 1, 6, 6)
    fitted = [torch.linalg.lstsq(torch.stack([a.flatten(), torch.ones(36)], 1), b.flatten()[:, None]) for a, b in
              zip(grey_image, colour(grey_image), strict=True)]  # fmt: skip
    assert all(0.5 <= float(f.solution[0]) <= 1.5 for f in fitted)


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """x [C H W] moved by whole pixels, by a loop."""
    y = torch.zeros_like(x)
    h, w = x.shape[1:]
    for i, j in itertools.product(range(h), range(w)):
        if 0 <= i + dy < h and 0 <= j + dx < w:
            y[:, i, j] = x[:, i + dy, j + dx]
    return y


@pytest.mark.parametrize(("side", "most"), [(8, 1), (16, 2)])
def test_translation_moves_by_whole_pixels_and_lets_nothing_in(side: int, most: int) -> None:
    x = torch.rand(2, side, side) + 0.5
    moves = {(a, b): shifted(x, a, b) for a, b in itertools.product(range(-most, most + 1), repeat=2)}
    met = set()
    for y in translation(x.expand(150, -1, -1, -1)):
        found = [move for move, expected in moves.items() if torch.equal(expected, y)]
        assert len(found) == 1
        met.add(found[0])
    assert met == set(moves)


@pytest.mark.parametrize("side", [8, 10])  # squares of an even and an odd side
def test_cutout_takes_a_square_away(side: int) -> None:
    x = torch.rand(300, 2, side, side) + 0.5
    y = cutout(x)
    size = side // 2
    middles = set()
    for before, after in zip(x, y, strict=True):
        gone = after[0] == 0
        assert torch.equal(after[:, ~gone], before[:, ~gone])
        assert (after[:, gone] == 0).all()
        rows, columns = gone.any(1), gone.any(0)
        assert torch.equal(gone, rows[:, None] & columns[None])
        for line in (rows, columns):
            where = line.nonzero().flatten().tolist()
            assert where == list(range(where[0], where[-1] + 1))
            assert len(where) == size or (len(where) >= size // 2 and (where[0] == 0 or where[-1] == side - 1))
        middles.add((int(rows.nonzero()[0]), int(columns.nonzero()[0])))
    assert len(middles) > 20


@pytest.mark.parametrize("change", [colour, translation, cutout])
def test_gradients_pass_through_each_change(change: object) -> None:
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

    def fixed(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return change(x)  # type: ignore[operator, no-any-return]

    assert torch.autograd.gradcheck(fixed, (x,))
    assert fixed(x).grad_fn is not None


def test_unknown_changes_are_named() -> None:
    with pytest.raises(UserError, match=r"color.*colour"):
        DiffAugment(changes=["color"])


# ADA


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 11), (3, 28)])
def test_at_p_0_it_is_the_identity(channels: int, side: int) -> None:
    x = (torch.rand(16, channels, side, side) * 2 - 1).requires_grad_()
    y = ADA(start=0.0)(x, 1, 10)
    assert torch.equal(y, x)
    w = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad((w * y).sum(), x)[0], w)


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_p_is_the_share_of_images_that_are_changed(p: float) -> None:
    """Rotation is chosen twice with 1 - sqrt(1 - p): p of the images meet at least one of the two. Half of the flips,
    a quarter of the turns, and shifts by up to 0.625 pixels that round to none, change nothing."""
    x = torch.rand(4000, 1, 5, 5)
    rest = 1 - p
    for changes, untouched in (
        ("blit", (rest + p / 2) * (rest + p / 4) * (rest + p * 0.8**2)),
        ("geometry", rest**4),
        ("colour", rest**2 * (rest + p / 2)),
    ):
        moved = (ADA(start=p, changes=[changes])(x, 1, 10) - x).abs().flatten(1).amax(1)
        assert float((moved < 1e-5).float().mean()) == pytest.approx(untouched, abs=0.03)


def test_blits_are_flips_quarter_turns_and_whole_shifts() -> None:
    side = 8
    x = torch.rand(1, side, side)
    padded = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
    candidates = []
    for flip, turns, dy, dx in itertools.product((False, True), range(4), (-1, 0, 1), (-1, 0, 1)):
        y = torch.rot90(x.flip(2) if flip else x, turns, (1, 2))
        padded = torch.cat([y[:, :1], y, y[:, -1:]], 1)
        padded = torch.cat([padded[:, :, :1], padded, padded[:, :, -1:]], 2)
        candidates.append(padded[:, 1 + dy : 1 + dy + side, 1 + dx : 1 + dx + side])
    stacked = torch.stack(candidates)
    met = set()
    for y in ADA(start=1.0, changes=["blit"])(x.expand(600, -1, -1, -1), 1, 10):
        distance = (stacked - y).abs().amax((1, 2, 3))
        assert distance.min() < 1e-4
        met.add(int(distance.argmin()))
    assert len(met) > 60  # of 72


def test_geometry_keeps_a_flat_image_and_the_range() -> None:
    flat = torch.full((20, 1, 12, 12), 0.3)
    view = ADA(start=1.0, changes=["geometry"])
    torch.testing.assert_close(view(flat, 1, 10), flat)
    x = torch.rand(50, 1, 12, 12) * 2 - 1
    y = view(x, 1, 10)
    assert y.abs().max() <= 1.0 + 1e-5
    assert not torch.allclose(y, x, atol=0.1)


def test_a_rotation_by_geometry_turns_about_the_middle() -> None:
    """A dot in the middle stays there, whatever turns and stretches it; only the shift may move it, and p of the
    images are shifted."""
    x = torch.zeros(300, 1, 33, 33)
    x[:, :, 16, 16] = 1.0
    view = ADA(start=0.5, changes=["geometry"])
    y = view(x, 1, 10)
    there = (y[:, 0, 15:18, 15:18].amax((1, 2)) > 0.2).float().mean()
    assert 0.5 < float(there) < 0.75  # and a few by chance


def test_colours_of_ada_turn_about_grey() -> None:
    """Fitted per image: y = A x + b, where A keeps grey grey and turns and stretches what is across it."""
    x = torch.rand(60, 3, 6, 6) * 2 - 1
    y = ADA(start=1.0, changes=["colour"])(x, 1, 10)
    grey = torch.full((3,), 3**-0.5, dtype=torch.float64)
    across = torch.linalg.qr(torch.stack([grey, torch.eye(3).double()[0], torch.eye(3).double()[1]], 1)).Q[:, 1:]
    angles, flips, stretches = [], 0, []
    for before, after in zip(x, y, strict=True):
        design = torch.cat([before.flatten(1).T, torch.ones(36, 1)], 1).double()
        fit = torch.linalg.lstsq(design, after.flatten(1).T.double()).solution
        assert (design @ fit - after.flatten(1).T).abs().max() < 1e-4
        a, b = fit[:3].T, fit[3]
        torch.testing.assert_close(b, b.mean().expand(3), atol=1e-4, rtol=0)
        along = float(grey @ a @ grey)
        torch.testing.assert_close(a @ grey, along * grey, atol=1e-4, rtol=0)
        inner = across.T @ a @ across
        scale = math.sqrt(abs(float(torch.linalg.det(inner))))
        torch.testing.assert_close(
            inner.T @ inner, scale**2 * torch.eye(2).double(), atol=1e-3 * scale**2 + 1e-4, rtol=0
        )
        angles.append(math.atan2(float(inner[1, 0]), float(inner[0, 0])))
        flips += along < 0
        stretches.append(math.log2(scale / abs(along)))
    assert 15 < flips < 45
    assert min(angles) < -2
    assert max(angles) > 2
    assert 0.6 < torch.tensor(stretches).std() < 1.4  # saturation: 2^N(0, 1)


def test_grey_images_are_those_of_three_equal_channels() -> None:
    x = torch.rand(40, 1, 4, 4)
    torch.manual_seed(5)
    y = ADA(start=1.0, changes=["colour"])(x, 1, 10)
    for before, after in zip(x, y, strict=True):
        design = torch.stack([before.flatten(), torch.ones(16)], 1)
        fit = torch.linalg.lstsq(design, after.flatten()[:, None]).solution
        assert (design @ fit - after.flatten()[:, None]).abs().max() < 1e-4
    slopes = (y.flatten(1).std(1) / x.flatten(1).std(1)).log2()
    assert 0.3 < slopes.std() < 0.7  # contrast: 2^N(0, 0.5)


def test_adas_gradient_is_that_of_an_affine_map() -> None:
    view = ADA(start=0.8)
    x, h, w = (torch.randn(8, 3, 8, 8) for _ in range(3))

    def fixed(x: Tensor) -> Tensor:
        torch.manual_seed(4)
        return view(x, 1, 10)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((w * fixed(leaf)).sum(), leaf)
    expected = (w * (fixed(x + h) - fixed(x))).double().sum()
    torch.testing.assert_close((gradient * h).double().sum(), expected, rtol=1e-3, atol=1e-2)


def test_p_follows_the_sign_of_real_scores_towards_the_target() -> None:
    view = ADA(target=0.6, images=200, every=3)
    generator = torch.Generator().manual_seed(0)
    p, signs, seen = 0.0, 0.0, 0
    met = []
    for turn in range(1, 121):
        scores = torch.randn(10, generator=generator) + (2.0 if turn < 60 else -0.3)
        said = view.learn(on_real(scores))
        signs, seen = signs + sum(1 if s > 0 else -1 for s in scores.tolist()), seen + 10
        if turn % 3 == 0:
            p = min(max(p + (seen / 200 if signs / seen > 0.6 else -seen / 200), 0.0), 1.0)
            signs, seen = 0.0, 0
        assert float(view.p) == pytest.approx(p, abs=1e-5)
        assert float(said["probability"]) == pytest.approx(p, abs=1e-5)
        met.append(p)
    assert max(met) == 1.0
    assert met[-1] == 0.0
    before = said["probability"].clone()
    for _ in range(3):
        view.learn(on_real(torch.ones(10)))
    assert torch.equal(said["probability"], before), "what was logged does not change afterwards"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: InstanceNoise(sd=-1), "sd=-1"),
        (lambda: InstanceNoise(until=0), "until=0"),
        (lambda: ADA(target=1.5), "target=1.5"),
        (lambda: ADA(images=0), "images=0"),
        (lambda: ADA(start=2), "start=2"),
        (lambda: ADA(changes=["noise"]), "noise"),
        (lambda: ADA().require(Spec((2, 8, 8))), "1 or 3 channels"),
    ],
)
def test_numbers_out_of_range_are_named(make: object, named: str) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        make()  # type: ignore[operator]
    assert "\n" not in str(refusal.value)
