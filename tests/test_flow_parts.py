"""Invertible parts, each alone: the way back, the Jacobian by autograd, masks, first values, numbers under autocast."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.models.glow import MIXINGS, Step
from gentrain.nets.first_batch import first_values, uninitialised
from gentrain.nets.flows.base import Logistic, Normal, TopNormal
from gentrain.nets.flows.bijection import Bijection, Chain
from gentrain.nets.flows.conditioners import GlowNet, ResidualNet, dense
from gentrain.nets.flows.couplings import Additive, CheckerboardCoupling, HalfCoupling, SigmoidAffine, TanhAffine
from gentrain.nets.flows.dequantisation import FlowNoise, Uniform, UniformNoise, Variational
from gentrain.nets.flows.multiscale import MultiScale, Split
from gentrain.nets.flows.parts import (
    ActNorm,
    BatchNormFlow,
    Centre,
    Flatten,
    InvertibleConvolution,
    Logit,
    Permutation,
    Scaling,
    Sigmoid,
    Squeeze,
)
from gentrain.types import Spec

IMAGE, ODD, VECTOR = (4, 4, 4), (3, 5, 3), (5,)


def half(channels: int, transform: type[Additive] | type[SigmoidAffine], swapped: bool) -> HalfCoupling:
    kept, changed = HalfCoupling.sizes(channels)
    return HalfCoupling(GlowNet(kept, transform.parameters_each * changed, 6), transform(), swapped=swapped)


PARTS: dict[str, tuple[Callable[[], Bijection], tuple[int, ...]]] = {
    "squeeze": (Squeeze, IMAGE),
    "flatten": (lambda: Flatten(ODD), ODD),
    "permutation": (lambda: Permutation(torch.tensor([2, 0, 1])), ODD),
    "actnorm": (lambda: ActNorm(3), ODD),
    "actnorm of vectors": (lambda: ActNorm(5), VECTOR),
    "lu": (lambda: InvertibleConvolution(4), IMAGE),
    "plain": (lambda: InvertibleConvolution(4, lu=False), IMAGE),
    "lu of vectors": (lambda: InvertibleConvolution(5), VECTOR),
    "batch norm": (lambda: BatchNormFlow(3), ODD),
    "scaling": (lambda: Scaling(5), VECTOR),
    "centre": (Centre, ODD),
    "logit": (lambda: Logit(0.05), ODD),
    "sigmoid": (Sigmoid, ODD),
    "affine": (lambda: half(4, SigmoidAffine, False), IMAGE),
    "affine of an odd number": (lambda: half(3, SigmoidAffine, True), ODD),
    "affine with a floor": (
        lambda: HalfCoupling(GlowNet(2, 4, 6), SigmoidAffine(floor=0.3)),
        IMAGE,
    ),
    "additive": (lambda: half(3, Additive, False), ODD),
    "dense": (lambda: HalfCoupling(dense(2, 6, [7]), TanhAffine(3)), VECTOR),
    "checkerboard": (lambda: CheckerboardCoupling(ResidualNet(3, 6, 4, 1), TanhAffine(3), ODD, 0), ODD),
    "other colour": (lambda: CheckerboardCoupling(ResidualNet(4, 8, 4, 1), TanhAffine(4), IMAGE, 1), IMAGE),
    "step": (lambda: Step(4, 6, "lu", "affine"), IMAGE),
    "two scales": (
        lambda: MultiScale([Squeeze(), Chain(Squeeze(), Step(8, 4, "shuffle", "affine"))], (1, 8, 4), learned=True),
        (1, 8, 4),
    ),
    "scale without a last squeeze": (
        lambda: MultiScale([Chain(ActNorm(2), Squeeze()), ActNorm(4)], (2, 4, 4), learned=False, last=False),
        (2, 4, 4),
    ),
}


def shaken(part: nn.Module) -> nn.Module:
    """Weights, and statistics of batch norms, away from where they start."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in part.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.3, 3.0)
    return part.eval()


def jacobian_logdet(part: Bijection, x: Tensor) -> float:
    """log |det| of the Jacobian at x [*], by autograd and an LU decomposition in float64."""
    matrix = torch.autograd.functional.jacobian(lambda flat: part(flat.view(1, *x.shape))[0].flatten(), x.flatten())
    return float(torch.linalg.slogdet(matrix.double())[1])


@pytest.mark.parametrize("name", PARTS)
def test_a_part_leads_back_and_its_log_determinant_is_the_jacobians(name: str) -> None:
    make, shape = PARTS[name]
    part = shaken(make())
    x = torch.rand(3, *shape)
    with torch.no_grad():
        z, logdet = part(x)
        assert z.numel() == x.numel()
        assert (logdet.shape, logdet.dtype) == ((3,), torch.float32)
        assert (part.inverse(z) - x).abs().max() < 1e-4
    assert z.flatten(1)[:, 0].unique().numel() > 1
    for i in range(2):
        assert jacobian_logdet(part, x[i]) == pytest.approx(float(logdet[i]), abs=2e-3)


def test_a_split_standardises_what_it_puts_aside() -> None:
    split = Split(4, learned=True)
    shaken(split)
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        on, aside, logdet = split(x)
        mean, logs = split.net(on).chunk(2, dim=1)
        assert torch.allclose(split.inverse(on, aside), x, atol=1e-5)
        gaussian = torch.distributions.Normal(mean, logs.exp()).log_prob(x[:, 2:]).flatten(1).sum(1)
        standard = torch.distributions.Normal(0.0, 1.0).log_prob(aside).flatten(1).sum(1)
    assert torch.allclose(standard + logdet, gaussian, atol=1e-3)
    assert (logs.abs() > 1e-3).any()


def test_checkerboards_and_halves_leave_nothing_as_it_was_and_see_only_what_stays() -> None:
    boards = [CheckerboardCoupling(ResidualNet(1, 2, 4, 1), TanhAffine(1), (1, 5, 6), parity) for parity in (0, 1)]
    x = torch.randn(1, 1, 5, 6)
    colours = []
    for board in boards:
        shaken(board)
        with torch.no_grad():
            same = board(x)[0] == x
        assert bool((same == board.stays).all())
        colours.append(same[0, 0])
        # What changes may not depend on what else changes: the Jacobian of the rest is diagonal.
        through = lambda flat, b=board: b(flat.view(1, 1, 5, 6))[0].flatten()  # noqa: E731
        matrix = torch.autograd.functional.jacobian(through, x.flatten())
        changed = ~board.stays.flatten()
        rest = matrix[changed][:, changed]
        assert bool(((rest != 0) == torch.eye(len(rest), dtype=torch.bool)).all())
    assert bool((colours[0] ^ colours[1]).all())
    v = torch.randn(1, 5)
    kept = []
    for swapped in (False, True):
        coupling = shaken(HalfCoupling(dense(2, 6, [4]), TanhAffine(3), swapped=swapped))
        with torch.no_grad():
            kept.append((coupling(v)[0] == v)[0])
    assert kept[0].sum() == kept[1].sum() == 2
    assert not bool((kept[0] & kept[1]).any())


def test_halves_behind_a_squeeze_are_not_the_colours_of_a_checkerboard() -> None:
    row, column = torch.arange(4)[:, None], torch.arange(4)
    colour = ((row + column) % 2).float()[None, None]
    squeezed = Squeeze()(colour)[0]
    assert squeezed[0, :2].mean() == squeezed[0, 2:].mean() == 0.5
    upper = Squeeze()((row % 2 == 0).float().expand(1, 3, 4, 4))[0]  # of colours too: rows apart, not red from blue
    assert bool((upper[0, :6] == 1).all())
    assert bool((upper[0, 6:] == 0).all())


def test_first_values_come_of_one_batch_and_once() -> None:
    torch.manual_seed(1)
    step = Step(4, 6, "lu", "affine")
    x = 3.0 * torch.randn(16, 4, 4, 4) + 2.0
    layers = uninitialised([step])
    assert len(layers) == 3
    with torch.no_grad(), first_values(layers):
        step(x)
    normal = step.norm(x)[0].transpose(0, 1).flatten(1)
    assert normal.mean(1).abs().max() < 1e-4
    assert (normal.std(1, correction=0) - 1).abs().max() < 1e-3
    inside = step.coupling.net[0](step.mixing(step.norm(x)[0])[0][:, :2]).transpose(0, 1).flatten(1)
    assert inside.mean(1).abs().max() < 1e-4
    assert (inside.std(1, correction=0) - 1).abs().max() < 1e-3
    assert uninitialised([step]) == []
    before = step.norm.bias.clone()
    step(10.0 * x)
    assert torch.equal(step.norm.bias, before)
    again = Step(4, 6, "lu", "affine")
    again.load_state_dict(step.state_dict())
    assert uninitialised([again]) == []


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_a_floor_bounds_what_the_way_back_multiplies_by(floor: float) -> None:
    h = torch.tensor([0.0, -60.0]).view(1, 2, 1, 1)  # a shift of 0, and a scale that the network wants to be 0
    one = torch.ones(1, 1, 1, 1)
    transform = SigmoidAffine(floor)
    grown = float(transform.inverse(one, h))
    assert grown == pytest.approx(1 / 0.3, rel=1e-5) if floor else grown > 1e20
    assert float(transform(one, torch.tensor([0.0, 60.0]).view(1, 2, 1, 1))[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_step_is_its_three_parts_one_behind_the_other(mixing: str) -> None:
    step = shaken(Step(4, 6, mixing, "affine"))
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        z, logdet = step(x)
        apart, total = Chain(step.norm, step.mixing, step.coupling)(x)
    assert torch.allclose(z, apart, atol=1e-5)
    assert torch.allclose(logdet, total, atol=1e-4)


def test_arithmetic_of_a_flow_is_float32_under_autocast() -> None:
    mixing = InvertibleConvolution(4)
    x = torch.randn(2, 4, 4, 4)
    flow = shaken(Chain(ActNorm(4), mixing, half(4, SigmoidAffine, False), Logit(0.05)))
    with torch.no_grad():
        exact, exact_logdet = mixing(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.nn.functional.conv2d(x, torch.randn(4, 4, 1, 1)).dtype == torch.bfloat16  # it is on
            assert torch.equal(mixing(x)[0], exact)
            assert torch.equal(mixing(x)[1], exact_logdet)
            z, logdet = Chain(*flow.parts[:3])(x)
    assert z.dtype == logdet.dtype == torch.float32
    assert torch.allclose(logdet, Chain(*flow.parts[:3])(x)[1], rtol=0.05, atol=0.5)


def test_batch_norm_takes_the_batchs_statistics_in_training_and_counts_them() -> None:
    norm = BatchNormFlow(3)
    x = 2.0 * torch.randn(64, 3, 4, 4) + 5.0
    z, logdet = norm(x)
    assert z.mean((0, 2, 3)).abs().max() < 1e-4
    expected = -16 * 0.5 * torch.log(x.var((0, 2, 3), correction=0) + norm.eps).sum()
    assert float(logdet[0]) == pytest.approx(float(expected), rel=1e-4)
    for _ in range(60):
        norm(x)
    norm.eval()
    assert (norm(x)[0] - z).abs().max() < 0.05  # the averages have come to the batch's
    assert (norm.inverse(norm(x)[0]) - x).abs().max() < 1e-4


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_levels_become_numbers_and_numbers_levels(bits: int) -> None:
    noise = UniformNoise(bits)
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    y, cost = noise(x)
    assert y.min() >= 0
    assert y.max() < 1
    assert float(cost) == pytest.approx(256 * bits * math.log(2))
    shown = noise.pixels(noise.centre(x))
    assert shown.unique().numel() == 2**bits
    assert (float(shown.min()), float(shown.max())) == (-1.0, 1.0)
    assert torch.equal(noise.pixels(y), shown)  # whatever the noise
    back = ((shown + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back >> (8 - bits), x >> (8 - bits))
    assert torch.equal(noise.pixels(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2)).flatten(), torch.tensor([-1.0, 1.0]))
    leaf = torch.full((1, 1, 1, 1), 0.4, requires_grad=True)
    noise.pixels(leaf).sum().backward()
    assert float(leaf.grad) == pytest.approx(2.0 * 2**bits / (2**bits - 1))


def test_noise_of_a_flow_is_a_density_on_the_unit_cube() -> None:
    torch.manual_seed(2)
    noise = shaken(FlowNoise(8, (1, 2, 2), couplings=3, width=4))
    x = torch.randint(0, 256, (1, 1, 2, 2), dtype=torch.uint8).expand(40_000, 1, 2, 2)
    with torch.no_grad():
        k = noise.level(x)
        u = torch.rand_like(k)
        seen = noise.features(k / 127.5 - 1.0)
        start = noise.flow.inverse(u, seen)
        logdet = noise.flow(start, seen)[1]
        q = (torch.distributions.Normal(0.0, 1.0).log_prob(start).flatten(1).sum(1) - logdet).exp()
        drawn, nats = noise.noise(k)
        entropy = -float(nats.mean())
    assert float(q.mean()) == pytest.approx(1.0, abs=0.05)  # its integral
    assert q.std() > 0.1  # it is not the uniform one
    assert float(-(q * q.log()).mean()) == pytest.approx(entropy, abs=0.05)
    assert drawn.min() >= 0
    assert drawn.max() < 1


def test_bases_are_the_distributions_that_they_are_called() -> None:
    z = torch.randn(5, 12)
    normal, logistic = Normal(), Logistic()
    assert torch.allclose(normal.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1), atol=1e-4)
    u = torch.sigmoid(z)
    assert torch.allclose(logistic.log_prob(z), (u * (1 - u)).log().sum(1), atol=1e-4)
    drawn = logistic.draw(20_000, 3, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert float(drawn.var()) == pytest.approx(math.pi**2 / 3, rel=0.03)
    top = shaken(TopNormal((2, 2, 2), classes=3, weight=0.0))
    y = torch.tensor([0, 1, 2, 1, 0])
    both = top.parameters_of + top.of_class[y]
    mean, sd = both[:, :2, None, None], both[:, 2:, None, None].exp()
    expected = torch.distributions.Normal(mean, sd).log_prob(z[:, 4:].view(5, 2, 2, 2)).flatten(1).sum(1)
    expected = expected + torch.distributions.Normal(0.0, 1.0).log_prob(z[:, :4]).sum(1)
    assert torch.allclose(top.log_prob(z, y), expected, atol=1e-4)
    made = top.at(z, y)
    assert torch.equal(made[:, :4], z[:, :4])
    assert torch.allclose((made[:, 4:].view(5, 2, 2, 2) - mean) / sd, z[:, 4:].view(5, 2, 2, 2), atol=1e-5)


@pytest.mark.parametrize("make", [lambda: Uniform(bits=9), lambda: Variational(couplings=1), lambda: Logit(0.5)])
def test_numbers_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()


def test_variational_noise_is_built_for_the_data() -> None:
    noise = Variational(bits=5, couplings=2, width=4).build(Spec((3, 6, 6)))
    y, cost = noise(torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8))
    assert y.shape == (2, 3, 6, 6)
    assert cost.shape == (2,)
    cost.sum().backward()
    assert all(p.grad is not None for p in noise.parameters())
