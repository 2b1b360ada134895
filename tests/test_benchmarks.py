"""Benchmarks: each runs, writes what it says, and compares only loops that compute the same. No timing is asserted."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_data import idx_set

from gentrain.compose import compose
from gentrain.config import build
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
        self.critic_adam.param_groups[0]["lr"] *= 0.5

    monkeypatch.setattr(loop, "__init__", slower_learning)
    with pytest.raises(SystemExit, match=f"{name.lower()} and the runner do not compute the same"):
        throughput.refuse_unequal(job)


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


@pytest.mark.parametrize("case", ["glow", "realnvp"])
def test_a_step_of_a_flow_is_timed(bench: Any, case: str, tmp_path: Path) -> None:
    assert bench("flows").main([case, "--quick", "--clock", "cpu", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / f"flow_{case}.json").read_text(encoding="utf-8"))
    assert set(record) >= COMMON | {"ms_per_step", "parameters", "peers"}
    assert record["ms_per_step"]["gentrain"]["median"] > 0
    assert set(record["goals"]) == set(record["peers"]) == set(record["speed_over"])
    sizes = record["parameters"]
    assert all(abs(count - sizes["gentrain"]) < 0.03 * sizes["gentrain"] for count in sizes.values())
