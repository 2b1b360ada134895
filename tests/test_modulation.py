"""Normalisation that depends on a class: its formula, its start, who gets the condition, its buffers in the average."""

from __future__ import annotations

import pytest
import torch
from conftest import Run, tiny, words
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gentrain.config import build
from gentrain.data.sources import digits
from gentrain.engine.fit import build_system
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.nets.architecture import Architecture, Modulated
from gentrain.nets.biggan import BigGAN
from gentrain.nets.conditioning import Labels
from gentrain.nets.critic import spectral_norm
from gentrain.nets.dcgan import DCGAN
from gentrain.nets.modulation import ClassVectors, ConditionalBatchNorm2d, ConditionalSequential, Table
from gentrain.nets.residual import Residual
from gentrain.nets.resnet_gan import ResNetGAN, Stages
from gentrain.types import Images, Spec

STAGES = {"8": Stages([2, 1], [1, 1], 1), "32": Stages([4, 2, 1, 1], [1, 2, 2], 2)}
SPEC = Spec((1, 28, 28), tuple("abc"))
NETS: list[Architecture] = [DCGAN(2), Residual(2), ResNetGAN(STAGES, width=2), BigGAN(STAGES, width=2)]


def conditional_norms(net: nn.Module) -> list[ConditionalBatchNorm2d]:
    return [layer for layer in net.modules() if isinstance(layer, ConditionalBatchNorm2d)]


@pytest.mark.parametrize("one_hot", [True, False])
def test_gain_and_bias_are_linear_in_the_condition(one_hot: bool) -> None:
    layer = ConditionalBatchNorm2d(4, 3, one_hot=one_hot)
    for part in layer.parameters():
        nn.init.normal_(part)
    x, c = torch.randn(5, 4, 2, 2), torch.eye(3)[[0, 1, 2, 0, 1]] if one_hot else torch.randn(5, 3)
    a, b = (m.rows if one_hot else m.weight.T for m in (layer.gain, layer.shift))
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    wanted = (x - mean) / (var + 1e-5).sqrt() * (1 + c @ a)[:, :, None, None] + (c @ b)[:, :, None, None]
    torch.testing.assert_close(layer(x, c), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", NETS, ids=lambda net: type(net).__name__)
@pytest.mark.parametrize("shared", [False, True])
def test_labels_reach_the_generator_through_every_architecture(net: Architecture, shared: bool) -> None:
    assert isinstance(net, Modulated)
    made = Labels("batch_norm", "projection", width=6, shared=shared).build_generator(SPEC, net, 8)
    norms = conditional_norms(made)
    assert len(norms) >= 3
    z = torch.randn(4, 8)
    asked = [made(z, torch.full((4,), k)) for k in range(3)]
    assert asked[0].shape == (4, 1, 28, 28)
    assert asked[0].abs().max() <= 1
    tables = not shared and not isinstance(net, BigGAN)
    # A table starts at gain 1 and bias 0: no class differs yet. Filled, each layer alone tells classes apart.
    assert torch.equal(asked[0], asked[1]) == tables
    assert all(isinstance(layer.gain, Table) == tables for layer in norms)
    for layer in norms:
        for part in (layer.gain, layer.shift):
            for parameter in part.parameters():
                kept = parameter.detach().clone()
                nn.init.normal_(parameter)
                assert not torch.equal(
                    made(z, torch.zeros(4, dtype=torch.int64)), made(z, torch.ones(4, dtype=torch.int64))
                )
                with torch.no_grad():
                    parameter.copy_(kept)


def test_only_layers_that_take_a_condition_are_handed_it() -> None:
    net = ConditionalSequential(nn.Conv2d(1, 2, 1), ConditionalBatchNorm2d(2, 3, one_hot=False), nn.ReLU())
    x = torch.randn(4, 1, 2, 2)
    assert not torch.equal(net(x, torch.randn(4, 3)), net(x, torch.randn(4, 3)))


def test_tables_and_class_vectors_are_not_normalised_spectrally() -> None:
    """A table of zeros over its largest singular value is not a number."""
    for shared in (False, True):
        made = Labels("batch_norm", "projection", shared=shared).build_generator(SPEC, DCGAN(2), 8)
        spectral_norm(made)
        assert made(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])).isfinite().all()
        names = [name for name, _ in made.named_parameters() if "original" in name]
        assert names
        assert not any("rows" in name or "vectors" in name for name in names)
        wrong = nn.Linear(3, 4)
        nn.init.zeros_(wrong.weight)
        assert spectral_norm(wrong)(torch.randn(2, 3)).isnan().any()
    assert ClassVectors(3, 5)(torch.tensor([2, 0])).shape == (2, 5)


@pytest.mark.parametrize("net", [DCGAN(2, decoder_norm="none"), Residual(2, decoder_norm="instance")])
def test_a_generator_without_batch_norm_is_refused(net: Architecture) -> None:
    with pytest.raises(UserError, match=r"model\.net\.decoder_norm=.*concat or embedding"):
        Labels("batch_norm").build_generator(SPEC, net, 8)


def test_the_average_of_a_modulated_generator_has_its_batch_statistics() -> None:
    config = tiny("model=cgan", "model.labels.generator=batch_norm", "model.net.depth=3")
    system: System = build_system(config, build(config["data"]), seed=0)
    system.prepare(total=4)
    data = digits().train.all(64)
    for start in range(0, 64, 16):
        rows = slice(start, start + 16)
        assert data.y is not None
        system.iterate(Images(data.x[rows], data.y[rows], torch.arange(64)[rows]))
    assert system.average is not None
    live, averaged = system.nets["generator"], system.average.nets["generator"]
    layers = [m for m in live.modules() if isinstance(m, _BatchNorm)]
    others = [m for m in averaged.modules() if isinstance(m, _BatchNorm)]
    assert len(layers) == len(conditional_norms(live)) >= 2
    for layer, other in zip(layers, others, strict=True):
        assert layer.running_mean is not None
        assert not torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))
        for name, value in layer.named_buffers():
            assert torch.equal(value, other.get_buffer(name)), name
    assert any(not torch.equal(a, b) for a, b in zip(live.parameters(), averaged.parameters(), strict=True))


def test_the_command_line_takes_batch_norm_for_labels(run: Run) -> None:
    for net in ("dcgan", "residual"):
        assert run("check", *words("model=cgan", "model.labels.generator=batch_norm", f"model/net={net}")).code == 0
    refused = run("check", *words("model=cgan", "model.labels.generator=batch_norm", "model/net=mlp"))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
