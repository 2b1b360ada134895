"""Adversarial autoencoders: priors by their draws, who gets gradients when, what critics see, and who sees labels."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from scipy.stats import kstest
from test_contract import batches, moved, parameters, ready
from torch import Tensor

from gentrain.data.dataset import few_labelled, in_memory
from gentrain.data.sources import digits, ring
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.evaluation.classes import labels_seen
from gentrain.evaluation.classification import ClassificationError
from gentrain.evaluation.subject import Subject
from gentrain.models.aae import ClassesAndStyle, RingMixture, SwissRoll
from gentrain.types import Images, Spec

CPU = torch.device("cpu")
RING = RingMixture(components=5, radius=3.0, radial=0.5, tangential=0.2)
ROLL = SwissRoll(turns=2.0, radius=3.0, noise=0.005)
ON_RING = ("model.latent=2", "model/prior=ring_mixture", "model.label_conditioned=true")


def made(*overrides: str) -> tuple[Any, Images]:
    """The system, seated, and a batch."""
    config = tiny(*overrides)
    system, data = ready(config)
    return system, next(batches(config, data, 1)).to("cpu", channels_last=True)


# Priors


def components() -> torch.distributions.MixtureSameFamily:
    angle = torch.arange(5) * 2 * math.pi / 5
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(5, 2, 2)
    covariance = turn @ torch.diag(torch.tensor([0.25, 0.04])) @ turn.mT
    means = 3.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    normals = torch.distributions.MultivariateNormal(means, covariance)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(5)), normals)


def test_the_ring_has_the_density_of_its_gaussians_and_draws_from_it() -> None:
    z = RING.draw(20_000, 2, CPU, None)
    truth = components()
    torch.testing.assert_close(RING.log_prob(z[:100]), truth.log_prob(z[:100]), atol=1e-4, rtol=1e-4)
    theirs = truth.log_prob(truth.sample((20_000,)))
    ours = truth.log_prob(z)
    error = float((ours.var() + theirs.var()).div(20_000).sqrt())
    assert abs(float(ours.mean() - theirs.mean())) < 4 * error
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=0.07)


def test_each_class_has_its_component_and_no_label_the_whole() -> None:
    labels = torch.arange(6).repeat_interleave(4000)  # 5: none
    z = RING.draw_labelled(labels, 5, None)
    truth = components().component_distribution
    for k in range(5):
        part = z[labels == k]
        assert torch.allclose(part.mean(0), truth.mean[k], atol=0.05)  # type: ignore[attr-defined]
        assert torch.allclose(part.T.cov(), truth.covariance_matrix[k], atol=0.03)  # type: ignore[attr-defined]
    nearest = torch.cdist(z[labels == 5], truth.mean).argmin(1).bincount(minlength=5)  # type: ignore[attr-defined]
    assert (nearest / 4000 - 0.2).abs().max() < 0.04


def test_the_roll_winds_spreads_over_its_area_and_is_cut_into_pieces() -> None:
    z = ROLL.draw(4000, 2, CPU, None)
    u = (z.norm(dim=1) / 3.0).square()
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    angle = 4.0 * math.pi * u.sqrt()
    curve = 3.0 * u.sqrt()[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    off = (z - curve).norm(dim=1)
    assert float(off[u > 0.01].max()) < 0.4  # a neighbouring turn is 1.5 away
    labels = torch.arange(11).repeat_interleave(500)  # 10: none
    u = (ROLL.draw_labelled(labels, 10, None).norm(dim=1) / 3.0).square()
    for k in range(10):
        assert k / 10 - 0.05 < float(u[labels == k].min()) < float(u[labels == k].max()) < (k + 1) / 10 + 0.05
    assert kstest(u[labels == 10].numpy(), "uniform").pvalue > 1e-3


# Phases


@pytest.mark.parametrize("model", ["aae", "aae_semi"])
def test_no_gradient_of_a_critics_phase_leaves_it_and_none_of_the_encoders_reaches_the_decoder(model: str) -> None:
    """With every parameter open, so that it is the losses that keep them apart, not the engine."""
    system, batch = made(f"model={model}")
    for player in system.players():
        system.nets.requires_grad_(True)
        system.zero_grad(set_to_none=True)
        sum(player.loss(batch).values()).backward()
        touched = {n.split(".")[0] for n, p in system.nets.named_parameters() if p.grad is not None}
        if player.name.startswith("critic"):
            assert touched == {player.name}
        elif player.name != "autoencoder":
            assert "encoder" in touched
            assert "decoder" not in touched


@pytest.mark.parametrize(
    ("model", "order"),
    [
        ("aae", ["autoencoder", "critic", "encoder"]),
        ("wae_gan", ["autoencoder", "critic"]),
        ("aae_semi", ["autoencoder", "critic_classes", "critic_style", "encoder", "classifier"]),
    ],
)
def test_who_moves_when_and_with_which_optimiser(model: str, order: list[str]) -> None:
    system, batch = made(f"model={model}")
    assert [seat.player.name for seat in system.seats] == order
    assert len({id(seat.optimizer) for seat in system.seats}) == len(order), "one optimiser each"
    for seat in system.seats:
        before = parameters(system)
        system._gradients(seat, [batch], 1)
        system._step(seat, 1)
        own = {"autoencoder": {"encoder", "decoder"}, "classifier": {"encoder"}}.get(seat.player.name)
        assert moved(before, system) == (own or {seat.player.name})


def test_the_encoder_minimises_the_nonsaturating_cost_of_its_codes() -> None:
    system, batch = made("model=aae", "model.weight=3.0")
    z = system.nets["encoder"](batch.signed)
    expected = -3.0 * torch.sigmoid(system.nets["critic"](z)).log().mean()
    torch.testing.assert_close(system.encoder_loss(batch)["adversarial"], expected)
    terms = system.critic_loss("critic", batch)
    fake = -(1 - torch.sigmoid(system.nets["critic"](z))).log().mean()
    torch.testing.assert_close(terms["fake"], fake)


def test_wae_gan_has_the_same_cost_in_the_autoencoders_own_objective() -> None:
    system, batch = made("model=wae_gan", "model.corruption=null", "model.weight=7.0")
    system.nets.eval()
    z = system.nets["encoder"](batch.signed)
    terms = system.objective(batch)
    torch.testing.assert_close(terms["adversarial"], 7.0 * F.softplus(-system.nets["critic"](z)).mean())
    alone, same = made("model=aae")
    assert set(alone.objective(same)) == {"reconstruction"}


def test_a_known_prior_is_added_to_the_logit() -> None:
    system, _ = made("model=wae_gan", "model.known_prior=true", "wants.prior_scale=2.0")
    z = torch.randn(6, system.latent) * 3
    truth = torch.distributions.Normal(0.0, 2.0).log_prob(z).sum(1, keepdim=True)
    torch.testing.assert_close(system.judge("critic", z), system.nets["critic"](z) + truth)


def test_codes_come_to_follow_the_prior() -> None:
    config = tiny("model=aae", "train.batch_size=64", "train.iterations=2000", "model.latent=2")
    system, data = ready(config)
    x = data.test.all().x

    def off() -> float:
        with at_rest(system):
            z = system.encode(x)  # type: ignore[operator]
        return float((z.std(0) - 1).abs().mean() + z.mean(0).abs().mean())

    before = off()
    for batch in batches(config, data, 700):
        system.iterate(batch)
    assert off() < 0.5 < before


# Labels


def test_the_critic_sees_the_label_beside_the_code() -> None:
    system, batch = made("model=aae", *ON_RING)
    z = system.codes(batch)
    fake, real = system.code_seen("critic", batch, z), system.prior_seen("critic", batch)
    for seen in (fake, real):
        assert torch.equal(seen[:, 2:].argmax(1), batch.y)
        assert torch.equal(seen[:, 2:].sum(1), torch.ones(len(batch)))
    assert torch.equal(fake[:, :2], z)
    angle = batch.y * 2 * math.pi / 10
    centres = 4.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert float((real[:, :2] - centres).norm(dim=1).max()) < 3.0, "each draw from its own label's component"
    other = replace(batch, y=(batch.y + 1) % 10)
    assert not torch.equal(system.encoder_loss(other)["adversarial"], system.encoder_loss(batch)["adversarial"])


def test_labels_that_are_not_to_be_known_are_not() -> None:
    system, batch = made("model=aae", *ON_RING, "model.labels_per_class=3", "train.batch_size=1024")
    given = set(system.labelled.index.tolist())
    assert len(given) == 30
    known = system.known_labels(batch)
    for place, label, truth in zip(batch.index.tolist(), known.tolist(), batch.y.tolist(), strict=True):
        assert label == (truth if place in given else 10)
    hidden = replace(batch, y=torch.where(known == 10, (batch.y + 1) % 10, batch.y))
    assert torch.equal(system.known_labels(hidden), known)
    assert 0 < int((known < 10).sum()) <= 30


def test_samples_are_decoded_from_the_part_of_the_class_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    system, _ = made("model=aae", *ON_RING)
    assert system.conditional
    monkeypatch.setattr(system, "decode", lambda z: z)
    z = system.sample(500, labels=torch.zeros(500, dtype=torch.int64))
    assert torch.allclose(z.mean(0), torch.tensor([4.0, 0.0]), atol=0.1)
    assert float(system.sample(500).mean(0).norm()) < 1.0
    semi, _ = made("model=aae_semi")
    monkeypatch.setattr(semi, "decode", lambda z: z)
    assert torch.equal(semi.sample(5, labels=torch.arange(5))[:, :10], F.one_hot(torch.arange(5), 10).float())


# Few labels


def test_so_many_images_of_each_class_are_chosen_by_the_seed() -> None:
    data = digits()
    assert data.train.y is not None
    some = few_labelled(data, 7, seed=3)
    assert some.y is not None
    assert some.index is not None
    assert some.y.bincount().tolist() == [7] * 10
    assert torch.equal(some.y, data.train.y[some.index])
    assert torch.equal(some.x, data.train.take(some.index).x)
    assert len(some.index.unique()) == 70
    again, other = few_labelled(data, 7, seed=3), few_labelled(data, 7, seed=4)
    assert torch.equal(some.index, again.index)  # type: ignore[arg-type]
    assert not torch.equal(some.index, other.index)  # type: ignore[arg-type]


def test_labels_that_were_seen_are_counted() -> None:
    data = digits()
    all_of_them = [int((data.train.y == c).sum()) for c in range(10)]
    for choices, seen in (
        (("model=aae",), None),
        (("model=aae", *ON_RING), all_of_them),
        (("model=aae", *ON_RING, "model.labels_per_class=3"), [3] * 10),
        (("model=aae_semi",), [10] * 10),
    ):
        system, _ = made(*choices)
        found = labels_seen(system, data)
        assert (found if found is None else list(found.values())) == seen


@pytest.mark.parametrize(("count", "named"), [(0, "labels_per_class=0"), (160, "of class 0")])
def test_more_labels_than_there_are_is_refused(count: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        few_labelled(digits(), count, seed=0)
    with pytest.raises(UserError, match="no class labels"):
        few_labelled(ring(train_size=10, test_size=10), 1, seed=0)


def test_unlabelled_images_do_not_enter_the_classification_phase() -> None:
    system, batch = made("model=aae_semi", "model.labels_per_class=2")
    seen: list[Tensor] = []
    system.nets["encoder"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    torch.manual_seed(0)
    loss = system.classification(batch)["cross_entropy"]
    allowed = {image.numpy().tobytes() for image in system.labelled.signed}
    assert len(allowed) == 20
    assert {image.contiguous().numpy().tobytes() for image in seen[0]} <= allowed
    torch.manual_seed(0)
    garbage = Images(torch.zeros_like(batch.x), (batch.y + 1) % 10, batch.index)
    assert torch.equal(system.classification(garbage)["cross_entropy"], loss)
    others = [player for player in system.players() if player.name != "classifier"]
    for player in others:  # and labels do not enter the others
        torch.manual_seed(0)
        first = player.loss(batch)
        torch.manual_seed(0)
        second = player.loss(replace(batch, y=(batch.y + 1) % 10))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_classes_and_style_go_to_their_own_critics() -> None:
    system, batch = made("model=aae_semi")
    output = system.nets["encoder"](batch.signed)
    z = system.codes(batch)
    assert torch.equal(system.code_seen("critic_classes", batch, z), F.softmax(output[:, :10], 1))
    assert torch.equal(system.code_seen("critic_style", batch, z), output[:, 10:])
    draws = system.prior_seen("critic_classes", batch)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(draws.sum(1), torch.ones(len(batch)))
    assert torch.equal(system.classify(batch.x), output[:, :10])
    assert ClassesAndStyle(14, 10).outputs == 14


def test_few_labels_teach_classes() -> None:
    errors = {}
    for labels in (1, 20):
        config = tiny(
            "model=aae_semi", f"model.labels_per_class={labels}", "train.batch_size=32", "train.iterations=900"
        )
        system, data = ready(config)
        for batch in batches(config, data, 300):
            system.iterate(batch)
        with at_rest(system):
            subject = Subject(data, system, lambda n: torch.zeros(n), n=0)
            errors[labels] = ClassificationError().measure(subject)["classification_error"]
    assert errors[20] < 0.25
    assert errors[20] < errors[1] < 0.85


def test_the_error_is_the_share_of_wrong_answers() -> None:
    data = digits()
    assert data.test.y is not None
    answers = data.test.y.clone()
    answers[:40] = (answers[:40] + 1) % 10
    order = iter(torch.split(F.one_hot(answers, 10).float(), 100))
    system = SimpleNamespace(classify=lambda x: next(order))
    subject = Subject(data, system, lambda n: torch.zeros(n), n=0)
    found = ClassificationError(batch=100).measure(subject)
    assert found == {"classification_error": pytest.approx(40 / 359)}
    plain = in_memory("plain", Spec((1, 8, 8)), (data.train.all().x, None), (data.test.all().x, None))
    with pytest.raises(UserError, match="no class labels"):
        ClassificationError().check(plain)


# Refusals


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("model=aae", "loss@model.adversarial=wasserstein"), "Lipschitz"),
        (("model=aae", "model.weight=0.0"), "weight=0"),
        (("model=aae", *ON_RING[:2], "model.latent=3"), "latent=3"),
        (("model=aae", "model.label_conditioned=true"), "no part for each class"),
        (("model=aae", *ON_RING, "model.prior.components=9"), "components=9"),
        (("model=aae", "model.labels_per_class=3"), "label_conditioned"),
        (("model=aae", *ON_RING, "+model.known_prior=true"), "known_prior"),
        (("model=wae_gan", "model.known_prior=true", "loss@model.adversarial=hinge"), "known_prior"),
        (("model=aae_semi", "data=ring"), "two classes"),
        (("model=aae_semi", "model.style=0"), "style=0"),
        (("model=aae", *ON_RING[:2], "model.prior.radial=0.0"), r"radial=0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        ready(tiny(*overrides))
    assert "\n" not in str(refusal.value)


def test_simultaneous_turns_are_refused_where_two_players_move_one_network() -> None:
    config = tiny("model=aae", "turns=simultaneous")
    system: System
    system, data = ready(config)
    with pytest.raises(UserError, match="two players move the encoder"):
        system.iterate(next(batches(config, data, 1)))
