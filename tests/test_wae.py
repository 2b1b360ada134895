"""The MMD of codes and prior: against a double loop, a closed form, its mean over draws; the noise and the rates."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny
from test_contract import batches, ready
from torch import Tensor

from gentrain.engine.sampling import at_rest
from gentrain.errors import UserError
from gentrain.models.wae import RBF, Exponential, InverseMultiquadratic, Kernel, TruncatedNoise, mmd2

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
IMQ = InverseMultiquadratic(spread=1.5, scales=SCALES)
KERNELS = [IMQ, RBF(spread=1.5, scales=(0.5, 2.0))]


def by_formula(kernel: Kernel, a: Tensor, b: Tensor) -> float:
    """k(a, b) of two codes, from the definition."""
    square = sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
    total = 0.0
    for scale in kernel.scales:  # type: ignore[attr-defined]
        c = 2 * len(a) * 1.5**2 * scale
        total += c / (c + square) if isinstance(kernel, InverseMultiquadratic) else math.exp(-square / c)
    return total


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_estimate_is_that_of_a_double_loop_without_the_diagonal(kernel: Kernel) -> None:
    a, b = torch.randn(5, 3) * 2, torch.randn(7, 3) + 1
    within = sum(
        by_formula(kernel, x[i], x[j]) / (len(x) * (len(x) - 1))
        for x in (a, b)
        for i in range(len(x))
        for j in range(len(x))
        if i != j
    )
    between = sum(by_formula(kernel, x, y) for x in a for y in b) / (len(a) * len(b))
    assert float(mmd2(a, b, kernel)) == pytest.approx(within - 2 * between, abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_of_one_law_it_averages_zero(kernel: Kernel) -> None:
    values = torch.stack([mmd2(torch.randn(32, 4), torch.randn(32, 4), kernel) for _ in range(200)])
    error = float(values.std()) / 200**0.5
    assert abs(float(values.mean())) < 3 * error
    assert (values < 0).any(), "unbiased, so it is negative at times"
    with_diagonal = 2 * len(kernel.scales) / 32  # type: ignore[attr-defined]
    assert with_diagonal > 6 * error, "a biased estimate would be seen"


def expected_rbf(shift: float, latent: int, c: float) -> float:
    """E k for x - y ~ N(shift, 2 I), shifted in one dimension: (c / (c + 4))^(Z/2) exp(-shift^2 / (c + 4))."""
    return (c / (c + 4.0)) ** (latent / 2) * math.exp(-(shift**2) / (c + 4.0))


def test_it_is_the_closed_form_for_gaussians_and_grows_with_the_shift() -> None:
    latent, scale = 3, 0.7
    kernel = RBF(spread=1.0, scales=(scale,))
    c = 2 * latent * scale
    means = []
    for shift in (0.0, 0.5, 1.0, 2.0):
        move = torch.tensor([shift, 0.0, 0.0])
        values = torch.stack(
            [mmd2(torch.randn(64, latent) + move, torch.randn(64, latent), kernel) for _ in range(200)]
        )
        exact = 2 * (expected_rbf(0.0, latent, c) - expected_rbf(shift, latent, c))
        assert abs(float(values.mean()) - exact) < 3 * float(values.std()) / 200**0.5
        means.append(float(values.mean()))
    assert means == sorted(means)
    assert means[-1] > 0.1


def test_it_pulls_codes_towards_the_prior_and_survives_bfloat16() -> None:
    z = (torch.randn(64, 2) + 5.0).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mmd2(z, torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), IMQ)
    high = mmd2(z, torch.randn(64, 2, generator=torch.Generator().manual_seed(1)), IMQ)
    assert torch.equal(low, high)
    high.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert (z.grad.mean(0) > 0).all()
    assert z.grad.isfinite().all()


def test_the_penalty_in_the_objective_is_lambda_times_the_estimate() -> None:
    terms = {}
    for weight in (800.0, 400.0):
        config = tiny("model=wae_mmd", f"model.regularisers.mmd.weight={weight}")
        system, data = ready(config)
        torch.manual_seed(0)
        terms[weight] = system.objective(next(batches(config, data, 1)))  # type: ignore[operator]
    assert terms[800.0]["mmd"].item() == pytest.approx(2 * terms[400.0]["mmd"].item())
    assert torch.equal(terms[800.0]["reconstruction"], terms[400.0]["reconstruction"])


def test_codes_come_to_follow_the_prior() -> None:
    moments = {}
    for weight in (800.0, 0.0):
        config = tiny("model=wae_mmd", "train.batch_size=64", f"model.regularisers.mmd.weight={weight}")
        system, data = ready(config)
        for batch in batches(config, data, 150):
            system.iterate(batch)
        with at_rest(system):
            z = system.encode(data.test.all().x)  # type: ignore[operator]
        moments[weight] = float((z.std(0) - 1).abs().mean() + z.mean(0).abs().mean())
    assert moments[800.0] < 0.6
    assert moments[0.0] > 2 * moments[800.0]


def test_the_noise_is_truncated_has_its_scale_and_is_for_training_only() -> None:
    x = torch.zeros(200, 1, 8, 8)
    noise = TruncatedNoise(0.01)(x)
    assert float(noise.abs().max()) <= 0.02
    # Var of N(0, 1) within [-2, 2]: 1 - 2 * 2 phi(2) / (Phi(2) - Phi(-2)) = 0.7737.
    assert float(noise.var()) == pytest.approx(0.7737e-4, rel=0.03)
    assert not torch.equal(noise, TruncatedNoise(0.01)(x))
    config = tiny("model=wae_mmd", "model.corruption.scale=1.0", "model.net.critic_norm=none")
    system, data = ready(config)
    x = data.test.all(8).x
    assert torch.equal(system.encode(x), system.encode(x))  # type: ignore[operator]
    batch = data.test.all(8)
    passes = [system.forward_pass(batch) for _ in range(2)]  # type: ignore[operator]
    assert not torch.equal(passes[0].z, passes[1].z)
    assert torch.equal(passes[0].x, batch.signed), "compared with the clean image"


def test_the_rate_falls_by_one_ratio_to_its_end() -> None:
    factor = Exponential(0.01)
    assert factor(1, 100) == 1.0
    assert factor(51, 100) == pytest.approx(0.1)
    assert factor(101, 100) == factor(500, 100) == pytest.approx(0.01)


def test_one_code_has_no_pairs() -> None:
    config = tiny("model=wae_mmd", "train.batch_size=1", "model.net.critic_norm=none")
    system, data = ready(config)
    with pytest.raises(UserError, match=r"train\.batch_size"):
        system.objective(data.test.all(1))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.regularisers.mmd.weight=-1.0", r"mmd\.weight=-1"),
        ("model.regularisers.mmd.kernel.scales=[]", r"kernel\.scales"),
        ("model.regularisers.mmd.kernel.spread=0.0", r"kernel\.spread=0"),
        ("model.corruption.scale=-1.0", r"corruption\.scale=-1"),
        ("model.players.autoencoder.schedule.end=0.0", r"schedule\.end=0"),
    ],
)
def test_numbers_out_of_range_are_named(override: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ready(tiny("model=wae_mmd", override))
