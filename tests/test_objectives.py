"""Adversarial losses and penalties against closed forms and quadrature; beside them, wrong versions that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from gentrain.errors import UserError
from gentrain.objectives import adversarial, relativistic
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.objectives.penalties import (
    R1,
    R2,
    Dragan,
    GradientPenalty,
    Penalty,
    clip_weights,
    dragan,
    gradient_norms,
    gradient_penalty,
    r1,
    r2,
    refuse_mixing,
)

ZOO: list[Callable[[], AdversarialLoss]] = [
    adversarial.minimax,
    adversarial.nonsaturating,
    adversarial.maximum_likelihood,
    adversarial.least_squares,
    adversarial.hinge,
    adversarial.wasserstein,
    relativistic.average,
    partial(relativistic.average, "hinge"),
    partial(adversarial.nonsaturating, 0.9),
    partial(adversarial.least_squares, 2.0, -1.0, 1.0),
]
PENALTIES: list[Penalty] = [
    GradientPenalty(10.0),
    GradientPenalty(10.0, one_sided=True),
    GradientPenalty(10.0, target=0.0),
    R1(2.0),
    R2(2.0),
    Dragan(10.0),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def number(t: Tensor) -> float:
    return float(t.detach())


class LinearCritic(nn.Module):
    """f(x) = a.x for images: its slope is ||a|| everywhere."""

    def __init__(self, norm: float, shape: tuple[int, ...] = (3, 4, 4)) -> None:
        super().__init__()
        a = torch.randn(shape)
        self.a = nn.Parameter(a * (norm / a.norm()))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.a.flatten()[None])  # [B 1]


def conv_critic(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8 * 2 * 2, 1))


# --- adversarial ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ZOO)
def test_loss_is_a_float32_scalar_whatever_comes_in(loss: Callable[[], AdversarialLoss]) -> None:
    game = loss()
    real, fake = torch.randn(8), torch.randn(8)
    for terms, flat in ((game.critic(real, fake), {"real", "fake"}), (game.generator(fake, real), {"adversarial"})):
        assert set(terms) == flat
        assert all(t.shape == () and t.dtype == torch.float32 for t in terms.values())
    column = game.critic(real[:, None], fake[:, None])
    torch.testing.assert_close(column, game.critic(real, fake))
    half = game.critic(torch.full((4,), 300.0).bfloat16(), torch.full((4,), 60.0).half())
    assert all(t.dtype == torch.float32 and t.isfinite() for t in half.values())


@pytest.mark.parametrize("loss", ZOO)
def test_gradients_push_the_right_way(loss: Callable[[], AdversarialLoss]) -> None:
    """At equal scores of 1/2 (inside every margin) the critic parts the two and the generator raises its own score."""
    game = loss()
    real, fake = (torch.full((4,), 0.5, requires_grad=True) for _ in range(2))
    d_real, d_fake = torch.autograd.grad(total(game.critic(real, fake)), (real, fake))
    (d_generator,) = torch.autograd.grad(total(game.generator(fake, real)), fake)
    assert (d_real < 0).all()
    assert (d_fake > 0).all()
    assert (d_generator < 0).all()


def generator_slope(loss: AdversarialLoss, logit: float) -> float:
    f = torch.tensor([logit], requires_grad=True)
    (slope,) = torch.autograd.grad(total(loss.generator(f)), f)
    return float(slope)


def test_minimax_saturates_and_nonsaturating_does_not() -> None:
    assert generator_slope(adversarial.minimax(), -10.0) == pytest.approx(-4.54e-5, rel=1e-3)
    assert generator_slope(adversarial.nonsaturating(), -10.0) == pytest.approx(-1.0, rel=1e-3)
    assert generator_slope(adversarial.maximum_likelihood(), -10.0) == pytest.approx(-math.exp(-10), rel=1e-3)


def test_extreme_logits_stay_finite_where_log_sigmoid_does_not() -> None:
    assert generator_slope(adversarial.nonsaturating(), -200.0) == -1.0
    r = torch.tensor([-200.0])
    assert float(adversarial.minimax().critic(r, r)["real"]) == 200.0
    assert not torch.log(torch.sigmoid(r)).isfinite()  # what would have been returned


def test_value_at_the_best_critic_is_twice_jsd_minus_log_4() -> None:
    p, g = Normal(0.0, 1.0), Normal(1.5, 0.7)
    quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    x, y = p.icdf(quantiles), g.icdf(quantiles)  # the batch mean over these is quadrature

    def logit(t: Tensor) -> Tensor:
        ratio: Tensor = p.log_prob(t) - g.log_prob(t)
        return ratio

    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    m = torch.logaddexp(p.log_prob(grid), g.log_prob(grid)) - math.log(2)
    jsd = sum(0.5 * float(torch.trapezoid(d.log_prob(grid).exp() * (d.log_prob(grid) - m), grid)) for d in (p, g))

    best = float(total(adversarial.minimax().critic(logit(x), logit(y))))
    assert -best == pytest.approx(2 * jsd - math.log(4), abs=1e-3)
    for other in (lambda t: 0.8 * logit(t), lambda t: logit(t) + 0.2):
        assert float(total(adversarial.minimax().critic(other(x), other(y)))) > best


def test_exponential_cost_has_the_gradient_of_maximum_likelihood() -> None:
    """p = N(0, 1), generator N(t, 1), critic the log ratio at t = 1: the slope is that of KL(p || N(t, 1)), t."""
    z = Normal(0.0, 1.0).icdf((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    t = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x = z + t
    logit = 0.5 - x  # log N(x; 0, 1) - log N(x; 1, 1), the critic held fixed
    (slope,) = torch.autograd.grad(total(adversarial.maximum_likelihood().generator(logit)), t)
    assert float(slope) == pytest.approx(1.0, rel=2e-3)


# --- penalties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.0, 0.3, 1.0, 7.0])
def test_linear_critic_gives_the_closed_forms(norm: float) -> None:
    critic = LinearCritic(norm)
    real, fake = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    expected = (norm - 1.0) ** 2
    assert number(gradient_penalty(critic, real, fake)) == pytest.approx(expected, abs=1e-5)
    assert number(gradient_penalty(critic, real, fake, one_sided=True)) == pytest.approx(
        max(norm - 1.0, 0.0) ** 2, abs=1e-5
    )
    assert number(gradient_penalty(critic, real, fake, target=0.0)) == pytest.approx(norm**2, abs=1e-5)
    assert number(dragan(critic, real)) == pytest.approx(expected, abs=1e-5)
    assert number(r1(critic, real)) == pytest.approx(0.5 * norm**2, abs=1e-5)
    assert number(r2(critic, fake)) == pytest.approx(0.5 * norm**2, abs=1e-5)
    over_the_batch = (torch.autograd.grad(critic(r := real.requires_grad_()).sum(), r)[0].norm() - 1.0) ** 2
    assert norm == 0.0 or number(over_the_batch) != pytest.approx(expected, abs=1e-2)  # wrong: one norm for all samples


def test_weights_and_names_of_the_config_targets() -> None:
    critic, real, fake = LinearCritic(3.0), torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    expected = (
        {"gradient_penalty": 40.0},
        {"gradient_penalty": 40.0},
        {"gradient_penalty": 90.0},
        {"r1": 9.0},
        {"r2": 9.0},
        {"dragan": 40.0},
    )
    for penalty, terms in zip(PENALTIES, expected, strict=True):
        assert penalty.per_sample
        assert {k: number(v) for k, v in penalty(critic, real, fake).items()} == pytest.approx(terms, rel=1e-5)
        lazy = replace(penalty, every=4)  # type: ignore[type-var]
        assert {k: number(v) / 4 for k, v in lazy(critic, real, fake).items()} == pytest.approx(terms, rel=1e-5)
        with pytest.raises(UserError, match="every=0: at least 1"):
            replace(penalty, every=0)  # type: ignore[type-var]
    with pytest.raises(UserError, match="0 or more"):
        GradientPenalty(-1.0)


def test_second_order_gradient_is_the_closed_forms_derivative() -> None:
    critic = LinearCritic(3.0)
    gradient_penalty(critic, torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)).backward()
    assert critic.a.grad is not None  # None without create_graph
    torch.testing.assert_close(critic.a.grad, 2.0 * (3.0 - 1.0) * critic.a.detach() / 3.0)


def test_flat_critic_has_a_finite_gradient() -> None:
    critic = LinearCritic(0.0)
    gradient_penalty(critic, torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)).backward()
    assert critic.a.grad is not None
    assert critic.a.grad.isfinite().all()


@pytest.mark.parametrize(
    ("norm", "independent"),
    [
        (nn.Identity(), True),
        (nn.InstanceNorm2d(8, affine=True), True),
        (nn.GroupNorm(1, 8), True),
        (nn.BatchNorm2d(8), False),
    ],
)
def test_slope_of_a_sample_is_its_own_unless_batch_norm_mixes(norm: nn.Module, independent: bool) -> None:
    critic, x, order = conv_critic(norm), torch.randn(6, 3, 4, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    norms = gradient_norms(critic, x)
    assert norms.shape == (6,)
    torch.testing.assert_close(gradient_norms(critic, x[order]), norms[order])
    assert torch.allclose(gradient_norms(critic, x[:3]), norms[:3], rtol=1e-4) is independent
    if independent:
        refuse_mixing(critic)
    else:
        with pytest.raises(UserError, match=r"'1' is BatchNorm2d.*critic_norm") as caught:
            refuse_mixing(critic)
        assert "\n" not in str(caught.value)


def test_one_epsilon_per_sample_between_real_and_fake() -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    ones, zeros = torch.ones(64, 3, 4, 4), torch.zeros(64, 3, 4, 4)
    gradient_penalty(spy, ones, zeros)
    epsilon = seen[0].flatten(1)
    assert (epsilon == epsilon[:, :1]).all()  # a factor per pixel fails here
    assert epsilon[:, 0].unique().numel() == 64  # a factor per batch fails here
    assert 0.0 <= float(epsilon.min()) < 0.2 < 0.8 < float(epsilon.max()) <= 1.0
    with pytest.raises(ValueError, match="one shape"):
        gradient_penalty(spy, ones, zeros[:1])


def test_dragan_looks_around_the_data_only() -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    real = torch.randn(64, 3, 4, 4)
    dragan(spy, real)
    noise = seen[0] - real
    assert float(noise.min()) >= -1e-6
    assert 0.3 * real.std() < noise.max() <= 0.5 * real.std() + 1e-6
    assert noise.flatten(1).std(1).min() > 0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_nothing_reaches_the_generator(penalty: Penalty) -> None:
    generator = nn.Linear(2, 48)
    fake = generator(torch.randn(4, 2)).view(4, 3, 4, 4)
    total(penalty(conv_critic(nn.Identity()), torch.randn(4, 3, 4, 4), fake)).backward()
    assert generator.weight.grad is None


@pytest.mark.parametrize("penalty", PENALTIES)
def test_autocast_and_no_grad_change_no_value(penalty: Penalty) -> None:
    critic, real, fake = conv_critic(nn.Identity()), torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)

    def value() -> Tensor:
        torch.manual_seed(1)
        return total(penalty(critic, real, fake))

    plain = value()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert critic(real).dtype == torch.bfloat16
        assert torch.equal(value(), plain)
    with torch.no_grad():
        assert torch.equal(value(), plain)
        assert not value().requires_grad


def test_clipping_bounds_parameters_and_leaves_buffers() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    clip_weights(net, 0.01)
    assert all(p.abs().max() <= 0.01 for p in net.parameters())
    assert any((p.abs() == 0.01).any() for p in net.parameters())
    assert (net[1].running_var == 1.0).all()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="above 0"):
        clip_weights(net, 0.0)
