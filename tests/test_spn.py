"""SPN: the order of slices, what each is told, stages of bits, sums over all pictures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from test_autoregressive import noise, of_all_pictures, trained
from torch import Tensor

from gentrain.engine.sampling import at_rest
from gentrain.errors import UserError
from gentrain.models.spn import SPN, SlicePart, Slices, Subscale
from gentrain.nets.causal_attention import AttentionAt, CausalAttention
from gentrain.nets.stages import InStages
from gentrain.objectives.pixel_heads import Categorical, CategoricalInDepth
from gentrain.types import Spec


def subscale(shape: tuple[int, int, int] = (1, 4, 4), *, own_first: bool = True, condition: int = 0) -> Subscale:
    choice = SPN(width=4, blocks=1, embedder=1, heads=2, own_first=own_first)
    net = choice.causal(Spec(shape), 2, colours=1, condition=condition)
    assert isinstance(net, Subscale)
    return net.eval()


# ---------------------------------------------------------------- order


def test_slices_interleave_and_come_in_the_raster_order_of_their_first_pixels() -> None:
    slices = Slices(2, 3, 4)
    x = torch.arange(12.0).view(1, 1, 3, 4)
    cut = slices.cut(x)
    assert cut.shape == (1, 4, 1, 2, 2)
    assert [part.flatten().tolist() for part in cut[0]] == [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 0, 0], [5, 7, 0, 0]]
    assert torch.equal(slices.join(cut), x)
    order = [row * 4 + column for _, _, _, row, column in slices.places()]
    assert order == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 5, 7]
    three = Slices(3, 7, 8)
    pictures = torch.randn(2, 3, 7, 8)
    assert torch.equal(three.join(three.cut(pictures)), pictures)
    assert sorted(place[3:] for place in three.places()) == list(itertools.product(range(7), range(8)))


def test_the_walk_goes_in_that_order_once_for_each_stage_of_bits() -> None:
    system = trained("spn", (1, 4, 4))
    places = system.nets["net"].walk(torch.zeros(1, 1, 4, 4)).places  # type: ignore[operator]
    once = [place[3:] for place in Slices(2, 4, 4).places()]
    assert list(places) == once + once


def test_the_first_slice_is_a_small_picture_with_networks_of_its_own() -> None:
    for own_first in (True, False):
        net = subscale(own_first=own_first)
        x = torch.rand(1, 1, 4, 4) * 2.0 - 1.0
        with torch.no_grad():
            before = net(x)
            for parameter in net.parts[-1].parameters():
                parameter.add_(0.1)
            same = (net(x) == before).all(1)[0]
        small = torch.zeros(4, 4, dtype=torch.bool)
        small[::2, ::2] = own_first
        assert torch.equal(same, small)


# ---------------------------------------------------------------- what a slice is told


def test_planes_of_what_is_known_tell_grey_pixels_from_none_and_numbers_tell_slices_apart() -> None:
    net = subscale(own_first=False)
    part = net.part(0)
    grey = torch.zeros(1, 4, 1, 2, 2)
    with torch.no_grad():
        told = part.context(grey, net.there, range(1, 4), None)
        untold = part.context(grey, 0.0 * net.there, range(1, 4), None)
        assert (told - untold).abs().amax((1, 2, 3)).min() > 1e-4
        assert (untold[0] - untold[1]).abs().max() > 1e-4  # by their numbers alone
        part.first.v[:, 8:12] = 0.0  # behind 4 slices of a pixel and a plane each
        blind = part.context(grey, 0.0 * net.there, range(1, 4), None)
        assert torch.equal(blind[0], blind[1])


def test_a_slice_is_told_all_slices_before_it_and_none_from_its_own_on() -> None:
    net = subscale(own_first=False)
    slices = torch.randn(1, 4, 1, 2, 2, requires_grad=True)
    for number in range(4):
        context = net.part(number).context(slices, net.there, range(number, number + 1), None)
        (grad,) = torch.autograd.grad((context * torch.rand_like(context)).sum(), slices)
        assert [bool(part.abs().sum() > 0) for part in grad[0]] == [m < number for m in range(4)]


def test_a_condition_by_place_reaches_every_slice_whole() -> None:
    net = subscale(condition=1)
    x, told = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4, requires_grad=True)
    out = net(x, told)
    (grad,) = torch.autograd.grad((out[:, :, 0, 0] * torch.rand(1, 2)).sum(), told)
    assert int((grad != 0).sum()) == 16
    with torch.no_grad():
        walk = net.walk(x, told)
        for step, (row, column) in enumerate(walk.places):
            assert torch.allclose(walk.at(step), out[:, :, row, column], atol=1e-5)


def test_a_slice_with_fewer_columns_walks_as_the_whole_network() -> None:
    """Attention looks back at places that are no pixels of it."""
    net = subscale((1, 5, 5), own_first=False)
    x = torch.rand(2, 1, 5, 5) * 2.0 - 1.0
    with torch.no_grad():
        whole, walk = net(x), net.walk(x)
        for step, (row, column) in enumerate(walk.places):
            assert torch.allclose(walk.at(step), whole[:, :, row, column], atol=1e-5), (row, column)


# ---------------------------------------------------------------- attention


def test_attention_takes_from_places_up_to_its_own_by_a_plain_loop_and_on_a_walk() -> None:
    layer = CausalAttention(6, 2, 12)
    x = torch.randn(2, 6, 3, 4)
    with torch.no_grad():
        whole = layer(x).flatten(2)
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = layer.projected(tokens, layer.place)
        walk = AttentionAt(layer, 2)
        for place in range(12):
            taken = torch.zeros(2, 2, 1, 3)
            for b, head in itertools.product(range(2), range(2)):
                scores = [float(query[b, head, place] @ key[b, head, k]) / math.sqrt(3) for k in range(place + 1)]
                total = sum(math.exp(s) for s in scores)
                for k, score in enumerate(scores):
                    taken[b, head, 0] += math.exp(score) / total * value[b, head, k]
            by_hand = layer.added(tokens[:, place : place + 1], taken)[:, 0]
            assert torch.allclose(whole[:, :, place], by_hand, atol=1e-5)
            assert torch.allclose(walk.at(place, tokens[:, place]), by_hand, atol=1e-5)


def test_attention_over_all_places_would_see_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = subscale(), torch.randn(1, 1, 4, 4, requires_grad=True)

    def later() -> float:
        (grad,) = torch.autograd.grad((net(x)[:, :, 0, 0] * torch.ones(2)).sum(), x)
        return float(grad.abs().sum())

    assert later() == 0.0
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, is_causal=False: plain(q, k, v))
    assert later() > 0.0


# ---------------------------------------------------------------- bits


def test_bits_in_stages_are_one_probability_of_all_levels() -> None:
    head = CategoricalInDepth(levels=32, first=2)
    output = torch.randn(1, head.channels(1), 1, 1)
    assert output.shape[1] == 4 + 8
    x = (torch.arange(32) * 8).to(torch.uint8).view(32, 1, 1, 1)
    p = (-head.error(output.expand(32, -1, 1, 1), head.prepare(x))).exp()
    coarse, fine = output[0, :4, 0, 0].softmax(0), output[0, 4:, 0, 0].softmax(0)
    assert torch.allclose(p, (coarse[:, None] * fine[None]).flatten(), rtol=1e-5)
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)


def test_what_a_stage_is_shown_is_its_bits() -> None:
    head = CategoricalInDepth()
    levels = torch.arange(256)
    x = levels / 127.5 - 1.0
    assert torch.allclose(head.shown(x, 0), (levels // 32) * 2.0 / 7.0 - 1.0)
    assert torch.allclose(head.shown(x, 1), (levels % 32) * 2.0 / 31.0 - 1.0)


def test_drawn_bits_are_as_frequent_as_the_head_says() -> None:
    head = CategoricalInDepth(levels=16, first=2)
    n, output = 20_000, torch.randn(1, head.channels(1))
    uniform = torch.rand(2, n, 1)
    pixel = head.draw_pixel(output.expand(n, -1), torch.zeros(n, 1), 0, uniform[0], 1.0)
    assert set((pixel[:, 0].add(1.0) * 7.5).round().long().tolist()) <= {0, 4, 8, 12}
    pixel = head.draw_pixel(output.expand(n, -1), pixel, 1, uniform[1], 1.0)
    x = (torch.arange(16) * 16).to(torch.uint8).view(16, 1, 1, 1)
    p = (-head.error(output[:, :, None, None].expand(16, -1, 1, 1), head.prepare(x))).exp()
    found = torch.bincount((pixel[:, 0].add(1.0) * 7.5).round().long(), minlength=16) / n
    assert float((found - p).abs().max()) < 5.0 * math.sqrt(float(p.max()) / n)


def test_first_bits_know_nothing_of_the_rest_and_the_rest_all_first_bits() -> None:
    system = trained("spn", (1, 4, 4))
    net = system.nets["net"]
    assert isinstance(net, InStages)
    coarse, low = torch.randint(0, 8, (1, 1, 4, 4)), torch.randint(0, 32, (1, 1, 4, 4))

    def out(coarse: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            made = net((coarse * 32 + low) / 127.5 - 1.0)
        return made[:, : net.outputs[0]], made[:, net.outputs[0] :]

    first, rest = out(coarse, low)
    for row, column in itertools.product(range(4), range(4)):
        other, lower = coarse.clone(), low.clone()
        other[0, 0, row, column] = (other[0, 0, row, column] + 3) % 8
        lower[0, 0, row, column] = (lower[0, 0, row, column] + 11) % 32
        assert torch.equal(out(coarse, lower)[0], first)
        assert bool((out(other, low)[1] != rest).any(1).all()), "every place of the rest sees every first bit"


# ---------------------------------------------------------------- the whole


def test_probabilities_of_all_binary_4x4_pictures_sum_to_one() -> None:
    """Over four slices, the first with networks of its own, with embedder and attention behind some training."""
    system = trained("spn", (1, 4, 4), "loss=bernoulli", "model.net.width=2", "model.net.heads=1")
    values = torch.tensor([0, 255], dtype=torch.uint8)
    index = torch.arange(2**16)
    pictures = values[(index[:, None] >> torch.arange(16)) & 1].view(-1, 1, 4, 4)
    with torch.no_grad():
        total = sum(float(system.log_likelihood(part).double().exp().sum()) for part in pictures.split(8192))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_probabilities_in_stages_and_slices_sum_to_one_and_not_if_a_slice_is_told_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("loss=categorical_in_depth", "loss.levels=4", "loss.first=1")
    assert of_all_pictures(trained("spn", (1, 2, 2), *words), (1, 2, 2), 4) == pytest.approx(1.0, abs=1e-5)
    right = SlicePart.context

    def one_too_many(part: SlicePart, slices: Tensor, there: Tensor, which: range, told: Tensor | None) -> Tensor:
        return right(part, slices, there, range(which.start + 1, which.stop + 1), told)

    monkeypatch.setattr(SlicePart, "context", one_too_many)
    leaky = of_all_pictures(trained("spn", (1, 2, 2), *words, steps=20), (1, 2, 2), 4)
    assert abs(leaky - 1.0) > 1e-4


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 4, 4)], ids=["grey", "colour"])
def test_a_cached_walk_in_stages_draws_what_the_whole_network_draws_and_keeps_what_is_known(
    shape: tuple[int, ...],
) -> None:
    system = trained("spn", shape)
    x, _ = noise(shape, 3)
    given = x.float() / 127.5 - 1.0
    known = torch.zeros(3, *shape, dtype=torch.bool)
    known[:, :, :2] = True
    with at_rest(system):
        quick, plain = (
            system.fill(given, known, cached=cached, generator=torch.Generator().manual_seed(7))
            for cached in (True, False)
        )
    assert torch.allclose(quick, plain, atol=1e-5)
    assert torch.allclose(quick[known], given[known], atol=1e-6)
    drawn = quick[~known].add(1.0).mul(127.5)
    assert torch.allclose(drawn, drawn.round(), atol=1e-3)
    assert len((drawn.round().long() % 32).unique()) > 4  # of the low bits, too
    assert len((drawn.round().long() // 32).unique()) > 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.net.stride=9"], "model.net.stride=9"),
        (["model.net.heads=3"], "model.net.heads=3"),
        (["loss.first=8"], "model.loss.first=8"),
        (["model/net=pixelcnn"], "takes none"),
    ],
)
def test_choices_that_do_not_fit_are_said(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        trained("spn", (1, 4, 4), *words)


def test_more_bits_first_are_fewer_behind() -> None:
    for first in range(1, 8):
        assert CategoricalInDepth(first=first).stages(3) == (3 * 2**first, 3 * 2 ** (8 - first))
    assert Categorical().channels(3) == 768
