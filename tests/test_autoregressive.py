"""Networks that must not see the future, over every model of the family: order, sums, cached walks, completion."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import TINY
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import Node, conf_dir, options
from gentrain.data.dataset import in_memory
from gentrain.engine.fit import build_system
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.families.autoregressive import Autoregressive
from gentrain.nets.stages import InStages
from gentrain.objectives.pixel_heads import Categorical, LogisticMixture, PixelHead
from gentrain.types import Images, Spec

MODELS = [
    name
    for name in options("model")
    if "families.autoregressive.Autoregressive" in (conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8")
]


def noise(shape: tuple[int, ...], n: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator), torch.arange(n) % 2


def trained(model: str, shape: tuple[int, ...], *words: str, steps: int = 3) -> Autoregressive:
    """A tiny model of noise in ``shape`` after some training steps: zeros of an initialisation hide nothing."""
    config: Node = compose([f"model={model}", *TINY, *words]).config
    data = in_memory("noise", Spec(shape, ("even", "odd")), noise(shape), noise(shape, 4))
    system: System = build_system(config, data, seed=0)
    system.prepare(total=steps)
    for _ in range(steps):
        system.iterate(Images(*noise(shape, 8)))
    assert isinstance(system, Autoregressive)
    system.nets.eval()
    return system


def seen_by_outputs(system: Autoregressive, x: Tensor, stage: int = 0) -> Tensor:
    """Whether output (place, colour group) depends on input (place, colour): bool [T G T C], places in the order of the
    walk, by changing one number after the other and looking at every output. Of a network in stages, one of them, with
    those before it at rest."""
    net = system.nets["net"]
    condition = torch.zeros(1, dtype=torch.long) if system.conditional else None
    told = system._condition(condition)
    if isinstance(net, InStages):
        net, told = net.nets[stage], net.told(x, stage, told)
    places = net.walk(x, told).places  # type: ignore[operator]
    c, groups = x.shape[1], system.head.colours(x.shape[1])
    with torch.no_grad():
        before = net(x, told)
        found = torch.zeros(len(places), groups, len(places), c, dtype=torch.bool)
        for (j, (row, column)), colour in itertools.product(enumerate(places), range(c)):
            other = x.clone()
            other[0, colour, row, column] = -other[0, colour, row, column] + 0.3
            moved = (net(other, told) - before)[0].abs().amax(dim=0, keepdim=True) if groups == 1 else None
            if moved is None:
                moved = (net(other, told) - before)[0].unflatten(0, (groups, -1)).abs().amax(dim=1)  # type: ignore[no-untyped-call]
            for i, (r, q) in enumerate(places):
                found[i, :, j, colour] = moved[:, r, q] > 0
    return found


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 4, 4)], ids=["grey", "colour"])
@pytest.mark.parametrize("model", MODELS)
def test_no_output_sees_its_own_or_a_later_number_and_it_sees_the_one_before(
    model: str, shape: tuple[int, ...]
) -> None:
    system = trained(model, shape)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    order = system.nets["net"].walk(x).places  # type: ignore[operator]
    for found in (seen_by_outputs(system, x, stage) for stage in range(system.stages)):
        places, groups, _, colours = found.shape
        assert places == shape[1] * shape[2]
        for i, group, j, colour in itertools.product(range(places), range(groups), range(places), range(colours)):
            later = (j, colour if groups > 1 else 0) >= (i, group if groups > 1 else 0)
            assert not (later and found[i, group, j, colour]), f"output {i}.{group} sees {j}.{colour}"
        for i in range(1, places):
            if order[i][1] > 0:
                assert found[i, 0, i - 1].all(), f"output {i} does not see the pixel before"
        if groups > 1:
            for i in range(places):
                assert all(found[i, group, i, :group].all() for group in range(1, groups))


def of_all_pictures(system: Autoregressive, shape: tuple[int, ...], levels: int) -> float:
    """Sum over all pictures of ``levels`` grey values of p(picture)."""
    values = torch.arange(levels, dtype=torch.uint8) * (256 // levels)
    count = math.prod(shape)
    pictures = torch.cartesian_prod(*[values] * count).view(-1, *shape)
    with torch.no_grad():
        nats = torch.cat([system.log_likelihood(part) for part in pictures.split(256)])
    return float(nats.double().exp().sum())


@pytest.mark.parametrize("model", MODELS)
def test_probabilities_of_all_pictures_sum_to_one(model: str) -> None:
    binary = trained(model, (1, 3, 3), "loss=bernoulli")
    assert of_all_pictures(binary, (1, 3, 3), 2) == pytest.approx(1.0, abs=1e-5)
    four = trained(model, (1, 2, 2), "loss=categorical", "loss.levels=4")
    assert of_all_pictures(four, (1, 2, 2), 4) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("loss", ["bernoulli", "categorical", "logistic_mixture"])
@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 4, 4)], ids=["grey", "colour"])
@pytest.mark.parametrize("model", MODELS)
def test_a_cached_walk_draws_what_the_whole_network_draws(model: str, shape: tuple[int, ...], loss: str) -> None:
    system = trained(model, shape, f"loss={loss}")
    x = torch.zeros(3, *shape)
    known = torch.zeros(3, *shape, dtype=torch.bool)
    with at_rest(system):
        labels = torch.tensor([0, 1, 1]) if system.conditional else None
        quick, plain = (
            system.fill(x, known, labels=labels, cached=cached, generator=torch.Generator().manual_seed(7))
            for cached in (True, False)
        )
    assert torch.allclose(quick, plain, atol=1e-5)
    assert len(quick.unique()) > 1


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 4, 4)], ids=["grey", "colour"])
@pytest.mark.parametrize("model", MODELS)
def test_a_walk_says_at_each_pixel_what_the_whole_network_says_there(model: str, shape: tuple[int, ...]) -> None:
    """The outputs themselves, with large weights: draws of a model that is hardly trained hide a wrong state."""
    system = trained(model, shape, steps=1)
    net, generator = system.nets["net"], torch.Generator().manual_seed(5)
    x = torch.rand(2, *shape, generator=generator) * 2.0 - 1.0
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        told = system._condition(torch.tensor([0, 1])) if system.conditional else None
        whole, walk = net(x, told), net.walk(x, told)  # type: ignore[operator]
        for step, (row, column) in enumerate(walk.places):
            for _ in range(2):  # a pixel is asked for again between its colours
                said = walk.at(step)
            asked = said != 0.0  # a walk may leave out what its step is not asked for
            expected = whole[:, :, row, column]
            assert asked.any()
            assert torch.allclose(said[asked], expected[asked], atol=1e-4 * float(whole.abs().max())), (row, column)


def test_completion_keeps_what_is_known_and_draws_the_rest_anew() -> None:
    system = trained("pixelcnn", (1, 6, 6), "loss=categorical")
    x, _ = noise((1, 6, 6), 3)
    known = torch.zeros(6, 6, dtype=torch.bool)
    known[:3] = True
    with at_rest(system):
        first, second = (system.complete(x, known, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    given = x.float() / 127.5 - 1.0
    for done in (first, second):
        assert torch.allclose(done[:, :, :3], given[:, :, :3], atol=1e-6)
        assert not torch.allclose(done[:, :, 3:], given[:, :, 3:], atol=1e-2)
    assert not torch.equal(first, second)


def test_the_blind_spot_of_pixelcnn_is_there() -> None:
    """Earlier pixels that no path of the masked convolutions reaches, to the right above: table 1's network has it."""
    system = trained("pixelcnn", (1, 7, 12), "model.net.kernel=3")
    found = seen_by_outputs(system, torch.rand(1, 1, 7, 12) * 1.6 - 0.8)[:, 0, :, 0]
    row, column = 3, 2
    at = row * 12 + column
    above = {(j // 12, j % 12) for j in range(at) if found[at, j]}
    assert (row - 1, column + 1) in above
    assert (row - 1, column + 2) not in above, "within the reach of the layers, and earlier: the blind spot"
    assert (row - 1, max(column - 2, 0)) in above


@pytest.mark.parametrize("c", [1, 3])
def test_bins_of_a_logistic_mixture_sum_to_one_for_each_colour_given_those_before(c: int) -> None:
    head = LogisticMixture(components=4)
    output = torch.randn(1, head.channels(c), 1, 1, generator=torch.Generator().manual_seed(2)) * 4.0
    levels = torch.arange(256).float().div(127.5).sub(1.0)
    if c == 1:
        target = levels.view(256, 1, 1, 1)
        assert float((-head.error(output.expand(256, -1, 1, 1), target)).double().exp().sum()) == pytest.approx(
            1.0, 1e-5
        )
        return
    # The last colour's bins, for one pair of the others, against those of the pair alone.
    pair = torch.tensor([levels[0], levels[200]])
    target = torch.cat([pair.expand(256, 2), levels[:, None]], dim=1).view(256, 3, 1, 1)
    joint = float((-head.error(output.expand(256, -1, 1, 1), target)).double().exp().sum())
    kept = output.view(1, 4, 10)
    two = LogisticMixture(components=4)
    of_pair = torch.cat([kept[..., :3], kept[..., 4:6], kept[..., 7:8]], dim=2).reshape(1, -1, 1, 1)
    assert joint == pytest.approx(float((-two.error(of_pair, pair.view(1, 2, 1, 1))).exp()), rel=1e-4)


@pytest.mark.parametrize("head", [Categorical(), LogisticMixture(3)], ids=["categorical", "mixture"])
def test_draws_are_as_frequent_as_the_head_says(head: PixelHead) -> None:
    output = torch.randn(1, head.channels(1), generator=torch.Generator().manual_seed(3)) * 2.0
    n = 20_000
    uniform = torch.rand(n, head.uniforms(1), generator=torch.Generator().manual_seed(4))
    drawn = head.draw_pixel(output.expand(n, -1), torch.zeros(n, 1), 0, uniform, 1.0)
    x = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    p = (-head.error(output[:, :, None, None].expand(256, -1, 1, 1), head.prepare(x))).exp()
    frequency = torch.bincount(drawn[:, 0].add(1.0).mul(127.5).round().long(), minlength=256) / n
    assert float((frequency - p).abs().max()) < 5.0 * math.sqrt(float(p.max()) / n)
    assert float((frequency.cumsum(0) - p.cumsum(0)).abs().max()) < 1.63 / math.sqrt(n)  # Kolmogorov, 1 %


def test_even_odds_are_eight_bits_per_dim() -> None:
    head = Categorical()
    x, _ = noise((3, 4, 4), 5)
    nats = head.error(torch.zeros(5, head.channels(3), 4, 4), head.prepare(x))
    assert torch.allclose(nats / (math.log(2.0) * 48), torch.full((5,), 8.0))


@pytest.mark.parametrize("loss", ["gaussian", "squared", "hinge"])
def test_a_loss_that_is_no_probability_of_levels_is_refused(loss: str) -> None:
    with pytest.raises(UserError, match="loss=categorical"):
        trained("pixelcnn", (1, 4, 4), f"loss={loss}")


def test_a_network_that_sees_all_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="model/net"):
        trained("pixelcnn", (1, 4, 4), "model/net=dcgan")
