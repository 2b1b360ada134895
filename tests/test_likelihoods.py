"""Divergences and pixel likelihoods against torch.distributions and enumeration; beside them, a wrong version."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gentrain.errors import UserError
from gentrain.models.vae import DiagonalGaussian
from gentrain.objectives.divergences import LOG_VARIANCE, bounded_log_variance, kl_standard_normal_terms
from gentrain.objectives.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian, PixelLikelihood


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- divergences ---------------------------------------------------------------------------------------------------


def test_the_divergence_equals_that_of_torch_distributions() -> None:
    mu, log_variance = torch.randn(16, 5), torch.randn(16, 5)
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_standard_normal_terms(mu, log_variance), expected, rtol=1e-5, atol=1e-6)
    zero = torch.zeros(4, 5)
    torch.testing.assert_close(kl_standard_normal_terms(zero, zero), zero, rtol=0, atol=0)
    small = torch.full((1, 1), 1e-4)
    torch.testing.assert_close(kl_standard_normal_terms(zero[:1, :1], small), small.square() / 4, rtol=1e-3, atol=0)
    assert kl_standard_normal_terms(mu.bfloat16(), log_variance.bfloat16()).dtype == torch.float32


# --- likelihoods ---------------------------------------------------------------------------------------------------

LEVELS = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
DISCRETE: list[PixelLikelihood] = [
    Gaussian(0.0025), Gaussian(0.1), Gaussian(1.0), Gaussian(20.0),
    Gaussian("shared"), Gaussian("pixel"), DiscretizedLogistic(),
]  # fmt: skip


def raw_output(likelihood: PixelLikelihood, mean: float, log_scale: float) -> Tensor:
    """One pixel's decoder output, for all 256 levels: [256 C' 1 1]."""
    output = torch.tensor([mean, log_scale])[: likelihood.channels(1)].view(1, -1, 1, 1).repeat(256, 1, 1, 1)
    head = likelihood.head()
    for own in head.parameters():
        nn.init.constant_(own, log_scale)
    result: Tensor = head(output)
    return result


@pytest.mark.parametrize("likelihood", DISCRETE)
@pytest.mark.parametrize("mean", [-20.0, -1.0, 0.0, 0.003, 20.0])
@pytest.mark.parametrize("log_scale", [-40.0, -6.0, -1.0, 3.0, 40.0])
def test_probabilities_of_the_256_levels_sum_to_one(likelihood: PixelLikelihood, mean: float, log_scale: float) -> None:
    output = raw_output(likelihood, mean, log_scale).detach().requires_grad_()
    nats = likelihood.log_prob(output, likelihood.prepare(LEVELS))
    assert float(nats.detach().exp().sum()) == pytest.approx(1.0, abs=2e-3)
    assert float(nats.detach().max()) <= 1e-6
    nats.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("likelihood", [Gaussian(0.4), Gaussian("shared"), Gaussian("pixel"), DiscretizedLogistic()])
def test_the_picture_to_show_is_the_mean(likelihood: PixelLikelihood) -> None:
    shown = likelihood.mean(raw_output(likelihood, 0.8, -1.0))[0]
    torch.testing.assert_close(shown.flatten(), torch.tanh(torch.tensor([0.8])))


def test_bin_mass_is_the_density_times_the_width_inside() -> None:
    target = Gaussian(0.5).prepare(LEVELS[1:-1])
    output = torch.full_like(target, 0.2)
    density = Normal(torch.tanh(output), 0.5).log_prob(target).flatten()
    torch.testing.assert_close(Gaussian(0.5).log_prob(output, target), density + math.log(2 / 255), rtol=0, atol=1e-4)


def test_fixed_shared_and_pixel_scales_agree_and_learned_ones_find_the_spread() -> None:
    x = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, pixel, shared = torch.randn(4, 3, 5, 5), Gaussian("pixel"), Gaussian("shared")
    head = shared.head()
    fixed = Gaussian(math.sqrt(0.5)).log_prob(mean, pixel.prepare(x))
    torch.testing.assert_close(shared.log_prob(head(mean), shared.prepare(x)), fixed, rtol=1e-3, atol=0)
    (scale,) = head.parameters()
    assert scale.shape == ()
    for _ in range(200):
        (slope,) = torch.autograd.grad(-shared.log_prob(head(torch.zeros_like(mean)), shared.prepare(x)).mean(), scale)
        scale.data -= 5e-3 * slope
    rms = shared.prepare(x).square().mean().sqrt()
    assert float(scale.detach().exp()) == pytest.approx(float(rms), rel=0.1)
    with pytest.raises(ValueError, match="the likelihood needs 4"):
        shared.log_prob(mean, shared.prepare(x))  # the head was forgotten
    with pytest.raises(UserError, match="shared or pixel"):
        Gaussian("share")  # type: ignore[arg-type]


def test_bernoulli_is_a_distribution_over_binary_images_and_the_average_is_not() -> None:
    images = torch.tensor(list(itertools.product([0, 255], repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)
    logits = torch.randn(1, 1, 2, 2).expand(16, 1, 2, 2)
    likelihood = Bernoulli()
    nats = likelihood.log_prob(logits, likelihood.prepare(images))
    assert float(nats.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert float((nats / 4).exp().sum()) > 5.0  # wrong: averaged over pixels
    assert likelihood.likelihood_on.bits_key is None


def test_binarisation() -> None:
    x = LEVELS.repeat(1, 1, 64, 64)
    threshold = Bernoulli("threshold").prepare(x)[:, 0, 0, 0]
    assert threshold[:128].eq(0).all()
    assert threshold[128:].eq(1).all()
    drawn = Bernoulli("sample").prepare(x)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean((1, 2, 3)), torch.arange(256) / 255, rtol=0, atol=0.04)
    torch.testing.assert_close(Bernoulli("none").prepare(x)[:, 0, 0, 0], torch.arange(256) / 255)
    assert Bernoulli().mean(torch.tensor([[[[-50.0, 0.0, 50.0]]]])).flatten().tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(UserError, match="8-bit"):
        Bernoulli().prepare(torch.zeros(2, 2))


def test_an_evaluation_sees_one_binarisation_of_each_image() -> None:
    x = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8)
    likelihood = Bernoulli("sample")
    fixed = likelihood.prepare(x, fixed=True)
    torch.rand(3)
    assert fixed.equal(likelihood.prepare(x, fixed=True))
    assert fixed[2:4].equal(likelihood.prepare(x[2:4], fixed=True)), "whatever else is in the batch"
    assert fixed.equal(likelihood.prepare(x.to(memory_format=torch.channels_last), fixed=True))
    assert not fixed.equal(likelihood.prepare(x)), "training draws anew"
    shades = LEVELS.repeat(1, 1, 64, 64)
    drawn = likelihood.prepare(shades, fixed=True)
    torch.testing.assert_close(drawn.mean((1, 2, 3)), torch.arange(256) / 255, rtol=0, atol=0.04)
    once = Bernoulli("once")
    assert once.prepare(x).equal(fixed), "training too sees that one"
    of = {rule: Bernoulli(rule).likelihood_on.binarisation for rule in ("threshold", "once", "sample")}  # type: ignore[arg-type]
    assert of == {"threshold": "threshold", "once": "static", "sample": "dynamic"}
    for other in (*DISCRETE, once, Bernoulli("threshold"), Bernoulli("none")):
        assert other.prepare(x, fixed=True).equal(other.prepare(x))


def test_log_variances_are_bounded_softly() -> None:
    raw = torch.tensor([-1e4, -20.0, -9.0, 0.0, 0.5, 9.0, 20.0, 1e4], requires_grad=True)
    bounded = bounded_log_variance(raw)
    assert bounded.abs().max() <= LOG_VARIANCE
    assert torch.allclose(bounded[2:6], raw[2:6], atol=1e-5)
    bounded.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(raw.grad[2:6], torch.ones(4), atol=1e-5)  # type: ignore[index]
    wild = torch.tensor([[0.0, 1e4], [0.0, -1e4]])
    posterior = DiagonalGaussian(1)
    assert posterior.divergences(wild, wild[:, :1])["kl"].isfinite().all()
    assert posterior.log_weight(wild, posterior.draw(wild)).isfinite().all()
