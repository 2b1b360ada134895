"""Truncated latents, against scipy's law and against clipping; batch statistics that belong to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Run, tiny, words
from scipy import stats
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gentrain.commands.explore import _more
from gentrain.config import build
from gentrain.engine.fit import build_system
from gentrain.engine.sampling import at_rest, draw
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.evaluation.truncation import BATCH, standing, truncated
from gentrain.folder import RunFolder
from gentrain.objectives.priors import truncated_normal


def made(*overrides: str) -> System:
    config = tiny(*overrides)
    system = build_system(config, build(config["data"]), seed=0)
    system.prepare(total=1)
    return system


@pytest.mark.parametrize("at", [0.05, 0.5, 2.0])
def test_what_is_outside_is_drawn_again_and_not_clipped(at: float) -> None:
    law = stats.truncnorm(-at, at)
    generator = torch.Generator().manual_seed(1)
    z = truncated_normal(2000, 10, at, torch.device("cpu"), generator)
    assert (z.shape, z.dtype) == ((2000, 10), torch.float32)
    assert z.abs().max() <= at
    assert stats.kstest(z.flatten().double().numpy(), law.cdf).pvalue > 0.01
    clipped = torch.randn(20000, generator=generator).clamp(-at, at).double().numpy()
    assert stats.kstest(clipped, law.cdf).pvalue < 1e-6  # the wrong version, which piles up at the edges
    again = torch.randn(200_000, generator=generator)  # the right one, word for word
    again = again[again.abs() <= at][:5000].double().numpy()
    assert stats.ks_2samp(again, z.flatten().double().numpy()).pvalue > 0.01


def test_a_wide_bound_is_the_whole_prior_and_a_generator_decides() -> None:
    def z(at: float, seed: int) -> torch.Tensor:
        return truncated_normal(4000, 5, at, torch.device("cpu"), torch.Generator().manual_seed(seed))

    assert stats.kstest(z(30.0, 0).flatten().double().numpy(), "norm").pvalue > 0.01
    assert torch.equal(z(1.0, 2), z(1.0, 2))
    assert not torch.equal(z(1.0, 2), z(1.0, 3))
    assert ((z(1.0, 2) - z(0.5, 2)).sign() == z(1.0, 2).sign()).float().mean() > 0.999  # the same quantiles


def test_samples_of_a_class_come_close_to_one_as_the_bound_goes_to_0() -> None:
    system = made("model=biggan")
    labels = torch.tensor([3]).repeat(40)
    spread = {at: float(draw(system, 40, seed=0, labels=labels, truncation=at).std(0).mean()) for at in (1e-6, 2.0)}
    other = draw(system, 40, seed=0, labels=labels + 1, truncation=1e-6)
    assert spread[1e-6] < 0.01 * spread[2.0]
    assert float((other.mean(0) - draw(system, 40, seed=0, labels=labels, truncation=1e-6).mean(0)).abs().max()) > 1e-3


class Recorded(nn.Module):
    """A generator of one batch norm that notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.seen = nn.BatchNorm2d(4), list[torch.Tensor]()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = (3.0 * z + 1.0)[:, :4, None, None]
        self.seen.append(x)
        return self.norm(x).tanh().mean((1, 2, 3), keepdim=True).expand(-1, 1, 8, 8)


def test_statistics_are_plain_means_over_many_batches_of_truncated_samples() -> None:
    system = made("model=dcgan", "model.ema=null")
    net = Recorded().eval()
    system.nets["generator"] = net
    net.norm(torch.randn(8, 4, 1, 1))
    before = {name: value.clone() for name, value in net.norm.state_dict().items()}
    with at_rest(system), truncated(system, 0.5, passes=5, seed=3):
        assert len(net.seen) == 5
        assert all(len(x) == BATCH for x in net.seen)
        mean = torch.stack([x.mean((0, 2, 3)) for x in net.seen]).mean(0)
        variance = torch.stack([x.var((0, 2, 3)) for x in net.seen]).mean(0)
        torch.testing.assert_close(net.norm.running_mean, mean)
        torch.testing.assert_close(net.norm.running_var, variance)
        sd = 3.0 * stats.truncnorm(-0.5, 0.5).std()
        torch.testing.assert_close(variance.sqrt(), torch.full((4,), sd, dtype=torch.float32), rtol=0.1, atol=0)
        assert not net.norm.training
        assert system.truncation == 0.5
    assert system.truncation is None
    assert net.norm.momentum == 0.1
    for name, value in net.norm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_all_batch_norms_of_the_averaged_generator_are_measured_and_put_back() -> None:
    system = made("model=sagan")
    assert system.average is not None
    averaged = system.average.nets["generator"]
    layers = [layer for layer in averaged.modules() if isinstance(layer, _BatchNorm)]
    live = {k: v.clone() for k, v in system.nets["generator"].state_dict().items()}
    before = {k: v.clone() for k, v in averaged.state_dict().items()}
    assert len(layers) >= 3
    with at_rest(system, "ema"), standing(system, passes=2):
        assert all(int(layer.num_batches_tracked) == 2 for layer in layers)  # type: ignore[arg-type]
        assert all(not torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean)) for layer in layers)  # type: ignore[arg-type]
    for state, kept in ((averaged.state_dict(), before), (system.nets["generator"].state_dict(), live)):
        assert all(torch.equal(value, kept[name]) for name, value in state.items())


def test_a_critic_that_tells_classes_keeps_its_statistics() -> None:
    system = made("model=acgan", "model.net.depth=2")
    x = torch.randint(0, 256, (5, *system.spec.shape), dtype=torch.uint8)
    with at_rest(system):
        for layer in system.nets["critic"].modules():
            if isinstance(layer, _BatchNorm):
                layer.running_mean.fill_(0.3)  # type: ignore[union-attr]
        before = system.classify(x)  # type: ignore[operator]
        with truncated(system, 0.5):
            assert torch.equal(system.classify(x), before)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("overrides", "at", "said"),
    [
        (("model=dcgan", "model.prior=uniform"), 0.5, "model.prior=uniform has no tails"),
        (("model=dcgan",), -1.0, "truncation=-1: above 0"),
        (("model=vae",), 0.5, "Variational.* has no latent that could be truncated"),
    ],
)
def test_what_cannot_be_truncated_is_refused_in_a_line(overrides: tuple[str, ...], at: float, said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        draw(made(*overrides), 2, seed=0, truncation=at)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("prior", ["normal", "uniform", "sphere"])
def test_the_tool_is_offered_where_the_prior_has_tails(prior: str) -> None:
    assert ("truncation" in _more(made("model=dcgan", f"model.prior={prior}"))) == (prior == "normal")


def test_the_commands_truncate_and_the_protocol_says_so(run: Run, workplace: Path) -> None:
    shared = ["metrics.samples=64", "metrics.at_end={}", "train.validate_every=20"]
    assert run(*words("model=biggan", "train.iterations=4", "name=run", *shared)).code == 0
    drawn = {}
    for cut in ("", "0.05"):
        done = run("sample", "run=outputs/run", "n=8", "files=false", *([f"truncation={cut}"] if cut else []))
        assert done.code == 0, done.err
        drawn[cut] = Path(done.out.split("grid: ")[1].strip()).read_bytes()
    assert drawn[""] != drawn["0.05"]
    assert run("evaluate", "run=outputs/run", "truncation=0.5", "out=cut.json").code == 0
    cut = json.loads((workplace / "cut.json").read_text(encoding="utf-8"))
    card = RunFolder.open(workplace / "outputs" / "run").card()
    assert cut["protocol"]["truncation"] == 0.5
    assert card["final"]["fd_domain"] != cut["scores"]["fd_domain"]
    for wrong in ("0", "-1", "much", "nan"):
        done = run("sample", "run=outputs/run", f"truncation={wrong}")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"truncation={wrong}" in done.err
