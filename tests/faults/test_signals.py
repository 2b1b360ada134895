"""Signals at random moments: the iteration in work is finished and saved, the exit code says which signal it was."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Count, Run, words
from fixtures_data import noise
from PIL import Image
from processes import Patch, start
from test_contract import differences

from gentrain.engine import checkpoint
from gentrain.engine.system import System
from gentrain.engine.validation import Validation

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
ENDLESS = ("train.iterations=1000000", "train.checkpoint_every=0")


def noting(file: Path) -> Patch:
    """Each finished iteration is noted; so is the beginning of scores."""
    iterate, score = System.iterate, Validation.score

    def patch() -> None:
        def noted(self: System, batch: Any) -> None:
            iterate(self, batch)
            file.write_text(str(self.clock.iteration))

        def noted_score(self: Validation, system: System) -> Any:
            file.with_suffix(".scores").touch()
            time.sleep(0.05)
            return score(self, system)

        System.iterate = noted  # type: ignore[method-assign]
        Validation.score = noted_score  # type: ignore[method-assign]

    return patch


def wait_for(path: Path, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name} after {seconds} s"
        time.sleep(0.002)


@pytest.mark.parametrize("phase", ["training", "scores"])
def test_a_signal_at_any_moment_loses_no_iteration(phase: str, workplace: Path, count: Count) -> None:
    number, generator = count.of(6, 50), random.Random(phase)
    look = ("train.validate_every=0", "metrics=none") if phase == "training" else ("train.validate_every=3",)
    fired = survived = 0
    slowest = 0.0
    for trial in range(number):
        kind = list(CODES)[trial % 3]
        folder, note = workplace / "outputs" / f"r{trial}", workplace / f"at{trial}"
        shared = words("model=dcgan", f"name=r{trial}", *look, *ENDLESS)
        child = start(workplace / "log", *shared, patch=noting(note))
        wait_for(note if phase == "training" else note.with_suffix(".scores"))
        time.sleep(0.1 * generator.random())
        sent = time.monotonic()
        child.send(kind)
        fired += 1
        if generator.random() < 0.3 and kind != signal.SIGINT:
            child.send(kind)  # a second time: it changes nothing
        code = child.wait()
        slowest = max(slowest, time.monotonic() - sent)
        last = checkpoint.load(folder / "checkpoints" / "last.ckpt")["system"]["clock"]["iteration"]
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        survived += code == CODES[kind] and last == int(note.read_text()) == card["iteration"]
        survived -= card["status"] != "stopped"
    count.says(injected=number, fired=fired, survived=survived, slowest_seconds=round(slowest, 2))


def test_a_kill_right_after_a_signal_leaves_only_whole_files(workplace: Path, count: Count) -> None:
    """What an impatient scheduler does: SIGTERM, and SIGKILL before the checkpoint is written."""
    number, generator = count.of(4, 30), random.Random(2)
    fired = survived = 0
    for trial in range(number):
        folder, note = workplace / "outputs" / f"r{trial}", workplace / f"at{trial}"
        shared = words(
            "model=vae", f"name=r{trial}", "train.validate_every=0", "metrics=none", "train.iterations=1000000"
        )
        child = start(workplace / "log", *shared, "train.checkpoint_every=5", patch=noting(note))
        wait_for(folder / "checkpoints" / "last.ckpt")
        child.send(signal.SIGTERM)
        time.sleep(0.01 * generator.random())
        child.send(signal.SIGKILL)
        fired += child.wait() in (-signal.SIGKILL, 143)
        survived += all(checkpoint.load(path) is not None for path in checkpoint.steps(folder / "checkpoints"))
    count.says(injected=number, fired=fired, survived=survived)


def test_signals_while_workers_decode_lose_nothing_and_the_end_is_the_same(
    run: Run, workplace: Path, count: Count
) -> None:
    """Two worker processes that are batches ahead of the training; resumed with none, it ends the same."""
    pictures = workplace / "pictures"
    for place, number in (("train", 48), ("test", 8)):
        (pictures / place).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(noise(8, 8, seed=i)).save(pictures / place / f"{i:03d}.png")
    data = ("data=folder", f"data.root={pictures}", "data.size=8", "data.channels=1", "data.cache=false")
    memory = ("data.in_memory_bytes=0", "size=tiny", "trainer=cpu", "trainer.threads=1", "metrics=none", "model=dcgan")
    budget = ("train.iterations=14", "train.validate_every=0", "train.checkpoint_every=4")
    straight = start(workplace / "log", *data, *memory, *budget, "trainer.workers=2", "name=straight")
    assert straight.wait() == 0, straight.said()
    note = workplace / "at"
    child = start(workplace / "log", *data, *memory, *budget, "trainer.workers=2", "name=cut", patch=noting(note))
    wait_for(note)
    child.send(signal.SIGTERM)
    code = child.wait()
    fired = int(code == 143)  # it may have been too quick for us; then nothing was injected
    outputs = workplace / "outputs"
    config = outputs / "cut" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("workers: 2", "workers: 0"), encoding="utf-8")
    assert run("resume", f"run={outputs / 'cut'}").code == 0
    ends = [checkpoint.load(outputs / name / "checkpoints" / "last.ckpt") for name in ("straight", "cut")]
    same = all(not differences(ends[0][part], ends[1][part]) for part in ("system", "rng"))
    count.says(injected=1, fired=fired, survived=int(same))


def test_ctrl_c_twice_ends_at_once_and_breaks_nothing(workplace: Path, count: Count) -> None:
    note = workplace / "at"
    iterate = System.iterate

    def slow() -> None:
        noting(note)()
        noted = System.iterate

        def very_slow(self: System, batch: Any) -> None:
            noted(self, batch)
            if self.clock.iteration == 7:
                note.with_suffix(".asleep").touch()
                time.sleep(250)

        System.iterate = very_slow  # type: ignore[method-assign]

    shared = words("model=dcgan", "name=run", "train.validate_every=0", "metrics=none", "train.iterations=20")
    child = start(workplace / "log", *shared, "train.checkpoint_every=3", patch=slow)
    wait_for(note.with_suffix(".asleep"))
    child.send(signal.SIGINT)
    time.sleep(0.2)
    child.send(signal.SIGINT)
    code = child.wait(30)
    assert System.iterate is iterate
    folder = workplace / "outputs" / "run"
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    newest = checkpoint.load(checkpoint.steps(folder / "checkpoints")[0])["system"]["clock"]["iteration"]
    good = (code, card["status"], newest) == (130, "stopped", 6)
    count.says(injected=1, fired=int(note.read_text() == "7"), survived=int(good))
    assert "Traceback" not in child.said()
