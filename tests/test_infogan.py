"""InfoGAN: the mutual information by hand and by training, where codes stand, who moves Q, what is read of images."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, tiny, words
from PIL import Image
from torch import nn

from gentrain.config import Node, build
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.evaluation.clustering import OwnClusters, cluster_scores
from gentrain.evaluation.subject import Subject
from gentrain.explore.study import Study
from gentrain.explore.traverse import explore
from gentrain.game import CODE_HEAD
from gentrain.models.infogan import CategoriesAndNumbers, HiddenHeads, InfoGANNet
from gentrain.types import Images, Spec

CODES = CategoriesAndNumbers([3, 2], 2)


LABELS = (
    "+model.labels={{_target_: gentrain.nets.conditioning.Labels, generator: concat, critic: {}, width: 8, "
    "shared: false}}"
)


def ready(*overrides: str) -> tuple[System, Images]:
    config: Node = tiny("model=infogan", *overrides)
    check_config(config)
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=1000)
    return system, data.train.take(torch.arange(64))


# The bound


def test_codes_are_one_hot_and_uniform() -> None:
    drawn = CODES.draw(3000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert drawn.shape == (3000, CODES.width) == (3000, 7)
    for of, count in ((slice(0, 3), 3), (slice(3, 5), 2)):
        assert torch.equal(drawn[:, of].sum(1), torch.ones(3000))
        assert (drawn[:, of].mean(0) - 1 / count).abs().max() < 0.03
    numbers = drawn[:, 5:]
    assert numbers.min() >= -1
    assert numbers.max() <= 1
    assert (numbers.var(0) - 1 / 3).abs().max() < 0.02
    assert abs(float(torch.corrcoef(numbers.T)[0, 1])) < 0.06


def test_the_bound_is_that_of_its_definition_and_never_above_the_entropy() -> None:
    """E log Q(c|x) + H(c), each code by torch's own densities."""
    drawn = CODES.draw(40, torch.device("cpu"), None)
    read = torch.randn(40, 7)
    log_q = torch.zeros(())
    for of in (slice(0, 3), slice(3, 5)):
        log_q = log_q + torch.distributions.Categorical(logits=read[:, of]).log_prob(drawn[:, of].argmax(1)).mean()
    expected = log_q + math.log(3) + math.log(2)
    torch.testing.assert_close(CODES.categorical_information(drawn, read), expected)
    log_q = torch.distributions.Normal(read[:, 5:], 1.0).log_prob(drawn[:, 5:]).sum(1).mean()
    expected = log_q + 2 * math.log(2)  # U(-1, 1) has the entropy ln 2
    torch.testing.assert_close(CODES.continuous_information(drawn, read, fitted=False), expected)
    sd = (drawn - read)[:, 5:].square().mean(0).sqrt()
    log_q = torch.distributions.Normal(read[:, 5:], sd).log_prob(drawn[:, 5:]).sum(1).mean()
    fitted = CODES.continuous_information(drawn, read, fitted=True)
    torch.testing.assert_close(fitted, log_q + 2 * math.log(2))
    assert fitted > expected
    # A perfect reader of categories tells all there is; one that knows nothing, nothing.
    ten = CategoriesAndNumbers([10], 0)
    drawn = ten.draw(50, torch.device("cpu"), None)
    assert ten.categorical_information(drawn, 1e3 * drawn).item() == pytest.approx(math.log(10))
    assert ten.categorical_information(drawn, torch.zeros(50, 10)).item() == pytest.approx(0.0, abs=1e-6)
    for _ in range(5):
        assert ten.categorical_information(drawn, 5 * torch.randn(50, 10)) <= math.log(10)


@pytest.mark.parametrize("player", ["critic", "generator"])
def test_both_players_maximise_it(player: str) -> None:
    system, batch = ready("model.aims.information.categorical=2.0", "model.aims.information.continuous=0.5")
    made = system.generate(64)  # type: ignore[operator]
    system._kept[id(batch)] = made  # type: ignore[index, operator]
    torch.manual_seed(3)
    terms = getattr(system, f"{player}_loss")(batch)
    if player == "critic":  # it made samples of its own
        torch.manual_seed(3)
        made = system.generate(64)  # type: ignore[operator]
    read = system.nets["critic"].judge(made.x).more[CODE_HEAD]  # type: ignore[operator]
    codes = system.codes  # type: ignore[assignment]
    told = codes.categorical_information(made.codes, read)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(terms["categorical"], -2.0 * told)
    told = codes.continuous_information(made.codes, read, fitted=False)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(terms["continuous"], -0.5 * told)


def test_q_moves_with_the_critics_optimiser_alone() -> None:
    system, batch = ready()
    q = {id(p) for p in system.nets["critic"].heads.parameters()}  # type: ignore[union-attr]
    assert q
    held = {name: {id(p) for g in o.param_groups for p in g["params"]} for name, o in system.optimizers_by_name.items()}
    assert q <= held["critic"]
    assert not q & held["generator"]
    before = [p.detach().clone() for p in system.nets["critic"].heads.parameters()]  # type: ignore[union-attr]
    for seat, moves in zip(reversed(system.seats), (False, True), strict=True):
        system._gradients(seat, [batch], 1)
        system._step(seat, 1)
        after = list(system.nets["critic"].heads.parameters())  # type: ignore[union-attr]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moves, seat.player.name


def told_after(weight: float, iterations: int = 150) -> float:
    system, batch = ready(
        f"model.aims.information.categorical={weight}", f"model.aims.information.continuous={weight}",
        "model.players.critic.optimizer.lr=2e-3", "model.players.generator.optimizer.lr=2e-3",
    )  # fmt: skip
    for i in range(iterations):
        if i == iterations - 20:
            system.report()
        system.iterate(batch)
    return system.report()["information/categorical_nats"]


def test_training_raises_the_information_and_without_its_weight_there_is_none() -> None:
    assert told_after(0.0) < 0.05
    assert 1.0 < told_after(1.0) <= math.log(10)


# Where the codes stand


def test_codes_stand_behind_the_noise_and_one_alone_is_varied() -> None:
    system, _ = ready("model.codes.categories=[4,3]", "model.codes.continuous=1")
    made = system.vary(2, steps=5, reach=1.0, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    assert [(code.name, len(code.words), code.z.shape) for code in made] == [
        ("category 0", 4, (2, 4, 16)), ("category 1", 3, (2, 3, 16)), ("number 0", 5, (2, 5, 16)),
    ]  # fmt: skip
    for code, (start, end) in zip(made, ((8, 12), (12, 15), (15, 16)), strict=True):
        rest = torch.cat([code.z[:, :, :start], code.z[:, :, end:]], dim=2)
        assert torch.equal(rest, rest[:, :1].expand_as(rest))
        assert not torch.equal(rest[0], rest[1])
    assert torch.equal(made[0].z[1, :, 8:12], torch.eye(4))
    sd = 3**-0.5
    torch.testing.assert_close(made[2].z[0, :, 15], torch.linspace(-sd, sd, 5))
    with at_rest(system):
        drawn = system.generate(3, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
        again = torch.Generator().manual_seed(1)
        noise = torch.rand(3, 8, generator=again) * 2 - 1
        z = torch.cat([noise, drawn.codes], dim=1)
        torch.testing.assert_close(system.decode(z), drawn.x)  # type: ignore[operator]


def test_clusters_are_the_probabilities_of_the_first_category_and_are_scored() -> None:
    system, _ = ready()
    data = build(tiny()["data"])
    images = data.test.take(torch.arange(30))
    with at_rest(system):
        p = system.cluster(images.x)  # type: ignore[operator]
        read = system.nets["critic"].judge(images.signed).more[CODE_HEAD]  # type: ignore[operator]
        torch.testing.assert_close(p, read[:, :10].softmax(1))
        metric = OwnClusters(limit=30)
        subject = Subject(data=data, n=0, draw=lambda n: torch.empty(0), seed=0, system=system)
        scores = metric.measure(subject)
    assert set(scores) == set(metric.scores(system, data))
    seen = data.test.take(subject.reference_index("test", 30))
    with at_rest(system):
        own = cluster_scores(system.cluster(seen.x).argmax(1), seen.y)  # type: ignore[operator, arg-type]
    assert scores["cluster_accuracy_own"] == own["accuracy"]


def test_strips_are_drawn_and_scores_stand_in_the_card(run: Run, workplace: Path) -> None:
    assert run(*words("model=infogan", "metrics=domain", "name=run")).code == 0
    folder = workplace / "outputs" / "run"
    final = json.loads((folder / "run.json").read_text(encoding="utf-8"))["final"]
    assert 0 <= final["cluster_accuracy_own"] <= 1
    assert "information/categorical_nats" in (folder / "metrics.csv").read_text(encoding="utf-8")
    done = run("explore", "traverse", "run=outputs/run", "steps=5")
    assert done.code == 0, done.err
    found = json.loads((folder / "explore" / "traverse,steps=5.json").read_text(encoding="utf-8"))
    assert list(found["change"]) == ["category 0", "number 0", "number 1"]
    assert len(found["protocol"]["values"]["category 0"]) == 10
    assert len(found["protocol"]["values"]["number 0"]) == 5
    with Image.open(folder / "explore" / "traverse,steps=5.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 8


# Networks and mistakes


def test_the_networks_are_the_authors() -> None:
    """Parameters of the release for MNIST, counted by hand; no bias in front of a normalisation."""
    net, spec = InfoGANNet(), Spec((1, 28, 28))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    trunk, width = net.trunk(spec)
    assert width == 1024
    assert count(trunk) == (16 * 64 + 64) + (64 * 128 * 16 + 256) + (6272 * 1024 + 2048)
    decoder = net.decoder(spec, 74)
    assert count(decoder) == (74 * 1024 + 2048) + (1024 * 6272 + 2 * 6272) + (128 * 64 * 16 + 128) + (64 * 16 + 1)
    critic = HiddenHeads(128).build(spec, net, None, {CODE_HEAD: 12})
    assert count(critic.heads) == (1024 * 128 + 128) + 256 + (128 * 12 + 12)
    verdict = critic.judge(torch.randn(4, 1, 28, 28))
    assert (verdict.score.shape, verdict.more[CODE_HEAD].shape) == ((4, 1), (4, 12))
    plain = HiddenHeads(5, batch_norm=False).build(spec, net, None, {"a": 2})
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in plain.heads.modules())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ((LABELS.format("concat"),), "model.labels.critic: the critic of InformedAdversarial"),
        (("model.codes=null",), "model.aims.information.codes"),
        (("model.aims.information.categorical=-1",), "categorical=-1"),
        (("model.codes.categories=[1]",), "categories=[1]"),
        (("model.codes.categories=[]", "model.codes.continuous=0"), "no code"),
        (("model.critic.hidden=0",), "hidden=0"),
        (("model/net=infogan", "model.net.hidden=0"), "hidden must be"),
        (("data=ring", "model/net=infogan"), "use model/net=mlp"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides: tuple[str, ...], named: str, run: Run) -> None:
    ended = run("check", *words("model=infogan", *overrides))
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert named in ended.err


def test_codes_are_walked_for_one_class_a_row_where_samples_are_asked_by_class(tmp_path: Path) -> None:
    system, _ = ready(LABELS.format("none"))
    data, asked = build(tiny("model=infogan")["data"]), []
    study = Study(system, data, 0, torch.device("cpu"), lambda: None)
    decode = system.decode
    system.decode = lambda z, labels=None: (asked.append(labels), decode(z, labels))[1]  # type: ignore[operator]
    with at_rest(system):
        explore(study, tmp_path / "t.png", image="none", dims=9, steps=3, reach=2.0, n=2, order="activity")
    assert [len(labels) for labels in asked] == [5 * 10, 5 * 3, 5 * 3]
    for labels in asked:
        assert (labels.view(5, -1) == labels.view(5, -1)[:, :1]).all()
        assert torch.equal(labels.view(5, -1)[:, 0], asked[0].view(5, -1)[:, 0])


def test_an_aim_about_other_codes_is_refused() -> None:
    with pytest.raises(UserError, match="give both the same"):
        ready("model.aims.information.codes={_target_:gentrain.models.infogan.CategoriesAndNumbers,categories:[4]}")
    with pytest.raises(UserError, match="nothing to sort samples by"):
        CategoriesAndNumbers([], 2).probabilities(torch.zeros(3, 2))
