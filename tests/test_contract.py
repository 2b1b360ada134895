"""What every file in conf/model/ promises, tested over all of them at the smallest size."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, tiny, words
from torch import Tensor

from gentrain.capabilities import CAPABILITIES, Sampler
from gentrain.commands.list import entries
from gentrain.config import Node, build, options
from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.stream import stream
from gentrain.engine import checkpoint
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.sampling import at_rest, draw
from gentrain.engine.state import rng_state, set_rng_state
from gentrain.engine.system import System
from gentrain.families.boltzmann import BoltzmannMachine
from gentrain.types import Images, Spec

MODELS = options("model")
LIKELIHOODS = ["bernoulli", "gaussian", "logistic"]


def ready(config: Node, seed: int = 0, data: DataSet | None = None) -> tuple[System, DataSet]:
    check_config(config)
    data = build(config["data"]) if data is None else data
    system = build_system(config, data, seed=seed)
    system.prepare(total=config["train"]["iterations"])
    return system, data


def batches(config: Node, data: DataSet, count: int, start: int = 0) -> Iterator[Images]:
    endless = stream(data.train, batch_size=config["train"]["batch_size"], seed=config["seed"], start=start)
    return islice(endless, count)


def logged(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without those columns that no two runs have in common."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if k not in ("seconds", "speed/images_per_second")} for row in rows]


def moved(before: dict[str, Tensor], system: System) -> set[str]:
    """Names of the networks whose parameters are not what they were."""
    now = dict(system.nets.named_parameters())
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, now[name])}


def parameters(system: System) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in system.nets.named_parameters()}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two states differ in any bit."""
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [where]


def shown(system: System, n: int, *, seed: int, weights: str = "ema") -> Tensor:
    """Samples, or what a system without a sampler makes of noise images: the pictures that its weights decide."""
    if isinstance(system, Sampler):
        return draw(system, n, seed=seed, weights=weights)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (n, *system.spec.shape), dtype=torch.uint8, generator=generator)
    with at_rest(system, weights):
        return system.reconstruct(noise)  # type: ignore[operator, no-any-return]


def of_shape(shape: tuple[int, ...], varied: tuple[str, ...] = ()) -> DataSet:
    """Noise in the shape of another data set; in groups of four where something varies in them."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator) for n in (40, 10))
    spec = Spec(shape, ("even", "odd"), varied_names=varied)
    data = in_memory("noise", spec, (train, torch.arange(40) % 2), (test, torch.arange(10) % 2))
    if not varied:
        return data
    what = torch.arange(40) // 4 % len(varied)
    return replace(data, train=replace(data.train, group=4, varied=what))


@pytest.mark.parametrize("shape", [None, (1, 28, 28), (3, 32, 32)], ids=["digits", "fashion", "colour"])
@pytest.mark.parametrize("model", MODELS)
def test_each_player_moves_its_own_networks_with_finite_terms_and_full_gradients(
    model: str, shape: tuple[int, ...] | None
) -> None:
    config = tiny(f"model={model}")
    varied = tuple(config["data"].get("vary") or ())
    system, data = ready(config, data=None if shape is None else of_shape(shape, varied))
    drawn = shown(system, 3, seed=0)
    assert drawn.shape == (3, *data.spec.shape)
    assert drawn.abs().max() <= 1.0
    for batch in batches(config, data, 1):
        part = batch.to("cpu", channels_last=system.channels_last)
        for seat in system.seats:
            for parameter in system.nets.parameters():
                parameter.grad = None
            before = parameters(system)
            system._gradients(seat, [part], 1)
            own = {id(p) for p in seat.parameters}
            for name, parameter in system.nets.named_parameters():
                assert (parameter.grad is not None) == (id(parameter) in own), f"{seat.player.name}: {name}"
                if parameter.grad is not None:
                    assert torch.isfinite(parameter.grad).all(), name
            assert any(bool(p.grad.abs().sum() > 0) for p in seat.parameters if p.grad is not None)
            system._step(seat, 1)
            assert moved(before, system) == set(seat.player.nets)
    assert all(torch.isfinite(torch.stack(v)).all() for v in system.ledger.entries.values())


@pytest.mark.parametrize("model", MODELS)
def test_one_seed_is_one_run(model: str) -> None:
    ends = []
    for seed in (3, 3, 4):
        config = tiny(f"model={model}", f"seed={seed}")
        system, data = ready(config, seed)
        for batch in batches(config, data, 6):
            system.iterate(batch)
        ends.append(system.state())
    assert differences(ends[0], ends[1]) == []
    assert differences(ends[0]["nets"], ends[2]["nets"])


@pytest.mark.parametrize("model", MODELS)
def test_save_load_sample_is_the_same_picture(model: str, tmp_path: Path) -> None:
    config = tiny(f"model={model}")
    system, data = ready(config)
    for batch in batches(config, data, 4):
        system.iterate(batch)
    checkpoint.save({"system": system.state()}, tmp_path / checkpoint.file_name(4))
    other, _ = ready(config, seed=99)
    before = shown(other, 9, seed=1)
    other.restore(checkpoint.load(tmp_path / checkpoint.file_name(4))["system"])
    for weights in ("ema", "raw"):
        assert torch.equal(shown(system, 9, seed=1, weights=weights), shown(other, 9, seed=1, weights=weights))
    assert not torch.equal(before, shown(other, 9, seed=1))


@pytest.mark.parametrize("model", MODELS)
def test_samples_have_shape_and_range_and_disturb_nothing(model: str) -> None:
    for overrides in ((), ("data.size=16", "data.channels=3")):
        config = tiny(f"model={model}", *overrides)
        system, data = ready(config)
        before, modes = rng_state(), {name: net.training for name, net in system.nets.items()}
        x = shown(system, 5, seed=0)
        assert x.shape == (5, *data.spec.shape)
        assert x.dtype == torch.float32
        assert x.min() >= -1.0
        assert x.max() <= 1.0
        assert torch.equal(x, shown(system, 5, seed=0))
        assert not torch.equal(x, shown(system, 5, seed=1))
        assert differences(before, rng_state()) == []
        assert modes == {name: net.training for name, net in system.nets.items()}


@pytest.mark.parametrize("model", MODELS)
def test_capabilities_are_those_the_model_file_states(model: str) -> None:
    system, data = ready(tiny(f"model={model}"))
    stated = next(e["can"] for e in entries("model") if e["name"] == model)
    assert sorted(stated) == sorted(name for name, kind in CAPABILITIES.items() if isinstance(system, kind))
    x = data.test.all(6).x
    with at_rest(system):
        if "log_likelihood" in stated:
            nats = system.log_likelihood(x)  # type: ignore[operator]
            assert nats.shape == (6,)
            assert torch.isfinite(nats).all()
        if "encode" in stated:
            z = system.encode(x)  # type: ignore[operator]
            assert z.shape == (6, system.latent)
            assert system.decode(z).shape == x.shape  # type: ignore[operator]
        elif {"sample", "decode"} <= set(stated):
            # A sample is what decoding makes of a draw from the prior.
            y = (torch.arange(6) % data.spec.classes,) if getattr(system, "conditional", False) else ()
            z = system.prior_codes(6, torch.Generator().manual_seed(3))  # type: ignore[operator]
            drawn = system.sample(6, labels=y[0] if y else None, generator=torch.Generator().manual_seed(3))  # type: ignore[operator]
            assert torch.equal(system.decode(z, *y), drawn)  # type: ignore[operator]
            assert not torch.equal(system.decode(z.flip(0), *y), drawn)  # type: ignore[operator]


@pytest.mark.parametrize("model", MODELS)
def test_the_first_players_loss_falls_on_one_repeated_batch(model: str) -> None:
    config = tiny(f"model={model}")
    if config["data"].get("vary"):  # in one group alone all but one code stand still, held by nothing
        config = tiny(f"model={model}", "train.batch_size=64")
    system, data = ready(config)
    seat = system.seats[0]
    part = next(batches(config, data, 1)).to("cpu", channels_last=system.channels_last)
    losses = []
    noise = rng_state()
    for iteration in range(1, 61):
        set_rng_state(noise)  # the same noise each time: only the weights change
        system._gradients(seat, [part], iteration)
        if not isinstance(system, BoltzmannMachine):
            losses.append(sum(float(v[-1]) for k, v in system.ledger.entries.items() if k.startswith("loss/")))
        elif iteration in (1, 60):  # its objective is a difference to samples that follow it
            losses.append(-float(system.log_likelihood(part.x).mean()))
        system._step(seat, iteration)
    assert losses[-1] < losses[0] - 0.01 * abs(losses[0])


def draws_noise(model: str) -> bool:
    """Whether a training step of the model draws random numbers."""
    config = tiny(f"model={model}")
    system, data = ready(config)
    part = next(batches(config, data, 1))
    before = rng_state()
    system.iterate(part)
    return bool(differences(before, rng_state()))


SPOILT = ("ae", "vae", "wgan_gp", "biggan", "gated_pixelcnn", "glow", "rbm")
"""Those of which the test is shown to see what it is for: one or two of each family."""


@pytest.mark.parametrize("model", MODELS)
def test_an_interrupted_run_ends_as_the_straight_one_bit_for_bit(model: str, run: Run, workplace: Path) -> None:
    """Interrupted in the middle of an epoch (90 batches of 16 make one) and between two critic steps; with a random
    state or a place in the data that is not the stored one it would end otherwise."""
    budget = ["train.iterations=13", "train.validate_every=6", "train.checkpoint_every=7", "train.log_every=3"]
    shared = [*words(f"model={model}"), *budget, "train.keep=9"]
    assert run(*shared, "name=straight").code == 0
    outputs = workplace / "outputs"
    shutil.copytree(outputs / "straight", outputs / "cut")
    end = outputs / "cut" / "checkpoints" / checkpoint.file_name(13)
    straight = checkpoint.load(outputs / "straight" / "checkpoints" / end.name)
    alike = {"whole"} if draws_noise(model) else {"whole", "without random states"}
    for kind in ("whole", *(("without random states", "at another position") if model in SPOILT else ())):
        middle = end.with_name(checkpoint.file_name(7))
        for later in [path for path in checkpoint.steps(end.parent) if path > middle]:
            later.unlink()
        original = checkpoint.load(middle)
        state = {key: value for key, value in original.items() if key != "format"}
        if kind == "without random states":
            fresh = torch.Generator().manual_seed(1).get_state()
            state["rng"] = [{**state["rng"][0], "torch": fresh}]
        elif kind == "at another position":
            clock = {"iteration": 8, "images": state["system"]["clock"]["images"]}
            state["system"] = {**state["system"], "clock": clock}
        # A file that holds another iteration than its name says would be passed over.
        checkpoint.save(state, middle.with_name(checkpoint.file_name(state["system"]["clock"]["iteration"])))
        folder = outputs / "cut"
        card = (folder / "run.json").read_text(encoding="utf-8").replace('"status": "finished"', '"status": "failed"')
        (folder / "run.json").write_text(card, encoding="utf-8")
        assert run("resume", "run=outputs/cut").code == 0
        resumed = checkpoint.load(end)
        same = not differences(straight["system"]["nets"], resumed["system"]["nets"])
        assert same == (kind in alike), kind
        if kind == "whole":
            for part in ("system", "rng", "data", "seed", "scores", "pending", "health"):
                assert differences(straight[part], resumed[part]) == [], part
            assert logged(outputs / "straight") == logged(outputs / "cut")
        checkpoint.save({key: value for key, value in original.items() if key != "format"}, middle)


@pytest.mark.parametrize("loss", LIKELIHOODS)
def test_the_vae_bound_lies_above_its_elbo(loss: str) -> None:
    config = tiny("model=vae", f"loss={loss}")
    system, data = ready(config)
    for batch in batches(config, data, 60):
        system.iterate(batch)
    x = data.test.all(64).x
    torch.manual_seed(0)
    with at_rest(system):
        elbo = torch.stack([system.elbo(x) for _ in range(64)]).mean()  # type: ignore[operator]
        bounds = [float(system.importance_bound(x, samples=k).mean()) for k in (1, 8, 64)]  # type: ignore[operator]
        terms = system.objective(Images(x))  # type: ignore[operator]
    assert abs(bounds[0] - float(elbo)) < 0.05 * abs(float(elbo))
    assert float(elbo) <= bounds[1] <= bounds[2] <= 0.0
    # What is minimised is minus the ELBO: sums over pixels and latents, mean over the batch.
    assert abs(float(sum(terms.values())) + float(elbo)) < 0.1 * abs(float(elbo))
