"""Priors of codes, and what has to follow them: divergences, kernels, the figure of collapse."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny
from test_contract import batches, ready
from torch import Tensor
from torch.distributions import Normal as TrueNormal
from torch.distributions import kl_divergence

from gentrain.compose import compose
from gentrain.engine.fit import check_config
from gentrain.engine.sampling import at_rest
from gentrain.engine.validation import Validation
from gentrain.errors import UserError
from gentrain.models.aae import RingMixture, SwissRoll
from gentrain.models.vae import DiagonalGaussian
from gentrain.models.wae import MMD, RBF, InverseMultiquadratic, Kernel, mmd2
from gentrain.objectives.priors import Normal, Prior


def test_codes_are_held_against_the_prior_that_is_sampled() -> None:
    config = tiny("model=dfc_vae", "loss=squared", "model.prior.scale=2.0")
    system, data = ready(config)
    batch = next(batches(config, data, 1))
    way = system.forward_pass(batch)  # type: ignore[operator]
    mu, log_variance = way.output.chunk(2, dim=1)
    exact = kl_divergence(TrueNormal(mu, (0.5 * log_variance).exp()), TrueNormal(0.0, 2.0))
    torch.testing.assert_close(system.regularisers["kl"](way), exact.sum(1).mean(), rtol=1e-4, atol=1e-5)  # type: ignore[index, operator]
    with at_rest(system):
        mu, log_variance = system.encoder_output(batch.x).chunk(2, dim=1)  # type: ignore[operator]
        exact = kl_divergence(TrueNormal(mu, (0.5 * log_variance).exp()), TrueNormal(0.0, 2.0)).mean(0)
        torch.testing.assert_close(system.latent_kl(batch.x), exact, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
        assert float(system.prior_codes(20_000).std()) == pytest.approx(2.0, rel=0.02)  # type: ignore[operator]
    validation = Validation.__new__(Validation)
    validation.session = SimpleNamespace(data=data)  # type: ignore[assignment]
    nats = validation.latent_kl(system)
    assert nats is not None
    assert nats.shape == (system.latent,)


def test_codes_without_a_divergence_have_no_figure_of_collapse() -> None:
    system, data = ready(tiny("model=wae_mmd"))
    validation = Validation.__new__(Validation)
    validation.session = SimpleNamespace(data=data)  # type: ignore[assignment]
    assert validation.latent_kl(system) is None


def test_the_gaussian_code_knows_the_scale_of_its_prior_everywhere() -> None:
    code = DiagonalGaussian(3, prior_scale=2.0)
    output = torch.randn(5, 6)
    mu, log_variance = output.chunk(2, dim=1)
    z = code.draw(output)
    exact = TrueNormal(0.0, 2.0).log_prob(z) - TrueNormal(mu, (0.5 * log_variance).exp()).log_prob(z)
    torch.testing.assert_close(code.log_weight(output, z), exact.sum(1), rtol=1e-4, atol=1e-4)
    assert float(code.prior(20_000, torch.device("cpu"), None).std()) == pytest.approx(2.0, rel=0.02)
    with pytest.raises(UserError, match="prior_scale=0"):
        DiagonalGaussian(3, prior_scale=0.0)


PRIORS: list[Prior] = [
    Normal(3.0),
    RingMixture(10, 4.0, 0.7, 0.25),
    RingMixture(1, 4.0, 0.7, 0.25),
    SwissRoll(2.0, 4.0, 0.1),
    SwissRoll(0.3, 4.0, 0.5),
]


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_the_spread_is_that_of_draws(prior: Prior) -> None:
    z = prior.draw(200_000, 2, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert prior.spread == pytest.approx(float(z.double().var(0).mean().sqrt()), rel=0.01)


@pytest.mark.parametrize("prior", PRIORS[:2] + PRIORS[3:4], ids=str)
@pytest.mark.parametrize("kind", [InverseMultiquadratic, RBF])
@pytest.mark.parametrize("given", [None, 0.5])
def test_the_kernel_takes_the_spread_of_the_prior_unless_it_has_one(
    prior: Prior, kind: Any, given: float | None
) -> None:
    way: Any = SimpleNamespace(z=torch.randn(16, 2))
    found = seeded(lambda: MMD(kind(spread=given), prior, 2.0)(way))

    def expected(kernel: Kernel) -> Tensor:
        return seeded(lambda: 2.0 * mmd2(way.z, prior.draw(16, 2, way.z.device, None), kernel))

    assert torch.equal(found, expected(kind(spread=given or prior.spread)))
    assert not torch.equal(found, expected(kind(spread=1.0)))


def seeded(make: Any) -> Tensor:
    torch.manual_seed(0)
    result: Tensor = make()
    return result


def test_the_kernel_of_a_run_has_no_spread_of_its_own() -> None:
    system, _ = ready(tiny("model=wae_mmd", "model.prior.scale=3.0"))
    mmd: Any = system.regularisers["mmd"]  # type: ignore[index]
    assert mmd.kernel.fitted(mmd.prior.spread).spread == 3.0


@pytest.mark.parametrize(("model", "most"), [("ae", 1), ("dae", 1), ("cae", 1), ("vae", 2), ("gmvae", 2)])
def test_codes_of_points_in_the_plane_are_no_wider_than_they(model: str, most: int) -> None:
    assert tiny(f"model={model}", "data=ring")["model"]["latent"] == most


@pytest.mark.parametrize(("model", "wanted"), [("compress", "data of images"), ("dcign", "data=shapes, or")])
def test_what_is_for_images_says_so(model: str, wanted: str) -> None:
    line = f"data=ring: vectors, and model={model} is for images: choose {wanted}"
    with pytest.raises(UserError, match=re.escape(line)):
        check_config(compose([f"model={model}", "data=ring", "size=tiny", "trainer=cpu"]).config)


def test_the_way_out_of_an_error_of_pixels_is_open() -> None:
    with pytest.raises(UserError, match="loss=squared"):
        ready(tiny("model=cae", "data=ring"))
    config = tiny("model=cae", "data=ring", "loss=squared")
    system, data = ready(config)
    system.iterate(next(batches(config, data, 1)))
