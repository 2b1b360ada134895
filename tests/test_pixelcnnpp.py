"""PixelCNN++: shifts of its streams, normalised weights that start from the first batch, the mixture's edges."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from test_autoregressive import noise, trained
from torch import Tensor, nn

from gentrain.compose import compose
from gentrain.engine.player import Exponential
from gentrain.engine.sampling import at_rest
from gentrain.errors import UserError
from gentrain.families.autoregressive import Autoregressive
from gentrain.nets.first_batch import FirstBatch, first_values, uninitialised
from gentrain.nets.shifted import DOWN, DOWN_RIGHT, Normed, Pad, ShiftedConv2d, ShiftedDoubling, concat_elu
from gentrain.nets.two_streams import ABOVE, LEFT, ROW_ABOVE, TwoStreams
from gentrain.objectives.pixel_heads import LOG_SCALE_FLOOR, LogisticMixture
from gentrain.types import Images, Spec


def network(channels: int = 1, levels: int = 3, blocks: int = 1, condition: int = 0) -> TwoStreams:
    net = TwoStreams(channels, 3, blocks, levels, 0.0, 2, 1, condition)
    for layer in net.modules():
        if isinstance(layer, Normed):
            nn.init.normal_(layer.bias, std=0.3)
    return net


def seen(function: nn.Module, x: Tensor, row: int, column: int, *more: object) -> set[tuple[int, int]]:
    """Places of x that the output at one place depends on, by autograd."""
    x = x.clone().requires_grad_()
    out = function(x, *more)[:, :, row, column]
    (grad,) = torch.autograd.grad((out * torch.rand_like(out)).sum(), x)
    return {(int(i), int(j)) for i, j in grad.abs().sum((0, 1)).nonzero()}


# ---------------------------------------------------------------- shifts


@pytest.mark.parametrize(
    ("kernel", "pad", "expected"),
    [
        ((2, 3), ABOVE, {(i, j) for i in (1, 2) for j in (1, 2, 3)}),
        ((1, 3), ROW_ABOVE, {(2, 1), (2, 2), (2, 3)}),
        ((2, 1), LEFT, {(2, 1), (3, 1)}),
        ((2, 3), DOWN, {(i, j) for i in (2, 3) for j in (1, 2, 3)}),
        ((2, 2), DOWN_RIGHT, {(i, j) for i in (2, 3) for j in (1, 2)}),
    ],
    ids=["above", "row above", "left", "down", "down right"],
)
def test_each_shift_sees_what_its_name_says(kernel: tuple[int, int], pad: Pad, expected: set[tuple[int, int]]) -> None:
    layer = ShiftedConv2d(2, 3, kernel, pad)
    x = torch.randn(1, 2, 5, 5)
    assert layer(x).shape == (1, 3, 5, 5)
    assert seen(layer, x, 3, 2) == expected


def test_doubled_pictures_see_no_row_or_column_too_far() -> None:
    x = torch.randn(1, 2, 3, 3)
    for wide, columns in ((2, lambda j: {j // 2}), (3, lambda j: {j // 2, (j + 1) // 2} & {0, 1, 2})):
        layer = ShiftedDoubling(2, 3, wide)
        for row, column in itertools.product(range(6), range(5)):
            assert seen(layer, x, row, column, (6, 5)) == {(row // 2, j) for j in columns(column)}


def sees_the_future(net: TwoStreams, height: int = 7, width: int = 5) -> bool:
    x = torch.randn(1, 1, height, width)
    return any(max(seen(net, x, r, c), default=(-1, 0)) >= (r, c) for r in range(height) for c in range(width))


@pytest.mark.parametrize(
    ("layer", "wrong"),
    [("above", DOWN), ("row_above", (1, 1, 0, 0)), ("left", (0, 0, 1, 0)), ("halve_left", (0, 1, 1, 0)),
     ("halve_above", (1, 1, 0, 1)), ("double_left", 1), ("first left block", (0, 1, 1, 0)),
     ("first above block", (1, 1, 0, 1))],
)  # fmt: skip
def test_without_any_one_of_its_shifts_the_network_sees_the_future(layer: str, wrong: Pad | int) -> None:
    net = network()
    assert not sees_the_future(net)
    found = {
        "first left block": lambda: net.level(net.smaller, 0).pairs()[0][1].first,
        "first above block": lambda: net.level(net.smaller, 0).pairs()[0][0].first,
    }.get(layer, lambda: getattr(net, layer))()
    part = found[0] if isinstance(found, nn.ModuleList) else found
    if isinstance(part, ShiftedDoubling):
        assert isinstance(wrong, int)
        part.left = wrong
    else:
        assert isinstance(part, ShiftedConv2d)
        part.pad = cast("Pad", wrong)
    assert sees_the_future(net)


def test_the_stream_of_rows_above_sees_no_pixel_of_its_own_row_and_both_reach_all_resolutions() -> None:
    net = network()
    x = torch.randn(1, 1, 8, 8)
    for name, first in (("above", net.above), ("row_above", net.row_above)):
        ones = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        assert max(seen(first, ones, 4, 3))[0] < 4, name
    # Through the coarsest resolution an output sees further than the blocks of the finest one alone let it.
    assert min(seen(net, x, 7, 7)) < min(seen(network(levels=1), x, 7, 7))


def test_a_channel_of_ones_tells_a_black_margin_from_the_picture() -> None:
    net = network()
    with torch.no_grad():
        out = net(torch.zeros(1, 1, 8, 8))
    assert (out[:, :, 0, 0] - out[:, :, 7, 7]).abs().max() > 1e-4
    net.above.v.data[:, 1], net.row_above.v.data[:, 1], net.left.v.data[:, 1] = 0.0, 0.0, 0.0
    for layer in net.modules():
        if isinstance(layer, Normed):
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        blind = net(torch.zeros(1, 1, 8, 8))
    assert torch.equal(blind[:, :, 0, 0], blind[:, :, 7, 7])


# ---------------------------------------------------------------- weights


def test_weights_are_g_v_over_the_length_of_v() -> None:
    for made, dim in ((ShiftedConv2d(3, 5, (2, 3)), 0), (ShiftedDoubling(3, 5, 2), 1)):
        nn.init.uniform_(made.g, 0.5, 2.0)
        plain = nn.Conv2d(3, 5, (2, 3)) if dim == 0 else nn.ConvTranspose2d(3, 5, 2, stride=2)
        normed = torch.nn.utils.parametrizations.weight_norm(plain, dim=dim)
        with torch.no_grad():
            inner = normed.parametrizations.weight  # type: ignore[union-attr]
            inner.original0.copy_(made.g.view_as(inner.original0))  # type: ignore[union-attr, operator]
            inner.original1.copy_(made.v)  # type: ignore[union-attr, operator]
            normed.bias.copy_(made.bias)  # type: ignore[union-attr, operator]
        x = torch.randn(2, 3, 4, 4)
        out = made(x) if dim == 0 else made(x, (8, 8))
        assert torch.allclose(out, normed(x), atol=1e-6)
        ours = torch.autograd.grad(out.square().sum(), made.v)[0]
        theirs = torch.autograd.grad(normed(x).square().sum(), inner.original1)[0]  # type: ignore[union-attr, arg-type]
        assert torch.allclose(ours, theirs, atol=1e-4)
        lengths = made.weight().square().sum([d for d in range(4) if d != dim]).sqrt()
        assert torch.allclose(lengths, made.g)


def before_activation(net: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out))
        for name, layer in net.named_modules()
        if isinstance(layer, Normed)
    ]
    with torch.no_grad():
        net(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def test_the_first_batch_makes_every_layer_of_mean_0_and_its_deviation() -> None:
    net = TwoStreams(1, 4, 2, 3, 0.0, 6, 1, 0)
    x = torch.rand(16, 1, 8, 8) * 2.0 - 1.0
    layers = dict(net.named_modules())
    before = before_activation(net, x)
    assert max(abs(float(out.std()) - 1.0) for out in before.values()) > 0.3
    with torch.no_grad(), first_values(uninitialised([net])):
        net(x)
    for name, out in before_activation(net, x).items():
        scale = cast("Normed", layers[name]).scale
        spread, mean = torch.std_mean(out, dim=(0, 2, 3), correction=0)
        assert torch.allclose(spread, torch.full_like(spread, scale), rtol=1e-3), name
        assert float(mean.abs().max()) < 1e-4, name
        assert scale == (0.1 if name.endswith(".second") else 1.0)
    assert uninitialised([net]) == []


def test_an_output_that_the_first_batch_does_not_vary_keeps_its_length() -> None:
    layer = ShiftedConv2d(1, 2, (1, 1))
    with torch.no_grad(), first_values([layer]):
        layer(torch.full((4, 1, 3, 3), 0.7))
    assert torch.allclose(layer.g, torch.ones(2))
    assert torch.allclose(layer(torch.full((1, 1, 1, 1), 0.7)), torch.zeros(2, 1, 1).unsqueeze(0), atol=1e-6)


def fresh(steps: int) -> Autoregressive:
    return trained("pixelcnnpp", (1, 6, 6), steps=steps)


def parts(system: Autoregressive) -> list[Tensor]:
    return [p.detach().clone() for p in system.nets.parameters()]


def test_first_values_are_taken_once_and_not_again_behind_a_resume() -> None:
    straight, cut = fresh(0), fresh(0)
    x, y = noise((1, 6, 6), 8)
    one, other = Images(x, y), Images(x.flip(0) // 3, y)
    straight.nets.train()
    cut.nets.train()
    untouched = parts(straight)
    for system in (straight, cut):
        torch.manual_seed(5)
        system.iterate(one)
    assert not all(torch.equal(a, b) for a, b in zip(untouched, parts(straight), strict=True))
    state = copy.deepcopy(cut.state())
    resumed, forgot = fresh(0), fresh(0)
    resumed.restore(state)
    for name in [name for name in state["nets"] if name.endswith("initialised")]:
        state["nets"][name].fill_(False)
    forgot.restore(state)
    for system in (straight, resumed, forgot):
        system.nets.train()
        torch.manual_seed(6)
        system.iterate(other)
    assert all(torch.equal(a, b) for a, b in zip(parts(straight), parts(resumed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(parts(straight), parts(forgot), strict=True))


def test_ranks_take_the_values_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr("gentrain.engine.starting.world_size", lambda: 2)
    monkeypatch.setattr("gentrain.engine.starting.share_first", told.append)
    system = fresh(0)
    x, y = noise((1, 6, 6), 8)
    for _ in range(2):
        system.objective(Images(x, y))
    assert told == [system.nets]
    assert all(layer.initialised for layer in system.nets.modules() if isinstance(layer, FirstBatch))


def test_the_rate_decays_by_a_factor_a_step() -> None:
    decay = Exponential(0.999995)
    assert [decay(i, 10) for i in (1, 2, 3)] == pytest.approx([1.0, 0.999995, 0.999995**2], rel=1e-12)
    for factor in (0.0, 1.1):
        with pytest.raises(UserError, match="factor"):
            Exponential(factor)


@pytest.mark.parametrize("words", ["model.net.levels=0", "model.net.dropout=1", "model.net.width=0"])
def test_numbers_that_make_no_network_are_said(words: str) -> None:
    with pytest.raises(UserError, match=words.split("=")[0]):
        trained("pixelcnnpp", (1, 4, 4), words)


# ---------------------------------------------------------------- class and place


class Told(nn.Module):
    """A picture of the label, different at each place."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.randn(spec.classes, 2, *spec.shape[1:]))

    def forward(self, labels: Tensor) -> Tensor:
        return self.picture[labels]


@dataclass(frozen=True)
class ByPlace:
    """A condition, as ``model.condition`` takes them."""

    def width(self, spec: Spec) -> int:
        return 2

    def build(self, spec: Spec) -> nn.Module:
        return Told(spec)


@pytest.mark.parametrize("model", ["pixelcnnpp", "spn"])
def test_a_class_is_told_and_its_pictures_are_drawn_from_the_cache_too(model: str) -> None:
    system = trained(model, (1, 5, 6), "+model.condition._target_=test_pixelcnnpp.ByPlace")
    assert system.conditional
    x, _ = noise((1, 5, 6), 2)
    empty, known = torch.zeros(2, 1, 5, 6), torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    with at_rest(system):
        of_each = [-system._errors(x, torch.full((2,), k), fixed=True) for k in (0, 1)]
        shares = system.class_shares().log()
        both = torch.logsumexp(torch.stack([shares[k] + of_each[k] for k in (0, 1)]), dim=0)
        assert torch.allclose(system.log_likelihood(x), both)
        assert (of_each[0] - of_each[1]).abs().min() > 1e-3
        quick, plain = (
            system.fill(
                empty, known, labels=torch.tensor([0, 1]), cached=cached, generator=torch.Generator().manual_seed(2)
            )
            for cached in (True, False)
        )
    assert torch.allclose(quick, plain, atol=1e-5)


@pytest.mark.parametrize("by_place", [False, True])
def test_a_condition_reaches_the_output_and_a_cached_walk_alike(by_place: bool) -> None:
    net = network(condition=2)
    x = torch.rand(2, 1, 5, 6) * 2.0 - 1.0
    condition = torch.randn(2, 2, 5, 6) if by_place else torch.randn(2, 2)
    with torch.no_grad():
        told, other = net(x, condition), net(x, -condition)
        walk = net.walk(x, condition)
        walked = torch.stack([walk.at(step) for step in range(30)], dim=2).view(2, 2, 5, 6)
    assert (told - other).abs().max() > 1e-3
    coarse = net.told(condition)[2]
    assert coarse is not None
    assert torch.equal(coarse[:, :, -1, -1], condition[:, :, 4, 4] if by_place else condition)
    assert torch.allclose(told, walked, atol=1e-5)
    for block in net.modules():
        if hasattr(block, "told") and isinstance(block.told, nn.Linear):
            nn.init.zeros_(block.told.weight)
    with torch.no_grad():
        assert torch.equal(net(x, condition), net(x, -condition))


def test_two_blocks_at_three_resolutions_of_odd_sides_walk_as_the_whole_network() -> None:
    net = network(channels=3, blocks=2)
    x = torch.rand(2, 3, 9, 7) * 2.0 - 1.0
    with torch.no_grad():
        whole, walk = net(x), net.walk(x)
        for step, (row, column) in enumerate(walk.places):
            assert torch.allclose(walk.at(step), whole[:, :, row, column], atol=1e-5), (row, column)


# ---------------------------------------------------------------- the mixture


def outputs(head: LogisticMixture, n: int, c: int, **values: list[float]) -> Tensor:
    """[n C' 1 1] of one component: logit 0, means, log scales, factors before tanh."""
    assert head.components == 1
    row = [0.0, *values["means"], *values["log_scales"], *values.get("factors", [])]
    assert len(row) == head.channels(c)
    return torch.tensor(row).view(1, -1, 1, 1).repeat(n, 1, 1, 1)


def bin_mass(x: float, mean: float, log_scale: float) -> float:
    """By the difference of two distribution functions in float64 (paper's eq. 2), its edges open."""

    def upto(value: float) -> float:
        return 1.0 / (1.0 + math.exp(-(value - mean) / math.exp(log_scale)))

    below = 0.0 if x < -0.999 else upto(x - 1.0 / 255.0)
    return (1.0 if x > 0.999 else upto(x + 1.0 / 255.0)) - below


def test_colours_are_shifted_by_the_true_ones_before_them() -> None:
    head = LogisticMixture(components=1)
    means, factors = [0.2, -0.4, 0.1], [0.3, -0.7, 1.5]
    log_scales = [-1.0, -2.0, 0.5]
    r, g, b = 1.0, -0.2, -1.0
    r, g, b = (round((v + 1.0) * 127.5) / 127.5 - 1.0 for v in (r, g, b))
    rg, rb, gb = (math.tanh(f) for f in factors)
    shifted = [means[0], means[1] + rg * r, means[2] + rb * r + gb * g]
    expected = sum(math.log(bin_mass(x, m, s)) for x, m, s in zip((r, g, b), shifted, log_scales, strict=True))
    output = outputs(head, 1, 3, means=means, log_scales=log_scales, factors=factors)
    target = torch.tensor([r, g, b]).view(1, 3, 1, 1)
    assert -float(head.error(output, target)) == pytest.approx(expected, rel=1e-4)
    # With the means in place of the colours, the figure is another.
    of_means = [means[0], means[1] + rg * means[0], means[2] + rb * means[0] + gb * means[1]]
    wrong = sum(math.log(bin_mass(x, m, s)) for x, m, s in zip((r, g, b), of_means, log_scales, strict=True))
    assert abs(wrong - expected) > 0.1


def test_in_sampling_colours_are_shifted_by_the_clipped_and_rounded_ones() -> None:
    head = LogisticMixture(components=1)
    # R lands far above 1 and is clipped; G is all shift: its mean is -0.5 + tanh(20) * 1.
    output = outputs(head, 1, 3, means=[7.0, -0.5, 0.0], log_scales=[-7.0, -7.0, -7.0], factors=[20.0, 0.0, 20.0])[
        :, :, 0, 0
    ]
    drawn = head.draw_pixel(output, torch.zeros(1, 3), 0, torch.full((1, 4), 0.5), 1.0)
    green = round((0.5 + 1.0) * 127.5) / 127.5 - 1.0
    assert drawn[0].tolist() == pytest.approx([1.0, green, green], abs=1e-6)


def test_log_scales_stop_at_the_floor() -> None:
    head = LogisticMixture(components=1)
    target = torch.tensor([0.1]).view(1, 1, 1, 1)
    at, below = (outputs(head, 1, 1, means=[0.1], log_scales=[s]).requires_grad_() for s in (LOG_SCALE_FLOOR, -60.0))
    assert torch.equal(head.error(at, target), head.error(below, target))
    (grad,) = torch.autograd.grad(head.error(below, target).sum(), below)
    assert float(grad[0, 2]) == 0.0
    above = outputs(head, 1, 1, means=[0.1], log_scales=[LOG_SCALE_FLOOR + 1.0])
    assert not torch.equal(head.error(above, target), head.error(at, target))


@pytest.mark.parametrize("c", [1, 3])
def test_gradients_are_numbers_at_extreme_outputs(c: int) -> None:
    head = LogisticMixture(components=2)
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0, 1, 128, 254, 255], dtype=torch.uint8)
    x = levels[torch.randint(0, 5, (400, c, 1, 1), generator=generator)]
    for size in (1.0, 30.0, 1e3, 1e6):
        signs = torch.randint(0, 2, (400, head.channels(c), 1, 1), generator=generator) * 2.0 - 1.0
        output = (signs * size * torch.rand(signs.shape, generator=generator)).requires_grad_()
        nats = head.error(output, head.prepare(x))
        assert bool(nats.isfinite().all()), size
        assert bool((nats > -1e-5).all()), size
        (grad,) = torch.autograd.grad(nats.sum(), output)
        assert bool(grad.isfinite().all()), size


@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0, 6.0, 20.0])
def test_a_bins_mass_is_the_integral_of_the_density_however_wide(log_scale: float) -> None:
    head = LogisticMixture(components=1)
    level = round(1.03 * 127.5)
    x = level / 127.5 - 1.0
    output = outputs(head, 1, 1, means=[0.02], log_scales=[log_scale])
    z = (x - 0.02) / math.exp(log_scale)
    dense = math.exp(-abs(z)) / (1.0 + math.exp(-abs(z))) ** 2 * 2.0 / 255.0 / math.exp(log_scale)
    expected = dense if log_scale > 3.0 else bin_mass(x, 0.02, log_scale)
    found = float((-head.error(output, torch.tensor([x]).view(1, 1, 1, 1))).exp())
    assert found == pytest.approx(expected, rel=1e-4)


def test_concat_elu_is_elu_of_both_signs() -> None:
    x = torch.tensor([[2.0, -1.0]])
    assert concat_elu(x).tolist()[0] == pytest.approx([2.0, math.expm1(-1.0), math.expm1(-2.0), 1.0])


def test_the_recipe_for_cifar10_has_the_papers_numbers_and_its_score() -> None:
    config = compose(["experiment=pixelcnnpp_cifar10"]).config
    net, moves = config["model"]["net"], config["model"]["players"]["model"]
    assert (net["width"], net["blocks"], net["levels"], net["dropout"]) == (160, 5, 3, 0.5)
    assert config["model"]["loss"]["components"] == 10
    assert (moves["optimizer"]["lr"], moves["optimizer"]["betas"]) == (1e-3, [0.95, 0.9995])
    assert (moves["schedule"]["factor"], moves["clip"]) == (0.999995, None)
    assert (config["model"]["ema"]["decay"], config["train"]["batch_size"]) == (0.9995, 16 * 8)
    assert config["published"] == {"bits_per_dim": 2.92}
    assert config["metrics"]["scores"]["likelihood"]["limit"] is None


def test_samples_are_scored_by_the_average_not_by_the_live_weights() -> None:
    system = trained("pixelcnnpp", (1, 6, 6), steps=6)
    assert system.average is not None
    x, _ = noise((1, 6, 6), 4)
    with at_rest(system, "raw"):
        live = system.log_likelihood(x)
    with at_rest(system, "ema"):
        averaged = system.log_likelihood(x)
    assert not torch.equal(live, averaged)
