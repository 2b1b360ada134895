"""The scripts that draw toy games: their numbers against closed forms."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import tiny
from scipy.integrate import quad
from test_contract import batches, ready


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def expected_about_a_saddle(way: str, slope: float, rate: float, rounds: int) -> list[list[float]]:
    """(u, v) of all rounds on u v + slope (u^2 - v^2), by the matrix of a round."""
    s, a = slope, rate
    one, field = torch.eye(2, dtype=torch.float64), torch.tensor([[2 * s, 1.0], [-1.0, 2 * s]], dtype=torch.float64)
    # Player u goes to u - a (v + 2 s u), and v to v + a (w - 2 s v) with w the u that it is shown.
    down, now = one[0] - a * field[0], one[0]
    shown = {"alternating": down, "prediction": 2 * down - now}.get(way, now)
    matrix = torch.stack((down, torch.tensor([0.0, 1 - 2 * a * s], dtype=torch.float64) + a * shown))
    if way == "extragradient":
        matrix = one - a * field @ (one - a * field)
    places = [torch.ones(2, dtype=torch.float64)]
    for _ in range(rounds):
        last, before = places[-1], places[-2] if len(places) > 1 else places[-1]
        places.append(last - 2 * a * field @ last + a * field @ before if way == "optimistic" else matrix @ last)
    return [place.tolist() for place in places]


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("way", ["simultaneous", "alternating", "prediction", "extragradient", "optimistic"])
def test_paths_about_a_saddle_are_powers_of_the_matrix_of_a_round(way: str, slope: float) -> None:
    saddle, a, rounds = script("saddle"), 0.1, 40
    value = saddle.SADDLES["uv" if slope == 0 else "uv + 0.1 (u^2 - v^2)"]
    places = saddle.path(value, way, a, rounds)
    expected = expected_about_a_saddle(way, slope, a, rounds)
    assert len(places) == rounds + 1
    for n in (0, 1, 2, rounds):
        assert places[n] == pytest.approx(expected[n], abs=1e-5), n
    squares = [u * u + v * v for u, v in places]
    if way == "extragradient" and slope == 0:
        assert squares[1] / squares[0] == pytest.approx(1 - a**2 + a**4, rel=1e-6)
        assert squares[rounds] / squares[0] == pytest.approx((1 - a**2 + a**4) ** rounds, rel=1e-4)
    assert (squares[rounds] > squares[0]) == (way == "simultaneous" and slope == 0)
    assert saddle.WAYS.keys() == saddle.COLOURS.keys()


def test_slopes_of_the_losses_are_their_closed_forms() -> None:
    losses = script("gan_losses")
    at = torch.tensor([-10.0, -1.0, 0.5, 4.0])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    slopes = {
        "minimax": lambda f: -sigmoid(f),
        "nonsaturating": lambda f: -sigmoid(-f),
        "maximum_likelihood": lambda f: -math.exp(f),
        "least_squares": lambda f: f - 1,
        "hinge": lambda f: -1.0,
        "wasserstein": lambda f: -1.0,
    }
    assert slopes.keys() == losses.LOSSES.keys()
    for name, slope in slopes.items():
        _, found = losses.costs(losses.LOSSES[name][0], at)
        assert found.tolist() == pytest.approx([slope(f) for f in at.tolist()], rel=1e-4), name


def test_the_norm_left_for_a_generator_is_that_of_its_own_turn() -> None:
    vanishing = script("vanishing")
    config = tiny("model=gan", "loss=minimax", "data=ring", "metrics=none")
    system, data = ready(config)
    for batch in batches(config, data, 3):
        system.iterate(batch)
    losses = vanishing.CRITICS["model=gan",]
    found = vanishing.norms(system, losses, seed=3)
    weights = list(system.nets["generator"].parameters())
    for p in weights:
        p.requires_grad_(True)
    x = system.generate(vanishing.SAMPLES, None, torch.Generator().manual_seed(3)).x
    chance = system.nets["critic"](x).sigmoid().double()
    for name, cost in (("minimax", (1 - chance).log().mean()), ("nonsaturating", -chance.log().mean())):
        grads = torch.autograd.grad(cost, weights, retain_graph=True)
        assert found[name] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in grads)), rel=1e-3)
    assert found["minimax"] != pytest.approx(found["nonsaturating"], rel=1e-3)


def divergence(distance: float) -> float:
    """JSD of N(0, 1) and N(distance, 1) in nats, by quadrature of its definition."""

    def density(x: float, mean: float) -> float:
        return math.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi)

    def at(x: float) -> float:
        p, q = density(x, 0), density(x, distance)
        return sum(0.5 * one * math.log(2 * one / (p + q)) for one in (p, q))

    return float(quad(at, -10, distance + 10, points=[0, distance / 2, distance], epsabs=1e-12, limit=200)[0])


def test_the_best_critic_of_two_gaussians_says_their_divergence_and_its_gradients() -> None:
    """Arjovsky and Bottou 2017 (arXiv 1701.04862): of the best critic, minimax gives the gradient of 2 JSD, the
    nonsaturating cost that of KL(q, p) - 2 JSD (theorem 2.5), and maximum likelihood that of KL(p, q)."""
    vanishing, step = script("vanishing"), 1e-3
    for distance in (0.5, 2.0, 5.0):
        found = vanishing.apart(distance)
        assert vanishing.best_logit(distance).tolist() == pytest.approx([-distance, distance**2 / 2], rel=1e-3)
        assert found["jensen_shannon"] == pytest.approx(divergence(distance), abs=1e-6)
        slope = (divergence(distance + step) - divergence(distance - step)) / (2 * step)
        assert found["gradient_minimax"] == pytest.approx(2 * slope, rel=2e-3)
        assert found["gradient_nonsaturating"] == pytest.approx(distance - 2 * slope, rel=2e-3)
        assert found["gradient_maximum_likelihood"] == pytest.approx(distance, rel=2e-3)
        assert (found["wasserstein"], found["gradient_wasserstein"]) == pytest.approx((distance, 1.0))
    far = vanishing.apart(vanishing.DISTANCES[-1])
    assert 0.99 < far["jensen_shannon"] / math.log(2) < 1.0
    assert far["gradient_minimax"] < 0.05 < far["gradient_wasserstein"]
