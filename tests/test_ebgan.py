"""Critics that are autoencoders: EBGAN's losses and pull-away term, BEGAN's balance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, tiny, words
from torch import Tensor, nn

from gentrain.config import Node, build
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.models.began import EluConvolutions, Equilibrium
from gentrain.models.ebgan import PullAway, energy, pull_away
from gentrain.nets.energy import Autoencoding, EnergyCritic
from gentrain.nets.mlp import MLP
from gentrain.types import Images, Spec


def ready(*overrides: str) -> tuple[System, Images]:
    config: Node = tiny(*overrides)
    check_config(config)
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=100)
    return system, data.train.take(torch.arange(16))


class Shift(nn.Module):
    """Rebuilds x as ``scale`` x: its energy is (1 - scale)^2 mean x^2."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


# The critic


@pytest.mark.parametrize(("power", "energy_of"), [(2, lambda x: x.square()), (1, lambda x: x.abs())])
def test_the_score_is_minus_the_mean_error_and_the_features_are_the_code(
    power: int, energy_of: Callable[[Tensor], Tensor]
) -> None:
    critic = EnergyCritic(nn.Identity(), Shift(0.25), power=power)
    x = torch.randn(5, 1, 3, 3)
    verdict = critic.judge(x)
    torch.testing.assert_close(verdict.score, -energy_of(0.75 * x).flatten(1).mean(1, keepdim=True))
    torch.testing.assert_close(critic(x), verdict.score)
    assert torch.equal(verdict.features, x)


def test_a_samples_gradient_comes_through_what_is_rebuilt_and_what_it_is_held_against() -> None:
    """E = ((1 - s) x)^2: the gradient is 2 (1 - s)^2 x. Held against a copy without gradient it would be -2 s (1 - s) x
    (the mistake of a port)."""
    x = torch.tensor([[2.0]], requires_grad=True)
    (both,) = torch.autograd.grad(-EnergyCritic(nn.Identity(), Shift(0.25), power=2)(x).sum(), x)
    assert both.item() == pytest.approx(2 * 0.75**2 * 2.0)
    (half,) = torch.autograd.grad((0.25 * x - x.detach()).square().sum(), x)
    assert half.item() == pytest.approx(-2 * 0.25 * 0.75 * 2.0)
    assert both.item() * half.item() < 0  # it even has the other sign


# EBGAN


def test_the_losses_are_the_papers() -> None:
    loss = energy(2.0)
    e_real, e_fake = torch.tensor([[0.5], [1.5]]), torch.tensor([[1.0], [3.0]])
    critic = loss.critic(-e_real, -e_fake)
    assert critic["real"].item() == 1.0
    assert critic["fake"].item() == 0.5  # (2 - 1) and 0
    assert loss.generator(-e_fake)["adversarial"].item() == 2.0


def test_a_sample_beyond_the_margin_does_not_train_the_critic() -> None:
    critic = EnergyCritic(nn.Identity(), Shift(0.0), power=2)
    for margin, moves in ((3.9, False), (4.1, True)):  # the sample's energy is 4
        critic.zero_grad()
        energy(margin).critic(torch.zeros(1, 1), critic(torch.full((1, 1), 2.0)))["fake"].backward()
        gradient = critic.decoder.scale.grad
        assert gradient is not None
        assert (gradient.item() != 0) == moves


def test_the_pull_away_term_is_the_mean_squared_cosine_of_pairs() -> None:
    assert pull_away(torch.eye(4)).item() == 0.0
    assert pull_away(torch.ones(3, 5) * torch.tensor([[1.0], [2.0], [-3.0]])).item() == pytest.approx(1.0)
    codes = torch.randn(6, 4)
    pairs = [F.cosine_similarity(codes[i], codes[j], dim=0) ** 2 for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(pull_away(codes), torch.stack(pairs).mean())
    without_square = [F.cosine_similarity(codes[i], codes[j], dim=0) for i in range(6) for j in range(6) if i != j]
    assert abs(pull_away(codes) - torch.stack(without_square).mean()) > 0.01
    # Opposite codes are parallel: without the square they would be the best there is.
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert pull_away(opposite).item() == 1.0


def test_the_pull_away_term_is_finite_for_codes_of_nothing() -> None:
    codes = torch.zeros(3, 4, requires_grad=True)
    pull_away(codes).backward()
    assert codes.grad is not None
    assert torch.isfinite(codes.grad).all()
    with pytest.raises(ValueError, match="two samples"):
        pull_away(torch.ones(1, 4))


def test_the_generator_minimises_its_energy_and_the_pull_away_term_of_its_codes() -> None:
    system, batch = ready("model=ebgan", "model.aims.pull_away.weight=0.5")
    made = system.generate(16)  # type: ignore[operator]
    system._kept[id(batch)] = made  # type: ignore[index, operator]
    with torch.no_grad():
        code = system.nets["critic"].encoder(made.x)  # type: ignore[operator]
        back = system.nets["critic"].decoder(code)  # type: ignore[operator]
    terms = system.generator_loss(batch)  # type: ignore[operator]
    assert terms.keys() == {"adversarial", "pull_away"}
    torch.testing.assert_close(terms["adversarial"].detach(), (back - made.x.detach()).square().mean())
    torch.testing.assert_close(terms["pull_away"].detach(), 0.5 * pull_away(code))


@pytest.mark.parametrize("model", ["ebgan", "began"])
def test_the_critics_turn_leaves_the_generator_alone_and_the_other_way_round(model: str) -> None:
    system, batch = ready(f"model={model}")
    for seat, own in zip(system.seats, ("critic", "generator"), strict=True):
        system._gradients(seat, [batch], 1)
        for name, net in system.nets.items():
            moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters()]
            assert any(moved) == (name == own), (seat.player.name, name)
        for parameter in system.nets.parameters():
            parameter.grad = None


# BEGAN


def test_k_follows_its_recurrence_and_weighs_the_samples() -> None:
    loss = Equilibrium(gamma=0.5, rate=0.1)
    k = 0.0
    for real, fake in ((4.0, 1.0), (3.0, 0.5), (1.0, 2.0)):
        terms = loss.critic(torch.full((4, 1), -real), torch.full((4, 1), -fake))
        assert terms["real"].item() == real
        assert terms["fake"].item() == pytest.approx(-k * fake)
        k = min(max(k + 0.1 * (0.5 * real - fake), 0.0), 1.0)
        assert loss.k.item() == pytest.approx(k)
    assert k > 0


def test_k_stays_between_0_and_1() -> None:
    loss = Equilibrium(gamma=0.5, rate=10.0)
    for real, fake, k in ((0.1, 1.0, 0.0), (4.0, 0.1, 1.0), (4.0, 0.1, 1.0), (0.1, 1.0, 0.0)):
        loss.critic(torch.tensor([-real]), torch.tensor([-fake]))
        assert loss.k.item() == k


def test_a_look_does_not_move_k_and_no_gradient_runs_through_it() -> None:
    loss = Equilibrium(gamma=1.0, rate=0.1)
    loss.k.fill_(0.5)
    with torch.no_grad():
        loss.critic(torch.tensor([-4.0]), torch.tensor([-1.0]))
    assert loss.k.item() == 0.5
    real, fake = torch.tensor([-4.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    terms = loss.critic(real, fake)
    (terms["real"] + terms["fake"]).backward()  # with the k of before the step
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad.item(), fake.grad.item()) == (-1.0, 0.5)


def test_k_travels_in_the_checkpoint_and_is_logged_with_the_measure() -> None:
    system, batch = ready("model=began", "loss.rate=0.5")
    for _ in range(2):
        system.iterate(batch)
    assert 0 < system.loss.k.item() <= 1  # type: ignore[union-attr, operator]
    state = system.state()
    other, _ = ready("model=began", "loss.rate=0.5")
    assert other.loss.k.item() == 0  # type: ignore[union-attr, operator]
    other.restore(state)
    assert torch.equal(other.loss.k, system.loss.k)  # type: ignore[union-attr, arg-type]
    report = system.report()
    error, of_samples = -report["score/real"], -report["score/fake"]
    assert report["equilibrium/measure"] == pytest.approx(error + abs(0.5 * error - of_samples), rel=0.05)
    assert 0 < report["equilibrium/k"] <= 1


def test_the_networks_are_the_papers_at_its_sizes() -> None:
    """64 pixels, width n: four sizes; the critic's channels grow by n with each, the generator's do not."""
    net, spec = EluConvolutions(width=2), Spec((3, 64, 64))
    convolutions = [m for m in net.encoder(spec, 5).modules() if isinstance(m, nn.Conv2d)]
    expected = [2, 2, 2, 2, 4, 4, 4, 6, 6, 6, 8, 8]
    assert [m.out_channels for m in convolutions] == expected
    assert [i for i, m in enumerate(convolutions) if m.stride == (2, 2)] == [3, 6, 9]
    decoder = net.decoder(spec, 5)
    assert [m.out_channels for m in decoder.modules() if isinstance(m, nn.Conv2d)] == [2] * 8 + [3]
    assert decoder(torch.randn(2, 5)).shape == (2, 3, 64, 64)
    assert net.encoder(Spec((1, 28, 28)), 5)(torch.randn(2, 1, 28, 28)).shape == (2, 5)


# What cannot work


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("model=dcgan", "loss=energy"), "model=ebgan"),
        (("model=dcgan", "loss=equilibrium"), "model=began"),
        (("model=wae_gan", "loss@model.adversarial=energy"), "give an energy"),
        (("model=ebgan", "+model.labels._target_=gentrain.nets.conditioning.Labels"), "not told labels"),
        (("model=ebgan", "model.critic.code=0"), "code=0"),
        (("model=ebgan", "model.critic.error=huber"), "model.critic.error"),
        (("model=ebgan", "loss.margin=0"), "loss.margin=0"),
        (("model=began", "loss.gamma=0"), "loss.gamma=0"),
        (("model=began", "loss.rate=0"), "loss.rate=0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: tuple[str, ...], named: str, run: Run) -> None:
    ended = run("check", *words(*overrides))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert named in ended.err


def test_numbers_of_the_pull_away_term() -> None:
    with pytest.raises(UserError, match="weight=-1"):
        PullAway(-1.0)
    critic = Autoencoding(3).build(Spec((4,)), MLP(hidden=(5,)), None, {})
    assert critic(torch.randn(6, 4)).shape == (6, 1)
