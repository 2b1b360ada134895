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
from test_contract import batches, ready


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("turns", ["simultaneous", "alternating", "prediction"])
def test_paths_about_a_saddle_are_powers_of_the_matrix_of_a_round(turns: str, slope: float) -> None:
    saddle, a, rounds = script("saddle"), 0.1, 40
    value = saddle.SADDLES["uv" if slope == 0 else "uv + 0.1 (u^2 - v^2)"]
    # u goes to u - a (v + 2 s u), and v to v + a (w - 2 s v) with w the u that it is shown.
    down = torch.tensor([1 - 2 * a * slope, -a], dtype=torch.float64)
    now = torch.tensor([1.0, 0.0], dtype=torch.float64)
    shown = {"simultaneous": now, "alternating": down, "prediction": 2 * down - now}[turns]
    up = torch.tensor([0.0, 1 - 2 * a * slope], dtype=torch.float64) + a * shown
    matrix = torch.stack((down, up))
    places = saddle.path(value, saddle.TURNS[turns](), a, rounds)
    assert len(places) == rounds + 1
    start = torch.ones(2, dtype=torch.float64)
    for n in (0, 1, 2, rounds):
        expected = torch.linalg.matrix_power(matrix, n) @ start
        assert places[n] == pytest.approx(expected.tolist(), abs=1e-5), n
    if turns == "prediction" and slope == 0:
        assert float(torch.linalg.det(matrix)) == pytest.approx(1 - a * a)


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
