"""The semi-supervised GAN: K logits with the last fixed at 0, few labels, matched features; its networks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, tiny, words
from torch import Tensor, nn

from gentrain.config import Node, build
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.game import CLASS_HEAD
from gentrain.models.ssgan import ClassCritic, ClassLogits, FewLabels, SalimansMLP
from gentrain.nets.mlp import MLP
from gentrain.nets.salimans import SalimansConv
from gentrain.objectives.adversarial import nonsaturating
from gentrain.objectives.feature_matching import FeatureMatching, feature_distance
from gentrain.types import Images, Spec


def ready(*overrides: str) -> tuple[System, Images]:
    config: Node = tiny("model=ssgan", *overrides)
    check_config(config)
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=100)
    return system, data.train.take(torch.arange(16))


# K + 1 classes


def of_the_critic(real: Tensor, fake: Tensor) -> Tensor:
    """What the critic of K logits minimises without labels."""
    critic = ClassCritic(nn.Identity(), nn.Identity())
    return 0.5 * sum(nonsaturating().critic(critic(real), critic(fake)).values(), torch.zeros(()))


def with_a_class_more(real: Tensor, fake: Tensor, last: float) -> Tensor:
    """The same, from the probabilities of K + 1 classes: -log p(not generated) of images, -log p(generated) of samples,
    each by half. ``last``: the logit of "generated"."""
    p_real, p_fake = (F.pad(x, (0, 1), value=last).softmax(1)[:, -1] for x in (real, fake))
    return -0.5 * ((1 - p_real).log().mean() + p_fake.log().mean())


def test_gradients_are_those_of_the_explicit_classes_with_the_last_logit_at_0() -> None:
    real, fake = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = torch.autograd.grad(of_the_critic(real, fake), (real, fake))
    explicit = torch.autograd.grad(with_a_class_more(real, fake, 0.0), (real, fake))
    for a, b in zip(ours, explicit, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    free = torch.autograd.grad(with_a_class_more(real, fake, 0.7), (real, fake))
    assert all(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(ours, free, strict=True))


def test_a_constant_on_all_logits_changes_the_probability_of_real_alone() -> None:
    critic = ClassCritic(nn.Identity(), nn.Identity())
    x = torch.randn(4, 3)
    here, there = critic.judge(x), critic.judge(x + 1.5)
    torch.testing.assert_close(here.more[CLASS_HEAD].softmax(1), there.more[CLASS_HEAD].softmax(1))
    z = x.exp().sum(1, keepdim=True)
    torch.testing.assert_close(here.score.sigmoid(), z / (z + 1))
    torch.testing.assert_close(there.score, here.score + 1.5)


# Labels


def test_the_labelled_term_sees_the_labelled_images_and_no_label_of_the_batch() -> None:
    system, batch = ready("model.aims.labelled.labels_per_class=2")
    few = system.aims["labelled"].labelled  # type: ignore[union-attr, index]
    assert torch.equal(few.y.bincount(), torch.full((10,), 2))
    seen: list[Tensor] = []
    critic = system.nets["critic"]
    judge = critic.judge
    critic.judge = lambda x, labels=None: seen.append(x.detach()) or judge(x, labels)  # type: ignore[assignment, func-returns-value]
    system.seats[0].optimizer.zero_grad()
    state = torch.get_rng_state()
    terms = system.critic_loss(batch)  # type: ignore[operator]
    assert len(seen) == 3  # images, samples, labelled images
    known = Images(few.x).signed.flatten(1)
    distance = torch.cdist(seen[2].flatten(1), known)
    assert distance.min(1).values.max() < 1e-4
    assert len(distance.argmin(1).unique()) > 5
    others = torch.cdist(seen[0].flatten(1), known).min(1).values
    assert (others > 1e-4).any()
    torch.set_rng_state(state)
    wrong = Images(batch.x, (batch.y + 1) % 10, batch.index)  # type: ignore[operator]
    again = system.critic_loss(wrong)  # type: ignore[operator]
    assert all(torch.equal(terms[name], again[name]) for name in terms)
    assert terms.keys() == {"real", "fake", "labelled"}


def test_the_labelled_term_is_the_cross_entropy_of_their_labels() -> None:
    system, batch = ready("model.net.noise=0", "model.net.input_noise=0", "model.aims.labelled.weight=3.0")
    few = system.aims["labelled"].labelled  # type: ignore[union-attr, index]
    one = Images(few.x[:1], few.y[:1])
    system.give_labelled(one)  # type: ignore[operator]
    term = system.critic_loss(batch)["labelled"]  # type: ignore[operator]
    logits = system.nets["critic"].judge(one.signed).more[CLASS_HEAD]  # type: ignore[operator]
    torch.testing.assert_close(term, -3.0 * logits.log_softmax(1)[0, few.y[0]])


def test_without_its_loss_the_critic_is_a_supervised_network() -> None:
    """What it becomes depends on the labelled images alone: neither the batch nor the generator moves it."""
    ends = []
    for start in (0, 500):
        config = tiny("model=ssgan", "model.weights.critic=0", "model.net.noise=0", "model.net.input_noise=0")
        data = build(config["data"])
        system = build_system(config, data, seed=0)
        system.prepare(total=100)
        for i in range(3):
            batch = data.train.take(torch.arange(start + 16 * i, start + 16 * i + 16))
            assert system.critic_loss(batch).keys() == {"labelled"}  # type: ignore[operator]
            system.iterate(batch)
        ends.append(system.nets.state_dict())
    same = {name for name in ends[0] if torch.equal(ends[0][name], ends[1][name])}
    assert {name for name in ends[0] if name.startswith("critic.")} <= same
    assert not {name for name in ends[0] if name.startswith("generator.") and name.endswith("weight")} <= same


def test_few_labels_teach_classes() -> None:
    config = tiny("model=ssgan", "model.net.hidden=[100,100]", "train.batch_size=50")
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=150)
    x, y = data.test.all().x, data.test.all().y
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        system.iterate(data.train.take(torch.randint(len(data.train), (50,), generator=generator)))
    with at_rest(system):
        error = (system.classify(x).argmax(1) != y).double().mean()  # type: ignore[operator]
        assert torch.equal(system.classify(x[:5]), system.classify(x[:5]))  # type: ignore[operator]
    assert error < 0.35  # by chance 0.9


# Features


def test_matched_features_are_a_distance_of_means() -> None:
    real, fake = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    assert feature_distance(real, fake).item() == (2.0**2 + 1.0**2) / 2
    assert feature_distance(real, fake, squared=False).item() == (2.0 + 1.0) / 2
    assert feature_distance(real, real.flip(0)).item() == 0.0  # means, not pairs
    with pytest.raises(UserError, match="weight=-1"):
        FeatureMatching(-1.0)


def test_the_generator_matches_features_and_nothing_else() -> None:
    system, batch = ready("model.net.noise=0", "model.net.input_noise=0", "model.aims.matching.weight=2.0")
    made = system.generate(16)  # type: ignore[operator]
    system._kept[id(batch)] = made  # type: ignore[index, operator]
    terms = system.generator_loss(batch)  # type: ignore[operator]
    assert terms.keys() == {"feature_matching"}
    trunk = system.nets["critic"].trunk  # type: ignore[union-attr]
    gap = trunk(batch.signed).mean(0) - trunk(made.x).mean(0)  # type: ignore[operator]
    torch.testing.assert_close(terms["feature_matching"], 2.0 * gap.square().mean())
    for parameter in system.nets.parameters():
        parameter.grad = None
    system._gradients(system.seats[1], [batch], 1)
    assert all(p.grad is None for p in system.nets["critic"].parameters())
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in system.nets["generator"].parameters())


# Networks


def test_the_networks_are_those_of_the_authors_for_mnist() -> None:
    net, spec = SalimansMLP([1000, 500, 250, 250, 250], [500, 500], 0.3, 0.5), Spec((1, 28, 28))
    critic = ClassLogits().build(Spec((1, 28, 28), tuple("0123456789")), net, None, {})
    widths = [784, 1000, 500, 250, 250, 250, 10]
    linear = [layer for layer in critic.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(widths))
    # A row is a direction and a length.
    rows = [layer.weight.norm(dim=1) for layer in linear]
    assert all(torch.allclose(row, torch.full_like(row, 2**0.5), rtol=1e-4) for row in rows[:-1])
    assert torch.allclose(rows[-1], torch.ones(10), rtol=1e-4)
    x = torch.rand(64, 1, 28, 28) * 2 - 1
    features = critic.judge(x).features
    assert features.shape == (64, 250)
    assert not torch.equal(critic(x), critic(x))  # noise
    critic.eval()
    assert torch.equal(critic(x), critic(x))
    made = net.decoder(spec, 100)(torch.rand(8, 100))
    assert made.shape == (8, 1, 28, 28)
    assert made.abs().max() <= 1


def test_the_networks_are_those_of_the_authors_for_cifar() -> None:
    net, spec = SalimansConv(), Spec((3, 32, 32), tuple("0123456789"))
    critic = ClassLogits().build(spec, net, None, {})
    layers = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    shapes = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0]) for c in layers]
    assert shapes == [
        (3, 96, 3, 1, 1), (96, 96, 3, 1, 1), (96, 96, 3, 2, 1), (96, 192, 3, 1, 1), (192, 192, 3, 1, 1),
        (192, 192, 3, 2, 1), (192, 192, 3, 1, 0), (192, 192, 1, 1, 0), (192, 192, 1, 1, 0),
    ]  # fmt: skip
    assert [layer.p for layer in critic.modules() if isinstance(layer, nn.Dropout)] == [0.2, 0.5, 0.5]
    for layer in layers:  # a direction and a length for each output
        lengths = layer.weight.flatten(1).norm(dim=1)
        assert torch.allclose(lengths, torch.full_like(lengths, (2 / 1.04) ** 0.5), rtol=1e-4)
        assert {name for name, _ in layer.named_parameters() if "original" in name}
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    assert not torch.equal(critic(x), critic(x))
    critic.eval()
    assert torch.equal(critic(x), critic(x))
    maps = critic.trunk[:-1](x)
    assert maps.shape == (4, 192, 6, 6)
    assert torch.allclose(critic.judge(x).features, maps.flatten(2).mean(2))

    made = (generator := net.decoder(spec, 100))(torch.rand(16, 100) * 2 - 1)
    ups = [layer for layer in generator.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [(u.in_channels, u.out_channels, u.kernel_size[0]) for u in ups] == [
        (512, 256, 5),
        (256, 128, 5),
        (128, 3, 5),
    ]
    assert made.shape == x[:1].expand(16, -1, -1, -1).shape
    assert 0.05 < float(made.detach().std()) < 0.2
    lengths = ups[-1].weight.transpose(0, 1).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, 0.1 * 8**0.5), rtol=1e-4)


@pytest.mark.parametrize("size", [8, 16, 28, 64])
def test_the_convolutional_networks_take_other_sizes(size: int) -> None:
    net, spec = SalimansConv(width=4, generator_width=8), Spec((1, size, size), ("a", "b"))
    assert net.decoder(spec, 5)(torch.randn(3, 5)).shape == (3, 1, size, size)
    assert net.encoder(spec, 2)(torch.randn(3, 1, size, size)).shape == (3, 2)


def test_noise_has_its_standard_deviation_on_pixels_between_0_and_1() -> None:
    net = SalimansMLP([8], [8], 0.3, 0.5)
    trunk, _ = net.trunk(Spec((1, 50, 50)))
    x = torch.zeros(40, 1, 50, 50)  # 0.5 between 0 and 1
    seen = trunk[:3](x)
    assert seen.mean().item() == pytest.approx(0.5, abs=0.01)
    assert seen.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("data=ring", "model/net=mlp"), "no class"),
        (("+model.labels._target_=gentrain.nets.conditioning.Labels",), "not told labels"),
        (("model.aims.labelled.labels_per_class=0",), "labels_per_class=0"),
        (("model.aims.labelled.labels_per_class=500",), "labels_per_class=500"),
        (("model.aims.labelled.weight=0",), "weight=0"),
        (("model.net.hidden=[]",), "model.net.hidden"),
        (("model.net.noise=-1",), "model.net.noise"),
        (("model.weights.critic=-1",), "model.weights.critic"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: tuple[str, ...], named: str, run: Run) -> None:
    ended = run("check", *words("model=ssgan", *overrides))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert named in ended.err


def test_few_labels_need_a_critic_of_classes() -> None:
    system, batch = ready("model.critic=null", "model/net=mlp")
    with pytest.raises(UserError, match="ClassLogits"):
        system.critic_loss(batch)  # type: ignore[operator]
    with pytest.raises(UserError, match="gives no classes"):
        system.classify(batch.x)  # type: ignore[operator]
    with pytest.raises(UserError, match="no labelled images"):
        FewLabels().critic(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gives no classes"):
        ClassLogits().build(Spec((4,)), MLP(), None, {})
