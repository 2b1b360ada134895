"""AC-GAN: classes told by a head of the critic, and what the family makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run, tiny, words
from PIL import Image

from gentrain.config import Node, build
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.restore import load_system
from gentrain.engine.sampling import at_rest, draw
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.folder import RunFolder
from gentrain.game import CLASS_HEAD
from gentrain.models.acgan import AuxiliaryClassifier
from gentrain.types import Images, to_bytes


def ready(*overrides: str) -> tuple[System, Images]:
    config: Node = tiny("model=acgan", *overrides)
    check_config(config)
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=100)
    return system, data.train.take(torch.arange(32))


def test_the_critic_tells_the_class_of_both_and_the_generator_that_of_samples() -> None:
    system, batch = ready(
        "model.aims.classes.real=2.0", "model.aims.classes.fake=3.0", "model.aims.classes.generator_weight=0.5",
        "model.fresh_noise=true",
    )  # fmt: skip
    judge = system.nets["critic"].judge
    torch.manual_seed(1)
    terms = system.critic_loss(batch)  # type: ignore[operator]
    torch.manual_seed(1)
    made = system.generate(32, batch.y)  # type: ignore[operator]
    on_real, on_fake = (judge(x).more[CLASS_HEAD] for x in (batch.signed, made.x))  # type: ignore[operator]
    torch.testing.assert_close(terms["class_real"], 2.0 * F.cross_entropy(on_real, batch.y))
    torch.testing.assert_close(terms["class_fake"], 3.0 * F.cross_entropy(on_fake, batch.y))
    torch.manual_seed(1)
    terms = system.generator_loss(batch)  # type: ignore[operator]
    assert terms.keys() == {"adversarial", "class"}
    torch.testing.assert_close(terms["class"], 0.5 * F.cross_entropy(on_fake, batch.y))


def test_the_critic_is_not_shown_the_class() -> None:
    system, batch = ready()
    critic = system.nets["critic"]
    assert torch.equal(critic(batch.signed, batch.y), critic(batch.signed, (batch.y + 1) % 10))  # type: ignore[operator]
    with at_rest(system):
        made = [
            system.sample(4, labels=torch.full((4,), k), generator=torch.Generator().manual_seed(0)) for k in (1, 2)
        ]  # type: ignore[operator]
    assert not torch.allclose(*made)


def test_the_classes_cross_entropy_reaches_the_generator_and_a_weight_of_0_leaves_it_out() -> None:
    """Without the adversarial term the generator has a gradient from the class alone."""
    system, batch = ready("+model.weights={critic:1.0,generator:0.0}")
    system._gradients(system.seats[1], [batch], 1)
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in system.nets["generator"].parameters())
    assert all(p.grad is None for p in system.nets["critic"].parameters())
    system, batch = ready("model.aims.classes.generator_weight=0", "model.aims.classes.fake=0")
    assert system.critic_loss(batch).keys() == {"real", "fake", "class_real"}  # type: ignore[operator]
    assert system.generator_loss(batch).keys() == {"adversarial"}  # type: ignore[operator]


def test_classify_asks_the_head_at_rest() -> None:
    system, batch = ready()
    with at_rest(system):
        logits = system.classify(batch.x)  # type: ignore[operator]
        assert torch.equal(logits, system.nets["critic"].judge(batch.signed).more[CLASS_HEAD])  # type: ignore[operator]
        # No sample of the batch changes another's answer.
        torch.testing.assert_close(system.classify(batch.x[:3]), logits[:3])  # type: ignore[operator]
    assert logits.shape == (32, 10)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("model.aims.classes.real=-1",), "real=-1"),
        (("model.aims.classes.real=0", "model.aims.classes.fake=0"), "untrained"),
        (("data=ring", "model/net=mlp"), "no class"),
        (("model.labels.critic=projection",), "model.labels.critic: the critic of ClassifyingAdversarial"),
        (("model.labels.critic=concat",), "set it to none"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: tuple[str, ...], named: str, run: Run) -> None:
    ended = run("check", *words("model=acgan", *overrides))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert named in ended.err


def test_samples_of_the_classes_that_were_asked_for(run: Run, workplace: Path) -> None:
    for model in ("cgan", "dcgan"):
        words_of_it = ("train.iterations=2", "train.validate_every=0", "metrics=none", f"name={model}")
        assert run(*words(f"model={model}", *words_of_it)).code == 0
    done = run("sample", "run=outputs/cgan", "n=5", "class=7,2")
    assert done.code == 0, done.err
    system = load_system(RunFolder.open(workplace / "outputs" / "cgan"), "last", device="cpu")
    expected = to_bytes(draw(system, 5, seed=0, labels=torch.tensor([7, 2, 7, 2, 7])))
    folder = workplace / "outputs" / "cgan" / "samples" / "drawn-last-0-class-7-2"
    for place, image in enumerate(expected):
        with Image.open(folder / f"{place:06d}.png") as file:
            assert np.array_equal(np.asarray(file), image[0].numpy())
    assert not torch.equal(expected, to_bytes(draw(system, 5, seed=0, labels=torch.tensor([7, 2, 7, 2, 8]))))
    for wrong, said in (("11", "no class of these data"), ("x", "no class of these data"), ("", "")):
        ended = run("sample", "run=outputs/cgan", "n=2", f"class={wrong}")
        assert (ended.code, len(ended.err.splitlines())) == ((2, 1) if said else (0, 0)), ended.err
        assert said in ended.err
    ended = run("sample", "run=outputs/dcgan", "class=3")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "not asked by class" in ended.err


def test_it_needs_samples_made_for_classes() -> None:
    system, batch = ready("model.labels=null")
    with pytest.raises(UserError, match=r"model\.labels"):
        system.critic_loss(batch)  # type: ignore[operator]
    assert AuxiliaryClassifier().generator_weight == 1.0
