"""Sweeps whose jobs die in every way there is, and sweeps that are killed themselves and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Count, Run, words

from gentrain.engine import launch

DYING = """
import os, signal, sys
from pathlib import Path
folder = Path(sys.argv[1])
seed = int(folder.name.split("seed=")[1])
tries = folder / "tries"
tries.write_text(str(int(tries.read_text()) + 1 if tries.exists() else 1))
from gentrain.engine.system import System
original = System.iterate
def iterate(self, batch):
    original(self, batch)
    if self.clock.iteration == 5 and not Path(os.environ["HEALED"]).exists():
        kind = ["none", "none", "raise", "exit", "kill", "term", "interrupt", "none", "memory"][seed % 9]
        if kind != "none":
            (folder / "fired").touch()
        if kind == "raise":
            raise RuntimeError("a bug of this job")
        if kind == "exit":
            sys.exit(3)
        if kind == "memory":
            raise MemoryError
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind in ("kill", "term"):
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGTERM)
System.iterate = iterate
from gentrain.engine.worker import main
sys.exit(main(sys.argv[1:]))
"""

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
seed = int(folder.name.split("seed=")[1])
tries, card, half = folder / "tries", folder / "run.json", folder / "half"
tries.write_text(str(int(tries.read_text()) + 1 if tries.exists() else 1))
def update(**facts):
    beside = card.with_suffix(".new")
    beside.write_text(json.dumps({**json.loads(card.read_text()), **facts}))
    beside.replace(card)
update(status="running")
if "--resume" in sys.argv and half.exists():
    print("continues at 4", flush=True)
half.touch()
time.sleep(float(os.environ.get("TAKES", "0")))
if not Path(os.environ["HEALED"]).exists():
    kind = ["none", "none", "raise", "exit", "kill", "term", "interrupt", "none", "memory"][seed % 9]
    if kind != "none":
        (folder / "fired").touch()
    if kind == "raise":
        raise RuntimeError("a bug of this job")
    if kind in ("term", "interrupt"):
        update(status="stopped")
        sys.exit(143 if kind == "term" else 130)
    if kind in ("exit", "memory"):
        sys.exit(3 if kind == "exit" else 1)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
update(status="finished", iteration=9)
"""
"""What a job looks like from the sweep, without the seconds that importing torch takes."""

BUDGET = ("model=dcgan", "train.iterations=9", "train.validate_every=0", "train.checkpoint_every=2", "metrics=none")
ENDED = {2: "failed", 3: "failed", 4: "failed", 5: "stopped", 6: "stopped", 8: "failed"}
"""What becomes of the seeds that die, the first time."""


@pytest.fixture
def dying(workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count) -> Path:
    """Real jobs in ``make faults``, stand-ins in ``make test``."""
    (workplace / "dying.py").write_text(DYING if count.of(0, 1) else STAND_IN, encoding="utf-8")
    monkeypatch.setenv("HEALED", str(workplace / "healed"))

    def command(folder: Path, *, resume: bool, trusted: bool) -> list[str]:
        flags = ["--resume"] if resume else []
        return [sys.executable, str(workplace / "dying.py"), str(folder), "--trust", *flags]

    monkeypatch.setattr(launch, "worker_command", command)
    return workplace


def cards(workplace: Path) -> dict[int, dict[str, Any]]:
    files = sorted(workplace.glob("outputs/sweeps/*/*/run.json"))
    every = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {card["seed"]: card for card in every}


def tries(workplace: Path) -> dict[int, int]:
    files = workplace.glob("outputs/sweeps/*/*/tries")
    return {int(file.parent.name.split("seed=")[1]): int(file.read_text()) for file in files}


def test_jobs_die_in_every_way_and_the_same_command_again_does_what_is_missing(
    run: Run, dying: Path, count: Count
) -> None:
    seeds = range(count.of(9, 20))
    sweep = ("-m", *words(*BUDGET), f"seed={','.join(map(str, seeds))}", "sweep.parallel=2")
    ended = run(*sweep)
    doomed = [seed for seed in seeds if seed % 9 in ENDED]
    found = {seed: card["status"] for seed, card in cards(dying).items()}
    assert found == {seed: ENDED.get(seed % 9, "finished") for seed in seeds}
    fired = len(list(dying.glob("outputs/sweeps/*/*/fired")))
    assert ended.code == 1
    failed = sum(ENDED[seed % 9] == "failed" for seed in doomed)
    assert f"{failed} of {len(seeds)} jobs failed" in ended.err
    assert ended.out.count("finished") == len(seeds) - len(doomed)

    (dying / "healed").touch()
    before = tries(dying)
    again = run(*sweep)
    assert again.code == 0, again.err
    assert f"{len(seeds) - len(doomed)} of them done before" in again.out
    assert {seed: card["status"] for seed, card in cards(dying).items()} == dict.fromkeys(seeds, "finished")
    after = tries(dying)
    assert {seed for seed in seeds if after[seed] > before[seed]} == set(doomed), "the others are not done again"
    assert all(card["iteration"] == 9 for card in cards(dying).values())
    assert len(list(dying.glob("outputs/sweeps/*"))) == 1
    went_on = "continues at 4"
    consoles = {seed: console(dying, seed) for seed in doomed}
    assert all(went_on in text for seed, text in consoles.items() if ENDED[seed % 9] == "failed"), "from a checkpoint"
    count.says(injected=len(doomed), fired=fired, survived=len(doomed))


def console(workplace: Path, seed: int) -> str:
    path = next(workplace.glob(f"outputs/sweeps/*/*seed={seed}/console.txt"))
    return path.read_text(encoding="utf-8")


def test_a_job_that_fails_is_tried_again_from_its_last_checkpoint(run: Run, dying: Path, count: Count) -> None:
    ended = run("-m", *words(*BUDGET), "seed=0,2", "sweep.retry=2")
    assert ended.code == 1
    count.says(injected=1, fired=int(tries(dying)[2] == 3), survived=int(cards(dying)[0]["status"] == "finished"))
    assert console(dying, 2).count("a bug of this job") >= 3
    assert tries(dying)[0] == 1


def test_a_sweep_that_is_killed_and_started_again_does_each_job_once(workplace: Path, run: Run, count: Count) -> None:
    """The sweep and its job are killed with SIGKILL, as when the machine goes down."""
    long = (
        "model=dcgan",
        "train.iterations=300",
        "train.validate_every=0",
        "train.checkpoint_every=20",
        "metrics=none",
    )
    sweep = ("-m", *words(*long), "seed=0,1")
    process = subprocess.Popen([sys.executable, "-m", "gentrain", *sweep], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 90
    while not list(workplace.glob("outputs/sweeps/*/*/checkpoints/last.ckpt")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.system(f"pkill -KILL -f {workplace}/outputs/sweeps")
    states = sorted(card["status"] for card in cards(workplace).values())
    fired = states != ["finished", "finished"]
    assert run(*sweep).code == 0
    ended = [(card["status"], card["iteration"]) for card in cards(workplace).values()]
    count.says(injected=1, fired=int(fired), survived=int(ended == [("finished", 300)] * 2))
    third = run(*sweep)
    assert third.code == 0
    assert "2 of them done before" in third.out


def test_other_values_are_other_jobs_of_the_same_sweep(run: Run, dying: Path) -> None:
    (dying / "healed").touch()
    few = words(*BUDGET, "name=study")
    assert run("-m", *few, "seed=0,1").code == 0
    wider = run("-m", *few, "seed=0,1,2")
    assert wider.code == 0
    assert "3 jobs in" in wider.out
    assert "2 of them done before" in wider.out
    assert [path.name for path in sorted((dying / "outputs/sweeps/study").iterdir())] == [
        "000-seed=0",
        "001-seed=1",
        "002-seed=2",
    ]


def test_a_run_that_a_cluster_restarts_goes_on(run: Run, workplace: Path, count: Count) -> None:
    """``resume=auto``: the same command starts, goes on, and says that all is done; another config is refused."""
    command = (*words(*BUDGET), "name=job", "resume=auto")
    nameless = run(*words(*BUDGET), "resume=auto")
    assert nameless.code == 2
    assert "name= is missing" in nameless.err
    assert run(*command).code == 0
    folder = workplace / "outputs" / "job"
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "checkpoints" / "iteration-000000009.ckpt").unlink()
    (folder / "run.json").write_text(json.dumps({**card, "status": "running"}), encoding="utf-8")
    again = run(*command)
    assert again.code == 0
    assert "continues at 8" in again.out
    done = run(*command)
    assert (done.code, "finished already" in done.out) == (0, True)
    other = run(*command, "seed=5")
    good = other.code == 2 and "seed (0 -> 5)" in other.err and "choose another name=" in other.err
    count.says(injected=1, fired=1, survived=int(good))
