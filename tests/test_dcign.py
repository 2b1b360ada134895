"""DC-IGN: what is clamped, which gradient takes its place, and that a factor can be read from the latent tied to it."""

from __future__ import annotations

import importlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, tiny
from test_contract import ready
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.sources import shapes
from gentrain.data.stream import stream
from gentrain.engine.fit import build_system
from gentrain.engine.player import total
from gentrain.errors import UserError
from gentrain.models.dcign import ClampedLatents
from gentrain.models.vae import DiagonalGaussian
from gentrain.objectives.divergences import kl_standard_normal_terms
from gentrain.types import Images, Spec

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TIED_ON_SHAPES = ("size", "x", "y", "angle")
SPEC = Spec((1, 8, 8), varied_names=("x", "intrinsic", "angle"))
TIED = {"angle": 2, "x": 1}
STRENGTH = 0.25


def grouped(varied: list[int], group: int) -> Images:
    rows = torch.tensor(varied).repeat_interleave(group)
    return Images(torch.zeros(len(rows), 1, 8, 8, dtype=torch.uint8), varied=rows, group=group)


class Steps(torch.autograd.Function):
    """Steps 4, 5 and 7 of the paper's procedure, for one group: [n J], and 1 where a number passes [J]. The bound is a
    mean over ``rows`` images where the paper has a sum, and so is the gradient in its place."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, passes: Tensor, rows: int) -> Tensor:
        mean = torch.stack([codes[:, j].sum() / len(codes) for j in range(codes.shape[1])])
        ctx.save_for_backward(codes - mean, passes)
        ctx.rows = rows
        return torch.stack([code * passes + mean * (1 - passes) for code in codes])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        difference, passes = ctx.saved_tensors
        return gradient * passes + STRENGTH / ctx.rows * difference * (1 - passes), None, None


def test_gradients_are_those_of_the_papers_steps() -> None:
    coupling = ClampedLatents(SPEC, 5, TIED, STRENGTH)
    batch = grouped([0, 2, 1, 0], 3)
    passes = {0: [0, 0, 1, 0, 0], 1: [0, 0, 0, 1, 1], 2: [1, 1, 0, 0, 0]}  # x; the rest; angle
    output = torch.randn(12, 10, requires_grad=True)
    weights = torch.randn(12, 10)

    def bound(codes: Tensor) -> Tensor:
        return (codes.sin() * weights).sum(1).mean() + kl_standard_normal_terms(*codes.chunk(2, dim=1)).sum(1).mean()

    clamped, terms = coupling(output, batch)
    (bound(clamped) + total(terms)).backward()  # type: ignore[no-untyped-call]
    found, output.grad = output.grad, None
    parts = [
        Steps.apply(output[3 * g : 3 * g + 3], torch.tensor(passes[kind] * 2, dtype=torch.float32), 12)
        for g, kind in enumerate([0, 2, 1, 0])
    ]
    torch.testing.assert_close(clamped, torch.cat(parts))
    bound(torch.cat(parts)).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, output.grad)


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    coupling = ClampedLatents(SPEC, 5, TIED, STRENGTH)
    batch, output = grouped([0, 2, 1, 0], 3), torch.randn(12, 10, requires_grad=True)
    gradients = []
    for count in (1, 2):
        output.grad = None
        for codes, part in zip(output.tensor_split(count), batch.chunks(count), strict=True):
            clamped, terms = coupling(codes, part)
            (((clamped.square().sum(1).mean()) + total(terms)) / count).backward()
        gradients.append(output.grad)
    torch.testing.assert_close(*gradients)


def test_the_decoder_sees_the_clamped_code_and_the_encoder_is_pulled_to_the_mean() -> None:
    config = tiny("model=dcign", "data.train_size=160", "data.group=8", "model.coupling.strength=1.0")
    system, data = ready(config)
    batch = next(stream(data.train, batch_size=16, seed=0))
    terms = system.objective(batch)  # type: ignore[operator]
    assert set(terms) == {"reconstruction", "kl", "invariance"}
    codes = system.encoder_output(batch.x).view(2, 8, -1)  # type: ignore[operator]
    table = system.coupling.passing[batch.varied.view(2, 8)[:, 0]]  # type: ignore[union-attr]
    held = ~table.repeat(1, 2)[:, None].expand_as(codes)
    spread = (codes - codes.mean(1, keepdim=True))[held].square().sum()
    torch.testing.assert_close(terms["invariance"], 0.5 * spread / 16)
    for name, parameter in system.nets["decoder"].named_parameters():
        assert torch.autograd.grad(terms["invariance"], parameter, retain_graph=True, allow_unused=True)[0] is None, (
            name
        )
    seen: list[Tensor] = []
    handle = system.nets["decoder"].register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    with torch.no_grad():
        draw = DiagonalGaussian.draw
        DiagonalGaussian.draw = lambda self, output: self.mean(output)  # type: ignore[method-assign]
        try:
            system.objective(batch)  # type: ignore[operator]
        finally:
            DiagonalGaussian.draw = draw  # type: ignore[method-assign]
            handle.remove()
    z = seen[0].view(2, 8, -1)
    assert torch.equal((z == z[:, :1]).all(1), ~table)


@pytest.mark.parametrize(
    ("spec", "latent", "tied", "strength", "named"),
    [
        (Spec((1, 8, 8)), 5, TIED, 0.1, "no groups .*data=shapes .*angle: 1, x: 1, intrinsic"),
        (SPEC, 5, {"size": 1}, 0.1, r"tied\.size: no group .* x, intrinsic, angle"),
        (SPEC, 5, {"x": 0}, 0.1, r"tied\.x=0"),
        (SPEC, 5, TIED, -0.1, r"strength=-0\.1"),
        (SPEC, 3, TIED, 0.1, r"model\.latent=3: 3 .*intrinsic.* use 4"),
        (SPEC, 2, TIED, 0.1, r"model\.latent=2"),
        (Spec((1, 8, 8), varied_names=("x", "angle")), 5, TIED, 0.1, r"model\.latent=5: 2 .*tied to nothing.*latent=3"),
    ],
)
def test_what_cannot_be_tied_is_one_line(
    spec: Spec, latent: int, tied: dict[str, int], strength: float, named: str
) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        ClampedLatents(spec, latent, tied, strength)
    assert "\n" not in str(refusal.value)


def test_a_tied_latent_follows_its_factor_and_no_other_does() -> None:
    """By clamping alone, the pull being as weak as the paper's: without it all latents see every group, none is the
    factor's own, and with this seed another one follows it."""
    small = ["data.size=8", "data.channels=1", "data.smallest=0.25", "data.train_size=3200", "data.test_size=500"]
    net = ["loss.scale=0.15", "model.latent=4", "model.net.hidden=[64]", "model.coupling.strength=0.01"]
    config = tiny("model=dcign", *small, *net, "data.vary={x: 1, intrinsic: 1}")
    config["model"]["coupling"]["tied"] = {"x": 1}
    config["model"]["players"]["autoencoder"]["optimizer"]["lr"] = 3e-3
    config["train"]["batch_size"] = 64
    system, data = ready(config, seed=2)
    for batch in islice(stream(data.train, batch_size=64, seed=2), 600):
        system.iterate(batch)
    rows = data.test.all(500)
    with torch.no_grad():
        z = system.encode(rows.x).double()  # type: ignore[operator]
    x = data.test.truth.values(rows.index)[:, 0, 3].double()  # type: ignore[union-attr]
    shared = torch.corrcoef(torch.cat([z, x[:, None]], dim=1).T)[-1, :-1].square()
    assert float(shared[0]) > 0.75
    assert float(shared[1:].max()) < 0.4


def test_data_without_groups_are_one_line(run: Run) -> None:
    ended = run("model=dcign", "data=digits", "size=tiny", "metrics=none")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "data.vary={" in ended.err
    ended = run("model=dcign", "data=shapes", "size=tiny", "train.batch_size=24", "data.vary={size: 1, intrinsic: 1}")
    assert (ended.code, "train.batch_size=24" in ended.err) == (2, True)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("dcign")


def test_the_measurement_sees_what_is_there_and_nothing_else(bench: Any) -> None:
    code = torch.randn(400, 3, dtype=torch.float64)
    noise = torch.randn(400, 1, dtype=torch.float64)
    assert bench.determination(code, 2 * code[:, :1] - 1) == pytest.approx(1)
    assert bench.determination(code[:, 1:], code[:, :1]) < 0.05
    assert bench.determination(code[:, :1], code[:, :1] + noise) == pytest.approx(0.5, abs=0.12)
    split = shapes(size=64, channels=1, train_size=40, test_size=1).train
    known = split.truth.values(torch.arange(40))[:, 0].double()  # type: ignore[union-attr]
    seen = bench.look(split.all().x.float() / 127.5 - 1)
    assert (seen[:, 1:] - known[:, 3:5]).abs().max() < 1e-3
    white = known[:, 1] == 3
    assert torch.corrcoef(torch.stack((seen[white, 0], known[white, 2])))[0, 1] > 0.999


def test_an_angle_is_scored_as_far_as_it_can_be_seen(bench: Any) -> None:
    kinds, degrees = torch.arange(800) % 4, 360 * torch.rand(800, dtype=torch.float64)
    folds = torch.tensor([4, 2, 1, 1])[kinds]  # square, ellipse, triangle, heart
    seen = bench.circle(folds * degrees)
    assert bench.of_angle(seen, kinds, degrees) == pytest.approx(1)
    turned = (degrees + 360 / folds * torch.randint(0, 4, (800,))) % 360
    assert bench.of_angle(seen, kinds, turned) == pytest.approx(1), "the same pictures"
    assert bench.of_angle(bench.circle(degrees), kinds, degrees) == pytest.approx(0.5, abs=0.1), "hearts and triangles"
    values = torch.stack((kinds.double(), *degrees.new_zeros(4, 800), degrees), dim=1)
    assert bench.known("angle", seen, values) == pytest.approx(1)
    noise = torch.randn(800, 2, dtype=torch.float64)
    held = torch.where((kinds == 0)[:, None], noise, seen)
    assert bench.of_angle(held, kinds, degrees) < 0.8
    assert bench.of_angle(held, kinds, degrees, symmetry=(0, 2, 1, 1)) == pytest.approx(1), "left out"


def test_clamped_codes_are_logged_as_no_bound() -> None:
    for model, logged in (("dcign", False), ("vae", True)):
        system, data = ready(tiny(f"model={model}"))
        system.iterate(next(stream(data.train, batch_size=16, seed=0)))
        assert ("elbo/nats" in system.ledger.entries) == logged


def test_the_benchmark_measures_a_system(bench: Any, tmp_path: Path) -> None:
    small = ["data.train_size=320", "data.test_size=80", "train.iterations=2", "train.batch_size=32"]
    config = compose([*bench.WORDS, *small]).config
    data = build(config["data"])
    found = bench.measure(build_system(config, data, seed=0), data, 80, tmp_path / "moved.png")
    assert {name: set(part) for name, part in found.items()} == {
        "read": set(TIED_ON_SHAPES), "from_others": set(TIED_ON_SHAPES),
        "moved": {"size[0]", "x[1]", "y[2]", "angle[3]", "angle[4]"},
    }  # fmt: skip
    assert found["read"]["size"] < 0.9, "untrained"
    assert (tmp_path / "moved.png").is_file()


def test_the_recorded_run_reads_its_factors_and_moves_them() -> None:
    record = json.loads((BENCHMARKS / "results" / "dcign.json").read_text(encoding="utf-8"))
    assert min(record["read"][name] for name in ("size", "x", "y")) > 0.9
    for name, latent in (("size", "size[0]"), ("x", "x[1]"), ("y", "y[2]")):
        effects = {other: change[name] for other, change in record["moved"].items()}
        assert max(effects, key=effects.__getitem__) == latent
        assert sorted(effects.values())[-2] < 0.1 * effects[latent]


def test_a_batch_that_is_no_training_batch_is_refused() -> None:
    with pytest.raises(UserError, match="without groups"):
        ClampedLatents(SPEC, 5, TIED)(torch.zeros(4, 10), Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))
