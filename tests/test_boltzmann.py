"""Boltzmann machines against enumeration of all states: energies, conditionals, constants, probabilities, gradients,
chains; the bound of the deep one; Gaussian units against integrals over a grid."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import tiny
from torch import Tensor, nn

from gentrain.capabilities import RBM
from gentrain.data.sources import digits
from gentrain.engine import checkpoint
from gentrain.engine.assemble import build_system
from gentrain.engine.player import Moves
from gentrain.engine.state import rng_state, set_rng_state
from gentrain.errors import UserError
from gentrain.families.boltzmann import BoltzmannMachine
from gentrain.models.dbm import TwoLayerMachine, TwoLayers
from gentrain.models.rbm import ContrastiveDivergence, Persistent, Restricted, RestrictedMachine, uncentred
from gentrain.objectives.boltzmann import (
    Annealing,
    MakesMachine,
    Negative,
    exact_log_partition,
    free_energy,
    in_double,
    log_partition,
    mean_of_hidden,
    mean_of_visible,
)
from gentrain.objectives.likelihoods import Bernoulli
from gentrain.objectives.units import UnitGaussian
from gentrain.types import Images, Spec

SMALL = Spec((1, 3, 3))


def states(count: int) -> Tensor:
    """All states float64 [2^count count] of binary units."""
    return (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).double()


def parameters(visible: int, hidden: int, *, scale: float = 1.0, gaussian: bool = False, seed: int = 0) -> RBM:
    g = torch.Generator().manual_seed(seed)
    shapes = ((visible, hidden), (visible,), (hidden,))
    return RBM(*(scale * torch.randn(s, generator=g, dtype=torch.float64) for s in shapes), gaussian)


def minus_energy(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """-E of each v [N V] with each h [M H], unit by unit: [N M]."""
    own = -0.5 * ((v - rbm.visible_bias) ** 2).sum(1) if rbm.gaussian else (v * rbm.visible_bias).sum(1)
    between = torch.einsum("ni,ij,mj->nm", v, rbm.weight, h)
    return own[:, None] + between + (h * rbm.hidden_bias).sum(1)


def system_of(
    net: MakesMachine, negative: Negative | None = None, spec: Spec = SMALL, *, steps: int = 10, scale: float = 0.7
) -> BoltzmannMachine:
    """With random weights, ready to train."""
    made = BoltzmannMachine(
        spec, net, Bernoulli() if spec.is_image else UnitGaussian(), negative or ContrastiveDivergence(),
        {"machine": Moves(partial(torch.optim.SGD, lr=0.05))}, steps=steps, annealing=Annealing(20, 50), watch_every=1,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.nets.parameters():
            parameter.normal_(std=scale)
    made.prepare(total=100)
    return made


def pictures(v: Tensor) -> Tensor:
    """Bits [N 9] as uint8 [N 1 3 3]."""
    return (255 * v).to(torch.uint8).view(-1, 1, 3, 3)


def some_pictures(n: int, seed: int = 0) -> Tensor:
    """Pictures in which the first row is like the last."""
    g = torch.Generator().manual_seed(seed)
    v = (torch.rand(n, 3, 3, generator=g) < torch.rand(n, 1, 3, generator=g)).float()
    v[:, 2] = v[:, 0]
    return pictures(v.flatten(1))


# --- energies, conditionals, constants


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_free_energy_of_each_sample_is_the_sum_over_all_hidden_states(gaussian: bool) -> None:
    rbm = parameters(6, 4, gaussian=gaussian)
    v = torch.randn(9, 6, dtype=torch.float64) if gaussian else states(6)[::7]
    torch.testing.assert_close(free_energy(rbm, v), -torch.logsumexp(minus_energy(rbm, v, states(4)), 1))
    torch.testing.assert_close(free_energy(rbm, v)[3:4], free_energy(rbm, v[3:4]))  # per sample, not over the batch


def test_the_conditionals_are_those_of_the_joint_table() -> None:
    rbm, v, h = parameters(5, 4), states(5), states(4)
    joint = minus_energy(rbm, v, h).exp()  # [V-states H-states]
    torch.testing.assert_close(mean_of_hidden(rbm, v), joint @ h / joint.sum(1, keepdim=True))
    torch.testing.assert_close(mean_of_visible(rbm, h), joint.T @ v / joint.sum(0)[:, None])


@pytest.mark.parametrize("gaussian", [False, True])
def test_offsets_change_the_energy_of_all_states_by_one_constant(gaussian: bool) -> None:
    rbm = parameters(5, 4, gaussian=gaussian)
    base = torch.randn(5, dtype=torch.float64)
    v, h = (torch.randn(32, 5, dtype=torch.float64) if gaussian else states(5)), states(4)
    mean = base if gaussian else torch.sigmoid(base)
    own = -0.5 * (v - rbm.visible_bias).square().sum(1) if gaussian else (v - mean) @ rbm.visible_bias
    centred = own[:, None] + (v - mean) @ rbm.weight @ (h - 0.5).T + (h - 0.5) @ rbm.hidden_bias
    apart = centred - minus_energy(uncentred(rbm, base), v, h)
    torch.testing.assert_close(apart, apart[0, 0].expand_as(apart))
    assert float((centred - minus_energy(rbm, v, h)).std()) > 0.1


def test_gaussian_units_have_the_conditional_and_the_constant_of_an_integral() -> None:
    rbm = parameters(2, 3, gaussian=True)
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis)
    cell = float((axis[1] - axis[0]).square())
    density = minus_energy(rbm, v, states(3)).exp() * cell  # [grid 8]
    mean = density.T @ v / density.sum(0)[:, None]
    torch.testing.assert_close(mean_of_visible(rbm, states(3)), mean, atol=1e-8, rtol=0)
    assert exact_log_partition(rbm) == pytest.approx(math.log(float(density.sum())), abs=1e-8)
    assert math.log(float((-free_energy(rbm, v)).exp().sum()) * cell) == pytest.approx(
        exact_log_partition(rbm), abs=1e-8
    )


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (13, 13)])
def test_the_exact_constant_is_the_sum_over_all_states(shape: tuple[int, int]) -> None:
    rbm = parameters(*shape, scale=0.6)
    v, h = states(shape[0]), states(shape[1])
    total = torch.logsumexp(
        torch.stack([torch.logsumexp(minus_energy(rbm, part, h), (0, 1)) for part in v.split(512)]), 0
    )
    assert exact_log_partition(rbm) == pytest.approx(float(total), abs=1e-9)
    with pytest.raises(ValueError, match="at most 20"):
        exact_log_partition(parameters(21, 21))


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_annealing_is_within_three_of_its_own_deviations_of_the_exact_constant(seed: int, gaussian: bool) -> None:
    rbm = parameters(8, 4, scale=0.8 if gaussian else 1.0, gaussian=gaussian, seed=seed)
    exact = exact_log_partition(rbm)
    found = log_partition(rbm, chains=200, temperatures=500, seed=seed)
    assert abs(found.estimate - exact) < min(3 * found.sd, 0.05)
    elsewhere = torch.linspace(-0.5, 0.5, 8)
    based = log_partition(rbm, chains=200, temperatures=500, seed=seed, base=elsewhere)
    assert abs(based.estimate - exact) < min(3 * based.sd, 0.05)
    assert based.estimate != found.estimate


# --- probabilities


def test_the_probabilities_of_all_images_sum_to_one() -> None:
    everything = pictures(states(9).float())
    for hidden in (5, 12):  # fewer and more than pixels: the constant is summed over either group
        system = system_of(Restricted(hidden, centred=hidden == 5))
        for _ in range(5):
            system.iterate(Images(some_pictures(16)))
        assert system.likelihood_on.exact
        log_p = system.log_likelihood(everything)
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        h = states(hidden)
        rbm = in_double(system.rbm())
        joint = minus_energy(rbm, states(9), h)
        torch.testing.assert_close(
            log_p, torch.log_softmax(joint.flatten(), 0).view_as(joint).logsumexp(1), atol=1e-6, rtol=0
        )
        constant = system.log_constant()
        system.iterate(Images(some_pictures(16)))
        assert system.log_constant() != constant  # never that of older weights


def test_a_large_machine_has_an_annealed_constant_and_says_so() -> None:
    wide = Spec((1, 5, 5))
    system = system_of(Restricted(22), spec=wide, scale=0.1)
    system.begin_from((torch.rand(50, 1, 5, 5) * 255).to(torch.uint8))
    assert not system.likelihood_on.exact
    expected = log_partition(system.rbm(), chains=20, temperatures=50, base=system.machine.base).estimate
    assert system.log_constant() == expected


def test_a_density_of_standardised_vectors_integrates_to_one_in_the_units_of_the_data() -> None:
    system = system_of(Restricted(4), spec=Spec((2,)))
    x = torch.randn(500, 2) * torch.tensor([0.4, 3.0]) + torch.tensor([1.0, -2.0])
    system.begin_from(x)
    units = system.units(x)
    torch.testing.assert_close(units.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(units.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(system.visible.show(units), x)
    first, second = torch.linspace(-4, 6, 401), torch.linspace(-42, 38, 401)
    density = (
        system.log_likelihood(torch.cartesian_prod(first, second)).exp().sum()
        * (first[1] - first[0])
        * (second[1] - second[0])
    )
    assert float(density) == pytest.approx(1.0, abs=1e-4)
    still = torch.cat([x[:, :1], torch.full((500, 1), 7.0)], 1)
    system.begin_from(still)
    assert bool(system.units(still).isfinite().all())  # a number that never changes


# --- gradients


def gradients(loss: Tensor, rbm: RBM) -> list[Tensor]:
    return list(torch.autograd.grad(loss, (rbm.weight, rbm.visible_bias, rbm.hidden_bias)))


def likelihood_gradients(rbm: RBM, data: Tensor) -> list[Tensor]:
    """Of minus the mean log p(data), all states written out."""
    joint = minus_energy(rbm, states(len(rbm.visible_bias)), states(len(rbm.hidden_bias)))
    given = torch.logsumexp(minus_energy(rbm, data, states(len(rbm.hidden_bias))), 1)
    return gradients(torch.logsumexp(joint.flatten(), 0) - given.mean(), rbm)


def leaves(rbm: RBM) -> RBM:
    return RBM(*(part.clone().requires_grad_() for part in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)))


def test_the_gradient_of_the_two_free_energies_is_that_of_the_likelihood() -> None:
    rbm, v = leaves(parameters(6, 4)), states(6)
    data = v[[3, 17, 40, 41]]
    probability = torch.softmax(-free_energy(rbm, v), 0).detach()
    mine = gradients(free_energy(rbm, data).mean() - (probability * free_energy(rbm, v)).sum(), rbm)
    for a, b in zip(mine, likelihood_gradients(rbm, data), strict=True):
        torch.testing.assert_close(a, b)
    # And the rule of the papers: -(<v h>_data - <v h>_model).
    rule = (probability[:, None] * v).T @ mean_of_hidden(rbm, v) - data.T @ mean_of_hidden(rbm, data) / 4
    torch.testing.assert_close(mine[0], rule)


def test_a_long_chain_gives_the_exact_gradient_and_a_short_one_does_not() -> None:
    plain = parameters(6, 4, scale=0.9)
    plain = RBM(plain.weight.float(), plain.visible_bias.float(), plain.hidden_bias.float())
    rbm = leaves(plain)
    data = states(6).float()[[3, 17, 40, 41]].repeat(5000, 1)
    exact = likelihood_gradients(leaves(parameters(6, 4, scale=0.9)), data[:4].double())

    def error(negative: Negative) -> float:
        fake = negative(plain, data)
        assert not fake.requires_grad
        mine = gradients(free_energy(rbm, data).mean() - free_energy(rbm, fake).mean(), rbm)
        return max(float((a - b).abs().max()) for a, b in zip(mine, exact, strict=True))

    assert error(ContrastiveDivergence(60)) < 0.02
    assert error(Persistent(60, chains=20_000)) < 0.02
    assert error(ContrastiveDivergence(1)) > 0.06


@pytest.mark.parametrize("centred", [True, False])
def test_the_objective_is_their_difference_and_only_the_data_and_the_weights_carry_gradients(centred: bool) -> None:
    system = system_of(Restricted(4, centred))
    system.machine.base.normal_()
    x = some_pictures(30)
    torch.manual_seed(5)
    terms = system.objective(Images(x))
    torch.manual_seed(5)
    rbm = system.rbm()
    v = (x.flatten(1) > 0).float()
    fake = ContrastiveDivergence()(rbm, v)
    assert float(terms["data"].detach()) == pytest.approx(float(free_energy(rbm, v).mean().detach()), abs=1e-5)
    assert float(terms["model"].detach()) == pytest.approx(-float(free_energy(rbm, fake).mean().detach()), abs=1e-5)
    grads = torch.autograd.grad(sum(terms.values(), torch.zeros(())), [rbm.weight])
    shift, half = (torch.sigmoid(system.machine.base), 0.5) if centred else (torch.zeros(9), 0.0)
    wanted = (fake - shift).T @ (mean_of_hidden(rbm, fake) - half) / 30
    wanted = wanted - (v - shift).T @ (mean_of_hidden(rbm, v) - half) / 30
    torch.testing.assert_close(grads[0], wanted, atol=1e-5, rtol=0)


def test_the_pseudo_likelihood_is_that_of_the_enumerated_conditionals() -> None:
    system, v = system_of(Restricted(4, centred=True)), states(9)[[5, 77, 300]]
    rbm = in_double(system.rbm())
    log_p = -free_energy(rbm, states(9))
    place = (v * 2 ** torch.arange(9)).sum(1).long()
    other = place[:, None] ^ (1 << torch.arange(9))  # with one pixel changed
    exact = torch.nn.functional.logsigmoid(log_p[place][:, None] - log_p[other]).sum(1).mean()
    system.ledger.entries.clear()
    with torch.no_grad():
        system._watch(system.rbm(), v.float().repeat(20_000, 1), 9)
    assert float(system.report()["pseudo_likelihood/nats"]) == pytest.approx(float(exact), abs=0.08)


# --- chains


def test_long_chains_have_the_means_of_the_model_whatever_they_start_from() -> None:
    system = system_of(Restricted(4, centred=True), scale=0.6)
    rbm = in_double(system.rbm())
    expected = torch.softmax(-free_energy(rbm, states(9)), 0) @ states(9)
    white = torch.full((3000, 1, 3, 3), 255, dtype=torch.uint8)
    for start in (None, white):
        x = system.chain(3000, length=1, stride=40, start=start, generator=torch.Generator().manual_seed(1))[:, 0]
        assert float(((x.flatten(1).double() + 1) / 2 - expected[None]).mean(0).abs().max()) < 0.03


def test_a_chain_goes_on_where_it_was() -> None:
    system = system_of(Restricted(4), steps=6)
    draw = partial(torch.Generator().manual_seed, 3)
    film = system.chain(5, length=3, stride=2, generator=draw())
    assert film.shape == (5, 3, 1, 3, 3)
    assert torch.equal(film[:, 2], system.sample(5, generator=draw()))
    assert not torch.equal(film[:, 1], film[:, 2])
    x = some_pictures(5)
    with torch.no_grad():
        system.nets["machine"].weight.zero_()  # nothing of the start can come through
    lost = system.chain(5, length=1, stride=1, start=x, generator=draw())
    assert torch.equal(lost, system.chain(5, length=1, stride=1, start=255 - x, generator=draw()))


def after(system: BoltzmannMachine, count: int, first: int = 0) -> BoltzmannMachine:
    for place in range(first, first + count):
        system.iterate(Images(some_pictures(8, seed=place)))
    return system


def test_persistent_chains_survive_a_resume_bit_for_bit(tmp_path: Path) -> None:
    def made() -> BoltzmannMachine:
        torch.manual_seed(0)
        return system_of(Restricted(4), Persistent(1, chains=7))

    straight = after(made(), 6)
    half = after(made(), 3)
    noise = rng_state()
    checkpoint.save({"system": half.state()}, tmp_path / checkpoint.file_name(3))
    held = checkpoint.load(tmp_path / checkpoint.file_name(3))["system"]
    assert held["rules"]["negative.hidden"].shape == (7, 4)

    def resumed(state: dict[str, object]) -> BoltzmannMachine:
        system = made()
        system.restore(state)
        set_rng_state(noise)
        return after(system, 3, first=3)

    same = resumed(held)
    assert torch.equal(same.rbm().weight, straight.rbm().weight)
    assert torch.equal(same.state()["rules"]["negative.hidden"], straight.state()["rules"]["negative.hidden"])
    restarted = copy.deepcopy(held)
    restarted["rules"]["negative.hidden"] = 1 - held["rules"]["negative.hidden"]
    assert not torch.equal(resumed(restarted).rbm().weight, straight.rbm().weight)


def test_chains_persist_from_iteration_to_iteration() -> None:
    rbm = parameters(6, 4, scale=0.0)
    rbm = RBM(rbm.weight.float(), rbm.visible_bias.float(), torch.full((4,), 40.0))  # always on, once it was drawn
    negative = Persistent(1, chains=50)
    negative(rbm, torch.zeros(2, 6))
    assert bool((negative.hidden == 1).all())
    wired = RBM(torch.full((6, 4), 20.0), torch.full((6,), -40.0), rbm.hidden_bias)
    assert bool((negative(wired, torch.zeros(2, 6)) == 1).all())  # from its own state, not from the data or a coin


# --- two hidden layers


def deep(second: float = 1.0, mean_field: int = 30, centred: bool = True) -> TwoLayerMachine:
    torch.manual_seed(2)
    machine = TwoLayerMachine(5, 4, 3, mean_field, centred)
    with torch.no_grad():
        machine.weight.normal_()
        machine.weight[5:] *= second
        machine.base[:5].normal_()
        machine.outer_bias.normal_()
        machine.first_bias.normal_()
    return machine.double()


def deep_energy(machine: TwoLayerMachine, u: Tensor, h1: Tensor) -> Tensor:
    """[N M] of the units (v, h2) [N 8] and the first layer [M 4], less that of units which are all off."""

    def energy(u: Tensor, h1: Tensor) -> Tensor:
        if machine.centred:
            u, h1 = u - torch.sigmoid(machine.base), h1 - 0.5
        return -(u @ machine.weight @ h1.T + (u @ machine.outer_bias)[:, None] + h1 @ machine.first_bias)

    return energy(u, h1) - energy(torch.zeros_like(u[:1]), torch.zeros_like(h1[:1]))


def enumerated(machine: TwoLayerMachine) -> Tensor:
    """log p*(v) [32], the energy written out over both layers."""
    v, h2 = states(5), states(3)
    u = torch.cat([v.repeat_interleave(len(h2), 0), h2.repeat(len(v), 1)], 1)
    return torch.logsumexp(-deep_energy(machine, u, states(4)).view(len(v), -1), 1).detach()


def test_the_bound_lies_below_the_likelihood_and_is_tight_without_a_second_layer() -> None:
    machine = deep()
    gaps = []
    for iterations in (1, 2, 4, 40):
        machine.mean_field = iterations
        gaps.append(enumerated(machine) + machine.free_energy(states(5)).detach())
    assert all(bool((gap > 1e-3).all()) for gap in gaps)  # strictly below
    for looser, tighter in pairwise(gaps):
        assert bool((tighter <= looser + 1e-9).all())
    assert float(gaps[0].mean()) > float(gaps[-1].mean()) + 1e-3
    alone = deep(second=0.0)
    torch.testing.assert_close(alone.free_energy(states(5)), -enumerated(alone))


@pytest.mark.parametrize("centred", [True, False])
def test_the_constant_of_a_deep_machine_sums_over_all_three_layers(centred: bool) -> None:
    machine = deep(centred=centred)
    exact = float(torch.logsumexp(enumerated(machine), 0))
    assert exact_log_partition(machine.rbm()) == pytest.approx(exact, abs=1e-9)
    found = log_partition(machine.rbm(), chains=200, temperatures=500)
    assert abs(found.estimate - exact) < min(3 * found.sd, 0.05)


def test_the_deep_machines_likelihood_is_a_bound_and_its_gradient_that_of_the_bound() -> None:
    system = system_of(TwoLayers((4, 3), centred=True))
    everything = pictures(states(9).float())
    assert not system.likelihood_on.exact
    assert 0.2 < float(system.log_likelihood(everything).exp().sum()) < 1.0 - 1e-4
    # With the means held fixed: -(<v h1> + ...) of the means, the mean energy written out.
    machine = system.nets["machine"]
    v = states(9)[::31].float()
    u = machine.complete(v)
    mu = torch.sigmoid((u - torch.sigmoid(machine.base)) @ machine.weight + machine.first_bias).detach()
    energy = deep_energy(machine, u, mu).diagonal().mean()
    params = list(machine.parameters())
    for a, b in zip(
        torch.autograd.grad(machine.free_energy(v).mean(), params), torch.autograd.grad(energy, params), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert system.encode(everything).shape == (512, 4)
    assert system.reconstruct(everything[:6]).shape == (6, 1, 3, 3)


# --- the start, and mistakes


@pytest.mark.parametrize("net", [Restricted(4), Restricted(4, centred=True), TwoLayers((4, 3), centred=True)])
def test_the_visible_biases_start_from_the_means_of_the_data(net: MakesMachine) -> None:
    system = system_of(net)
    x = some_pictures(60)
    x[:, :, 1, 1] = 255
    system.begin_from(x)
    with torch.no_grad():
        system.nets["machine"].weight.zero_()
    shown = (system.decode(torch.zeros(1, 4))[0].flatten() + 1) / 2
    torch.testing.assert_close(shown, ((x > 0).flatten(1).sum(0) + 1) / 62, atol=1e-5, rtol=0)


def test_a_run_begins_from_the_means_of_its_training_images() -> None:
    config = tiny("model=rbm")
    data = digits()
    system = build_system(config, data, seed=0)
    on = (data.train.all().x.flatten(1) >= 128).float()
    expected = torch.logit((on.sum(0) + 1) / (len(on) + 2))
    torch.testing.assert_close(system.nets["machine"].visible_bias.detach(), expected)


def test_mistakes_are_told() -> None:
    vectors = Spec((2,))
    for wrong, said in (
        (lambda: Restricted(0), r"model\.net\.hidden=0"),
        (lambda: TwoLayers((4,)), r"model\.net\.hidden=\[4\]: two numbers"),
        (lambda: TwoLayers((4, 3), 0), r"model\.net\.mean_field=0"),
        (lambda: TwoLayers((4, 3)).machine(vectors, gaussian=True), "model=rbm has Gaussian ones"),
        (lambda: ContrastiveDivergence(0), r"model\.negative\.steps=0"),
        (lambda: Persistent(1, 0), r"model\.negative\.chains=0"),
        (lambda: Bernoulli().units(vectors), "choose images, or loss=unit_gaussian"),
        (lambda: Bernoulli("none").units(SMALL), r"loss\.binarize=none"),
        (lambda: UnitGaussian(0.0), r"loss\.floor=0"),
        (lambda: Annealing(1), r"model\.annealing\.chains=1"),
        (lambda: system_of(Restricted(4), steps=0), r"model\.steps=0"),
    ):
        with pytest.raises(UserError, match=said):
            wrong()


def test_a_machine_is_made_of_what_the_family_asks_for() -> None:
    for made in (RestrictedMachine(9, 4), TwoLayerMachine(9, 4, 3, 5)):
        assert isinstance(made, nn.Module)
        assert made.complete(torch.zeros(2, 9)).shape == (2, len(made.rbm().visible_bias))
