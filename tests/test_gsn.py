"""The generative stochastic network: its layers written out, the target and the gradient of every step of the walkback,
a chain on a line whose histogram is the data's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gentrain.engine.player import Moves
from gentrain.errors import UserError
from gentrain.families.walkback import DrawnLikelihood, GenerativeStochastic
from gentrain.models.dae import AdditiveGaussian, SaltAndPepper
from gentrain.models.gsn import Falling, NoisyLayers, TiedLayers
from gentrain.objectives.autoencoding import SeededCorruption
from gentrain.objectives.likelihoods import Bernoulli, Gaussian
from gentrain.objectives.reconstruction import Density
from gentrain.types import Images, Spec

SMALL = Spec((1, 2, 3))


def network(hidden: tuple[int, ...] = (4, 5), *, noise: float = 0.0, quiet: int = 1) -> TiedLayers:
    made = TiedLayers(SMALL, NoisyLayers(hidden, noise, quiet), nn.Identity())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.7)
    return made


def system_of(
    loss: DrawnLikelihood | None = None,
    net: NoisyLayers | None = None,
    corruption: SeededCorruption | None = None,
    spec: Spec = SMALL,
    *,
    walkback: int = 3,
    steps: int = 5,
    lr: float = 3e-3,
) -> GenerativeStochastic:
    adam = {"network": Moves(partial(torch.optim.Adam, lr=lr))}
    made = GenerativeStochastic(
        spec, net or NoisyLayers((4, 5), 1.0), loss or Bernoulli(), corruption, adam, walkback, steps
    )
    made.prepare(total=100)
    return made


def images(n: int) -> Tensor:
    return torch.randint(0, 2, (n, 1, 2, 3), dtype=torch.uint8) * 255


def test_a_step_updates_odd_layers_then_even_ones_with_tied_weights() -> None:
    net = network((4, 5, 3))
    w1, w2, w3 = net.weights
    b0, b1, b2, b3 = net.biases
    x = torch.rand(7, 1, 2, 3)
    h1, h2, h3 = (torch.randn(7, width) for width in (4, 5, 3))
    new1 = torch.tanh(x.flatten(1) @ w1 + h2 @ w2.T + b1)
    new3 = torch.tanh(h2 @ w3 + b3)  # with the old second layer
    new2 = torch.tanh(new1 @ w2 + new3 @ w3.T + b2)  # with the new neighbours
    output, hidden = net(x, [h1, h2, h3])
    for mine, written in zip(hidden, (new1, new2, new3), strict=True):
        torch.testing.assert_close(mine, written)
    torch.testing.assert_close(output, (new1 @ w1.T + b0).view(7, 1, 2, 3))


@torch.no_grad()
def test_noise_stands_before_and_behind_the_activation_of_all_but_the_quiet_layers() -> None:
    net = network(noise=2.0)
    for parameter in net.parameters():
        parameter.zero_()
    x = torch.zeros(40_000, 1, 2, 3)
    _, (first, second) = net(x, net.rest(x))
    assert bool((first == 0).all())
    # tanh(N(0, 4)) + N(0, 4)
    before = torch.tanh(2.0 * torch.randn(200_000)).square().mean()
    assert float(second.square().mean()) == pytest.approx(4.0 + float(before), rel=0.03)
    net.quiet = 0
    assert float(net(x, net.rest(x))[1][0].std()) > 1.9
    repeated = [net(x, net.rest(x), torch.Generator().manual_seed(1))[1][1] for _ in range(2)]
    assert torch.equal(*repeated)


def test_the_target_of_every_step_is_the_data_that_it_began_with() -> None:
    system = system_of(walkback=4)
    seen: list[Tensor] = []
    shown: list[Tensor] = []
    plain = system.loss

    class Noting(Bernoulli):
        def error(self, output: Tensor, target: Tensor) -> Tensor:
            seen.append(target)
            return plain.error(output, target)

        def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return 1.0 - x_0  # as far from the data as can be

    system.loss = Noting()
    x_0 = plain.prepare(images(9))
    forward = system.nets["network"].forward

    def noted(x: Tensor, *rest: object) -> object:
        shown.append(x)
        return forward(x, *rest)

    system.nets["network"].forward = noted  # type: ignore[method-assign, assignment]
    system.objective(Images((255 * x_0).to(torch.uint8)))
    assert len(seen) == len(shown) == 4
    assert all(torch.equal(target, x_0) for target in seen)
    assert torch.equal(shown[0], x_0)
    assert all(torch.equal(x, 1.0 - x_0) for x in shown[1:])  # the chain's own states, not the data again


def test_the_gradient_goes_through_the_hidden_layers_of_earlier_steps_and_not_through_what_was_drawn() -> None:
    system = system_of(walkback=2, net=NoisyLayers((4, 5), 0.0))
    net, loss = system.nets["network"], system.loss
    target = loss.prepare(images(9))
    torch.manual_seed(1)
    term = system.objective(Images((255 * target).to(torch.uint8)))["reconstruction"]
    torch.manual_seed(1)
    output, hidden = net(target, net.rest(target))
    drawn = torch.bernoulli(torch.sigmoid(output.detach()))
    assert not loss.draw(output).requires_grad
    again, _ = net(drawn, hidden)
    written = 0.5 * (loss.error(output, target).mean() + loss.error(again, target).mean())
    cut, _ = net(drawn, [h.detach() for h in hidden])
    shorter = 0.5 * (loss.error(output, target).mean() + loss.error(cut, target).mean())
    params = list(net.parameters())
    mine, whole, part = (
        torch.autograd.grad(value, params, retain_graph=True, materialize_grads=True)
        for value in (term, written, shorter)
    )
    for a, b in zip(mine, whole, strict=True):
        torch.testing.assert_close(a, b)
    assert any(float((a - b).abs().max()) > 1e-4 for a, b in zip(mine, part, strict=True))


def test_pixels_are_corrupted_to_black_or_white() -> None:
    system = system_of(corruption=SaltAndPepper(0.4))
    x = torch.ones(2000, 1, 2, 3)
    seen = system._corrupted(x, None)
    assert sorted(seen.unique().tolist()) == [0.0, 1.0]
    assert float((seen == 0).float().mean()) == pytest.approx(0.2, abs=0.02)


def test_a_chain_goes_on_where_it_was_and_shows_means() -> None:
    system = system_of(corruption=SaltAndPepper(0.4), steps=6)
    draw = partial(torch.Generator().manual_seed, 3)
    film = system.chain(50, length=3, stride=2, generator=draw())
    assert film.shape == (50, 3, 1, 2, 3)
    assert torch.equal(film[:, 2], system.sample(50, generator=draw()))
    assert float(film.abs().max()) < 1.0  # means, not draws
    x = images(50)
    near = system.chain(50, length=1, stride=1, start=x, generator=draw())
    far = system.chain(50, length=1, stride=1, start=255 - x, generator=draw())
    assert not torch.equal(near, far)


def test_chains_begin_at_independent_numbers_with_the_means_of_the_data() -> None:
    pixels, x = system_of(), images(400)
    x[:, :, 0] = 0
    pixels.begin_from(x)
    begun = pixels.noise(4000, None)
    assert begun.unique().tolist() == [0.0, 1.0]
    torch.testing.assert_close(begun.mean(0), (x.float() / 255).mean(0), atol=0.04, rtol=0)
    numbers = system_of(Density(), spec=Spec((2,)))
    numbers.begin_from(torch.randn(500, 2) * torch.tensor([0.1, 4.0]) + 3.0)
    begun = numbers.noise(4000, None)
    torch.testing.assert_close(begun.std(0), torch.tensor([0.1, 4.0]), atol=0, rtol=0.15)
    torch.testing.assert_close(begun.mean(0), torch.tensor([3.0, 3.0]), atol=0.6, rtol=0)


def test_the_histogram_of_a_chain_on_a_line_is_that_of_the_data() -> None:
    """Two Gaussians, 0.3 and 0.7 of the data. One layer: with more, hidden states that the walkback has not seen
    follow. Little noise: the wider P(X | H) is, the less is it the one Gaussian that the likelihood can say."""
    torch.manual_seed(0)
    spec = Spec((1,))
    system = system_of(Density(), NoisyLayers((32,), 0.0), AdditiveGaussian(0.2), spec, walkback=2, lr=0.01)

    def data(n: int) -> Tensor:
        right = (torch.rand(n, 1) < 0.7).float()
        return 2.0 * right - 1.0 + 0.5 * torch.randn(n, 1)

    for _ in range(600):
        system.iterate(Images(data(512)))
    drawn = system.chain(500, length=1, stride=200, generator=torch.Generator().manual_seed(1))[:, 0, 0]
    real = data(20_000)[:, 0]
    test = stats.ks_2samp(drawn.numpy(), real.numpy())
    assert test.pvalue > 0.01
    assert stats.ks_2samp(-drawn.numpy(), real.numpy()).pvalue < 1e-4  # the test can see which peak is the higher


def test_the_rate_falls_once_a_pass() -> None:
    falling = Falling(0.5, 3)
    assert [falling(iteration, 6) for iteration in range(1, 7)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_mistakes_are_told() -> None:
    for wrong, said in (
        (lambda: NoisyLayers(()), r"model\.net\.hidden=\[\]"),
        (lambda: NoisyLayers(noise=-1.0), r"model\.net\.noise=-1"),
        (lambda: Falling(0.0), r"schedule\.factor=0"),
        (lambda: NoisyLayers(quiet=-1), r"model\.net\.quiet=-1"),
        (lambda: system_of(walkback=0), r"model\.walkback=0"),
        (lambda: system_of(walkback=1), "layers that no step hears would not be trained: at least 2"),
        (lambda: system_of(steps=0), r"model\.steps=0"),
        (lambda: system_of(Gaussian()), "needs a likelihood to draw from"),  # type: ignore[arg-type]
        (lambda: system_of(Density()), "this density is of vectors"),
    ):
        with pytest.raises(UserError, match=said):
            wrong()
