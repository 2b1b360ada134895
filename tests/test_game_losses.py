"""Relativistic losses, soft and noisy labels, LSGAN's targets and gradient reversal, by hand and by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from test_contract import batches, differences, ready
from torch import Tensor
from torch.distributions import Normal

from gentrain.engine.state import rng_state
from gentrain.errors import UserError
from gentrain.objectives import adversarial, relativistic
from gentrain.objectives.adversarial import AdversarialLoss, Targets

PHI: dict[str, Callable[[float], float]] = {
    "softplus": lambda d: math.log(1.0 + math.exp(-d)),
    "hinge": lambda d: max(1.0 - d, 0.0),
    "least_squares": lambda d: (d - 1.0) ** 2 / 2.0,
}
R, F_ = [1.0, -2.0, 0.3], [0.5, 3.0, -0.4]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- relativistic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(PHI))
def test_relativistic_values_by_hand(form: str) -> None:
    phi, r, f = PHI[form], torch.tensor(R), torch.tensor(F_)
    game = relativistic.paired(form)
    assert float(total(game.critic(r, f))) == pytest.approx(mean([phi(a - b) for a, b in zip(R, F_, strict=True)]))
    assert float(total(game.generator(f, r))) == pytest.approx(mean([phi(b - a) for a, b in zip(R, F_, strict=True)]))
    game = relativistic.average(form)
    for told, upper, lower in ((game.critic(r, f), R, F_), (game.generator(f, r), F_, R)):
        by_hand = mean([phi(u - mean(lower)) for u in upper]) + mean([phi(mean(upper) - v) for v in lower])
        assert float(total(told)) == pytest.approx(by_hand)


@pytest.mark.parametrize("form", list(PHI))
@pytest.mark.parametrize("make", [relativistic.paired, relativistic.average])
def test_relativistic_gradients_by_differences_and_no_constant_matters(
    make: Callable[[str], AdversarialLoss], form: str
) -> None:
    game, r, f = make(form), torch.tensor(R, dtype=torch.float64), torch.tensor(F_, dtype=torch.float64)

    def moved(scores: Tensor, i: int, by: float) -> Tensor:
        return scores + by * F.one_hot(torch.tensor(i), 3)

    x = f.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(game.generator(x, r)), x)
    by_differences = [
        float(total(game.generator(moved(f, i, 1e-2), r)) - total(game.generator(moved(f, i, -1e-2), r))) / 2e-2
        for i in range(3)
    ]
    assert slope.tolist() == pytest.approx(by_differences, abs=2e-4)
    for c in (-7.0, 40.0):
        torch.testing.assert_close(total(game.critic(r + c, f + c)), total(game.critic(r, f)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            total(game.generator(f + c, r + c)), total(game.generator(f, r)), rtol=1e-4, atol=1e-5
        )
    plain = adversarial.nonsaturating()  # the wrong one: it notices
    assert abs(float(total(plain.critic(r + 7, f + 7)) - total(plain.critic(r, f)))) > 1.0


def test_pairs_are_rows_and_nothing_is_broadcast() -> None:
    game = relativistic.paired()
    with pytest.raises(ValueError, match="one shape"):
        game.critic(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="real samples"):
        game.generator(torch.zeros(4))
    with pytest.raises(UserError, match=r"loss.form=hinges: unknown .*hinge"):
        relativistic.paired("hinges")


@pytest.mark.parametrize("loss", ["relativistic", "relativistic_average"])
def test_the_generator_is_shown_real_scores_and_moves_alone(loss: str) -> None:
    system, batch = one_batch("model=dcgan", f"loss={loss}")
    generator = next(seat for seat in system.seats if seat.player.name == "generator")
    system._gradients(generator, [batch], 1)
    given = {name: p.grad is not None for name, p in system.nets.named_parameters()}
    assert {name.split(".")[0] for name, has in given.items() if has} == {"generator"}
    # A constant on all scores changes no gradient: real scores took part.
    first = [p.grad.clone() for p in system.nets["generator"].parameters()]
    with torch.no_grad():
        system.nets["critic"].score.bias.add_(50.0)
    torch.manual_seed(0)
    system._gradients(generator, [batch], 1)
    for before, p in zip(first, system.nets["generator"].parameters(), strict=True):
        torch.testing.assert_close(p.grad, before, rtol=1e-3, atol=1e-6)


def one_batch(*overrides: str) -> tuple[Any, Any]:
    """A tiny system whose next draw of noise is that of seed 0, and a batch."""
    config = tiny(*overrides)
    system, data = ready(config)
    part = next(batches(config, data, 1)).to("cpu", channels_last=system.channels_last)
    torch.manual_seed(0)
    return system, part


# --- soft and noisy labels -----------------------------------------------------------------------------------------


def test_a_soft_label_mixes_the_two_costs_and_moves_the_best_logit() -> None:
    r, f = torch.tensor(R), torch.tensor(F_)
    soft = Targets(real=0.9).critic(r, f)
    assert float(soft["real"]) == pytest.approx(float((0.9 * F.softplus(-r) + 0.1 * F.softplus(r)).mean()))
    assert float(soft["fake"]) == pytest.approx(float(F.softplus(f).mean()))  # one-sided
    best = torch.tensor([math.log(9.0)], requires_grad=True)  # the logit of 0.9
    (slope,) = torch.autograd.grad(Targets(real=0.9).critic(best, f[:1])["real"], best)
    assert abs(float(slope)) < 1e-6
    (slope,) = torch.autograd.grad(Targets().critic(best, f[:1])["real"], best)
    assert float(slope) == pytest.approx(-0.1, abs=1e-5)


def told(targets: Targets, n: int = 20_000) -> tuple[Tensor, Tensor]:
    """What each of n real and n generated samples is told: at logit 0 the slope of the sum is 1/2 - target."""
    real, fake = (torch.zeros(n, 1, requires_grad=True) for _ in range(2))
    slopes = torch.autograd.grad(n * total(targets.critic(real, fake)), (real, fake))
    return 0.5 - slopes[0].flatten(), 0.5 - slopes[1].flatten()


def test_ranges_are_drawn_for_each_sample_and_flips_come_as_often_as_said() -> None:
    real, fake = told(Targets(real=[0.7, 1.2], fake=[0.0, 0.3]))
    for values, low, high in ((real, 0.7, 1.2), (fake, 0.0, 0.3)):
        assert low - 1e-5 <= float(values.min()) < low + 0.01
        assert high - 0.01 < float(values.max()) <= high + 1e-5
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.01)
        assert values.unique().numel() > 10_000  # one for the batch fails here
    real, fake = told(Targets(flip=0.05))
    assert set(real.round(decimals=5).tolist()) == set(fake.round(decimals=5).tolist()) == {0.0, 1.0}
    assert float((real < 0.5).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float((fake > 0.5).float().mean()) == pytest.approx(0.05, abs=0.01)
    assert not torch.equal(real < 0.5, fake > 0.5)
    real, fake = told(Targets(real=0.9, flip=0.2))
    assert float((real < 0.5).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(fake.max()) == pytest.approx(0.9)


def test_plain_labels_draw_nothing_and_the_generator_is_told_nothing() -> None:
    before = rng_state()
    for loss in (adversarial.minimax, adversarial.nonsaturating, adversarial.maximum_likelihood):
        plain, noisy = loss(), loss([0.7, 1.2], [0.0, 0.3], 0.05)
        f = torch.tensor(F_)
        plain.critic(f, f)
        assert torch.equal(total(plain.generator(f)), total(noisy.generator(f)))
    assert differences(before, rng_state()) == []
    noisy.critic(f, f)
    assert differences(before, rng_state())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Targets(real=1.1), r"loss.real=1.1"),
        (lambda: Targets(real=[0.9, 1.2]), r"loss.real=\[0.9, 1.2\]"),  # its middle: the loss would fall for ever
        (lambda: Targets(fake=[0.3, 0.0]), r"loss.fake"),
        (lambda: Targets(fake=-0.1), r"loss.fake"),
        (lambda: Targets(real=[0.7, 1.0, 1.2]), "two ends"),
        (lambda: Targets(flip=0.5), r"loss.flip=0.5"),
        (lambda: adversarial.least_squares(0.0, 1.0), "above fake=1.0"),
    ],
)
def test_labels_that_teach_nothing_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


# --- least squares -------------------------------------------------------------------------------------------------


def test_the_best_critic_of_eq_8_makes_the_generator_minimise_half_the_pearson_divergence() -> None:
    """With a, b, c = -1, 1, 0 and the best critic (p - g) / (p + g), the generator's loss and its twin on real samples
    are half of chi^2(p + g || 2 g), the integral of (p - g)^2 / (p + g)."""
    p, g = Normal(0.0, 1.0), Normal(1.5, 0.7)
    quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    x, y = p.icdf(quantiles), g.icdf(quantiles)

    def best(t: Tensor) -> Tensor:
        return torch.tanh(0.5 * (p.log_prob(t) - g.log_prob(t)))

    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    chi2 = float(torch.trapezoid((p.log_prob(grid).exp() + g.log_prob(grid).exp()) * best(grid).square(), grid))
    game = adversarial.least_squares(real=1.0, fake=-1.0, wanted=0.0)
    assert float(total(game.generator(best(y))) + total(game.generator(best(x)))) == pytest.approx(chi2 / 2, abs=1e-3)
    value = float(total(game.critic(best(x), best(y))))
    for other in (lambda t: 0.8 * best(t), lambda t: best(t) + 0.1):
        assert float(total(game.critic(other(x), other(y)))) > value


# --- gradient reversal ---------------------------------------------------------------------------------------------


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return -slope


def test_minimax_by_simultaneous_turns_is_one_backward_pass_with_its_gradient_reversed() -> None:
    for loss, same in (("minimax", True), ("nonsaturating", False)):
        system, batch = one_batch("model=dcgan", f"loss={loss}", "turns=simultaneous")
        torch.nn.init.constant_(system.nets["critic"].score.bias, 2.0)  # at logit 0 the two losses have one slope
        grads: dict[str, list[Tensor]] = {}
        for seat in system.seats:
            system._gradients(seat, [batch], 1)
            grads[seat.player.name] = [p.grad.clone() for p in seat.parameters]
        system.nets.requires_grad_(True)
        system.nets.zero_grad()
        torch.manual_seed(0)
        critic, fake = system.nets["critic"], system.generate(len(batch)).x
        (F.softplus(-critic(batch.signed)).mean() + F.softplus(critic(Reverse.apply(fake))).mean()).backward()
        for name, expected in grads.items():
            pairs = zip(system.nets[name].parameters(), expected, strict=True)
            close = [torch.allclose(p.grad, g, rtol=1e-3, atol=1e-6) for p, g in pairs]
            assert all(close) == (same or name == "critic"), (loss, name)
