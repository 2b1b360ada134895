"""Turns: prediction moves what the others see and nothing else; one backward pass with a reversal layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import batches, differences, ready
from test_engine import Saddle, nothing, values
from torch import Tensor, nn

from gentrain.engine import checkpoint
from gentrain.engine.player import Seat
from gentrain.engine.state import rng_state, set_rng_state
from gentrain.engine.system import System
from gentrain.engine.turns import Alternating, Extragradient, Prediction, Simultaneous, Turns, Work
from gentrain.errors import UserError
from gentrain.types import to_signed

GAN = ("model=dcgan", "turns=prediction", "+model.players.generator.every=2")


def norm_after(turns: Turns, rate: float, rounds: int = 2000) -> float:
    system = Saddle(turns, lr=rate)
    system.prepare(total=rounds)
    for _ in range(rounds):
        system.iterate(nothing())
    return float(torch.tensor(values(system)).norm())


def test_on_the_bilinear_saddle_prediction_converges_where_alternating_steps_circle() -> None:
    assert norm_after(Alternating(), 0.1) == pytest.approx(1.37, abs=0.01)
    assert norm_after(Prediction(ahead="down"), 0.1) < 1e-4
    assert norm_after(Prediction(ahead="down"), 0.3, rounds=300) < 1e-5
    assert norm_after(Simultaneous(), 0.1, rounds=300) > 4.0


def test_the_extragradient_factor_on_the_bilinear_saddle_is_its_closed_form() -> None:
    for rate in (0.1, 0.5):
        after = norm_after(Extragradient(), rate, rounds=50)
        assert after == pytest.approx(2**0.5 * (1 - rate**2 + rate**4) ** 25, rel=1e-4)
    assert norm_after(Extragradient(), 0.5, rounds=200) < 1e-5 < norm_after(Alternating(), 0.5, rounds=200)


class SavesTooLate:
    """The wrong version: the weights are kept behind the step, so that the difference is zero."""

    true_weights = False

    def __init__(self) -> None:
        self.inner = Prediction()

    def begin(self, seats: Sequence[Seat]) -> None:
        self.inner.begin(seats)

    def __call__(self, seats: Sequence[Seat], gradients: Work, step: Work) -> None:
        def late(seat: Seat) -> None:
            step(seat)
            if seat.player.name == self.inner.ahead:
                self.inner._before = [p.detach().clone() for p in seat.parameters]

        self.inner(seats, gradients, late)


def check_what_each_player_sees(turns: Turns | None) -> None:
    """Against a history of the generator's weights: the critic sees w_k + (w_k - w_(k-1)), the generator w_k."""
    config = tiny(*GAN)
    system, data = ready(config)
    if turns is not None:
        del system.turns  # a module gives way to nothing but a module
        system.turns = turns
        turns.begin(system.seats)
    net = system.nets["generator"]

    def weights() -> list[Tensor]:
        return [p.detach().clone() for p in net.parameters()]

    history, seen = [weights()], []
    gradients, step = system._gradients, system._step

    def looking(seat: Seat, *rest: Any) -> None:
        seen.append(seat.player.name)
        last = history[-1]
        steps = [torch.zeros_like(w) for w in last] if len(history) < 2 else torch._foreach_sub(last, history[-2])
        here = torch._foreach_add(last, steps) if seat.player.name == "critic" else last
        assert all(torch.equal(a, b) for a, b in zip(weights(), here, strict=True)), seat.player.name
        if seat.player.name == "critic" and len(history) > 1:
            assert all(bool(step.abs().max() > 0) for step in steps)
            assert not any(torch.equal(a, b) for a, b in zip(weights(), last, strict=True))
        gradients(seat, *rest)

    def stepping(seat: Seat, iteration: int) -> None:
        assert all(torch.equal(a, b) for a, b in zip(weights(), history[-1], strict=True)), "a step from elsewhere"
        step(seat, iteration)
        if seat.player.name == "generator":
            history.append(weights())

    system._gradients, system._step = looking, stepping  # type: ignore[method-assign, assignment]
    for batch in batches(config, data, 7):
        system.iterate(batch)
        live = [p.detach() for p in net.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(live, history[-1], strict=True))
    assert seen.count("critic") == 7
    assert len(history) == 4


def test_the_critic_sees_the_generator_ahead_by_exactly_its_last_step() -> None:
    check_what_each_player_sees(None)
    with pytest.raises(AssertionError, match="critic"):
        check_what_each_player_sees(SavesTooLate())
    with pytest.raises(AssertionError, match="critic"):
        check_what_each_player_sees(Alternating())


def test_buffers_averages_and_checkpoints_are_of_the_true_weights() -> None:
    config = tiny(*GAN, "model.ema.decay=0.0")
    system, data = ready(config)
    net = system.nets["generator"]
    for batch in batches(config, data, 6):
        iteration = system.clock.iteration + 1
        statistics = [b.clone() for b in net.buffers()]
        system.iterate(batch)
        moved = [not torch.equal(a, b) for a, b in zip(statistics, net.buffers(), strict=True)]
        # The first critic turn is not predicted, and passes as it does elsewhere.
        assert all(moved) if iteration % 2 == 0 or iteration == 1 else not any(moved)
        if iteration % 2 == 0:
            assert system.average is not None
            assert differences(dict(system.average.nets["generator"].state_dict()), dict(net.state_dict())) == []


def test_weights_and_statistics_are_put_back_when_the_turn_ends_in_an_error() -> None:
    config = tiny(*GAN)
    system, data = ready(config)
    for batch in batches(config, data, 3):
        system.iterate(batch)
    before = {name: value.clone() for name, value in system.nets["generator"].state_dict().items()}
    seen = []

    def broken(seat: Seat, *rest: Any) -> None:
        system.generate(4)  # type: ignore[operator]
        seen.append({name: value.clone() for name, value in system.nets["generator"].state_dict().items()})
        raise ZeroDivisionError

    system._gradients = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        system.iterate(next(batches(config, data, 1)))
    assert len(differences(before, seen[0])) == len(before), "weights and statistics are others in the critic's turn"
    assert differences(before, dict(system.nets["generator"].state_dict())) == []


def test_a_run_goes_on_bit_for_bit_between_two_of_the_generators_steps(tmp_path: Path) -> None:
    config = tiny(*GAN)
    straight, data = ready(config)
    path = tmp_path / checkpoint.file_name(5)
    for i, batch in enumerate(batches(config, data, 9), start=1):
        straight.iterate(batch)
        if i == 5:
            checkpoint.save({"system": straight.state()}, path)
            noise = rng_state()

    def resumed(state: dict[str, Any]) -> System:
        system, _ = ready(config, seed=99)
        system.restore(state)
        set_rng_state(noise)
        for batch in batches(config, data, 4, start=5):
            system.iterate(batch)
        return system

    assert differences(straight.state(), resumed(checkpoint.load(path)["system"]).state()) == []
    forgetful = checkpoint.load(path)["system"]
    assert len(forgetful["rules"]["turns._extra_state"]["before"]) > 0
    forgetful["rules"]["turns._extra_state"] = {"before": []}
    assert differences(straight.state()["nets"], resumed(forgetful).state()["nets"])


def test_a_gan_that_keeps_its_fakes_moves_its_generator_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the algorithm written out: critic on samples of the predicted generator, generator at true weights."""
    config = tiny("model=dcgan", "turns=prediction", "model.ema=null")
    assert config["model"]["fresh_noise"] is False
    system, data = ready(config)
    other, _ = ready(config)
    generator, critic, softplus = other.nets["generator"], other.nets["critic"], nn.functional.softplus
    torch.manual_seed(5)
    for batch in batches(config, data, 4):
        system.iterate(batch)

    torch.manual_seed(5)
    before: list[Tensor] | None = None
    for batch in batches(config, data, 4):
        now = {name: value.clone() for name, value in generator.state_dict().items()}
        if before is not None:
            with torch.no_grad():
                for p, u in zip(generator.parameters(), before, strict=True):
                    p.add_(p - u)
        real = to_signed(batch.x).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            fake = generator(torch.randn(len(batch), other.latent))
        if before is not None:
            generator.load_state_dict(now)
        other.optimizers_by_name["critic"].zero_grad()
        (softplus(-critic(real)).mean() + softplus(critic(fake)).mean()).backward()
        other.optimizers_by_name["critic"].step()
        before = [p.detach().clone() for p in generator.parameters()]
        other.optimizers_by_name["generator"].zero_grad()
        softplus(-critic(generator(torch.randn(len(batch), other.latent)))).mean().backward()
        other.optimizers_by_name["generator"].step()
    assert differences(system.state()["nets"], other.state()["nets"]) == []

    # Samples kept from the critic's turn would be those of weights that the generator no longer has.
    monkeypatch.setattr(Prediction, "true_weights", True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        system.iterate(next(batches(config, data, 1)))


def test_a_gan_goes_by_the_gradients_a_step_ahead_and_from_where_it_was() -> None:
    """Against the algorithm written out: Adam for the look and for the step, statistics of batch norm from the first
    pass, one batch and fresh noise in both."""
    config = tiny("model=dcgan", "turns=extragradient", "model.ema=null", "model.fresh_noise=true")
    system, data = ready(config)
    other, _ = ready(config)
    generator, critic, softplus = other.nets["generator"], other.nets["critic"], nn.functional.softplus
    torch.manual_seed(5)
    for batch in batches(config, data, 3):
        system.iterate(batch)

    def gradients(real: Tensor) -> None:
        with torch.no_grad():
            fake = generator(torch.randn(len(real), other.latent))
        for loss_of, name in (
            (lambda: softplus(-critic(real)).mean() + softplus(critic(fake)).mean(), "critic"),
            (lambda: softplus(-critic(generator(torch.randn(len(real), other.latent)))).mean(), "generator"),
        ):
            own = list(other.nets[name].parameters())
            for p, g in zip(own, torch.autograd.grad(loss_of(), own), strict=True):
                p.grad = g

    torch.manual_seed(5)
    other.nets.requires_grad_(True)
    for batch in batches(config, data, 3):
        real = to_signed(batch.x).contiguous(memory_format=torch.channels_last)
        gradients(real)
        here = {name: value.clone() for name, value in other.nets.state_dict().items()}
        for optimizer in other.optimizers_by_name.values():
            optimizer.step()
        gradients(real)
        other.nets.load_state_dict(here)
        for optimizer in other.optimizers_by_name.values():
            optimizer.step()
    assert differences(system.state()["nets"], other.state()["nets"]) == []
    assert system.optimizers_by_name["critic"].state_dict()["state"][0]["step"] == 6


def test_weights_are_put_back_when_the_second_look_ends_in_an_error() -> None:
    system, data = ready(config := tiny("model=dcgan", "turns=extragradient"))
    before = {name: value.clone() for name, value in system.nets.named_parameters()}
    gradients, calls = system._gradients, []

    def broken(seat: Seat, *rest: Any) -> None:
        calls.append(seat.player.name)
        if len(calls) > 2:
            assert differences(before, dict(system.nets.named_parameters()))
            raise ZeroDivisionError
        gradients(seat, *rest)

    system._gradients = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        system.iterate(next(batches(config, data, 1)))
    assert differences(before, dict(system.nets.named_parameters())) == []


def test_a_run_of_extragradient_steps_goes_on_bit_for_bit(tmp_path: Path) -> None:
    config = tiny("model=wgan_gp", "turns=extragradient", "model.players.generator.every=2")
    straight, data = ready(config)
    for i, batch in enumerate(batches(config, data, 6), start=1):
        straight.iterate(batch)
        if i == 3:
            checkpoint.save({"system": straight.state()}, path := tmp_path / checkpoint.file_name(3))
            noise = rng_state()
    resumed, _ = ready(config, seed=99)
    resumed.restore(checkpoint.load(path)["system"])
    set_rng_state(noise)
    for batch in batches(config, data, 3, start=3):
        resumed.iterate(batch)
    assert differences(straight.state(), resumed.state()) == []


@pytest.mark.parametrize("model", ["wgan_gp", "wgan", "cgan"])
@pytest.mark.parametrize("turns", ["prediction", "extragradient"])
def test_every_gan_plays_so(model: str, turns: str) -> None:
    config = tiny(f"model={model}", f"turns={turns}")
    system, data = ready(config)
    other, _ = ready(tiny(f"model={model}"))
    for one in (system, other):
        torch.manual_seed(0)
        for batch in batches(config, data, 6):
            one.iterate(batch)
    assert all(bool(torch.isfinite(p).all()) for p in system.nets.parameters())
    assert differences(system.state()["nets"], other.state()["nets"])


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (("model=dcgan", "turns.ahead=critics"), "turns.ahead=critics: no such player; this system has critic, gen"),
        (("model=vae", "turns.ahead=autoencoder"), "nobody plays against the autoencoder"),
    ],
)
def test_who_cannot_be_predicted_is_refused_in_one_line(run: Run, chosen: tuple[str, ...], said: str) -> None:
    outcome = run("check", *words(chosen[0], "turns=prediction", *chosen[1:]))
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_players_that_share_an_optimiser_are_refused_a_look_together() -> None:
    for turns in (Simultaneous(), Extragradient()):
        system = Saddle(turns)
        system.prepare(total=1)
        system.seats[1].optimizer = system.seats[0].optimizer
        with pytest.raises(UserError, match="two of down, up share an optimiser; use turns=alternating"):
            system.iterate(nothing())


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


@pytest.mark.parametrize(("loss", "same"), [("minimax", True), ("nonsaturating", False)])
def test_gradient_reversal_is_the_minimax_game_with_simultaneous_steps(loss: str, same: bool) -> None:
    config = tiny("model=dcgan", f"loss={loss}", "turns=simultaneous", "model.ema=null")
    system, data = ready(config)
    other, _ = ready(config)
    batch = next(batches(config, data, 1)).to("cpu", channels_last=True)
    torch.manual_seed(5)
    system.turns(system.seats, lambda seat: system._gradients(seat, [batch], 1), lambda seat: None)

    torch.manual_seed(5)
    other.nets.requires_grad_(True)
    generator, critic, softplus = other.nets["generator"], other.nets["critic"], nn.functional.softplus
    fake = Reversed.apply(generator(torch.randn(len(batch), other.latent)))
    (softplus(-critic(batch.signed)).mean() + softplus(critic(fake)).mean()).backward()
    mine, theirs = ({name: p.grad for name, p in s.nets.named_parameters()} for s in (system, other))
    close = {name: torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-7) for name in mine}
    assert all(close[name] for name in close if name.startswith("critic"))
    assert all(close[name] for name in close if name.startswith("generator")) == same
    assert all(bool(g.abs().max() > 0) for g in theirs.values())
