"""Scores of what comes back from a code: errors by hand, distances against the very same images, and refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import Run, words
from torch import Tensor, nn

from gentrain.data.dataset import DataSet
from gentrain.data.sources import digits, ring
from gentrain.errors import UserError
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.gaussian import frechet_distance
from gentrain.evaluation.protocol import evaluate
from gentrain.evaluation.reconstruction import ReconstructionDistance, ReconstructionError
from gentrain.evaluation.subject import Subject
from gentrain.types import to_signed


class Shift(nn.Module):
    """Gives back every pixel brighter by so many levels, clipped at 255."""

    def __init__(self, levels: float = 0.0) -> None:
        super().__init__()
        self.levels = levels

    def encode(self, x: Tensor) -> Tensor:
        return to_signed(x).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        x = z + self.levels / 127.5
        return x.unflatten(1, (1, 8, 8)) if z.shape[1] == 64 else x


def measured(metric: object, system: nn.Module, data: DataSet, limit: int | None = None) -> dict[str, float]:
    subject = Subject(data, system, lambda n: torch.zeros(n, *data.spec.shape), n=0, limit=limit)
    return evaluate({"m": metric}, subject, "raw").scores  # type: ignore[dict-item]


def test_the_error_is_the_mean_square_per_pixel_in_0_to_1() -> None:
    data = digits()
    x = data.test.all().x.double()
    found = measured(ReconstructionError(batch=100), Shift(10.0), data)
    error = (((x + 10).clamp(max=255) - x) / 255).square().mean()
    assert found["reconstruction_mse"] == pytest.approx(float(error), rel=1e-9)
    assert found["reconstruction_psnr"] == pytest.approx(-10 * math.log10(error), rel=1e-9)
    assert measured(ReconstructionError(batch=7), Shift(10.0), data) == pytest.approx(found, rel=1e-12)
    few = measured(ReconstructionError(), Shift(10.0), data, limit=20)
    assert few["reconstruction_mse"] != found["reconstruction_mse"]
    whole = measured(ReconstructionError(), Shift(), data)
    assert whole == {"reconstruction_mse": 0.0, "reconstruction_psnr": 100.0}


def test_vectors_are_compared_as_they_are() -> None:
    data = ring(train_size=50, test_size=40)
    assert measured(ReconstructionError(), Shift(127.5), data) == {"reconstruction_mse": pytest.approx(1.0, rel=1e-6)}


def test_the_distance_is_that_of_the_same_images_and_0_for_a_perfect_copy() -> None:
    data = digits()
    assert measured(ReconstructionDistance(Domain()), Shift(), data) == {
        "fd_domain_reconstructed": pytest.approx(0.0, abs=1e-6)
    }
    x = data.test.all().x
    brighter = (x.int() + 60).clamp(max=255).byte()
    features = Domain().load(data, "cpu")
    expected = frechet_distance(features(x).features, features(brighter).features)
    found = measured(ReconstructionDistance(Domain(), batch=77), Shift(60.0), data)
    assert found["fd_domain_reconstructed"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0.5


def test_what_is_not_finite_or_too_few_is_one_line() -> None:
    data = digits()
    with pytest.raises(UserError, match="not finite"):
        measured(ReconstructionError(), Shift(math.nan), data)
    with pytest.raises(UserError, match="needs more than 32"):
        ReconstructionDistance(Domain(), limit=20).check(data)
    with pytest.raises(UserError, match="batch=0"):
        ReconstructionError(batch=0)
    with pytest.raises(UserError, match="limit=0"):
        ReconstructionDistance(Domain(), limit=0)


@pytest.mark.parametrize(("model", "metrics"), [("ae", "codes"), ("vae", "domain_codes"), ("gmvae", "domain_codes")])
def test_codes_are_scored_at_the_end(model: str, metrics: str, run: Run) -> None:
    assert run(*words(f"model={model}", f"metrics={metrics}", "name=run")).code == 0
    found = json.loads(run("evaluate", "run=outputs/run", "--json").out)["scores"]
    assert {"reconstruction_mse", "fd_domain_reconstructed", "cluster_accuracy", "cluster_nmi_pixels"} <= found.keys()
    assert ("fd_domain" in found) == (metrics == "domain_codes")
