"""The residual networks of SNGAN, SAGAN and BigGAN: counts, the published sizes, the switches of the ablation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, tiny, words
from torch import Tensor, nn

from gentrain.compose import compose
from gentrain.config import build, conf_dir, load_yaml
from gentrain.data.stream import stream
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.nets.attention import SelfAttention
from gentrain.nets.biggan import BigGAN, Hierarchical
from gentrain.nets.conditioning import Labels
from gentrain.nets.critic import Scoring
from gentrain.nets.layers import IMAGE_NORMS
from gentrain.nets.modulation import ClassVectors
from gentrain.nets.resnet_gan import Growing, ResNetGAN, Shrinking, Stages
from gentrain.types import Spec

CIFAR = Spec((3, 32, 32), tuple("0123456789"))
SNGAN32 = {"32": Stages([4, 4, 4, 4], [2, 2, 2, 2], 2)}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# The residual networks


def test_parameters_by_hand() -> None:
    """Miyato 2018, table 4: 256 channels in the generator, 128 in the critic, for 32 pixels."""
    with torch.device("meta"):
        net = ResNetGAN(SNGAN32, width=64)
        block = 2 * 256 + 256 * 256 * 9 + 2 * 256 + 256 * 256 * 9 + 256 * 256
        assert count(net.decoder(CIFAR, 128)) == 128 * 4096 + 3 * block + 2 * 256 + 256 * 3 * 9 + 3
        pair = 2 * (128 * 128 * 9 + 128)
        first = 3 * 128 * 9 + 128 + 128 * 128 * 9 + 128 + 3 * 128 + 128
        assert count(net.encoder(CIFAR, 1)) == first + (pair + 128 * 128 + 128) + 2 * pair + 128 + 1


def test_a_growing_block_by_its_formula() -> None:
    block, x = Growing(3, 2, IMAGE_NORMS["batch"]), torch.randn(4, 3, 4, 4)
    up = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    norm = lambda t: (t - t.mean((0, 2, 3), True)) / (t.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()  # noqa: E731
    h = F.conv2d(up(norm(x).relu()), block.convolution1.weight, padding=1)
    h = F.conv2d(norm(h).relu(), block.convolution2.weight, padding=1)
    torch.testing.assert_close(block(x), h + F.conv2d(up(x), block.around.weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("first", "halve"), [(True, True), (False, True), (False, False)])
def test_a_shrinking_block_by_its_formula_leaves_its_input_alone(first: bool, halve: bool) -> None:
    block, x = Shrinking(2, 3, halve=halve, first=first), torch.randn(4, 2, 4, 4)
    before = x.clone()

    def by_hand(x: Tensor, around: Tensor) -> Tensor:
        down = (lambda t: F.avg_pool2d(t, 2)) if halve else (lambda t: t)
        h = block.convolution1(x if first else x.relu()).relu()
        return down(block.convolution2(h)) + down(block.around(around))

    found = block(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(found, by_hand(x, x), rtol=1e-4, atol=1e-5)
    if not first:  # what an in-place ReLU would send around
        assert float((found - by_hand(x, x.relu())).detach().abs().max()) > 1e-2


def test_features_are_sums_over_places_without_normalisation() -> None:
    trunk, width = ResNetGAN(SNGAN32, width=2).trunk(CIFAR)
    x = torch.randn(5, 3, 32, 32)
    found = trunk(x)
    assert found.shape == (5, width)
    torch.testing.assert_close(found, trunk[:-1](x).relu().sum((2, 3)))
    torch.testing.assert_close(trunk(x[:1]), found[:1], rtol=1e-4, atol=1e-5)  # no sample sees another


@pytest.mark.parametrize(("attention", "sides"), [(None, (0, 0)), ("half", (16, 16)), (8, (8, 8)), (32, (32, 0))])
def test_attention_stands_at_the_side_that_was_asked_for(attention: Any, sides: tuple[int, int]) -> None:
    net = ResNetGAN(SNGAN32, width=2, attention=attention)
    seen: list[int] = []
    for made, x, side in zip(
        (net.decoder(CIFAR, 8), net.trunk(CIFAR)[0]), (torch.randn(2, 8), torch.randn(2, 3, 32, 32)), sides, strict=True
    ):
        layers = [layer for layer in made.modules() if isinstance(layer, SelfAttention)]
        seen.clear()
        for layer in layers:
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2]))
        made(x)
        assert seen == ([side] if side else [])
        layer_of_made = [p for layer in layers for p in layer.parameters()]
        assert bool(layer_of_made) == bool(side)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 16, 16), (3, 64, 64), (3, 128, 128)])
@pytest.mark.parametrize("net", ["resnet_gan", "biggan"])
def test_the_shipped_stages_fit_every_size(net: str, shape: tuple[int, int, int]) -> None:
    config = tiny("model=dcgan", f"model/net={net}", "model.net.width=1", "model.net.attention=half")
    made, spec = build(config["model"]["net"]), Spec(shape, tuple("ab"))
    chunks = {8: 2, 16: 3, 32: 4, 64: 5, 128: 6}[spec.canvas]
    x = made.decoder(spec, 2 * chunks)(torch.randn(2, 2 * chunks))
    assert x.shape == (2, *shape)
    assert made.encoder(spec, 3)(x).shape == (2, 3)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"32": Stages([4, 4], [2, 2], 2)}, "generator=.*4 widths lead"),
        ({"32": Stages([4] * 4, [2, 2], 3)}, "halvings=3: from 1 to 2"),
        ({"20": Stages([4], [2], 1)}, "power of two"),
        ({"64": Stages([4] * 5, [2] * 4, 4)}, "none for images of 32 pixels"),
        ({"32": Stages([4, 4, 4, 0], [2, 2], 2)}, "widths are 1 or more"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages: dict[str, Stages], said: str) -> None:
    with pytest.raises(UserError, match=f"model.net.stages.*{said}"):
        ResNetGAN(stages).decoder(CIFAR, 8)


# BigGAN at its size: table 1 of Brock et al. 2019, parameters of both networks in millions


TABLE = [(64, False, False, 81.5), (96, False, False, 173.5), (96, True, False, 160.6), (96, True, True, 158.3),
         (64, True, True, 71.3)]  # fmt: skip


def imagenet(width: int, shared: bool, skip_z: bool) -> tuple[nn.Module, nn.Module]:
    shipped = load_yaml(conf_dir() / "model" / "net" / "biggan.yaml")["stages"]["128"]
    stages = {"128": Stages(*(shipped[key] for key in ("generator", "critic", "halvings")))}
    spec, labels = Spec((3, 128, 128), tuple(map(str, range(1000)))), Labels("batch_norm", "projection", 128, shared)
    with torch.device("meta"):
        net = BigGAN(stages, width=width, skip_z=skip_z)
        return labels.build_generator(spec, net, 120), Scoring().build(spec, net, labels, {})


def test_sizes_are_those_of_the_table_and_move_as_it_does() -> None:
    found = [sum(map(count, imagenet(*row[:3]))) / 1e6 for row in TABLE]
    assert found == pytest.approx([row[3] for row in TABLE], rel=0.004)
    plain, wide, shared, skip, narrow = found
    assert plain < wide > shared > skip > narrow


# The five switches of the ablation


def made(*switches: str) -> System:
    config = tiny("experiment=biggan_ablation", "size=tiny", "data=digits", "trainer=cpu", *switches)
    check_config(config)
    return build_system(config, build(config["data"]), seed=0)


def shapes(system: System) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in system.nets.named_parameters()}


def test_each_switch_changes_what_it_names_and_nothing_else() -> None:
    full = made()
    base = shapes(full)
    vectors = [m for m in full.nets["generator"].modules() if isinstance(m, ClassVectors)]
    assert len(vectors) == 1
    unshared = made("wants.shared=false")
    assert not any(isinstance(m, ClassVectors) for m in unshared.nets["generator"].modules())
    changed = {n for n, s in shapes(unshared).items() if base.get(n) != s} | (base.keys() - shapes(unshared).keys())
    assert changed
    assert all(name.startswith("generator.") for name in changed)
    assert all(".gain." in name or ".shift." in name or name.endswith("vectors") for name in changed)

    flat = made("wants.hier=false")
    assert not any(isinstance(m, Hierarchical) for m in flat.nets["generator"].modules())
    assert {n: s for n, s in shapes(flat).items() if n.startswith("critic")} == {
        n: s for n, s in base.items() if n.startswith("critic")
    }
    assert sum(p.numel() for p in flat.nets["generator"].parameters()) != sum(
        p.numel() for p in full.nets["generator"].parameters()
    )

    wide = shapes(made("wants.ch=8"))
    assert wide.keys() == base.keys()
    assert sum(wide[n] != base[n] for n in base) > 20
    assert all(wide[n] == base[n] for n in base if n.endswith("vectors"))

    free = made("wants.ortho=0")
    assert shapes(free) == base
    batch = next(iter(stream(build(tiny("data=digits")["data"]).train, batch_size=8, seed=0)))
    terms = [set(system.players()[1].loss(batch)) for system in (full, free)]
    assert terms == [{"adversarial", "orthogonal"}, {"adversarial"}]

    assert shapes(made("wants.batch=8")) == base
    assert tiny("experiment=biggan_ablation", "wants.batch=8")["train"]["batch_size"] == 8


def test_chunks_of_z_come_out_even_and_each_reaches_the_pixels() -> None:
    stages = {"32": Stages([4, 2, 1, 1], [1, 1], 2)}
    net = BigGAN(stages, width=4).decoder(CIFAR, 20)
    assert isinstance(net, Hierarchical)
    assert net.chunk * (len([b for b in net.blocks if isinstance(b, Growing)]) + 1) == 20
    z = torch.randn(6, 20, requires_grad=True)
    net(z).square().sum().backward()
    assert z.grad is not None
    assert bool((z.grad.abs().sum(0) > 0).all())
    with pytest.raises(
        UserError, match=r"model\.latent: .* 22 .* 4 equal chunks.*: 20 or 24, or model\.net\.skip_z=false"
    ):
        BigGAN(stages).decoder(CIFAR, 22)
    with pytest.raises(UserError, match=r"model\.net\.decoder_norm=layer: skip-z .*model\.net\.skip_z=false"):
        BigGAN(stages, decoder_norm="layer").decoder(CIFAR, 20)
    assert BigGAN(stages, width=4, decoder_norm="layer", skip_z=False).decoder(CIFAR, 20)(z).isfinite().all()


def test_weights_start_orthogonal() -> None:
    net = BigGAN({"32": Stages([4, 2, 1, 1], [1, 1], 2)}, width=4).decoder(CIFAR, 20)
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            w = layer.weight.flatten(1)
            w = w if w.shape[0] <= w.shape[1] else w.T
            torch.testing.assert_close(w @ w.T, torch.eye(len(w)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", ["sngan", "sagan", "biggan"])
def test_spectral_norm_is_where_the_paper_has_it_and_rests_in_eval(model: str) -> None:
    config = tiny(f"model={model}")
    system = build_system(config, build(config["data"]), seed=0)
    for name, wanted in (("critic", True), ("generator", model != "sngan")):
        layers = [m for m in system.nets[name].modules() if hasattr(m, "parametrizations")]
        assert bool(layers) == wanted
    critic = system.nets["critic"]
    x, y = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64) if system.conditional else None  # type: ignore[attr-defined]
    before = {n: b.clone() for n, b in critic.named_buffers()}
    critic.eval()
    critic(x, y)
    assert all(torch.equal(b, before[n]) for n, b in critic.named_buffers())
    critic.train()
    for _ in range(50):
        critic(x, y)
    assert any(not torch.equal(b, before[n]) for n, b in critic.named_buffers())
    for layer in critic.modules():
        if hasattr(layer, "parametrizations"):
            assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) <= 1.05


def test_the_sweep_of_the_ablation_is_one_command(run: Run) -> None:
    done = run("check", *words("experiment=biggan_ablation", "metrics=none"))
    assert done.code == 0, done.err


def test_the_ablation_is_the_table_row_by_row() -> None:
    config = compose(["experiment=biggan_ablation"]).config
    rows = [dict(word.split("=") for word in words) for words in config["sweep"]["variants"].values()]
    assert len(rows) == len(config["published"]) == 8
    for row, (batch, ch, _, shared, hier, ortho, *_) in zip(rows, config["published"], strict=True):
        assert int(row["wants.batch"]) == batch // 32
        assert int(row["wants.ch"]) == ch // 6 - (ch == 64) * 2
        assert [row["wants.shared"], row["wants.hier"]] == [str(shared).lower(), str(hier).lower()]
        assert (float(row["wants.ortho"]) > 0) == ortho


def test_what_the_ablation_reached_is_what_was_measured() -> None:
    root = Path(__file__).parents[1]
    found = json.loads((root / "docs" / "measured" / "biggan_ablation.json").read_text(encoding="utf-8"))
    rows = sorted(found["tables"][0]["rows"], key=lambda row: str(row["runs"][0]))  # jobs have the table's order
    figures = [f"{row['columns']['fd_domain']['values'][0]:.1f}" for row in rows]
    head = (root / "conf" / "experiment" / "biggan_ablation.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    assert len(figures) == len(compose(["experiment=biggan_ablation"]).config["sweep"]["variants"])
    assert ", ".join(figures) in head
