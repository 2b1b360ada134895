"""Losses by the features of a frozen network: what goes through it, what stays out of it, and which one it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import batches, ready
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gentrain.data.sources import digits
from gentrain.engine import checkpoint
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.evaluation import perceptual
from gentrain.evaluation.domain import SHIPPED, load_extractor
from gentrain.evaluation.imagenet import MEAN, STD
from gentrain.evaluation.perceptual import BLOCKS, VGG19, DomainFeatures, VGG19Net
from gentrain.evaluation.weight_files import VGG19 as FILE
from gentrain.models.ae import Point
from gentrain.models.dfc_vae import DeepFeatures
from gentrain.models.vae import DiagonalGaussian
from gentrain.nets.frozen import Frozen
from gentrain.objectives.autoencoding import Pass
from gentrain.objectives.divergences import CodeDivergence
from gentrain.types import Images, Spec, to_signed

ALL = tuple(f"relu{block}_{n}" for block, (_, count) in enumerate(BLOCKS, start=1) for n in range(1, count + 1))


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight file lies in a cache of this machine."""
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENTRAIN_WEIGHTS", raising=False)


def torchvisions(seed: int = 0) -> nn.Module:
    """torchvision's own convolutions of VGG-19 with random weights, without the 124 million of its classifier."""
    vgg = pytest.importorskip("torchvision.models.vgg")
    torch.manual_seed(seed)
    layers: nn.Module = vgg.make_layers(vgg.cfgs["E"])
    return layers.eval()


def weight_file(folder: Path, monkeypatch: pytest.MonkeyPatch, net: nn.Module) -> Path:
    """A file in the layout of torchvision's, in the cache, with the hash that is asked for."""
    path = folder / FILE.name
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"features.{name}": value for name, value in net.state_dict().items()}
    torch.save(
        state | {f"classifier.{n}.{kind}": torch.zeros(1) for n in (0, 3, 6) for kind in ("weight", "bias")}, path
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    made = dataclasses.replace(FILE, sha256=sha256, size=path.stat().st_size)
    monkeypatch.setattr(perceptual, "FILE", made)
    return path


def pictures(n: int = 2, c: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, c, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def loss_on(spec: Spec, source: VGG19 | DomainFeatures | None = None) -> DeepFeatures:
    loss = DeepFeatures(source or DomainFeatures(), weight=0.5)
    loss.require(spec)
    return loss


# VGG-19


def test_the_file_of_torchvision_gives_the_features_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = torchvisions()
    weight_file(tmp_path / "cache" / "weights", monkeypatch, reference)
    x = to_signed(pictures())
    normalised = ((x + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = []
    for layer in reference:  # type: ignore[union-attr]
        normalised = layer(normalised)
        if isinstance(layer, nn.ReLU):
            expected.append(normalised.clone())  # its ReLU is in place
    frozen = VGG19(ALL).build(Spec((3, 32, 32)))
    found = frozen(x)
    assert len(found) == len(expected) == 16
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert float(ours.abs().max()) > 0
    part = VGG19(("relu3_1", "relu1_1"), scale=3.0).build(Spec((3, 32, 32)))(x)
    torch.testing.assert_close(part[0], 3.0 * expected[0])
    torch.testing.assert_close(part[1], 3.0 * expected[4], rtol=1e-5, atol=1e-6)
    assert frozen.sha256 == perceptual.FILE.sha256


def test_grey_pictures_are_looked_at_as_grey_colours() -> None:
    net = VGG19Net(("relu2_1",), 1.0)
    x = to_signed(pictures(c=1))
    torch.testing.assert_close(net(x)[0], net(x.repeat(1, 3, 1, 1))[0])


def test_what_vgg_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in ("relu6_1", "relu1_3", "conv1_1"):
        with pytest.raises(UserError, match=f"layers: {layer}"):
            VGG19((layer,))
    weight_file(tmp_path / "here", monkeypatch, torchvisions())
    with pytest.raises(UserError, match=r"relu5_1 needs images of 16 pixels, got 8"):
        VGG19(("relu5_1",), str(tmp_path / "here")).build(Spec((1, 8, 8)))
    with pytest.raises(UserError, match="1 or 3 channels"):
        VGG19(weights_path=str(tmp_path / "here")).build(Spec((4, 32, 32)))
    with pytest.raises(UserError, match=r"model\.loss\.features: no weights of VGG-19"):
        VGG19(weights_path=str(tmp_path / "nowhere"), otherwise=DomainFeatures()).build(Spec((3, 32, 32)))
    (tmp_path / "here" / FILE.name).write_bytes(b"another file")
    with pytest.raises(UserError, match=r"model\.loss\.features: .* has SHA-256"):
        VGG19(weights_path=str(tmp_path / "here")).build(Spec((3, 32, 32)))


# The domain's own classifier


@pytest.mark.parametrize(
    ("shape", "chosen"), [((1, 8, 8), "digits"), ((1, 28, 28), "fashion"), ((3, 64, 64), "fashion")]
)
def test_the_domain_extractor_that_is_nearest_stands_in(shape: tuple[int, ...], chosen: str) -> None:
    frozen = VGG19(otherwise=DomainFeatures()).build(Spec(shape))
    assert chosen in frozen.name
    maps = frozen(torch.zeros(2, *shape))
    assert [m.shape[-1] for m in maps] == [shape[-1] // 2**i for i in range(len(maps))]
    assert maps[0].shape[1] == 16 * shape[0]


def test_its_last_stage_leads_to_the_features_that_scores_are_made_of() -> None:
    x = pictures(4, 1, 28)
    frozen = DomainFeatures(str(SHIPPED / "fashion_mnist.safetensors")).build(Spec((1, 28, 28)))
    extractor = load_extractor(SHIPPED / "fashion_mnist.safetensors")
    last = frozen(to_signed(x))[-1]
    pointwise = extractor._net.body[-3:]  # type: ignore[index, union-attr]
    torch.testing.assert_close(pointwise(last).mean((2, 3)), extractor(x).features, rtol=1e-4, atol=1e-5)


def test_each_colour_is_looked_at() -> None:
    loss = loss_on(Spec((3, 28, 28)))
    target = loss.prepare(pictures(2, 3, 28))
    raw = torch.atanh(target.clamp(-0.99, 0.99))
    swapped = raw[:, [2, 1, 0]]
    assert float(loss.error(raw, target).max()) < 0.05 * float(loss.error(swapped, target).min())


# The loss


def sources() -> list[tuple[int, DeepFeatures]]:
    vgg = DeepFeatures(VGG19(otherwise=None))
    vgg.features = Frozen(VGG19Net(("relu1_1", "relu2_1"), 1.0), name="VGG-19", sha256="0")
    return [(1, loss_on(Spec((1, 28, 28)))), (3, vgg)]


def test_it_is_half_the_mean_square_of_each_layer_and_nothing_for_equal_pictures() -> None:
    for c, loss in sources():
        output = torch.randn(3, c, 28, 28)
        target = loss.prepare(pictures(3, c, 28))
        assert loss.error(output, loss.mean(output)).tolist() == [0.0, 0.0, 0.0]
        found = loss.error(output, target)
        for b in range(3):
            maps = [loss.features(x[b : b + 1]) for x in (torch.tanh(output), target)]
            expected = sum(0.5 * float(((m - t) ** 2).mean()) for m, t in zip(*maps, strict=True))
            assert float(found[b]) == pytest.approx(0.5 * expected, rel=1e-4)
        assert float(found.min()) > 0


def test_gradients_go_through_the_network_and_never_into_it() -> None:
    for c, loss in sources():
        output = torch.randn(2, c, 28, 28, requires_grad=True)
        loss.train()
        loss.error(output, loss.prepare(pictures(2, c, 28))).sum().backward()  # type: ignore[no-untyped-call]
        assert output.grad is not None
        assert float(output.grad.abs().sum()) > 0
        (held,) = loss.features._held
        assert len(list(held.parameters())) > 3
        assert all(p.grad is None and not p.requires_grad for p in held.parameters())
        assert not any(module.training for module in held.modules())
        assert list(loss.parameters()) == []


def trained(steps: int = 3) -> System:
    config = tiny("model=dfc_vae")
    system, data = ready(config)
    system.train()  # as the Trainer does at its start
    for batch in batches(config, data, steps):
        system.iterate(batch)
    return system


def test_training_leaves_the_network_alone_and_out_of_the_checkpoint(tmp_path: Path) -> None:
    system = trained(0)
    (held,) = system.loss.features._held  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in held.state_dict().items()}
    after = dict(trained().loss.features._held[0].state_dict())  # type: ignore[union-attr]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "batch statistics are weights too"
    state = trained().state()
    checkpoint.save({"system": state}, tmp_path / checkpoint.file_name(3))
    kept = checkpoint.load(tmp_path / checkpoint.file_name(3))["system"]["kept"]["loss"]
    assert [type(value) for value in kept.values()] == [dict]
    assert len(str(kept)) < 300


def test_it_follows_its_user_to_another_type_of_number_and_device() -> None:
    loss = loss_on(Spec((1, 8, 8)))
    loss.to("meta")
    assert {p.device.type for p in loss.features._held[0].parameters()} == {"meta"}


def test_a_run_goes_on_with_the_network_that_it_began_with_alone() -> None:
    system = trained()
    same, _ = ready(tiny("model=dfc_vae"))
    same.restore(system.state())
    batch = Images(digits().train.all(16).x)
    assert torch.isfinite(torch.stack(list(same.objective(batch).values()))).all()  # type: ignore[operator]
    state = system.state()
    state["kept"]["loss"]["features._extra_state"] = {"name": "VGG-19 (relu1_1)", "sha256": "dc"}
    other, _ = ready(tiny("model=dfc_vae"))
    other.restore(state)
    assert other.sample(3).shape == (3, 1, 8, 8)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"began with features of VGG-19 \(relu1_1\), and here is domain extractor"):
        other.objective(batch)  # type: ignore[operator]


def test_the_console_and_the_card_say_which_network_it_was(run: Run, workplace: Path) -> None:
    ended = run(*words("model=dfc_vae", "name=run", "train.iterations=2", "metrics=none"))
    assert ended.code == 0
    assert "features: domain extractor digits" in ended.out + ended.err
    card = json.loads((workplace / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert card["remarks"]["features"].startswith("domain extractor digits")
    ended = run(*words("model=ae", "name=plain", "train.iterations=2", "metrics=none"))
    assert ended.code == 0
    assert "remarks" not in json.loads((workplace / "outputs" / "plain" / "run.json").read_text(encoding="utf-8"))


def test_vectors_and_a_weight_of_nothing_are_refused(run: Run) -> None:
    ended = run("check", "size=tiny", "model=dfc_vae", "data=ring", "model/net=mlp", "trainer=cpu")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "model=dfc_vae is for images" in ended.err
    ended = run("check", *words("model=dfc_vae", "loss.weight=0"))
    assert (ended.code, "model.loss.weight=0" in ended.err) == (2, True)


# Its other parts


def a_pass(output: Tensor, code: Point | DiagonalGaussian) -> Pass:
    x = torch.zeros(len(output), 1)
    return Pass(Images(x), x, x, output, code.draw(output), x, x, nn.Identity(), nn.Identity(), code)


def test_the_divergence_of_a_code_is_that_of_torch_distributions() -> None:
    output = torch.randn(8, 6)
    mu, log_variance = output.chunk(2, 1)
    expected = kl_divergence(Normal(mu, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(CodeDivergence(3.0)(a_pass(output, DiagonalGaussian(3))), 3.0 * expected)
    with pytest.raises(UserError, match="Point is a code without a distribution"):
        CodeDivergence()(a_pass(output, Point(6)))
    with pytest.raises(UserError, match="weight=-1"):
        CodeDivergence(-1.0)


def test_the_decoder_repeats_pixels() -> None:
    net = trained(0).nets["decoder"]
    kinds = [type(module) for module in net.modules()]
    assert nn.Upsample in kinds
    assert nn.ConvTranspose2d not in kinds
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(0.01 < float(w.detach().std()) < 0.03 for w in weights), "N(0, 0.02) reaches them"
