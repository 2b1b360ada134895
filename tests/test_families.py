"""What the families refuse at build time, and that no choice of a config is silently without effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from torch import nn

from gentrain.compose import compose
from gentrain.config import Node, build, conf_dir, options
from gentrain.data.cache import Storage
from gentrain.data.sources import digits
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.system import System
from gentrain.engine.turns import Simultaneous
from gentrain.errors import UserError
from gentrain.evaluation.classes import ClassesShown
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.likelihood import LikelihoodBound
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.modes import ModesCovered, SlicedWasserstein
from gentrain.evaluation.randomness import at_evaluation
from gentrain.folder import RunFolder
from gentrain.models.gan import GoodfellowMLP
from gentrain.models.wgan import CriticAhead, WeightClip
from gentrain.nets.dcgan import DCGAN
from gentrain.objectives.autoencoding import summed
from gentrain.objectives.penalties import R1, Dragan, GradientPenalty
from gentrain.types import Images


def built(*overrides: str) -> System:
    config = tiny(*overrides)
    check_config(config)
    return build_system(config, build(config["data"]), seed=0)


# A Lipschitz critic


@pytest.mark.parametrize("model", ["dcgan", "gan"])
def test_a_loss_that_needs_a_lipschitz_critic_is_refused_without_one(model: str, run: Run) -> None:
    ended = run(*words(f"model={model}", "loss=wasserstein"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "model.penalties" in ended.err
    assert "model.constraint" in ended.err


@dataclass(frozen=True)
class Halve:
    """Any constraint will do: the family does not ask which."""

    def __call__(self, net: nn.Module) -> None: ...


def test_any_penalty_or_constraint_makes_it_right() -> None:
    penalty = "+model.penalties={r1:{_target_:gentrain.objectives.penalties.R1,gamma:1.0}}"
    assert built("model=dcgan", "loss=wasserstein", penalty, "model.net.critic_norm=none").loss.needs_lipschitz  # type: ignore[union-attr]
    assert built("model=dcgan", "loss=wasserstein", "+model.constraint._target_=test_families.Halve").players()
    assert built("model=wgan").players()
    assert built("model=wgan_gp").players()
    losses = {name: build(compose([f"loss={name}"]).config["loss"]) for name in options("loss")}
    assert [name for name, loss in losses.items() if getattr(loss, "needs_lipschitz", False)] == ["wasserstein"]


@pytest.mark.parametrize(
    ("player", "more"),
    [
        ("generator", ()),
        ("critic", ("+model.penalties={r1:{_target_:gentrain.objectives.penalties.R1,gamma:1.0,every:4}}",)),
    ],
)
def test_a_player_with_nothing_to_minimise_is_named(player: str, more: tuple[str, ...], run: Run) -> None:
    ended = run(
        *words("model=dcgan", "metrics=none", "model.net.critic_norm=none", f"+model.weights.{player}=0", *more)
    )
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert f"the {player} has nothing to minimise" in ended.err


# What a critic is shown


def one_turn_each(system: System, batch: Images) -> None:
    system.prepare(total=10)
    for seat in system.seats:
        seat.player.loss(batch)


def batch_of(config: Node) -> Images:
    """The last images of each class are rare in it: 24 of class 0, one of each other."""
    train = build(config["data"]).train
    y = train.y
    assert y is not None
    first = torch.cat([(y == 0).nonzero().flatten()[:24], *((y == k).nonzero().flatten()[:1] for k in range(1, 10))])
    return train.take(first[torch.randperm(len(first))])


@pytest.mark.parametrize("joint", [False, True])
def test_real_and_generated_samples_meet_in_batch_norm_only_where_they_are_to_be_one_batch(joint: bool) -> None:
    config = tiny("model=dcgan", "model.net.depth=2", f"++model.joint_batch={joint}", "model.fresh_noise=true")
    system, batch, seen = build_system(config, build(config["data"]), seed=0), batch_of(config), []
    critic = system.nets["critic"]
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in critic.modules())
    critic.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))  # type: ignore[union-attr, operator]
    one_turn_each(system, batch)
    n = len(batch)
    assert [len(x) for x in seen] == ([2 * n, n] if joint else [n, n, n])
    assert torch.equal(seen[0][:n], batch.signed)
    assert not any(torch.equal(x, y) for x in seen[-1] for y in batch.signed)


@pytest.mark.parametrize("model", ["wgan_gp", "infogan", "ebgan"])
@pytest.mark.parametrize("fresh", [True, False])
def test_samples_are_cut_from_the_generator_in_the_critics_turn_whoever_has_the_floor(model: str, fresh: bool) -> None:
    """Frozen weights would hide a fake that is not detached: here nobody's are."""
    config = tiny(f"model={model}", f"++model.fresh_noise={fresh}")
    system, batch = build_system(config, build(config["data"]), seed=0), batch_of(config)
    system.prepare(total=10)
    system.nets.requires_grad_(True)
    sum(system.critic_loss(batch).values()).backward()  # type: ignore[operator]
    assert all(p.grad is None for p in system.nets["generator"].parameters())
    assert any(p.grad is not None for p in system.nets["critic"].parameters())
    system.nets.requires_grad_(True)
    sum(system.generator_loss(batch).values()).backward()  # type: ignore[operator]
    assert all(p.grad is not None for p in system.nets["generator"].parameters())


@pytest.mark.parametrize("model", ["cgan", "acgan", "sagan"])
def test_samples_are_made_for_the_labels_of_the_batch_in_both_turns(model: str) -> None:
    """A fake of another marginal would be told by its label alone."""
    config = tiny(f"model={model}", "model.fresh_noise=true")
    system, batch, asked = build_system(config, build(config["data"]), seed=0), batch_of(config), []
    system.nets["generator"].register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1].clone()))
    one_turn_each(system, batch)
    assert len(asked) == 2
    assert all(torch.equal(labels, batch.y) for labels in asked)  # type: ignore[arg-type]


def test_samples_come_with_the_frequencies_of_the_training_labels() -> None:
    config = tiny("model=cgan")
    system = build_system(config, build(config["data"]), seed=0)
    system.give_class_counts(torch.tensor([900, 100, *[0] * 8]))  # type: ignore[operator]
    drawn = system.draw_labels(4000, torch.Generator().manual_seed(0)).bincount(minlength=10)  # type: ignore[operator]
    assert int(drawn[2:].sum()) == 0
    assert 0.08 < float(drawn[1]) / 4000 < 0.12


@pytest.mark.parametrize("model", ["infogan", "ssgan"])
def test_batch_norm_of_vectors_is_not_shown_one_sample_at_a_time(model: str, run: Run) -> None:
    for more in (("train.batch_size=1",), ("train.batch_size=2", "train.accumulate=2")):
        ended = run("check", *words(f"model={model}", *more))
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
        assert "parts of one sample" in ended.err
    assert run("check", *words(f"model={model}", "train.batch_size=2")).code == 0


# Numbers out of their range

NET = {
    "generator_hidden": [4],
    "critic_hidden": [4],
    "pieces": 2,
    "input_dropout": 0.0,
    "dropout": 0.0,
    "generator_range": 0.05,
    "critic_range": 0.005,
}
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: CriticAhead(every=0), r"every\.every=0"),
    (lambda: CriticAhead(ahead=-1), r"every\.ahead=-1"),
    (lambda: CriticAhead(first=-1), r"every\.first=-1"),
    (lambda: CriticAhead(again=0), r"every\.again=0"),
    (lambda: WeightClip(0.0), r"bound=0"),
    (lambda: GradientPenalty(-1.0), "weight=-1"),
    (lambda: R1(float("nan")), "gamma=nan"),
    (lambda: Dragan(-0.1), "weight=-0.1"),
    (lambda: DCGAN(depth=-1), "depth"),
    (lambda: DCGAN(init_std=0.0), "init_std"),
    (lambda: GoodfellowMLP(**NET | {"pieces": 0}), "pieces"),  # type: ignore[arg-type]
    (lambda: GoodfellowMLP(**NET | {"critic_range": 0.0}), "critic_range"),  # type: ignore[arg-type]
    (lambda: GoodfellowMLP(**NET | {"generator_hidden": [0]}), "generator_hidden"),  # type: ignore[arg-type]
    (lambda: Storage(in_memory_bytes=-1), "in_memory_bytes"),
    (lambda: LikelihoodBound(importance_samples=-1), "importance_samples"),
    (lambda: LikelihoodBound(limit=0), "limit"),
    (lambda: LikelihoodBound(batch=0), "batch"),
    (lambda: Distances(Domain(), subset_size=1), "subset_size=1"),
    (lambda: Distances(Domain(), subsets=0), "subsets=0"),
    (lambda: Distances(Domain(), splits=0), "splits=0"),
    (lambda: Distances(Domain(), reference=0), "reference=0"),
    (lambda: ClassesShown(Domain(), share=0.0), "share"),
    (lambda: ModesCovered(deviations=0.0), "deviations"),
    (lambda: ModesCovered(share=1.5), "share"),
    (lambda: SlicedWasserstein(directions=0), "directions"),
    (lambda: built("model=dcgan", "model.latent=0"), "latent=0"),
    (lambda: built("model=vae", "model.latent=0"), "latent=0"),
    (lambda: built("model=vae", "model.bound.beta=-1"), "beta=-1"),
    (lambda: built("model=vae", "+model.bound_samples=0"), "bound_samples=0"),
]


@pytest.mark.parametrize(("make", "named"), WRONG)
def test_a_number_out_of_its_range_is_named(make: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        make()
    assert "\n" not in str(refusal.value)


# Turns


@pytest.mark.parametrize("model", options("model"))
def test_turns_reach_every_model(model: str) -> None:
    assert isinstance(built(f"model={model}", "turns=simultaneous").turns, Simultaneous)


# Two bounds on one set of images


def test_both_bounds_are_of_the_same_binarised_images() -> None:
    """With K = 1 and the same draw of z both are one estimate; new binary images would differ by tens of nats."""
    system = built("model=vae", "loss.binarize=sample")
    x = digits().test.all(32).x
    code = system.encoder_output(x)  # type: ignore[operator]
    assert code.shape == (32, 8)
    with torch.no_grad(), at_evaluation(system):
        torch.nn.init.zeros_(next(system.nets["decoder"].parameters()))  # z reaches no pixel any more
        log_prob = system.elbo(x) + summed(system.posterior.divergences(code, code))  # type: ignore[operator, union-attr, arg-type]
        again = system.elbo(x) + summed(system.posterior.divergences(code, code))  # type: ignore[operator, union-attr, arg-type]
        many = system.importance_bound(x, samples=4000)  # type: ignore[operator]
    torch.testing.assert_close(log_prob, again, rtol=0, atol=1e-4)
    torch.testing.assert_close(many, log_prob, rtol=0, atol=0.5)


@pytest.mark.parametrize("binarize", ["threshold", "sample"])
def test_the_importance_weighted_bound_is_not_below_the_elbo(binarize: str, run: Run, workplace: Path) -> None:
    assert run(*words("model=vae", f"loss.binarize={binarize}", "name=run")).code == 0
    final = RunFolder.open(workplace / "outputs" / "run").card()["final"]
    assert final["iw_bound_nats"] >= final["elbo_nats"]


# The average of the weights, which no GAN's paper has


@pytest.mark.parametrize("model", options("model"))
def test_the_average_is_declared_and_can_be_switched_off(model: str) -> None:
    text = (conf_dir() / "model" / f"{model}.yaml").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert "ema:" not in line or "ours" in line, "a departure from the paper is said where it is made"
    for choice, averaged in (((), "ema:" in text), (("++model.ema=null",), False)):
        system = built(f"model={model}", *choice)
        system.prepare(total=1)
        assert (system.average is not None) == averaged
    assert "ema:" not in text or built(f"model={model}", "model.ema=null").ema is None


# A choice of metrics that a model asks for


def test_a_model_that_cannot_sample_is_scored_by_what_it_can(run: Run, workplace: Path) -> None:
    """The data's own choice needs samples; its place is taken unless the command line has one."""
    for words_of_it, scores in (
        (("name=a",), {"reconstruction_mse", "reconstruction_psnr"}),
        (("name=b", "metrics.scores.reconstruction.limit=40"), {"reconstruction_mse", "reconstruction_psnr"}),
        (("name=c", "metrics=none"), set()),
    ):
        assert run(*words("model=ae", *words_of_it)).code == 0
        final = RunFolder.open(workplace / "outputs" / words_of_it[0][5:]).card()["final"]
        assert set(final or {}) == scores
    ended = run(*words("model=ae", "metrics=domain"))
    assert ended.code == 2
    assert "needs sample" in ended.err
    assert "metrics=reconstruction" in ended.err
