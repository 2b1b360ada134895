"""Whole flows: the way back and the Jacobian after training, bounds on probabilities, first values and resumes,
temperature, classes, and what users get wrong."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import batches, differences, of_shape, ready
from test_ddp import records, spied  # noqa: F401
from test_flow_parts import jacobian_logdet
from torch import Tensor

from gentrain.config import build
from gentrain.data.dataset import DataSet, in_memory
from gentrain.engine.player import Moves
from gentrain.engine.sampling import at_rest, draw
from gentrain.errors import UserError
from gentrain.evaluation.likelihood import LikelihoodBound
from gentrain.evaluation.subject import Subject
from gentrain.evaluation.temperature import tempered
from gentrain.families.flow import Flow
from gentrain.models.glow import Glow
from gentrain.models.nice import NICE
from gentrain.models.realnvp import RealNVP
from gentrain.nets.first_batch import uninitialised
from gentrain.nets.flows.base import LearnedTop, StandardBase
from gentrain.nets.flows.bijection import Bijection, Chain
from gentrain.nets.flows.dequantisation import Uniform
from gentrain.nets.flows.parts import ActNorm, Flatten, InvertibleConvolution, Logit
from gentrain.types import Images, Spec

FLOWS = ["glow", "realnvp", "nice", "maf", "nsf"]


def trained(model: str, *overrides: str, data: DataSet | None = None, steps: int = 12) -> tuple[Flow, DataSet]:
    if model in ("maf", "nsf"):
        pytest.importorskip("zuko")
    config = tiny(f"model={model}", *overrides)
    system, data = ready(config, data=data)
    assert isinstance(system, Flow)
    for batch in batches(config, data, steps):
        system.iterate(batch)
    system.nets.eval()
    return system, data


def plain(net: Any, spec: Spec, bits: int = 8, base: Any = None, rate: float = 1e-2) -> Flow:
    """A flow without a config."""
    moves = {"flow": Moves(lambda parameters: torch.optim.Adam(parameters, lr=rate))}  # type: ignore[arg-type]
    return Flow(spec, net, base or StandardBase(), moves, Uniform(bits))


@dataclass(frozen=True)
class Made:
    """A recipe of parts."""

    make: Callable[[Spec], Bijection]

    def build(self, spec: Spec) -> Bijection:
        return self.make(spec)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (model, shape) for model in FLOWS for shape in ((1, 4, 4), (2,)) if (model, shape) != ("glow", (2,))
    ],  # Glow is for images alone
)
def test_a_trained_flow_leads_back_and_its_log_determinant_is_the_jacobians(model: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 1:
        system, data = trained(model, "data=ring")
    else:
        system, data = trained(model, data=of_shape(shape))
    x = data.test.all(6).x
    with torch.no_grad():
        y = system.dequantiser(x)[0] if system.spec.is_image else x
        z, logdet = system.flow(y)
        assert (system.flow.inverse(z) - y).abs().max() < 1e-4
        assert jacobian_logdet(system.flow, y[0]) == pytest.approx(float(logdet[0]), abs=5e-3)
        assert logdet.std() > 0 or model == "nice"
        codes = system.encode(x)
        assert codes.shape == (6, system.spec.numel)
        back = system.decode(codes)
        assert (back - Images(x).signed).abs().max() < 1e-4, "an image comes back at its very levels"
        drawn = system.sample(5, generator=torch.Generator().manual_seed(1))
        z = system.prior_codes(5, torch.Generator().manual_seed(1))
        assert torch.equal(system.decode(z), drawn)


def test_thirty_two_steps_lead_back() -> None:
    system, data = trained("glow", "model.net.steps=32", "model.net.width=16", data=of_shape((3, 16, 16)), steps=3)
    with torch.no_grad():
        y = system.dequantiser(data.test.all(4).x)[0]
        assert (system.flow.inverse(system.flow(y)[0]) - y).abs().max() < 1e-4


def test_codes_and_likelihoods_are_of_float32_whatever_the_training_computes_in() -> None:
    config = tiny("model=glow")
    system, data = ready(config)
    system.prepare(total=20, precision="bf16-mixed")
    for batch in batches(config, data, 8):
        system.iterate(batch)
    x = data.test.all(20).x
    with at_rest(system):
        assert torch.is_autocast_enabled("cpu")
        codes, back = system.encode(x), system.decode(system.encode(x))
        torch.manual_seed(0)
        nats = system.log_likelihood(x)
        mixed = system.flow(system.dequantiser.centre(x))[0]
    assert (back - Images(x).signed).abs().max() < 1e-4
    system.precision_name = "32-true"
    with at_rest(system):
        torch.manual_seed(0)
        assert torch.equal(system.encode(x), codes)
        assert torch.equal(system.log_likelihood(x), nats)
    assert not torch.equal(mixed, codes)  # as they would be in bf16
    assert codes.dtype == nats.dtype == mixed.dtype == torch.float32


@pytest.mark.parametrize(("bits", "key"), [(8, "bits_per_dim"), (5, "bits_per_dim_5bit")])
def test_a_uniform_model_scores_as_many_bits_as_a_pixel_has(bits: int, key: str) -> None:
    data = of_shape((1, 4, 4))
    uniform = Made(lambda spec: Chain(Logit(1e-6), Flatten(spec.shape)))
    system = plain(uniform, data.spec, bits, StandardBase("logistic"))
    subject = Subject(data, system, lambda n: torch.zeros(n, 1, 4, 4), n=0)
    scores = LikelihoodBound(importance_samples=0).measure(subject)
    assert scores[key] == pytest.approx(bits, abs=1e-3)
    assert LikelihoodBound().scores(system, data)[2] == key
    assert system.likelihood_on.dequantisation == "uniform"
    assert not system.likelihood_on.exact


def test_a_flow_of_a_gaussian_comes_within_two_hundredths_of_a_bit_of_its_entropy() -> None:
    torch.manual_seed(0)
    covariance = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    law = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0]), covariance)
    system = plain(Made(lambda spec: Chain(ActNorm(2), InvertibleConvolution(2), ActNorm(2))), Spec((2,)))
    system.prepare(total=300)
    for _ in range(300):
        system.iterate(Images(law.sample((256,))))
    x = law.sample((50_000,))
    with torch.no_grad():
        nats = -float(system.log_likelihood(x).mean())
    assert nats / (2 * math.log(2)) == pytest.approx(float(law.entropy()) / (2 * math.log(2)), abs=0.02)
    assert system.likelihood_on.exact
    with torch.no_grad():
        drawn = system.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=0.1)


def test_levels_of_a_gaussian_come_near_the_entropy_of_the_levels() -> None:
    """Of pixels round(N(100, 20^2)), independent: a bound above the entropy of the integers, and close to it."""
    torch.manual_seed(0)
    x = (100 + 20 * torch.randn(4000, 1, 2, 2)).round().clamp(0, 255).to(torch.uint8)
    data = in_memory("normal", Spec((1, 2, 2)), (x[:2000], None), (x[2000:], None))
    system = plain(Made(lambda spec: Chain(Flatten(spec.shape), ActNorm(4))), data.spec)
    system.prepare(total=150)
    for _ in range(150):
        system.iterate(Images(x[torch.randint(2000, (200,))]))
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 20**2)  # of the integers, to within 1e-4 for so wide a law
    with torch.no_grad():
        bits = -float(system.log_likelihood(data.test.all(None).x).mean()) / (4 * math.log(2))
    assert bits == pytest.approx(entropy, abs=0.03)


def test_a_resumed_run_does_not_take_its_first_values_again() -> None:
    config = tiny("model=glow")
    straight, data = ready(config)
    some = list(batches(config, data, 4))
    assert uninitialised(straight.nets.values())
    for batch in some[:2]:
        straight.iterate(batch)
    assert not uninitialised(straight.nets.values())
    state = straight.state()
    kept = {name: value.clone() for name, value in state["nets"].items()}
    noise = torch.random.get_rng_state()
    straight.iterate(some[2])
    ends = []
    for flag in (True, False):
        other, _ = ready(config, seed=9)
        held = {name: torch.tensor(flag) if name.endswith("initialised") else value for name, value in kept.items()}
        other.restore({**state, "nets": held})
        torch.random.set_rng_state(noise)
        # Another batch than any: it would show.
        other.take_first_values(partial(other._first_pass, Images(some[2].x // 3)))
        ends.append(dict(other.nets.state_dict()))
    assert differences(kept, ends[0]) == []
    assert any(path.endswith("norm.bias") for path in differences(kept, ends[1]))  # with the flag lost it is taken


def test_temperature_multiplies_the_noise_and_is_put_back() -> None:
    system, _ = trained("glow")

    def codes() -> Tensor:
        return system.prior_codes(50, torch.Generator().manual_seed(0))

    with at_rest(system, "raw"):
        plain_codes = codes()
        with tempered(system, 0.5):
            assert system.temperature == 0.5
            half = codes()
        assert system.temperature is None
        assert torch.equal(codes(), plain_codes)
    aside = system.latent - math.prod(system.base.top)
    assert torch.allclose(half[:, :aside], 0.5 * plain_codes[:, :aside], atol=1e-6)
    mean = system.base.parameters_of[: system.base.top[0], None].expand(-1, math.prod(system.base.top[1:])).flatten()
    assert torch.allclose(half[:, aside:] - mean, 0.5 * (plain_codes[:, aside:] - mean), atol=1e-5)
    spread = {t: float(draw(system, 60, seed=0, temperature=t).std(0).mean()) for t in (0.2, 1.0)}
    assert spread[0.2] < 0.7 * spread[1.0]
    for wrong in (0.0, -1.0):
        with pytest.raises(UserError, match="above 0"), tempered(system, wrong):
            pass
    with pytest.raises(UserError, match="has no temperature"), tempered(object(), 0.5):
        pass


def test_a_class_changes_the_density_and_the_samples() -> None:
    system, data = trained("glow", "model.base.conditional=true", "model.base.classification=0.01", steps=40)
    assert system.conditional
    x, y = data.test.all(40).x, data.test.all(40).y
    assert y is not None
    with torch.no_grad():
        torch.manual_seed(0)
        own = system.class_log_likelihood(x, y)
        torch.manual_seed(0)
        each = torch.stack([system.class_log_likelihood(x, torch.full((40,), k)) for k in range(1)])
        torch.manual_seed(0)
        whole = system.log_likelihood(x)
    assert not torch.allclose(own, each[0])
    with torch.no_grad():
        all_classes = []
        for k in range(10):
            torch.manual_seed(0)
            all_classes.append(system.class_log_likelihood(x, torch.full((40,), k)))
    shares = system.class_counts.float() / system.class_counts.sum()  # type: ignore[union-attr]
    assert torch.allclose(torch.logsumexp(torch.stack(all_classes) + shares.log()[:, None], 0), whole, atol=1e-2)
    assert (own - whole).mean() > 0.0  # what it was trained for: its own class is more likely than the mixture
    one, other = (draw(system, 3, seed=0, labels=torch.full((3,), k)) for k in (1, 2))
    assert not torch.equal(one, other)
    terms = system.objective(next(batches(tiny("model=glow"), data, 1)))
    assert set(terms) == {"nll", "classification"}


def test_variational_noise_is_trained_with_the_flow_and_is_what_the_likelihood_is_bounded_with() -> None:
    system, data = trained("glow", "model/dequantisation=variational")
    assert system.seats[0].player.nets == ("flow", "base", "dequantiser")
    assert system.likelihood_on.dequantisation == "variational"
    x = data.test.all(4).x
    with torch.no_grad():
        once, again = system.log_likelihood(x), system.log_likelihood(x)
        assert not torch.equal(once, again)
        assert torch.equal(system.encode(x), system.encode(x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Glow().build(Spec((2,))), "images"),
        (lambda: Glow(levels=3).build(Spec((1, 28, 28))), "model.net.levels=3: 28x28 pixels can be halved 2 times"),
        (lambda: Glow(coupling="affin"), "affine"),
        (lambda: Glow(steps=0), "model.net.steps=0"),
        (lambda: Glow(floor=1.0), "model.net.floor=1.0"),
        (lambda: RealNVP(scales=5).build(Spec((1, 28, 28))), "model.net.scales=5"),
        (lambda: RealNVP().build(Spec((1,))), "maf"),
        (lambda: NICE(couplings=1), "at least 2"),
        (lambda: plain(NICE(hidden=[4]), Spec((1, 4, 4)), base=LearnedTop()), "several scales"),
        (lambda: plain(Glow(2, 1, 4), Spec((1, 4, 4)), base=LearnedTop(conditional=True)), "no classes"),
        (lambda: Flow(Spec((1, 4, 4)), NICE(hidden=[4]), StandardBase(), {}), "model.dequantisation=null"),
        (lambda: StandardBase("uniform"), "normal"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_zuko_is_asked_for_by_name_where_it_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    ended = run(*words("model=maf", "data=ring"))
    assert ended.code == 2
    assert "gentrain[flows]" in ended.err
    assert ended.err.count("\n") == 1


def test_a_model_keeps_its_net_whatever_the_data_choose() -> None:
    assert tiny("model=realnvp", "data=ring")["choices"]["model/net"] == "realnvp"
    config = tiny("model=realnvp", "data=ring", "model.net.couplings=6")
    assert config["model"]["net"]["couplings"] == 6
    assert tiny("model=realnvp", "data=ring", "model/net=nice")["choices"]["model/net"] == "nice"
    assert tiny("model=gan", "data=ring")["choices"]["model/net"] == "mlp"


def test_a_run_is_sampled_scored_and_explored_at_a_temperature(run: Run, workplace: Path) -> None:
    assert run(*words("model=glow", "name=run", "metrics=likelihood", "train.iterations=6")).code == 0
    folder = workplace / "outputs" / "run"
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert 0 < card["final"]["bits_per_dim"] < 12
    assert card["protocol"]["likelihood"]["likelihood"]["dequantisation"] == "uniform"
    assert run("sample", "run=outputs/run", "n=9", "temperature=0.5", "files=false").code == 0
    assert (folder / "samples" / "drawn-last-0-temperature-0.5" / "grid.png").is_file()
    cool = json.loads(run("evaluate", "run=outputs/run", "temperature=0.5", "--json").out)
    assert cool["protocol"]["temperature"] == 0.5
    assert cool["scores"]["bits_per_dim"] == card["final"]["bits_per_dim"]  # data are as likely as before
    refused = run("sample", "run=outputs/run", "truncation=0.5")
    assert refused.code == 2
    for tool in ("temperature n=20 at=0.5,1 show=3", "interpolate pairs=3 steps=3", "reconstruct n=20"):
        word, *keys = tool.split()
        ended = run("explore", word, "run=outputs/run", *keys)
        assert ended.code == 0, ended.err
    found = {
        file.name.split(",")[0].split(".")[0]: json.loads(file.read_text()) for file in folder.glob("explore/*.json")
    }
    measured = found["temperature"]["measured"]
    assert list(measured) == ["0.5", "1"]
    assert measured["0.5"]["difference"] < measured["1"]["difference"]
    assert measured["0.5"]["bits_per_dim"] < measured["1"]["bits_per_dim"]
    ended = run("explore", "arithmetic", "run=outputs/run", "from=0", "to=1", "n=5", "train=50", "show=2")
    assert ended.code == 0, ended.err
    assert run("explore", "temperature", "run=outputs/run", "at=0").code == 2


def test_the_classes_of_a_conditional_flow_are_those_of_the_training_split() -> None:
    data = of_shape((1, 4, 4))
    none = replace(data.train, y=None)
    system = plain(Glow(2, 1, 4), data.spec, base=LearnedTop(conditional=True))
    with pytest.raises(ValueError, match="give_class_counts"):
        system.sample(3)
    system.give_class_counts(torch.tensor([0, 7]))
    assert bool((system._classes(50, None, None) == 1).all())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="classes are missing"):
        system.objective(Images(none.take(torch.arange(4)).x))


def test_learning_the_ring_beats_a_gaussian() -> None:
    """Eight modes in the plane: a coupling flow must do better than the best single Gaussian."""
    data = build(tiny("model=realnvp", "data=ring")["data"])
    system = plain(RealNVP(couplings=6, hidden=[32, 32], norm="actnorm"), data.spec, rate=5e-3)
    system.prepare(total=200)
    x = data.train.all(None).x
    for _ in range(200):
        system.iterate(Images(x[torch.randint(len(x), (256,))]))
    test = data.test.all(2000).x
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    with torch.no_grad():
        assert system.log_likelihood(test).mean() > gaussian.log_prob(test).mean() + 0.2


def test_ranks_take_the_first_values_of_the_first_one(run: Run, spied: Path) -> None:  # noqa: F811
    """Each has another part of the first batch: without it they would hold different models from the start."""
    quiet = ("metrics=none", "train.iterations=3", "train.validate_every=0")
    assert run("size=tiny", "data=digits", "trainer=ddp_cpu", "model=glow", "name=run", *quiet).code == 0
    ranks = records(spied)
    assert len(ranks[0]) == len(ranks[1]) == 3
    for one, other in zip(*ranks, strict=True):
        assert one["digest"] == other["digest"]
        assert one["noise"] != other["noise"]
