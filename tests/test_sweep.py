"""Sweeps: each job in its own process and folder; one that dies takes nobody with it; data parallel jobs inside."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import Run, words

from gentrain.commands.sweep import compared
from gentrain.compose import compose, expand

FEW = ["train.iterations=3", "metrics=none"]


def cards(workplace: Path) -> list[dict[str, object]]:
    files = sorted(workplace.glob("outputs/sweeps/*/*/run.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


KILLED = """
import os, signal, sys
from pathlib import Path
if "lr=0.0003" in Path(sys.argv[1]).name:
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
from gentrain.engine.worker import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_job_that_fails_and_one_that_is_killed_leave_the_others_alone(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill is what the out-of-memory killer does to a job; in one process it would end the sweep."""
    (workplace / "killed.py").write_text(KILLED, encoding="utf-8")

    def command(folder: Path, *, resume: bool, trusted: bool) -> list[str]:
        return [sys.executable, str(workplace / "killed.py"), str(folder), "--trust"]

    monkeypatch.setattr("gentrain.engine.launch.worker_command", command)
    rates = "model.players.critic.optimizer.lr=1e-4,1e30,3e-4,2e-4"
    ended = run("-m", *words("model=dcgan", rates), *FEW, "train.iterations=9", "sweep.parallel=2")
    assert ended.code == 1
    assert "2 of 4 jobs failed" in ended.err
    assert [card["status"] for card in cards(workplace)] == ["finished", "failed", "failed", "finished"]
    folders = sorted((workplace / "outputs" / "sweeps").glob("*/*"))
    assert all("lr=" in folder.name for folder in folders)
    consoles = [(folder / "console.txt").read_text(encoding="utf-8") for folder in folders]
    assert ["not finite" in text for text in consoles] == [False, True, False, False]
    assert ["about to die" in text for text in consoles] == [False, False, True, False]
    assert re.search(r"FAILED \S+lr=1e\+30 \(exit code 2; .*not finite", ended.err)
    assert re.search(r"FAILED \S+lr=0.0003 \(signal 9; .*about to die", ended.err)
    assert ended.out.count("finished") == 2
    assert "failed (2)" in ended.out
    assert "failed (-9)" in ended.out


def test_two_ranks_inside_a_sweep_train_the_jobs_own_numbers(run: Run, workplace: Path) -> None:
    ended = run("-m", "size=tiny", "data=digits", "model=dcgan", "trainer=ddp_cpu", "seed=3,4", *FEW)
    assert ended.code == 0, ended.err
    done = cards(workplace)
    assert [card["seed"] for card in done] == [3, 4]
    assert [card["world_size"] for card in done] == [2, 2]
    assert len(list((workplace / "outputs" / "sweeps").glob("*/*"))) == 2, "no rank made a folder of its own"
    assert not list((workplace / "outputs").glob("dcgan-digits"))


def test_a_mistake_in_any_job_stops_the_sweep_before_its_first(run: Run, workplace: Path) -> None:
    ended = run("-m", *words("model=dcgan", "train.batch_size=16,0"), *FEW)
    assert ended.code == 2
    assert "train.batch_size=0" in ended.err
    assert not (workplace / "outputs").exists()


def test_an_experiment_that_compares_brings_its_own_jobs(tmp_path: Path) -> None:
    """``over`` is a product, what the command line says of a key wins, and a plain run is one of them."""
    config = {
        "sweep": {"over": ["model=dcgan,wgan", "+size=tiny,small"], "variants": {"a": ["x=1"], "b": ["+y=3", "x=2"]}}
    }
    jobs = compared(["seed=0", "size=paper"], config, expand)
    assert jobs == [
        ["seed=0", "size=paper", f"model={model}", *words]
        for words in (["x=1"], ["+y=3", "x=2"])
        for model in ("dcgan", "wgan")
    ]
    assert compared(["seed=0"], {"sweep": {}}, expand) == [["seed=0"]]
    config = compose(["experiment=wgan_fig5_6", "seed=4"]).config
    jobs = compared(["experiment=wgan_fig5_6", "seed=4"], config, expand)
    assert [job[2:] for job in jobs] == [
        [f"model={model}", f"model/net={net}"] for model in ("dcgan", "wgan") for net in ("dcgan", "crippled_dcgan")
    ]


def test_a_comparison_is_run_by_its_name(run: Run, workplace: Path) -> None:
    (workplace / "conf" / "experiment").mkdir(parents=True)
    (workplace / "conf" / "experiment" / "two.yaml").write_text(
        '# @package _global_\nsweep: {over: ["seed=3,4"]}\n', encoding="utf-8"
    )
    ended = run("-m", *words("model=dcgan", "experiment=two"), *FEW, "--config-dir", str(workplace / "conf"))
    assert ended.code == 0, ended.err
    assert [card["seed"] for card in cards(workplace)] == [3, 4]
    ended = run("-m", *words("model=dcgan", "sweep.over=seed"), *FEW)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "sweep.over" in ended.err
