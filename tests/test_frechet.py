"""The Fréchet distance against closed forms and 50 digits, and what is reported beside it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation import gaussian
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.gaussian import Gaussian, frechet


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def of_spectrum(spectrum: Tensor, turned: Tensor, mean: float = 0.0) -> Gaussian:
    dim = len(spectrum)
    return Gaussian(
        torch.full((dim,), mean, dtype=torch.float64), turned @ torch.diag(spectrum.double()) @ turned.T, 10 * dim
    )


def by_mpmath(real: Gaussian, fake: Gaussian) -> float:
    """The formula as it is printed, with the eigenvalues of the product itself, in 60 digits."""
    with mpmath.workdps(60):
        r, f = (mpmath.matrix(g.covariance.tolist()) for g in (real, fake))
        roots = sum(mpmath.sqrt(abs(value)) for value in mpmath.eig(r * f, left=False, right=False))
        traces = sum(r[i, i] + f[i, i] for i in range(r.rows))
        shift = sum(
            (mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(real.mean.tolist(), fake.mean.tolist(), strict=True)
        )
        return float(shift + traces - 2 * roots)


# The distance


def test_gaussians_that_commute_have_the_closed_form() -> None:
    s, t = torch.linspace(0.5, 3, 12).double(), torch.linspace(2, 0.01, 12).double()
    expected = 12 * 0.7**2 + float((s - t).square().sum())
    for turned in (torch.eye(12).double(), rotation(12, 3)):
        real, fake = of_spectrum(s.square(), turned), of_spectrum(t.square(), turned, mean=0.7)
        assert frechet(real, fake) == pytest.approx(expected, rel=1e-12)
        assert frechet(fake, real) == pytest.approx(expected, rel=1e-12)


def test_correlated_features_have_the_distance_of_a_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(300, 20, seed=1) @ normal(20, 20, seed=2), normal(200, 20, seed=3) + 0.3
    real, fake = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = np.square(x.mean(0).numpy() - y.mean(0).numpy()).sum()
    expected = shift + np.trace(real + fake - 2 * linalg.sqrtm(real @ fake).real)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("decades", [2, 8, 14])
def test_nearly_singular_covariances_keep_their_digits(decades: int) -> None:
    # Far smaller than 1e-8 of the largest, an eigenvalue's square is below the rounding of the product.
    spectrum = torch.logspace(0, -decades, 8).double()
    real, fake = of_spectrum(spectrum, rotation(8, 1)), of_spectrum(spectrum, rotation(8, 2), mean=1e-3)
    assert frechet(real, fake) == pytest.approx(by_mpmath(real, fake), rel=1e-8)
    near = of_spectrum(spectrum * 1.001, rotation(8, 1))
    assert frechet(real, near) == pytest.approx(by_mpmath(real, near), rel=1e-6)


@pytest.mark.parametrize("seed", [1, 10, 168])
def test_features_that_hardly_move_keep_their_digits(seed: int) -> None:
    # By plain eigenvalues these three are wrong by 0.01 % and more: each feature varies less than the next.
    scale = torch.logspace(-6, 0, 12).double()
    x, y = normal(1200, 12, seed=seed) * scale, normal(1200, 12, seed=seed + 1000) * scale
    real, fake = Gaussian.of(x), Gaussian.of(y)
    assert frechet(real, fake) == pytest.approx(by_mpmath(real, fake), rel=1e-6)
    assert frechet(real, fake, rtol=1.0) == pytest.approx(frechet(real, fake), rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(4, 60), (60, 4), (4, 5), (5, 4)])
def test_fewer_samples_than_features(n: int, m: int) -> None:
    x, y = normal(n, 6, seed=1) + 0.5, normal(m, 6, seed=2) * 2
    real, fake = (Gaussian(s.mean(0), s.T.cov(), len(s)) for s in (x, y))
    assert frechet_distance(x, y) == pytest.approx(by_mpmath(real, fake), rel=1e-7)
    # A covariance alone, which does not say how few its samples were, gives the same.
    unknown = (Gaussian(g.mean, g.covariance, 100) for g in (real, fake))
    assert frechet(*unknown) == pytest.approx(frechet_distance(x, y), rel=1e-7)


def test_features_that_never_move() -> None:
    x, y = (torch.cat([normal(50, 3, seed=seed), torch.zeros(50, 4)], dim=1) for seed in (1, 2))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x[:, :3], y[:, :3]), rel=1e-9)
    still = torch.full((50, 7), 0.25)
    assert frechet_distance(still, still) == 0.0
    assert frechet_distance(x, still) == pytest.approx(
        float(x.T.cov().trace() + (x.mean(0) - 0.25).square().sum()), rel=1e-9
    )


@pytest.mark.parametrize("shape", [(500, 16), (9, 16), (17, 16), (16, 16), (2, 1)])
def test_a_set_has_no_distance_from_itself(shape: tuple[int, int]) -> None:
    for scale in (1e-3, 1.0, 10.0):
        x = (normal(*shape, seed=4) @ normal(shape[1], shape[1], seed=5) * scale + 3).float()
        for other in (x, x.flip(0)):
            assert 0.0 <= frechet_distance(x, other) < 1e-6


def test_a_gaussian_is_fitted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "BLOCK", 7)
    for count in (50, 5):
        x = (normal(count, 6, seed=1) * 2).float() + 1e4  # sums of squares about 0 would lose it
        found = Gaussian.of(x)
        assert (found.count, found.covariance.dtype) == (count, torch.float64)
        np.testing.assert_allclose(found.mean.numpy(), x.double().numpy().mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-10)
        assert found.factor.shape == (6, min(count, 6))
        np.testing.assert_allclose((found.factor @ found.factor.T).numpy(), found.covariance.numpy(), atol=1e-12)


def test_the_factor_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fakes = Gaussian.of(normal(50, 6)), [Gaussian.of(normal(50, 6, seed=seed)) for seed in (1, 2)]
    calls = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: calls.append(1) or cholesky(matrix))
    for fake in fakes:
        frechet(real, fake)
    assert calls == [1]
    assert frechet(Gaussian.of(normal(50, 6)), Gaussian.of(normal(4, 6))) > 0
    assert calls == [1]  # four samples are their own factor


def test_what_has_no_distance_is_refused() -> None:
    x = normal(50, 4)
    with pytest.raises(ValueError, match="of 4 and of 3 features"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(UserError, match="1 samples: a covariance needs at least 2"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match=r"\[N D\]"):
        Gaussian.of(x[0])
    with pytest.raises(ValueError, match="float64"):
        Gaussian(torch.zeros(4), torch.eye(4), 9)
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        Gaussian(torch.zeros(4).double(), torch.zeros(4, 3).double(), 9)
    with pytest.raises(UserError, match="covariance of the features is nan or inf"):
        frechet_distance(x, x * 1e200)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="features of 1 of 50 samples"):
            frechet_distance(x, x.index_fill(0, torch.tensor([3]), bad))
