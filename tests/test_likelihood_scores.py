"""Likelihoods as scores: what they are of, annealed importance sampling, Parzen windows; against closed forms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import tiny
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity
from torch import Tensor

from gentrain.capabilities import RBM
from gentrain.config import build
from gentrain.data.dataset import DataSet, in_memory, spread
from gentrain.data.sources import digits, ring
from gentrain.engine.assemble import build_system
from gentrain.errors import UserError
from gentrain.evaluation.annealing import AnnealedLikelihood, LogPartition, log_partition
from gentrain.evaluation.likelihood import LikelihoodBound
from gentrain.evaluation.parzen import ParzenWindow, parzen
from gentrain.evaluation.protocol import evaluate, require
from gentrain.evaluation.subject import Subject
from gentrain.types import LikelihoodOn, Spec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


def subject_of(data: DataSet, system: object, *, seed: int = 0, limit: int | None = None) -> Subject:
    return Subject(data, system, torch.zeros, n=0, seed=seed, limit=limit)


class Uniform:
    """All levels of each number equally likely."""

    def __init__(self, bits: int, on: LikelihoodOn | None = None) -> None:
        self.bits = bits
        if on is not None:
            self.likelihood_on = on

    def log_likelihood(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), -x[0].numel() * math.log(2**self.bits), dtype=torch.float64)


class Fitted(Uniform):
    """A value of its own for each image."""

    def log_likelihood(self, x: Tensor) -> Tensor:
        return -x.double().flatten(1).sum(1)


class Bounded(Fitted):
    """That, and bounds below it."""

    def importance_bound(self, x: Tensor, samples: int) -> Tensor:
        return self.log_likelihood(x) - 1.0 / samples


class Drawing:
    """Binarises anew each time it is asked; its pixels are on with probability 0.3."""

    likelihood_on = LikelihoodOn(bits=1, binarisation="dynamic", exact=False)
    bound_samples = 5

    def log_likelihood(self, x: Tensor) -> Tensor:
        on = torch.bernoulli(x.double() / 255).flatten(1).sum(1)
        return on * math.log(0.3) + (x[0].numel() - on) * math.log(0.7)

    def elbo(self, x: Tensor) -> Tensor:
        return self.log_likelihood(x)


# What a likelihood is of


def test_a_uniform_model_of_bytes_has_eight_bits_per_dimension(data: DataSet) -> None:
    found = LikelihoodBound(batch=100).measure(subject_of(data, Uniform(8)))
    assert abs(found["bits_per_dim"] - 8.0) < 1e-12
    assert found["nll_nats"] == pytest.approx(64 * 8 * math.log(2), rel=1e-14)
    assert found["nll_nats_se"] == 0.0


def test_another_depth_has_a_key_of_its_own_and_binary_pixels_have_none(data: DataSet) -> None:
    five = Uniform(5, LikelihoodOn(bits=5))
    found = LikelihoodBound().measure(subject_of(data, five))
    assert abs(found["bits_per_dim_5bit"] - 5.0) < 1e-12
    assert "bits_per_dim" not in found
    for on in (LikelihoodOn(bits=1, binarisation="static"), LikelihoodOn(bits=None, exact=False)):
        some = Uniform(1, on)
        assert LikelihoodBound().measure(subject_of(data, some)).keys() == {"nll_nats", "nll_nats_se"}
        assert LikelihoodBound().scores(some, data) == ("nll_nats", "nll_nats_se")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"bits": 16}, "bits=16"),
        ({"bits": 0}, "bits=0"),
        ({"binarisation": "sometimes"}, "binarisation='sometimes' is none of none, threshold, static, dynamic"),
        ({"binarisation": "static"}, "leaves bits=1, not 8"),
        ({"dequantisation": "uniform"}, "exact=False"),
        ({"dequantisation": "gaussian"}, "dequantisation='gaussian'"),
    ],
)
def test_what_contradicts_itself_is_no_likelihood(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        LikelihoodOn(**wrong)  # type: ignore[arg-type]


def test_the_protocol_says_what_the_likelihood_is_of_and_how_many_samples_bound_it(data: DataSet) -> None:
    def facts(system: object, samples: int = 7, some: DataSet = data) -> dict[str, object]:
        metric = LikelihoodBound(importance_samples=samples, limit=9)
        protocol = evaluate({"l": metric}, subject_of(some, system), "raw").protocol
        assert json.loads(json.dumps(protocol)) == protocol
        found: dict[str, object] = protocol["likelihood"]["l"]
        return found

    plain = {"bits": 8, "binarisation": "none", "dequantisation": "none", "exact": True, "importance_samples": None}
    assert facts(Fitted(8)) == plain
    assert facts(Bounded(8)) == plain | {"exact": False, "importance_samples": 7}
    assert facts(Bounded(8, LikelihoodOn(exact=True))) == plain  # the bound does not stand for it
    assert facts(Bounded(8), samples=0) == plain | {"exact": False}
    assert facts(Drawing()) == plain | {
        "bits": 1, "binarisation": "dynamic", "exact": False, "importance_samples": 5
    }  # fmt: skip
    assert facts(Fitted(8), some=ring(train_size=9, test_size=9)) == plain | {"bits": None}
    flow = Uniform(8, LikelihoodOn(dequantisation="uniform", exact=False))
    assert facts(flow) == plain | {"dequantisation": "uniform", "exact": False}
    with pytest.raises(TypeError, match="not a LikelihoodOn"):
        LikelihoodBound().scores(Uniform(8, "8 bits"), data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "on"),
    [
        ("bernoulli", LikelihoodOn(bits=1, binarisation="threshold", exact=False)),
        ("bernoulli loss.binarize=once", LikelihoodOn(bits=1, binarisation="static", exact=False)),
        ("bernoulli loss.binarize=sample", LikelihoodOn(bits=1, binarisation="dynamic", exact=False)),
        ("bernoulli loss.binarize=none", LikelihoodOn(bits=None, exact=False)),
        ("gaussian", LikelihoodOn(exact=False)),
    ],
)
def test_an_autoencoders_likelihood_is_its_pixels_and_the_same_each_time(
    loss: str, on: LikelihoodOn, data: DataSet
) -> None:
    config = tiny("data=digits", "model=vae", *f"loss={loss}".split())
    torch.manual_seed(0)
    system = build(config["model"], spec=data.spec)
    assert system.likelihood_on == on
    metric = LikelihoodBound(limit=50, importance_samples=3, batch=20)
    require({"l": metric}, system, data)
    first, second = (evaluate({"l": metric}, subject_of(data, system), "raw").scores for _ in range(2))
    assert first == second
    assert ("bits_per_dim" in first) == (on.bits == 8)
    x = data.test.all(9).x
    whole = system.loss.prepare(x, fixed=True)
    assert torch.cat([system.loss.prepare(part, fixed=True) for part in x.split(2)]).equal(whole)


def test_draws_of_a_likelihood_follow_the_seed(data: DataSet) -> None:
    system, metric = Drawing(), LikelihoodBound(batch=50)
    scores = []
    for seed in (3, 3, 4):
        torch.rand(seed + len(scores))  # wherever the generators stand
        scores.append(metric.measure(subject_of(data, system, seed=seed)))
    assert scores[0] == scores[1]
    assert scores[0]["nll_nats"] != scores[2]["nll_nats"]
    # One evaluation has one set of binary images, whatever is asked about them.
    assert scores[0]["nll_nats"] == -scores[0]["elbo_nats"]


def test_the_mean_has_its_standard_error_over_images(data: DataSet) -> None:
    x = data.test.all().x.double().flatten(1).sum(1)
    for system in (Fitted(8), Bounded(8)):
        found = LikelihoodBound(batch=7).measure(subject_of(data, system))
        assert found["nll_nats_se"] == pytest.approx(float(x.std(correction=1)) / math.sqrt(len(x)), rel=1e-12)
    few = LikelihoodBound().measure(subject_of(data, Fitted(8), limit=10))
    assert few["nll_nats_se"] == pytest.approx(
        float(data.test.all(10).x.double().flatten(1).sum(1).std()) / math.sqrt(10)
    )
    with pytest.raises(UserError, match="limit=1: at least 2"):
        LikelihoodBound(limit=1)
    with pytest.raises(UserError, match="likelihood of 1 samples of split=test has no standard error"):
        LikelihoodBound().check(ring(train_size=9, test_size=1))
    with pytest.raises(UserError, match="likelihood of 1 samples"):
        LikelihoodBound().measure(subject_of(data, Fitted(8), limit=1))


def test_where_the_likelihood_is_known_no_bound_stands_for_it(data: DataSet) -> None:
    known = Bounded(8, LikelihoodOn(exact=True))
    found = LikelihoodBound(importance_samples=4).measure(subject_of(data, known))
    assert found["nll_nats"] == pytest.approx(-found["iw_bound_nats"] - 0.25, rel=1e-12)
    bounded = LikelihoodBound(importance_samples=4).measure(subject_of(data, Bounded(8)))
    assert bounded["nll_nats"] == -bounded["iw_bound_nats"] == pytest.approx(found["nll_nats"] + 0.25, rel=1e-12)


# Annealed importance sampling


def states(count: int) -> Tensor:
    """All states float64 [2^count count] of binary units."""
    return (torch.arange(2**count)[:, None] >> torch.arange(count) & 1).double()


def enumerated(rbm: RBM) -> float:
    """log Z by the sum over all states of all units, written out."""
    v, h = states(len(rbm.visible_bias)), states(len(rbm.hidden_bias))
    energy = v @ rbm.weight.double() @ h.T + (v @ rbm.visible_bias.double())[:, None] + h @ rbm.hidden_bias.double()
    return float(torch.logsumexp(energy.flatten(), 0))


def machine(seed: int, scale: float = 1.0, visible: int = 10, hidden: int = 8) -> RBM:
    g = generator(seed)
    return RBM(*(scale * torch.randn(shape, generator=g) for shape in ((visible, hidden), (visible,), (hidden,))))


class Machine:
    """A machine over the 64 pixels of a digit, on at half brightness."""

    likelihood_on = LikelihoodOn(bits=1, binarisation="threshold")

    def __init__(self, rbm: RBM) -> None:
        self.parameters = rbm

    def rbm(self) -> RBM:
        return self.parameters

    def units(self, x: Tensor) -> Tensor:
        return (x.flatten(1) >= 128).float()

    def free_energy(self, x: Tensor) -> Tensor:
        """By the sum over all states of the hidden units."""
        v, h = self.units(x).double(), states(len(self.parameters.hidden_bias))
        weight, b, c = (part.double() for part in vars(self.parameters).values() if isinstance(part, Tensor))
        return -torch.logsumexp(v @ weight @ h.T + (v @ b)[:, None] + h @ c, 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("based", [False, True])
def test_annealing_finds_the_enumerated_constant_within_its_bounds(seed: int, *, based: bool) -> None:
    rbm = machine(seed, scale=0.4 + 0.2 * seed)
    base = torch.randn(10, generator=generator(9)) if based else None
    found = log_partition(rbm, chains=200, temperatures=300, seed=seed, base=base)
    assert found.lower < enumerated(rbm) < found.upper
    assert abs(found.estimate - enumerated(rbm)) < 0.1
    assert 0 < found.sd < 0.05
    assert found.lower == pytest.approx(found.estimate + math.log(1 - 3 * found.sd), abs=1e-12)


def test_the_weights_are_unbiased_with_few_temperatures_too_and_their_spread_is_honest() -> None:
    # Many coarse runs: the mean of Z must be right, which wrong transitions or weights would not survive.
    rbm = machine(3, scale=0.7)
    truth = enumerated(rbm)
    runs = [log_partition(rbm, chains=200, temperatures=4, seed=seed) for seed in range(100)]
    ratios = torch.tensor([run.estimate - truth for run in runs], dtype=torch.float64).exp()
    error = float(ratios.std()) / 10
    assert abs(float(ratios.mean()) - 1) < 4 * error
    assert error < 0.03
    claimed = sum(run.sd for run in runs) / 100
    assert claimed == pytest.approx(float(ratios.std()), rel=0.3)


def test_a_machine_without_connections_needs_no_annealing() -> None:
    b, c = torch.linspace(-2, 2, 10), torch.linspace(-1, 3, 8)
    rbm = RBM(torch.zeros(10, 8), b, c)
    exact = float(torch.nn.functional.softplus(b.double()).sum() + torch.nn.functional.softplus(c.double()).sum())
    found = log_partition(rbm, chains=5, temperatures=2, base=b)
    assert found.estimate == pytest.approx(exact, abs=1e-12)
    assert found.sd < 1e-12
    assert log_partition(machine(1), chains=2, temperatures=3) == log_partition(machine(1), chains=2, temperatures=3)
    steep = RBM(torch.zeros(1, 40), torch.zeros(1), torch.full((40,), 20.5))  # where float32's log(1 + e^x) is x
    exact = math.log(2) + 40 * (20.5 + math.log1p(math.exp(-20.5)))
    assert log_partition(steep, chains=2, temperatures=1).estimate == pytest.approx(exact, abs=1e-11)
    wild = log_partition(machine(1, scale=6), chains=2, temperatures=1)
    assert wild.lower == -math.inf
    assert math.isfinite(wild.upper)


def test_the_likelihood_of_a_machine_is_that_of_enumeration() -> None:
    visible = 6
    x = (255 * states(visible)).to(torch.uint8).view(-1, 1, 1, visible)[torch.randperm(64, generator=generator())]
    data = in_memory("bits", Spec((1, 1, visible)), (x[:40], None), (x, None))
    rbm = machine(2, visible=visible)
    system, metric = Machine(rbm), AnnealedLikelihood(chains=200, temperatures=300, batch=10)
    require({"m": metric}, system, data)
    before = torch.get_rng_state()
    report = evaluate({"m": metric}, subject_of(data, system), "raw")
    assert torch.get_rng_state().equal(before)
    found = report.scores
    assert tuple(found) == metric.scores(system, data)
    assert report.protocol["likelihood"]["m"] == {
        "bits": 1, "binarisation": "threshold", "dequantisation": "none", "exact": False
    }  # fmt: skip
    assert report.protocol["splits"] == {"m": "test 64, train 40"}
    v, h = x.view(-1, visible).double() / 255, states(8)
    joint = v @ rbm.weight.double() @ h.T + (v @ rbm.visible_bias.double())[:, None] + h @ rbm.hidden_bias.double()
    exact = enumerated(rbm) - float(torch.logsumexp(joint, 1).mean())
    assert found["nll_nats_ais"] - exact == pytest.approx(found["log_z"] - enumerated(rbm), abs=1e-12)
    assert found["nll_nats_ais"] == pytest.approx(exact, abs=4 * found["log_z_sd"])
    assert evaluate({"m": metric}, subject_of(data, system), "raw").scores == found
    assert evaluate({"m": metric}, subject_of(data, system, seed=1), "raw").scores != found


def test_the_base_has_the_means_of_the_training_images(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    bases: list[Tensor | None] = []

    def noted(rbm: RBM, *, base: Tensor | None = None, **settings: int) -> LogPartition:
        bases.append(base)
        return log_partition(rbm, base=base, **settings)

    monkeypatch.setattr("gentrain.evaluation.annealing.log_partition", noted)
    system = Machine(machine(0, 0.1, visible=64))
    AnnealedLikelihood(chains=2, temperatures=2).measure(subject_of(data, system))
    on = system.units(data.train.all().x).double()
    assert bases[0] is not None
    torch.testing.assert_close(bases[0].sigmoid(), (on.sum(0) + 1) / (len(on) + 2))


@pytest.mark.parametrize("words", [["model=dbm"], ["model=rbm", "loss=unit_gaussian"], ["model=rbm"]])
def test_the_score_of_any_machine_is_its_likelihood_by_the_exact_constant(data: DataSet, words: list[str]) -> None:
    """Deep ones have hidden units behind the data's in their first group; Gaussian ones a density."""
    system = build_system(tiny(*words), data, seed=0)
    with torch.no_grad():
        for parameter in system.nets.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = AnnealedLikelihood(chains=200, temperatures=300, limit=40).measure(subject_of(data, system))
    assert found["log_z"] == pytest.approx(system.log_constant(), abs=4 * found["log_z_sd"])
    assert 0 < found["log_z_sd"] < 0.2
    x = data.test.take(spread(len(data.test), 40)).x
    exact = -float(system.log_likelihood(x).mean())
    assert found["nll_nats_ais"] - exact == pytest.approx(found["log_z"] - system.log_constant(), abs=1e-6)


def test_what_cannot_be_annealed_is_refused(data: DataSet) -> None:
    metric = AnnealedLikelihood(chains=2, temperatures=2)
    with pytest.raises(UserError, match=r"needs rbm, which Uniform cannot do"):
        require({"m": metric}, Uniform(8), data)
    with pytest.raises(UserError, match="no restricted Boltzmann machine"):
        metric.measure(subject_of(data, Uniform(8)))
    broken = machine(0, visible=64)
    broken.weight[3, 3] = math.nan
    with pytest.raises(UserError, match="diverged"):
        metric.measure(subject_of(data, Machine(broken)))
    with pytest.raises(ValueError, match=r"W \[V H\]"):
        log_partition(RBM(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3)))

    class Grey(Machine):
        def units(self, x: Tensor) -> Tensor:
            return x.flatten(1) / 255

    with pytest.raises(ValueError, match="0 and 1 are due"):
        metric.measure(subject_of(data, Grey(machine(0, visible=64))))
    for wrong in ({"chains": 1}, {"temperatures": 0}, {"limit": 1}):
        with pytest.raises(UserError, match=rf"annealed\.{next(iter(wrong))}="):
            AnnealedLikelihood(**wrong)


# Parzen windows


def windows(centres: NDArray[np.float64], x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """[N] nats, by scikit-learn. In one leaf: cut into several, its tree is off by several nats in 64 dimensions."""
    density = KernelDensity(bandwidth=sigma, leaf_size=len(centres)).fit(centres)
    nats: NDArray[np.float64] = density.score_samples(x)
    by_hand = -cdist(x, centres, "sqeuclidean") / (2 * sigma**2) - x.shape[1] * math.log(sigma * math.sqrt(math.tau))
    assert nats == pytest.approx(logsumexp(by_hand, axis=1) - math.log(len(centres)), rel=1e-9)
    return nats


def points(n: int, dim: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(n, dim, generator=generator(seed))


def cloud(train: Tensor, test: Tensor) -> DataSet:
    return in_memory("cloud", Spec((train.shape[1],)), (train, None), (test, None))


@pytest.mark.parametrize("far", [0.0, 1e6])
@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_windows_have_the_density_of_the_textbook_kernel_estimate(
    far: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gentrain.evaluation.parzen.BLOCK", block)
    centres, x = points(40, 5, 0).double() + far, points(13, 5, 1, 2.0).double() + far
    sigmas = torch.tensor([0.02, 0.5, 3.0], dtype=torch.float64)
    found = parzen(x, centres, sigmas)  # [S N]
    for row, sigma in zip(found, sigmas.tolist(), strict=True):
        assert row.numpy() == pytest.approx(windows(centres.numpy() - far, x.numpy() - far, sigma), rel=1e-7)
    assert bool((found[0] < -800).any())  # where exp() itself is 0


def test_a_window_is_a_density() -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    centres = points(7, 1, 2).double()
    mass = torch.trapezoid(parzen(grid, centres, torch.tensor([0.3, 1.0], dtype=torch.float64)).exp(), grid[:, 0])
    assert mass.numpy() == pytest.approx([1.0, 1.0], rel=1e-9)


def test_the_width_is_chosen_on_training_data_and_the_score_is_of_the_test_split() -> None:
    train, test, drawn = points(300, 3, 0), points(200, 3, 1, 1.5), points(250, 3, 2)
    data, metric = cloud(train, test), ParzenWindow(validation=60, steps=13)
    require({"p": metric}, Painter(drawn), data, n=250)
    subject = Subject(data, Painter(drawn), lambda n: drawn[:n], n=250)
    report = evaluate({"p": metric}, subject, "raw")
    assert tuple(report.scores) == metric.scores(None, data)
    assert report.protocol["splits"] == {"p": "test 200, train 60"}
    widths = np.logspace(-2, 1, 13)
    held = data.train.all(60).x.double().numpy()
    by_width = [windows(drawn.double().numpy(), held, s).mean() for s in widths]
    sigma = float(widths[int(np.argmax(by_width))])
    assert report.scores["parzen_sigma"] == pytest.approx(sigma, rel=1e-12)
    nats = windows(drawn.double().numpy(), test.double().numpy(), sigma)
    assert report.scores["parzen_nats_unreliable"] == pytest.approx(nats.mean(), rel=1e-6)
    assert report.scores["parzen_nats_unreliable_se"] == pytest.approx(nats.std(ddof=1) / math.sqrt(200), rel=1e-6)
    few = ParzenWindow(limit=20, validation=60, steps=13)
    assert evaluate({"p": few}, subject, "raw").protocol["splits"]["p"].startswith("test 20,")


class Painter:
    def __init__(self, drawn: Tensor) -> None:
        self.drawn = drawn

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.drawn[:n]


def test_images_are_points_in_the_unit_cube(data: DataSet) -> None:
    drawn = data.train.all().x[:300]
    subject = Subject(data, None, lambda n: drawn[:n], n=300)
    found = ParzenWindow(limit=50).measure(subject)
    sigma = found["parzen_sigma"]
    unit = [x.flatten(1).double().numpy() / 255 for x in (drawn, data.test.all(50).x)]
    nats = windows(unit[0], unit[1], sigma)
    assert found["parzen_nats_unreliable"] == pytest.approx(nats.mean(), rel=1e-6)
    assert 0.05 < sigma < 0.5
    noise = torch.randint(0, 256, drawn.shape, generator=generator()).to(torch.uint8)
    worse = ParzenWindow(limit=50).measure(Subject(data, None, lambda n: noise[:n], n=300))
    assert worse["parzen_nats_unreliable"] < found["parzen_nats_unreliable"] - 10


def test_a_grid_that_ends_too_early_and_numbers_that_are_none_are_refused() -> None:
    train = points(50, 2, 0, 100.0)
    subject = Subject(cloud(train, train), None, lambda n: points(n, 2, 1, 100.0), n=30)
    with pytest.raises(UserError, match=r"sigma_high=10\.0, is the best for data 'cloud' and.*raise metrics"):
        ParzenWindow().measure(subject)
    assert ParzenWindow(sigma_high=1000.0).measure(subject)["parzen_sigma"] > 10
    for wrong in ({"sigma_low": 0.0}, {"sigma_high": 0.001}, {"sigma_high": math.inf}, {"sigma_low": math.nan}):
        with pytest.raises(UserError, match=r"sigma_low=.*must be above 0"):
            ParzenWindow(**wrong)  # type: ignore[arg-type]
    for small in ({"validation": 0}, {"steps": 1}, {"limit": 1}):
        with pytest.raises(UserError, match=rf"parzen\.{next(iter(small))}="):
            ParzenWindow(**small)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="neither train nor test"):
        ParzenWindow(split="val").check(cloud(train, train))
    broken = cloud(train, train.clone().index_fill_(0, torch.tensor([3]), math.nan))
    with pytest.raises(UserError, match="nan or inf"):
        ParzenWindow(sigma_high=1000.0).measure(Subject(broken, None, lambda n: points(n, 2, 1, 100.0), n=30))
