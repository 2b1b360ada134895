"""The mixture prior: divergences against torch.distributions, bounds against log p(x) by quadrature, and the VAE that
is left when there is one component and no w."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from gentrain.data.sources import digits
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.evaluation.randomness import at_evaluation
from gentrain.folder import RunFolder
from gentrain.models.gmvae import MixturePosterior, kl_normal_terms
from gentrain.models.vae import ELBO, DiagonalGaussian
from gentrain.objectives.autoencoding import Evidence, summed
from gentrain.types import Images

Z, W, K = 3, 2, 4


def posterior(components: int = K, style: int = W, latent: int = Z, *, spread: float = 2.0) -> MixturePosterior:
    made = MixturePosterior(latent, components, style, 8)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(spread)  # far enough apart for probabilities that differ
    return made


def output_of(made: MixturePosterior, n: int = 6) -> Tensor:
    return 0.7 * torch.randn(n, made.outputs)


def q_of(output: Tensor) -> tuple[Normal, Normal]:
    """q(z|x) and q(w|x), by the order that is written down."""
    mu, log_variance, mu_w, log_variance_w = output[:, :3], output[:, 3:6], output[:, 6:8], output[:, 8:]
    return Normal(mu, (0.5 * log_variance).exp()), Normal(mu_w, (0.5 * log_variance_w).exp())


def components_of(made: MixturePosterior, w: Tensor) -> Normal:
    """p(z|w, c) [B K Z]."""
    means, log_variances = made.given_style(w)
    return Normal(means, log_variances.exp().sqrt())


# --- each term


def test_the_divergence_of_two_gaussians_is_that_of_torch_distributions() -> None:
    mu, log_variance, other, log_other = torch.randn(4, 9, 5)
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(other, (0.5 * log_other).exp()))
    torch.testing.assert_close(kl_normal_terms(mu, log_variance, other, log_other), expected, rtol=1e-4, atol=1e-5)
    assert kl_normal_terms(mu, log_variance, mu, log_variance).abs().max() == 0.0


def test_the_three_divergences_are_those_of_the_paper() -> None:
    made = posterior()
    output = output_of(made)
    latents = made.draw(output)
    z, w = latents[:, :Z], latents[:, Z:]
    q, q_w = q_of(output)
    given = components_of(made, w)
    likelihoods = given.log_prob(z[:, None]).sum(2).exp()  # p(c) is uniform
    p = likelihoods / likelihoods.sum(1, keepdim=True)  # [B K]
    assert (p.max(1).values - p.min(1).values).max() > 0.2
    found = made.divergences(output, latents)
    each = torch.stack([kl_divergence(q, Normal(given.loc[:, c], given.scale[:, c])) for c in range(K)], 1)
    torch.testing.assert_close(found["kl"], (p[:, :, None] * each).sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["kl_w"], kl_divergence(q_w, Normal(0.0, 1.0)), rtol=1e-4, atol=1e-5)
    uniform = Categorical(torch.full((6, K), 1 / K))
    expected = kl_divergence(Categorical(p), uniform)
    torch.testing.assert_close(found["kl_components"][:, 0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.responsibilities(latents), p, rtol=1e-4, atol=1e-6)
    sure = made.probabilities(output)  # at the means of both
    likelihoods = components_of(made, q_w.loc).log_prob(q.loc[:, None]).sum(2).exp()
    torch.testing.assert_close(sure, likelihoods / likelihoods.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_the_weight_is_that_of_the_mixture_itself() -> None:
    made = posterior()
    output = output_of(made)
    latents = made.draw(output)
    z, w = latents[:, :Z], latents[:, Z:]
    q, q_w = q_of(output)
    mixture = MixtureSameFamily(Categorical(torch.ones(6, K)), Independent(components_of(made, w), 1))
    log_p = mixture.log_prob(z) + Normal(0.0, 1.0).log_prob(w).sum(1)
    log_q = q.log_prob(z).sum(1) + q_w.log_prob(w).sum(1)
    torch.testing.assert_close(made.log_weight(output, latents), log_p - log_q, rtol=1e-4, atol=1e-4)


def test_draws_are_of_the_distributions_they_are_said_to_be_of() -> None:
    made = posterior(style=W)
    output = output_of(made, 1).repeat(20_000, 1)
    latents = made.draw(output)
    q, q_w = q_of(output[:1])
    torch.testing.assert_close(latents.mean(0), torch.cat([q.loc, q_w.loc], 1)[0], rtol=0, atol=0.05)
    torch.testing.assert_close(latents.std(0), torch.cat([q.scale, q_w.scale], 1)[0], rtol=0.03, atol=0)
    assert made.decoded(latents).equal(latents[:, :Z])
    assert made.mean(output).equal(output[:, :Z])
    free = posterior(style=0)
    drawn = free.prior(40_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    given = components_of(free, torch.zeros(1, 0))
    mixture = MixtureSameFamily(Categorical(torch.ones(1, K)), Independent(given, 1))
    torch.testing.assert_close(drawn.mean(0), mixture.mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), mixture.variance[0], rtol=0.03, atol=0)
    again = free.prior(40_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert drawn.equal(again)
    assert not drawn.equal(free.prior(40_000, torch.device("cpu"), torch.Generator().manual_seed(1)))


def test_draws_of_each_component_share_the_rest() -> None:
    made = posterior()
    z = made.of_each(5000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert z.shape == (K, 5000, Z)
    w = torch.randn(5000, W, generator=torch.Generator().manual_seed(0))
    given = components_of(made, w)
    noise = (z - given.loc.transpose(0, 1)) / given.scale.transpose(0, 1)
    for c in range(1, K):
        torch.testing.assert_close(noise[c], noise[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(noise[0].std(0), torch.ones(Z), rtol=0.05, atol=0)


# --- bounds


def small_model(draws: int) -> tuple[MixturePosterior, Tensor, Callable[[Tensor], Tensor], float]:
    """One x of one number, z and w of one each: the encoder's output for it (``draws`` times), log p(x|z), log p(x)."""
    torch.manual_seed(3)
    made = MixturePosterior(1, 3, 1, 8)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)
    x = 1.3

    def log_likelihood(z: Tensor) -> Tensor:
        return Normal(torch.sin(2.0 * z) + z, 0.5).log_prob(torch.tensor(x))[:, 0]

    grid = torch.linspace(-9.0, 9.0, 1801)
    z, w = torch.cartesian_prod(grid, grid[::10]).T
    log_pz = torch.logsumexp(components_of(made, w[:, None]).log_prob(z[:, None, None])[:, :, 0], 1) - math.log(3)
    joint = log_likelihood(z[:, None]) + log_pz + Normal(0.0, 1.0).log_prob(w)
    log_px = float(torch.logsumexp(joint.double(), 0)) + math.log(0.01 * 0.1)
    output = torch.tensor([[0.5, -0.5, 0.2, -0.3]]).repeat(draws, 1)
    return made, output, log_likelihood, log_px


@torch.no_grad()
def test_both_bounds_are_below_the_likelihood_and_in_order() -> None:
    made, output, log_likelihood, log_px = small_model(400_000)
    latents = made.draw(output)
    weights = log_likelihood(latents[:, :1]) + made.log_weight(output, latents)
    elbo = float((log_likelihood(latents[:, :1]) - summed(made.divergences(output, latents))).mean())
    bounds = [float((torch.logsumexp(weights.view(-1, k), 1) - math.log(k)).mean()) for k in (1, 10, 100)]
    assert elbo + 0.01 < bounds[0] < bounds[1] < bounds[2] < log_px + 0.01
    assert float(torch.logsumexp(weights, 0)) - math.log(len(weights)) == pytest.approx(log_px, abs=0.02)


@torch.no_grad()
def test_with_one_component_the_sum_of_the_divergences_is_that_of_the_latents() -> None:
    made = posterior(components=1)
    output = output_of(made, 1).repeat(200_000, 1)
    latents = made.draw(output)
    assert made.divergences(output, latents)["kl_components"].abs().max() < 1e-6
    expected = -float(made.log_weight(output, latents).mean())
    assert float(summed(made.divergences(output, latents)).mean()) == pytest.approx(expected, rel=0.02)


# --- what it is without its additions


def test_one_component_that_is_the_standard_normal_makes_it_a_vae() -> None:
    made = MixturePosterior(Z, components=1, style=0, hidden=8)
    nn.init.zeros_(made.network.value)  # type: ignore[arg-type]
    plain = DiagonalGaussian(Z)
    assert made.outputs == plain.outputs
    output = torch.randn(6, 2 * Z, requires_grad=True)
    losses, slopes = [], []
    for code in (made, plain):
        torch.manual_seed(0)
        latents = code.draw(output)
        error = code.decoded(latents).square().sum(1)[None]
        terms = ELBO(beta=1.0)(Evidence(error, output, latents, code, 1))
        loss = torch.stack(list(terms.values())).sum()
        losses.append(loss)
        slopes.append(torch.autograd.grad(loss, output)[0])
        torch.testing.assert_close(
            code.log_weight(output, latents), plain.log_weight(output, latents), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)
    torch.nn.init.constant_(made.network.value, 0.3)  # type: ignore[arg-type]
    other = summed(made.divergences(output, latents)) - summed(plain.divergences(output, latents))
    assert other.detach().abs().min() > 0.01


def test_nothing_is_left_of_a_mixture_whose_components_are_alike() -> None:
    made = MixturePosterior(Z, components=K, style=0, hidden=8)
    nn.init.zeros_(made.network.value)  # type: ignore[arg-type]
    output = torch.randn(6, 2 * Z)
    latents = made.draw(output)
    torch.testing.assert_close(made.responsibilities(latents), torch.full((6, K), 1 / K))
    assert made.divergences(output, latents)["kl_components"].abs().max() < 1e-6
    torch.testing.assert_close(
        made.divergences(output, latents)["kl"], DiagonalGaussian(Z).divergences(output, latents)["kl"]
    )


# --- the floor under the component term


def evidence(components_nats: float) -> Evidence:
    class Fixed:
        def divergences(self, output: Tensor, latents: Tensor) -> dict[str, Tensor]:
            scale = output.mean()
            return {"kl": scale * torch.full((4, 2), 0.1), "kl_components": scale * torch.tensor(
                [[0.0], [0.0], [0.0], [4.0 * components_nats]])}  # fmt: skip

    output = torch.ones(4, 1, requires_grad=True)
    return Evidence(torch.zeros(1, 4), output, output, Fixed(), 1)  # type: ignore[arg-type]


def test_the_floor_is_under_the_named_term_and_the_mean_of_the_batch() -> None:
    bound = ELBO(free_nats={"kl_components": 0.5})
    for nats, held, slope in ((0.2, 0.5, False), (0.7, 0.7, True)):
        given = evidence(nats)
        terms = bound(given)
        assert terms["kl_components"].item() == pytest.approx(held)
        assert terms["kl"].item() == pytest.approx(0.2)
        (gradient,) = torch.autograd.grad(terms["kl_components"], given.output)
        assert bool(gradient.abs().sum() > 0) == slope, "below the floor nothing pushes"
        assert given.elbo.item() == pytest.approx(-0.2 - nats), "what is logged is the bound itself"
    assert {k: round(v.item(), 3) for k, v in ELBO(free_nats=0.5)(evidence(0.2)).items()} == {
        "reconstruction": 0.0, "kl": 1.0, "kl_components": 0.5
    }  # fmt: skip


def test_a_floor_under_nothing_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r"free_nats\.kl_c: no such divergence; this model has kl, kl_components"):
        ELBO(free_nats={"kl_c": 0.5})(evidence(0.2))
    with pytest.raises(UserError, match=r"free_nats\.kl=-1"):
        ELBO(free_nats={"kl": -1.0})
    ended = run(*words("model=gmvae", "+model.bound.free_nats.components=1", "metrics=none"))
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1)
    assert "free_nats.components" in ended.err


@pytest.mark.parametrize(("key", "least"), [("components", 1), ("style", 0), ("hidden", 1)])
def test_numbers_out_of_range_are_named(key: str, least: int) -> None:
    numbers = {"components": 2, "style": 1, "hidden": 3} | {key: least - 1}
    with pytest.raises(UserError, match=rf"posterior\.{key}={least - 1}: at least {least}"):
        MixturePosterior(2, **numbers)


# --- the system


def built(*overrides: str) -> System:
    config = tiny("model=gmvae", *overrides)
    check_config(config)
    return build_system(config, digits(), seed=0)


def test_a_prior_without_components_is_refused() -> None:
    with pytest.raises(UserError, match="no mixture"):
        built(
            "model.posterior._target_=gentrain.models.vae.DiagonalGaussian",
            *(f"~model.posterior.{key}" for key in ("components", "style", "hidden")),
        )


def test_clusters_and_pictures_of_each_component() -> None:
    system = built()
    x = digits().test.all(20).x
    with at_rest(system):
        p = system.cluster(x)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(0)
        pictures = system.sample_components(3, generator=generator)  # type: ignore[operator]
        z = system.posterior.of_each(3, torch.device("cpu"), generator.manual_seed(0))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(pictures[3:6], system.decode(z[1]))  # type: ignore[operator]
    assert p.shape == (20, 4)
    torch.testing.assert_close(p.sum(1), torch.ones(20))
    assert pictures.shape == (12, *system.spec.shape)


@pytest.mark.parametrize(("used", "expected"), [([0, 0, 0, 0], 1.0), ([0, 1, 2, 3], 4.0), ([1, 1, 3, 3], 2.0)])
def test_the_number_of_components_in_use_is_logged(used: list[int], expected: float) -> None:
    system = built("model.posterior.style=0", "model.latent=4")
    prior = system.nets["prior"]
    with torch.no_grad():  # components far apart, on the axes
        prior.network.value.copy_(torch.cat([50.0 * torch.eye(4).flatten(), torch.zeros(16)]))
    z = 50.0 * torch.eye(4)[used]
    system.watch(Evidence(torch.zeros(1, 4), torch.zeros(4, 8), z, prior, 1))  # type: ignore[operator, arg-type]
    assert system.report()["components/used"] == pytest.approx(expected, rel=1e-4)
    nn.init.zeros_(prior.network.value)  # all alike: everything belongs to all of them
    system.watch(Evidence(torch.zeros(1, 4), torch.zeros(4, 8), z, prior, 1))  # type: ignore[operator, arg-type]
    assert system.report()["components/used"] == pytest.approx(1.0, rel=1e-4)


def test_the_prior_learns_and_its_average_is_kept_with_it() -> None:
    system = built("+model.ema={_target_:gentrain.engine.ema.Ema,decay:0.5}")
    system.prepare(total=3)
    before = [p.detach().clone() for p in system.nets["prior"].parameters()]
    batch = digits().train.all(16)
    system.iterate(Images(batch.x))
    assert all(not torch.equal(a, b) for a, b in zip(before, system.nets["prior"].parameters(), strict=True))
    assert system.average is not None
    live = system.nets["prior"]
    with system.weights("ema"), at_evaluation(system):
        assert system.posterior is system.average.nets["prior"] is not live
    names = [name for name, _ in system.named_parameters(remove_duplicate=False)]
    assert not [name for name in names if not name.startswith(("nets.", "average."))], "the prior stands in one place"


def test_a_run_scores_its_own_clusters(run: Run, workplace: Path) -> None:
    assert run(*words("model=gmvae", "metrics=clustering", "metrics.scores.clustering.limit=60", "name=run",
                      "metrics.also={}")).code == 0  # fmt: skip
    with Image.open(workplace / "outputs" / "run" / "samples" / "components-latest.png") as rows:
        assert rows.width > 2 * rows.height  # 4 rows of 10
    final = RunFolder.open(workplace / "outputs" / "run").card()["final"]
    assert 1 <= final["clusters_used"] <= 4
    assert 0.0 < final["cluster_accuracy_own"] <= 1.0
    assert run(*words("model=gmvae", "data=swissroll", "model/net=mlp", "loss=density", "name=toy")).code == 0
    final = RunFolder.open(workplace / "outputs" / "toy").card()["final"]
    assert "nll_nats" in final
    assert not list((workplace / "outputs" / "toy" / "samples").glob("components*"))  # points are no rows of pictures
    assert "cluster_accuracy" not in final
