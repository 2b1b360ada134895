"""Spectral normalisation: singular values at 1, eval mode moves nothing, one estimate a turn, averages, penalties."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from conftest import tiny
from test_contract import batches, differences, ready, shown
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from gentrain.families import adversarial
from gentrain.nets.critic import one_estimate, spectral_norm
from gentrain.objectives.penalties import gradient_norms, gradient_penalty


def divided(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if parametrize.is_parametrized(layer)]


def largest(layer: nn.Module) -> float:
    """The largest singular value of the weight in eval mode, as torch reshapes it."""
    layer.eval()
    weight = layer.weight.detach()
    layer.train()
    matrix = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
    return float(torch.linalg.matrix_norm(matrix.flatten(1), ord=2))


@pytest.mark.parametrize("model", ["dcgan", "cgan"])
def test_singular_values_stay_at_one_and_eval_mode_moves_nothing(model: str) -> None:
    words = ("+model.spectral=[critic,generator]", "model.net.depth=2")
    config = tiny(f"model={model}", *words, *(["model.labels.critic=projection"] if model == "cgan" else []))
    system, data = ready(config)
    for batch in batches(config, data, 50):
        system.iterate(batch)
    layers = [*divided(system.nets["critic"]), *divided(system.nets["generator"])]
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
    assert len(layers) == sum(isinstance(layer, kinds) for layer in system.nets.modules()) > 5
    assert all(0.9 < largest(layer) <= 1.05 for layer in layers), [largest(layer) for layer in layers]

    assert system.average is not None
    average = system.average.nets["generator"]
    assert all(0.8 < largest(layer) < 1.2 for layer in divided(average))
    for key, value in system.nets["generator"].state_dict().items():
        if "_u" in key or "_v" in key:
            assert torch.equal(average.state_dict()[key], value), key
    before = copy.deepcopy(system.nets.state_dict())
    for weights in ("ema", "raw"):
        assert torch.isfinite(shown(system, 4, seed=0, weights=weights)).all()
    assert differences(dict(before), dict(system.nets.state_dict())) == []


def test_a_pass_in_training_mode_moves_the_estimate_and_one_in_eval_mode_does_not() -> None:
    net = spectral_norm(nn.Sequential(nn.Linear(20, 30)))
    nn.init.normal_(net[0].parametrizations.weight.original)  # type: ignore[index, union-attr]
    x = torch.randn(2, 20)
    for training in (False, True):
        before = copy.deepcopy(net.state_dict())
        net.train(training)(x)
        assert bool(differences(dict(before), dict(net.state_dict()))) == training


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each step of a power iteration: whether autocast was on."""
    found: list[bool] = []
    original = _SpectralNorm._power_method

    def spy(self: Any, matrix: Tensor, count: int) -> None:
        found.append(torch.is_autocast_enabled("cpu"))
        original(self, matrix, count)

    monkeypatch.setattr(_SpectralNorm, "_power_method", spy)
    return found


PENALISED = ("model=dcgan", "model/penalty=[spectral,gradient,r1,consistency]")


def test_each_player_makes_one_step_of_the_power_iteration_in_a_turn(
    steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real and generated samples, both penalties and the consistency term see one critic."""
    import contextlib

    for wrong in (False, True):
        if wrong:
            monkeypatch.setattr(adversarial, "one_estimate", contextlib.nullcontext)
        config = tiny(*PENALISED)
        system, data = ready(config)
        layers = len(divided(system.nets["critic"]))
        batch = next(batches(config, data, 1))
        steps.clear()
        system.iterate(batch)
        assert len(steps) == (6 * layers if wrong else 2 * layers)  # real, fake, two slopes, consistency; generator


def test_weights_are_divided_in_float32_under_autocast(steps: list[bool]) -> None:
    net = spectral_norm(nn.Sequential(nn.Linear(4, 4)))
    steps.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(torch.randn(2, 4)).dtype == torch.bfloat16
    assert steps == [False]


def test_what_weight_normalisation_made_is_divided(steps: list[bool]) -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(7.0)
    net = spectral_norm(nn.Sequential(layer))
    for _ in range(100):
        net(torch.zeros(1, 6))
    steps.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.zeros(1, 6))
    assert steps == [False]
    assert largest(layer) == pytest.approx(1.0, abs=1e-4)


def test_a_slope_beside_it_is_that_of_the_divided_weight() -> None:
    """A linear critic's slope is 1 by its own division, and a penalty on it has nothing to move."""
    critic = spectral_norm(nn.Sequential(nn.Flatten(), nn.Linear(12, 1)))
    raw = critic[1].parametrizations.weight.original  # type: ignore[index, union-attr]
    x = torch.randn(5, 3, 2, 2)
    for inside in (False, True):
        with one_estimate() if inside else torch.enable_grad():
            critic(x)
            torch.testing.assert_close(gradient_norms(critic, x), torch.ones(5), rtol=1e-4, atol=1e-4)
            penalty = gradient_penalty(critic, x, torch.randn(5, 3, 2, 2), target=0.0)
        (slope,) = torch.autograd.grad(penalty, raw)
        assert float(slope.norm()) < 1e-4
    plain = nn.Linear(12, 1)
    (slope,) = torch.autograd.grad(gradient_penalty(plain, x.flatten(1), x.flatten(1), target=0.0), plain.weight)
    assert float(slope.norm()) > 0.1


def test_the_gradients_are_those_without_a_cache() -> None:
    """With estimates that have converged, so that further steps change nothing."""
    got = []
    for inside in (True, False):
        torch.manual_seed(0)
        net = spectral_norm(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)))
        for _ in range(300):
            net(torch.zeros(1, 6))
        real, fake = torch.randn(4, 6), torch.randn(4, 6)
        with one_estimate() if inside else torch.enable_grad():
            loss = net(fake).mean() - net(real).mean() + gradient_penalty(net, real, real)
        loss.backward()
        got.append([p.grad for p in net.parameters()])
    for one, other in zip(*got, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def estimates_after_a_turn(parts: int, model: str) -> dict[str, Tensor]:
    """The vectors of power iteration behind the first iteration, whose batch is cut into ``parts``."""
    config = tiny(f"model={model}", "+model.spectral=[critic,generator]", "+model.players.generator.every=2")
    system, data = ready(config)
    system.accumulate = parts
    torch.manual_seed(0)
    system.iterate(next(batches(config, data, 1)))
    return {key: value for key, value in system.nets.state_dict().items() if key.endswith(("_u", "_v"))}


def test_a_turn_in_several_parts_makes_one_step_of_power_iteration() -> None:
    """The weights do not move in the first turn, so the estimates do not depend on how the batch is cut."""
    whole, cut = (estimates_after_a_turn(parts, "dcgan") for parts in (1, 3))
    assert len(whole) >= 8
    assert differences(dict(whole), dict(cut)) == []
    with pytest.MonkeyPatch.context() as patch:  # the wrong version: one step for each part
        patch.setattr(adversarial.Adversarial, "further_part", lambda self: contextlib.nullcontext())
        assert len(differences(dict(whole), dict(estimates_after_a_turn(3, "dcgan")))) >= 4
    config = tiny("model=dcgan", "+model.spectral=[critic]")
    system, _ = ready(config)
    with system.further_part():
        assert not any(layer.training for layer in system.nets.modules() if isinstance(layer, _SpectralNorm))
    assert all(layer.training for layer in system.nets.modules())
