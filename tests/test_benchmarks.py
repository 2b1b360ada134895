"""Benchmarks: each runs, writes what it says, and compares only loops that compute the same. No timing is asserted."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_data import idx_set
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.stream import stream
from gentrain.engine import fit

ROOT = Path(__file__).parents[1]
COMMON = {"case", "date", "machine", "versions", "quick", "rounds", "goals"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of benchmarks/, in a folder with a small Fashion-MNIST."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    idx_set(tmp_path / "data" / "fashion_mnist", train=160, test=10)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def mlp_job(bench: Any, iterations: int) -> Any:
    case = bench("throughput").CASES["mlp"]
    words = (*case.words, *bench("throughput").OFF, f"train.iterations={iterations}", "trainer.threads=1")
    config = compose(words).config
    data = build(config["data"])
    return bench("loops").Job(config, data, fit.build_system(config, data, seed=0).nets)


def test_the_autoencoders_step_is_timed_beside_a_loop_that_computes_the_same(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("autoencoder")
    assert module.main(["--quick", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "autoencoder.json").read_text(encoding="utf-8"))
    assert set(record["ms_per_step"]) >= {"runner", "bare"}
    assert record["equal_loss"] > 0
    config = compose([*module.WORDS, "train.iterations=3", "trainer.threads=1"]).config
    data = build(config["data"])
    kept = module.Bare.step
    monkeypatch.setattr(module.Bare, "step", lambda bare, pixels: 2.0 * kept(bare, pixels))
    with pytest.raises(SystemExit, match="do not compute the same"):
        module.refuse_unequal(config, data)


@pytest.mark.parametrize(
    ("case", "contestants"),
    [
        ("dcgan", ["runner", "tutorial", "bare"]),
        ("mlp", ["runner", "tutorial", "bare"]),
        ("precision", ["32-true", "bf16-mixed"]),
    ],
)
def test_throughput_writes_its_case(case: str, contestants: list[str], bench: Any, tmp_path: Path) -> None:
    words = [case, "--quick", "--threads", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    assert bench("throughput").main(words) == 0
    record = json.loads((tmp_path / "out" / f"{case}.json").read_text(encoding="utf-8"))
    wanted = COMMON | {
        "words",
        "threads",
        "steps",
        "clock",
        "precision",
        "batch_size",
        "subject",
        "ms_per_step",
        "speed_over",
    }
    assert wanted <= set(record)
    assert list(record["ms_per_step"]) == contestants
    assert set(record["speed_over"]) == set(contestants) - {record["subject"]}
    for values in record["ms_per_step"].values():
        assert len(values["rounds"]) == record["rounds"] == 1
        assert values["median"] > 0
    assert {"cpu", "cores", "amx_bf16", "avx512_bf16", "load_before"} <= set(record["machine"])
    assert {"python", "torch", "lightning", "hydra-core"} <= set(record["versions"])
    assert set(record["goals"]) <= set(contestants)


def test_dcgan_has_the_networks_of_the_runner(bench: Any, tmp_path: Path) -> None:
    assert bench("throughput").main(["dcgan", "--quick", "--threads", "1", "--steps", "1", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "dcgan.json").read_text(encoding="utf-8"))
    # Width 64 at 32 pixels, 64 noise dimensions, kernels of 4x4; weights and both parameters of each batch norm.
    stages = 4 * 4 * (64 * 128 + 128 * 256)
    generator = 64 * 256 * 4 * 4 + stages + (4 * 4 * 64 + 1) + 2 * (256 + 128 + 64)
    critic = (4 * 4 * 64 + 64) + stages + (256 * 4 * 4 + 1) + 2 * (128 + 256)
    assert record["parameters"] == {"generator": generator, "critic": critic}


def test_the_others_have_their_turn_between_the_rounds_of_the_runner(bench: Any) -> None:
    rounds, steps = 3, 2
    job = mlp_job(bench, steps * (rounds + 1) + 1)
    asked: list[int] = []
    times, card = bench("throughput").time_runner(job.config, {"other": asked.append}, rounds, steps)
    assert card["status"] == "finished"
    assert card["iteration"] == steps * (rounds + 1) + 1
    assert asked == [steps] * (rounds + 1)
    assert {name: len(seconds) for name, seconds in times.items()} == {"runner": rounds, "other": rounds}


@pytest.mark.parametrize("name", ["Tutorial", "Bare"])
def test_a_loop_that_computes_something_else_is_refused(name: str, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job, throughput = mlp_job(bench, 3), bench("throughput")
    assert set(throughput.refuse_unequal(job)) == {"critic", "generator"}
    loop = getattr(bench("loops"), name)
    whole = loop.__init__

    def slower_learning(self: Any, *arguments: Any) -> None:
        whole(self, *arguments)
        self.critic_optimizer.param_groups[0]["lr"] *= 0.5

    monkeypatch.setattr(loop, "__init__", slower_learning)
    with pytest.raises(SystemExit, match=f"{name.lower()} and the runner do not compute the same"):
        throughput.refuse_unequal(job)


SMALL = ("data=digits", "data.size=32", "model.net.width=4", "train.batch_size=8")


@pytest.mark.parametrize("name", ["dcgan", "lsgan", "wgan", "wgan_gp", "sngan", "cgan", "acgan"])
def test_the_bare_loop_of_each_gan_computes_what_the_runner_does(name: str, bench: Any) -> None:
    gan, throughput = bench("gan"), bench("throughput")
    case = gan.WGAN_GP if name == "wgan_gp" else gan.LOOPS[name]
    job = small_job(bench, case)
    losses = throughput.refuse_unequal(job, case.loops, case.check)
    assert all(abs(value) > 1e-4 for value in losses.values()), "both players moved"


@pytest.mark.parametrize(
    ("name", "part", "other"),
    [
        ("wgan", "constrain", lambda loop: None),
        (
            "wgan_gp",
            "critic_loss",
            lambda loop, real, fake, labels: loop.critic(fake).mean() - loop.critic(real).mean(),
        ),
        ("acgan", "generator_loss", lambda loop, fake, labels: -loop.critic(fake, labels).mean()),
        ("cgan", "generator_loss", lambda loop, fake, labels: -loop.critic(fake, labels).mean()),
    ],
)
def test_a_bare_loop_without_its_own_part_is_refused(name: str, part: str, other: Any, bench: Any) -> None:
    case = bench("gan").LOOPS[name]
    wrong = type("Wrong", (case.loops["bare"],), {part: other})
    with pytest.raises(SystemExit, match="bare and the runner do not compute the same"):
        bench("throughput").refuse_unequal(small_job(bench, case), {"bare": wrong}, case.check)


class Convolutions(TorchDispatchMode):
    """Counts those that are computed inside, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.startswith("convolution"):
            self.calls.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["dcgan", "wgan", "wgan_gp", "sngan", "acgan"])
def test_the_runner_computes_no_pass_that_the_bare_loop_saves(name: str, bench: Any) -> None:
    case = bench("gan").LOOPS[name]
    job, iterations = small_job(bench, case), 10
    system = fit.build_system(job.config, job.data, seed=0)
    system.prepare(total=100)
    batches = list(islice(stream(job.data.train, batch_size=job.batch, seed=0), iterations))

    def calls(step: Callable[[Any], Any]) -> list[str]:
        with Convolutions() as seen:
            for batch in batches:
                step(batch)
        return sorted(seen.calls)

    runner = calls(system.iterate)
    assert runner == calls(case.loops["bare"](job, "32-true").losses)
    assert {"convolution", "convolution_backward"} == set(runner)
    if name == "dcgan":  # a pass too many shows
        assert len(runner) < len(calls(bench("gan_loops").FreshBare(job, "32-true").losses))


def small_job(bench: Any, case: Any) -> Any:
    words = [word for word in case.words if not word.startswith(("data", "model.net.width"))]
    return bench("throughput").job_of([*words, *bench("throughput").OFF, *SMALL])


def test_gan_writes_its_cases(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gan = bench("gan")
    small = {name: replace(case, words=(*case.words, *SMALL)) for name, case in gan.LOOPS.items()}
    monkeypatch.setattr(gan, "LOOPS", small)
    monkeypatch.setattr(gan, "WGAN_GP", replace(gan.WGAN_GP, words=small["wgan_gp"].words))
    monkeypatch.setattr(gan, "SAMPLES", 64)
    words = ["--quick", "--threads", "1", "--steps", "1", "--only", "wgan,cgan", "--out", str(tmp_path / "out")]
    assert gan.main(words) == 0
    contestants = {"torchgan": {"runner", "bare"}, "wgan_gp": {"runner", "tutorial", "bare"}}
    for case, wanted in contestants.items():
        record = json.loads((tmp_path / "out" / f"gan_{case}.json").read_text(encoding="utf-8"))
        assert set(record) >= COMMON | {"words", "clock", "equal_losses", "speed_over"}
        assert set(record["ms_per_step"]) >= wanted
    loops = json.loads((tmp_path / "out" / "gan_loops.json").read_text(encoding="utf-8"))
    assert list(loops["loops"]) == ["wgan", "cgan"]
    assert set(loops) >= COMMON
    sampling = json.loads((tmp_path / "out" / "gan_sampling.json").read_text(encoding="utf-8"))
    assert set(sampling["ms_per_sample"]) == {"runner", "plain", "bare"}
    assert 0 <= sampling["largest_difference"] < 1e-4


def test_samples_of_another_network_are_refused(bench: Any) -> None:
    gan = bench("gan")
    job = small_job(bench, gan.LOOPS["dcgan"])
    system = fit.build_system(job.config, job.data, seed=0)
    system.prepare(total=1)
    same, other = (copy.deepcopy(system.nets["generator"]).eval() for _ in range(2))
    gan.refuse_other_samples(system, same, same, job.latent, "32-true")
    with torch.no_grad():
        other[0].weight.mul_(-1.0)
    with pytest.raises(SystemExit, match="do not draw the same samples"):
        gan.refuse_other_samples(system, same, other, job.latent, "32-true")


def test_weights_go_over_to_networks_of_convolutions_alone(bench: Any) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(3, 2 * 16, bias=False), nn.Unflatten(1, (2, 4, 4)), nn.BatchNorm2d(2))
    own = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 2, 4, bias=False), nn.BatchNorm2d(2))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16, 1))
    its = nn.Sequential(nn.Conv2d(2, 1, 4, bias=False), nn.Flatten())
    critic[1].bias.data.zero_()
    bench("gan_loops").copy_weights(dense, own)
    bench("gan_loops").copy_weights(critic, its)
    z = torch.randn(5, 3)
    torch.testing.assert_close(dense(z), own(z))
    torch.testing.assert_close(critic(dense(z)), its(dense(z)))


def test_ratios_are_taken_round_by_round(bench: Any) -> None:
    times = {"runner": [1.0, 2.0, 4.0], "loop": [2.0, 8.0, 4.0]}
    assert bench("common").ratios(times, "runner") == {
        "loop": {"of_medians": 2.0, "paired": 2.0, "paired_range": [1.0, 4.0]}
    }


def test_the_first_of_the_interleaved_rounds_does_not_count(bench: Any) -> None:
    order: list[str] = []
    times = bench("common").in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_startup_writes_every_command(bench: Any, tmp_path: Path) -> None:
    startup = bench("startup")
    assert startup.main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "startup.json").read_text(encoding="utf-8"))
    assert set(record) >= COMMON | {"commands"}
    assert list(record["commands"]) == list(startup.COMMANDS)
    for found in record["commands"].values():
        assert set(found) == {"cpu_seconds", "wall_seconds", "peak_mib"}
        assert len(found["cpu_seconds"]["rounds"]) == record["rounds"] == 1
    assert set(record["goals"]) <= set(record["commands"])


def test_a_command_that_fails_is_no_measurement(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ValueError: nothing"):
        bench("startup").once(("-c", "raise ValueError('nothing')"), str(tmp_path))


def test_parity_trains_both_formats_on_the_same_seeds(bench: Any, tmp_path: Path) -> None:
    parity = bench("parity")
    words = ["vae", "--quick", "--threads", "1", "--seeds", "2", "--iterations", "2", "--out", str(tmp_path / "out")]
    parity.CASES["vae"] = (("model=vae", "data=digits", "size=tiny"), 2)
    assert parity.main(words) == 0
    record = json.loads((tmp_path / "out" / "parity_vae.json").read_text(encoding="utf-8"))
    runs = record["runs"]
    assert [len(runs[form]) for form in ("32-true", "bf16-mixed")] == [2, 2]
    assert runs["32-true"] != runs["bf16-mixed"]
    assert runs["32-true"][0] != runs["32-true"][1]


def test_the_gap_is_that_of_the_means_and_the_spread_that_of_seeds(bench: Any) -> None:
    runs = {"32-true": [{"fd": 1.0}, {"fd": 3.0}], "bf16-mixed": [{"fd": 2.0}, {"fd": 6.0}]}
    found = bench("parity").compare(runs)["fd"]
    assert (found["32-true"], found["bf16-mixed"], found["gap"]) == (2.0, 4.0, 2.0)
    assert found["spread"] == pytest.approx(5.0**0.5, abs=1e-4)  # variances 2 and 8


def test_safety_weighs_saves_against_steps(bench: Any, tmp_path: Path) -> None:
    assert bench("safety").main(["--quick", "--threads", "1", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "safety.json").read_text(encoding="utf-8"))
    assert set(record) >= COMMON - {"goals"} | {"share_of_safety", "share_of_saving"}
    assert record["saves"] == 20
    whole = record["iterations"] * record["ms_per_step"]
    share = record["saves"] * record["ms_per_safe_save"] / whole
    assert record["share_of_saving"] == pytest.approx(share, rel=0.02)
    assert not list(tmp_path.glob("tmp*")), "its files are cleared up"


def test_pixel_sampling_is_timed_beside_the_whole_network_that_draws_the_same(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("sampling_ar")
    words = ["--quick", "--pixels", "2", "--out", str(tmp_path / "out")]
    assert module.main(words) == 0
    record = json.loads((tmp_path / "out" / "sampling_gated_pixelcnn.json").read_text(encoding="utf-8"))
    assert set(record) >= COMMON | {"words", "threads", "clock", "parameters", "batches"}
    assert list(record["batches"]) == ["1", "3"]
    assert record["goals"] == {"1": 20.0}
    for values in record["batches"].values():
        assert values["measured_pixels"] == {"cached": 64, "plain": 2}
        assert values["pixels_differing"] == 0
        assert values["seconds"]["plain"]["median"] > 0
    from gentrain.models.gated_pixelcnn import GatedWalk

    kept = GatedWalk.at
    monkeypatch.setattr(GatedWalk, "at", lambda walk, step: kept(walk, step).roll(40, dims=1))
    with pytest.raises(SystemExit, match="not those of the whole network"):
        module.main(words)


@pytest.mark.parametrize("case", ["glow", "realnvp", "gated_pixelcnn"])
def test_a_step_of_a_model_with_a_density_is_timed(bench: Any, case: str, tmp_path: Path) -> None:
    words = [case, "--quick", "--clock", "cpu", "--precision", "bf16-mixed", "--out", str(tmp_path)]
    assert bench("densities").main(words) == 0
    record = json.loads((tmp_path / f"{case}_bf16-mixed.json").read_text(encoding="utf-8"))
    assert set(record) >= COMMON | {"ms_per_step", "parameters", "peers"}
    assert record["precision"] == "bf16-mixed"
    assert record["ms_per_step"]["gentrain"]["median"] > 0
    assert set(record["goals"]) == set(record["speed_over"])
    if case == "gated_pixelcnn":
        assert set(record["goals"]) == {"plain"}
        assert record["equal_loss"] > 0
        return
    assert set(record["goals"]) == set(record["peers"])
    sizes = record["parameters"]
    assert all(abs(count - sizes["gentrain"]) < 0.03 * sizes["gentrain"] for count in sizes.values())


def test_a_plain_build_that_computes_otherwise_is_refused(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("densities")
    monkeypatch.setattr(module.PlainLayer, "gate", staticmethod(lambda x: x.chunk(2, dim=1)[0].tanh()))
    with pytest.raises(SystemExit, match="does not compute the same"):
        module.main(["gated_pixelcnn", "--quick", "--out", str(tmp_path)])
