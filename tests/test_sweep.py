"""Sweeps: each job in its own process and folder; one that dies takes nobody with it; data parallel jobs inside."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Run, words

FEW = ["train.iterations=3", "metrics=none"]


def cards(workplace: Path) -> list[dict[str, object]]:
    files = sorted(workplace.glob("outputs/sweeps/*/*/run.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def test_a_failing_job_leaves_the_others_alone(run: Run, workplace: Path) -> None:
    rates = "model.players.critic.optimizer.lr=1e-4,1e30,2e-4"
    ended = run("-m", *words("model=dcgan", rates), *FEW, "train.iterations=9", "jobs.parallel=2")
    assert ended.code == 1
    assert "1 of 3 jobs failed" in ended.err
    assert [card["status"] for card in cards(workplace)] == ["finished", "failed", "finished"]
    folders = sorted((workplace / "outputs" / "sweeps").glob("*/*"))
    consoles = [(folder / "console.txt").read_text(encoding="utf-8") for folder in folders]
    assert ["not finite" in text for text in consoles] == [False, True, False]
    assert ended.out.count("finished") == 2
    assert "failed (2)" in ended.out
    assert all("lr=" in folder.name for folder in folders)


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
