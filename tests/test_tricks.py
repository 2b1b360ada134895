"""Layers that compare samples, virtual batch norm, the spherical prior, and one word for each trick."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import differences
from torch import Tensor, nn

from gentrain.compose import compose
from gentrain.config import build, options
from gentrain.data.stream import stream
from gentrain.engine.fit import build_system, check_config
from gentrain.errors import UserError
from gentrain.families.adversarial import Adversarial
from gentrain.families.generating import prior_noise
from gentrain.folder import RunFolder
from gentrain.nets.between import (
    MinibatchDeviation,
    MinibatchDiscrimination,
    MinibatchSimilarity,
    MinibatchStandardDeviation,
)
from gentrain.nets.critic import Critic, Scoring
from gentrain.nets.dcgan import DCGAN
from gentrain.nets.mlp import MLP
from gentrain.nets.residual import Residual
from gentrain.nets.virtual import Referenced, VirtualBatchNorm, virtual_layers
from gentrain.objectives.penalties import refuse_mixing
from gentrain.types import Spec


def built(*overrides: str) -> Adversarial:
    config = tiny(*overrides)
    check_config(config)
    system = build_system(config, build(config["data"]), seed=0)
    assert isinstance(system, Adversarial)
    return system


# Minibatch discrimination


def test_similarities_are_those_of_the_paper_by_a_loop() -> None:
    layer, x = MinibatchSimilarity(6, 4, 3), torch.randn(5, 6)
    y = layer(x).detach()
    assert torch.equal(y[:, :6], x)
    t = layer.project.weight.detach().T.view(6, 4, 3)
    assert torch.allclose(t.square().sum(0), torch.ones(4, 3))
    for i, k in itertools.product(range(5), range(4)):
        m = [x[j] @ t[:, k] for j in range(5)]
        expected = sum(math.exp(-float((m[i] - m[j]).abs().sum())) for j in range(5) if j != i)
        assert float(y[i, 6 + k]) == pytest.approx(expected, rel=1e-4)


def test_a_batch_of_copies_is_as_near_as_can_be() -> None:
    layer = MinibatchSimilarity(6, 4, 3)
    alike = layer(torch.randn(1, 6).expand(9, 6))[:, 6:]
    torch.testing.assert_close(alike, torch.full((9, 4), 8.0))
    assert (layer(torch.randn(9, 6) * 5)[:, 6:] < 8.0).all()


# Minibatch standard deviation


def test_the_deviation_is_that_of_interleaved_groups_by_a_loop() -> None:
    x = torch.randn(8, 3, 2, 2)
    y = MinibatchDeviation(4)(x)
    assert y.shape == (8, 4, 2, 2)
    assert torch.equal(y[:, :3], x)
    for i in range(8):
        group = x[i % 2 :: 2].flatten(1)
        expected = float((group.var(0, unbiased=False) + 1e-8).sqrt().mean())
        torch.testing.assert_close(y[i, 3], torch.full((2, 2), expected))


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6, 7, 9, 10, 11])
def test_a_batch_that_the_group_does_not_divide_is_shared_out(batch: int) -> None:
    x = torch.randn(batch, 6)
    values = MinibatchDeviation(4)(x)[:, 6]
    groups = max(batch // 4, 1)
    for g in range(groups):
        rows = x[g::groups]
        assert len(rows) >= min(4, batch)
        expected = float((rows.var(0, unbiased=False) + 1e-8).sqrt().mean())
        torch.testing.assert_close(values[g::groups], torch.full((len(rows),), expected))


def wrong(x: Tensor, group: int) -> Tensor:
    """What is often written: it wants a batch that the group divides."""
    return x.view(group, -1, x.shape[1]).std(0)


def test_the_usual_form_fails_where_this_one_does_not() -> None:
    with pytest.raises(RuntimeError):
        wrong(torch.randn(10, 6), 4)
    assert MinibatchDeviation(4)(torch.randn(10, 6)).isfinite().all()


def test_copies_deviate_by_nothing_and_the_gradient_is_finite() -> None:
    x = torch.ones(6, 3, requires_grad=True)
    y = MinibatchDeviation(4)(x)
    assert y[:, 3].max() < 2e-4
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# Where they stand, and what does not go with them

BETWEEN = [MinibatchDiscrimination(kernels=5, width=2), MinibatchStandardDeviation()]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("net", [DCGAN(width=4), Residual(width=4), MLP(hidden=(8,))])
def test_the_score_sees_them_and_features_and_heads_do_not(between: object, net: DCGAN) -> None:
    spec = Spec((1, 8, 8), ("a", "b"))
    critic = Scoring(between).build(spec, net, None, {"more": 3})  # type: ignore[arg-type]
    assert isinstance(critic, Critic)
    critic.eval()
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        alone, changed = critic.judge(x), critic.judge(torch.cat([x[:1], torch.randn(3, 1, 8, 8) * 3]))
    assert not torch.allclose(alone.score[0], changed.score[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(alone.features[0], changed.features[0])
    torch.testing.assert_close(alone.more["more"][0], changed.more["more"][0])
    assert alone.features.shape == (4, net.trunk(spec)[1])


@pytest.mark.parametrize("choice", ["minibatch_discrimination", "minibatch_std"])
def test_a_penalty_of_each_sample_refuses_them(choice: str, run: Run) -> None:
    ended = run(*words("model=wgan_gp", "model.joint_batch=false", f"model/critic={choice}"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "mixes the samples" in ended.err
    assert "model/critic" in ended.err


def test_the_deviation_may_be_let_past_as_in_progan() -> None:
    choice = ("model.joint_batch=false", "model/critic=minibatch_std", "model.critic.between.penalised=true")
    assert built("model=wgan_gp", *choice).penalties
    with pytest.raises(UserError, match="mixes"):
        refuse_mixing(nn.Sequential(MinibatchDeviation(4)))
    refuse_mixing(nn.Sequential(MinibatchDeviation(4, penalised=True), nn.Linear(2, 2)))


@pytest.mark.parametrize("choice", ["minibatch_discrimination", "minibatch_std"])
def test_real_and_generated_samples_do_not_meet_in_them(choice: str) -> None:
    with pytest.raises(UserError, match=r"model\.joint_batch"):
        built("model=dcgan", "++model.joint_batch=true", f"model/critic={choice}")
    assert built("model=dcgan", "++model.joint_batch=true")


@pytest.mark.parametrize("make", [lambda: MinibatchDiscrimination(0), lambda: MinibatchStandardDeviation(1).build(3)])
def test_numbers_out_of_range_are_named(make: object) -> None:
    with pytest.raises(UserError, match=r"model\.critic\.between"):
        make()  # type: ignore[operator]


# Virtual batch norm


def test_statistics_are_those_of_the_reference_batch_and_the_sample() -> None:
    layer = VirtualBatchNorm(3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.rows = 7
    x = torch.randn(12, 3, 4, 4) * 2 + 1
    y = layer(x).detach()
    gain, bias = layer.weight.detach(), layer.bias.detach()
    for i in range(12):
        for c in range(3):
            weighed = [x[:7, c].flatten()] if i < 7 else [x[:7, c].flatten(), x[i, c].flatten()]
            # Each of the R + 1 samples counts alike, and each place in it.
            whole = torch.cat(weighed)
            expected = (x[i, c] - whole.mean()) / (whole.var(unbiased=False) + layer.eps).sqrt() * gain[c] + bias[c]
            torch.testing.assert_close(y[i, c], expected, rtol=1e-4, atol=1e-5)


def test_vectors_count_as_one_place() -> None:
    layer = VirtualBatchNorm(2)
    layer.rows = 4
    x = torch.randn(6, 2)
    y = layer(x).detach()
    whole = torch.cat([x[:4], x[5:]])
    expected = (x[5] - whole.mean(0)) / (whole.var(0, unbiased=False) + layer.eps).sqrt()
    torch.testing.assert_close(y[5], expected)


@pytest.mark.parametrize(
    "words_of_net",
    [
        ("model.net.decoder_norm=virtual",),
        ("model/net=residual", "model.net.decoder_norm=virtual"),
        ("model/net=mlp", "model.net.norm=virtual"),
    ],
)
def test_a_sample_depends_on_no_other_and_is_the_same_in_training(words_of_net: tuple[str, ...]) -> None:
    system = built("model=dcgan", *words_of_net)
    net = system.nets["generator"]
    assert isinstance(net, Referenced)
    z = torch.randn(6, 16)
    with torch.no_grad():
        together = net(z)
        torch.testing.assert_close(net(z[2:3]), together[2:3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.eval()(z), together)
        net.reference_0.add_(1.0)
        assert not torch.allclose(net(z), together, atol=1e-3)
    plain = built("model=dcgan", *(word.replace("virtual", "batch") for word in words_of_net)).nets["generator"]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in plain.parameters())


def test_the_reference_batch_is_fixed_from_the_start_and_travels() -> None:
    config = tiny("model=dcgan", "model.net.decoder_norm=virtual", "model.prior=uniform")
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=9)
    first = system.nets["generator"].reference_0.clone()  # type: ignore[union-attr, operator]
    assert first.shape == (64, 16)
    assert first.abs().max() <= 1.0
    for batch in itertools.islice(stream(data.train, batch_size=16, seed=0), 3):
        system.iterate(batch)
    assert torch.equal(system.nets["generator"].reference_0, first)  # type: ignore[arg-type]
    assert system.average is not None
    assert torch.equal(system.average.nets["generator"].reference_0, first)  # type: ignore[arg-type]
    other = build_system(config, data, seed=1)
    other.prepare(total=9)
    assert not torch.equal(other.nets["generator"].reference_0, first)  # type: ignore[arg-type]
    other.restore(system.state())
    assert torch.equal(other.nets["generator"].reference_0, first)  # type: ignore[arg-type]
    for name, parameter in system.nets["generator"].named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_labels_have_a_reference_of_their_own() -> None:
    system = built("model=cgan", "model.net.decoder_norm=virtual", "++model.reference=20")
    net = system.nets["generator"]
    assert net.reference_1.tolist() == [i % 10 for i in range(20)]  # type: ignore[union-attr, operator]
    assert system.generate(3, torch.tensor([1, 2, 3])).x.shape == (3, 1, 8, 8)
    assert len(virtual_layers(net)) > 0


def test_virtual_norm_is_for_generators_alone() -> None:
    with pytest.raises(UserError, match=r"critic_norm=virtual"):
        DCGAN(critic_norm="virtual")
    with pytest.raises(UserError, match=r"critic_norm=virtual"):
        MLP(norm="virtual")
    with pytest.raises(UserError, match="reference batch"):
        DCGAN(width=4, decoder_norm="virtual").decoder(Spec((1, 8, 8)), 3)(torch.randn(2, 3))


# The spherical prior


def test_the_sphere_has_one_radius_and_no_direction() -> None:
    z = prior_noise("sphere", 20000, 5, torch.device("cpu"), torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.norm(dim=1), torch.full((20000,), 5**0.5))
    assert z.mean(0).abs().max() < 0.03
    torch.testing.assert_close(z.T @ z / 20000, torch.eye(5), rtol=0, atol=0.03)
    # Uniform on the sphere: the share below a height is that of Archimedes in three dimensions.
    height = prior_noise("sphere", 20000, 3, torch.device("cpu"), torch.Generator().manual_seed(1))[:, 0] / 3**0.5
    for level in (-0.8, -0.2, 0.5):
        assert float((height < level).float().mean()) == pytest.approx((1 + level) / 2, abs=0.015)


def test_the_prior_reaches_the_generator(run: Run) -> None:
    system = built("model=dcgan", "model.prior=sphere")
    z = system.prior_codes(7)  # type: ignore[operator]
    torch.testing.assert_close(z.norm(dim=1), torch.full((7,), 4.0))
    ended = run(*words("model=dcgan", "model.prior=spere"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "sphere" in ended.err


# Each trick is one word


@pytest.mark.parametrize("trick", sorted(set(options("trick")) - {"none"}))
def test_each_trick_changes_the_run_and_stands_in_its_config(trick: str) -> None:
    plain, config = tiny("model=dcgan"), tiny("model=dcgan", f"trick={trick}")
    check_config(config)
    assert config["choices"]["trick"] == trick
    assert differences_of(plain["model"], config["model"])
    data = build(config["data"])
    ends = []
    for which in (config, config, plain):
        system = build_system(which, data, seed=0)
        system.prepare(total=8)
        for batch in itertools.islice(stream(data.train, batch_size=16, seed=0), 6):
            system.iterate(batch)
        ends.append(system.state())
    assert differences(ends[0], ends[1]) == []
    changed = ends[0]["nets"].keys() != ends[2]["nets"].keys() or differences(ends[0]["nets"], ends[2]["nets"])
    assert changed or (ends[0]["average"] is None) != (ends[2]["average"] is None)


def differences_of(a: object, b: object) -> bool:
    return a != b


def test_none_is_the_model_as_it_is() -> None:
    assert tiny("model=dcgan", "trick=none")["model"] == tiny("model=dcgan")["model"]


def test_the_card_of_a_run_says_which_trick(run: Run, workplace: Path) -> None:
    assert run(*words("model=dcgan", "trick=diffaugment", "train.iterations=2", "metrics=none", "name=run")).code == 0
    card = RunFolder.open(workplace / "outputs" / "run").card()
    assert card["choices"]["trick"] == "diffaugment"
    assert card["choices"]["model/view"] == "diffaugment"


def test_the_sweep_names_tricks_that_there_are() -> None:
    (over,) = compose(["experiment=gan_tricks"]).config["sweep"]["over"]
    assert sorted(over.removeprefix("trick=").split(",")) == options("trick")
