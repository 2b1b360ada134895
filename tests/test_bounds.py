"""Bounds on the likelihood and what weighs their divergence, against closed forms, autograd and sums by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import batches, ready
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from gentrain.engine.sampling import at_rest
from gentrain.models.beta_vae import Capacity
from gentrain.models.iwae import ImportanceWeighted, Stages
from gentrain.models.vae import ELBO, DiagonalGaussian
from gentrain.objectives.autoencoding import Bound, Evidence
from gentrain.objectives.likelihoods import Gaussian
from gentrain.objectives.reconstruction import SquaredError
from gentrain.types import Images

Z, D, SD = 3, 6, 0.7
"""A linear Gaussian model: z ~ N(0, I) of Z numbers, x ~ N(W z, SD^2 I) of D."""


def loadings() -> Tensor:
    """W [D Z] with orthogonal columns: the true posterior is then a diagonal Gaussian."""
    basis, _ = torch.linalg.qr(torch.randn(D, Z, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return (basis * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)).float()


def true_posterior(x: Tensor) -> Tensor:
    """Encoder's output [B 2Z] that makes q(z|x) the posterior itself."""
    w = loadings()
    variance = 1.0 / (1.0 + w.square().sum(0) / SD**2)  # [Z]
    return torch.cat([x @ w / SD**2 * variance, variance.log().expand(len(x), -1)], 1)


def evidence_of(x: Tensor, output: Tensor, draws: int, w: Tensor | None = None, iteration: int = 1) -> Evidence:
    posterior = DiagonalGaussian(Z)
    repeated = output.repeat(draws, 1)
    z = posterior.draw(repeated)
    mean = z @ (loadings() if w is None else w).T
    error = -Normal(mean, SD).log_prob(x.repeat(draws, 1)).sum(1).view(draws, -1)
    return Evidence(error, repeated, z, posterior, iteration)


def data(n: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = SD * torch.randn(n, D, generator=generator)
    return torch.randn(n, Z, generator=generator) @ loadings().T + noise


def log_p(x: Tensor) -> Tensor:
    w = loadings()
    return MultivariateNormal(torch.zeros(D), w @ w.T + SD**2 * torch.eye(D)).log_prob(x)


def value(bound: Bound, evidence: Evidence) -> float:
    return float(sum(term.detach() for term in bound(evidence).values()))


# The importance-weighted bound


@pytest.mark.parametrize("draws", [1, 2, 50])
def test_under_the_true_posterior_the_importance_weighted_bound_is_the_likelihood(draws: int) -> None:
    x = data()
    found = value(ImportanceWeighted(draws), evidence_of(x, true_posterior(x), draws))
    assert -found == pytest.approx(float(log_p(x).mean()), abs=1e-4)
    wrong = true_posterior(x) + 0.5
    assert -value(ImportanceWeighted(draws), evidence_of(x, wrong, draws)) < float(log_p(x).mean()) - 0.01


def test_the_bound_grows_with_the_draws_and_never_above_the_likelihood() -> None:
    x = data(400)
    output = true_posterior(x) + torch.tensor([0.3] * Z + [0.3] * Z)
    means = []
    for draws in (1, 2, 5, 20, 100):
        bound = ImportanceWeighted(draws)
        means.append(-sum(value(bound, evidence_of(x, output, draws)) for _ in range(40)) / 40)
    elbo = float(evidence_of(x, output, 500).elbo)
    assert means[0] == pytest.approx(elbo, abs=0.05)
    assert all(more > less + 0.01 for less, more in itertools.pairwise(means)), means
    assert means[-1] <= float(log_p(x).mean())
    assert means[-1] == pytest.approx(float(log_p(x).mean()), abs=0.05)


def test_its_gradient_is_the_sum_over_draws_weighted_by_their_importance() -> None:
    """The weights are constants of the gradient, and each sample normalises its own."""
    x, draws = data(5), 7
    output, w = (true_posterior(x) + 0.4).requires_grad_(), loadings().requires_grad_()
    evidence = evidence_of(x, output, draws, w)
    (loss,) = ImportanceWeighted(draws)(evidence).values()
    found = torch.autograd.grad(loss, (output, w), retain_graph=True)
    mu, log_variance = evidence.output.chunk(2, 1)
    q = Normal(mu, (0.5 * log_variance).exp()).log_prob(evidence.latents).sum(1)
    prior = Normal(0.0, 1.0).log_prob(evidence.latents).sum(1)
    log_weights = (prior - q).view(draws, -1) - evidence.error  # [K B]
    weights = [[float(v) for v in torch.exp(column - column.max())] for column in log_weights.detach().T]
    expected = [torch.zeros_like(g) for g in found]
    for b in range(len(x)):
        for k in range(draws):
            share = weights[b][k] / sum(weights[b])
            parts = torch.autograd.grad(log_weights[k, b], (output, w), retain_graph=True)
            for total, part in zip(expected, parts, strict=True):
                total -= share * part / len(x)
    for a, b_ in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["bernoulli", "gaussian"])
def test_one_draw_is_the_estimate_of_the_elbo_from_that_draw(loss: str) -> None:
    system, made = ready(tiny("model=iwae", f"loss={loss}", "model.bound.draws=1"))
    x = made.test.all(16).x
    state = torch.get_rng_state()
    (term,) = system.objective(Images(x)).values()  # type: ignore[operator]
    torch.set_rng_state(state)
    output = system.encoder_output(x)  # type: ignore[operator]
    z = system.posterior.draw(output)  # type: ignore[operator, union-attr]
    mu, log_variance = output.chunk(2, 1)
    q, prior = Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    error = system.loss.error(system.nets["decoder"](z), system.loss.prepare(x))  # type: ignore[operator, union-attr]
    expected = (error + q.log_prob(z).sum(1) - prior.log_prob(z).sum(1)).mean()
    torch.testing.assert_close(term, expected, rtol=1e-5, atol=1e-4)


def test_of_a_trained_model_too_the_bound_grows_with_the_draws() -> None:
    config = tiny("model=iwae", "train.iterations=150")
    system, made = ready(config)
    for batch in batches(config, made, 150):
        system.iterate(batch)
    x, means = made.test.all(64).x, []
    with at_rest(system):
        for draws in (1, 5, 50):
            system.bound = ImportanceWeighted(draws)  # type: ignore[assignment]
            found = [float(next(iter(system.objective(Images(x)).values()))) for _ in range(20)]  # type: ignore[operator]
            means.append(-sum(found) / len(found))
    assert means[0] + 0.05 < means[1] < means[2] - 0.01, means


def test_stages_grow_threefold_and_end_at_the_tenth() -> None:
    stages = Stages()
    rates = [stages(i, 3280) for i in range(1, 3281)]
    assert [rates.count(rate) for rate in sorted(set(rates), reverse=True)] == [3**i for i in range(8)]
    assert rates == sorted(rates, reverse=True)
    steps = sorted(set(rates), reverse=True)
    assert steps == pytest.approx([10 ** (-i / 7) for i in range(8)])
    assert {Stages(end=1.0)(i, 10) for i in range(1, 11)} == {1.0}


# What weighs the divergence


def hand(evidence: Evidence) -> tuple[float, list[float]]:
    """Reconstruction error, and the divergence of each dimension, both as means over draws and images."""
    mu, log_variance = evidence.output.chunk(2, 1)
    terms = torch.distributions.kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    return float(evidence.error.mean()), [float(v) for v in terms.mean(0)]


@pytest.mark.parametrize(
    ("bound", "iteration", "expected"),
    [
        (ELBO(), 1, lambda kl: sum(kl)),
        (ELBO(beta=4.0), 1, lambda kl: 4.0 * sum(kl)),
        (ELBO(beta=4.0, warmup=10), 3, lambda kl: 1.2 * sum(kl)),
        (ELBO(beta=4.0, warmup=10), 25, lambda kl: 4.0 * sum(kl)),
        (ELBO(beta=2.0, free_nats=0.6), 1, lambda kl: 2.0 * sum(max(v, 0.6) for v in kl)),
        (Capacity(gamma=10.0, capacity=8.0, over=4), 1, lambda kl: 10.0 * abs(sum(kl) - 2.0)),
        (Capacity(gamma=10.0, capacity=1.0, over=4), 9, lambda kl: 10.0 * abs(sum(kl) - 1.0)),
        (Capacity(gamma=3.0, capacity=50.0, over=0), 1, lambda kl: 3.0 * (50.0 - sum(kl))),
    ],
)
def test_each_way_to_weigh_the_divergence_by_hand(
    bound: Bound, iteration: int, expected: Callable[[list[float]], float]
) -> None:
    x = data()
    evidence = evidence_of(x, true_posterior(x), 1, iteration=iteration)
    error, kl = hand(evidence)
    assert min(kl) < 0.6 < max(kl), "free nats hold one dimension and leave another"
    assert 1.0 < sum(kl) < 2.0, "capacities on both sides of it"
    terms = bound(evidence)
    assert float(terms.pop("reconstruction")) == pytest.approx(error, rel=1e-5)
    assert float(next(iter(terms.values()))) == pytest.approx(expected(kl), rel=1e-4)


def test_free_nats_give_a_dimension_below_them_no_gradient() -> None:
    x = data()
    output = true_posterior(x).requires_grad_()
    slopes = []
    for bound in (ELBO(), ELBO(free_nats=0.6)):
        (grad,) = torch.autograd.grad(bound(evidence_of(x, output, 1))["kl"], output)
        slopes.append(grad.abs().sum(0))
    _, kl = hand(evidence_of(x, output.detach(), 1))
    for i, nats in enumerate(kl):
        assert float(slopes[0][i]) > 0
        assert (float(slopes[1][i]) == 0) == (nats < 0.6)


CHOICES = [
    ("beta_vae", "model.bound.beta=50"), ("beta_vae", "model.bound.warmup=100"),
    ("beta_vae", "model.bound.free_nats=3"), ("beta_vae_capacity", "model.bound.capacity=90"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "choice"), CHOICES)
def test_the_reported_elbo_knows_nothing_of_how_the_divergence_is_weighed(model: str, choice: str) -> None:
    found, losses = [], []
    for words_ in (("model=beta_vae", "model.bound.beta=1"), (f"model={model}", choice)):
        system, made = ready(tiny(*words_))
        batch = Images(made.test.all(32).x)
        torch.manual_seed(5)
        losses.append(float(sum(system.objective(batch).values()).detach()))  # type: ignore[operator]
        found.append(float(system.ledger.entries["elbo/nats"][-1]))
    assert found[0] == pytest.approx(-losses[0], rel=1e-5)
    assert found[1] == found[0]
    assert abs(losses[1] - losses[0]) > 0.1


@pytest.mark.parametrize(
    "choice",
    ["model=iwae model.bound.draws=0", "model=beta_vae model.bound.free_nats=-1", "model=beta_vae model.bound.draws=0",
     "model=beta_vae_capacity model.bound.gamma=-1", "model=iwae model.players.autoencoder.schedule.end=0"],
)  # fmt: skip
def test_numbers_out_of_range_are_named(choice: str, run: Run) -> None:
    ended = run("check", *words(*choice.split()))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert choice.split()[1].split("=")[0] in ended.err


# The decoder of VAE-02


def test_a_fixed_scale_of_one_over_root_two_trains_as_the_squared_error_does() -> None:
    torch.manual_seed(0)
    x = torch.randint(30, 226, (4, 1, 5, 5), dtype=torch.uint8)  # the two edge levels reach to infinity
    output = torch.randn(4, 1, 5, 5, requires_grad=True)
    slopes = []
    for loss in (Gaussian(math.sqrt(0.5)), SquaredError(), Gaussian(1.0)):
        (grad,) = torch.autograd.grad(loss.error(output, loss.prepare(x)).sum(), output)
        slopes.append(grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(slopes[2], slopes[1], rtol=0.1)


@pytest.mark.parametrize("lr", [0.02, 1.0])
def test_constant_pixels_do_not_drive_a_pixels_scale_to_nothing(lr: float) -> None:
    """A density would grow without end; a probability of levels is at most 1, and the scale stops at its floor."""
    loss, x = Gaussian("pixel"), torch.full((2, 1, 3, 3), 77, dtype=torch.uint8)
    output = torch.zeros(2, 2, 3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([output], lr=lr)
    for _ in range(500):
        optimizer.zero_grad()
        error = loss.error(output, loss.prepare(x)).mean()
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.isfinite(output).all()
    assert float(error.detach()) >= 0.0
    scale = loss._split(output.detach(), 1)[1]
    assert float(scale.min()) >= -6.0
    if lr < 1.0:
        assert float(scale.max()) < -5.0, "it did go down"


# Posterior collapse, as a user sees it


@pytest.mark.parametrize(("beta", "collapses"), [(50, True), (1, False)])
def test_a_collapsed_posterior_is_seen_by_the_health_line(beta: int, collapses: bool, run: Run) -> None:
    budget = ["train.iterations=400", "train.validate_every=100", "callbacks.health.warmup=100", "metrics=none"]
    ended = run(*words("model=beta_vae", f"model.bound.beta={beta}", *budget, "model.net.hidden=[64]"))
    assert ended.code == 0
    assert ("health: unused_latent of autoencoder" in ended.out + ended.err) == collapses
