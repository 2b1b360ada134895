"""What surrounds a run and may fail: worker processes, home folders, clocks, masks, outputs."""

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
from fixtures_data import noise
from PIL import Image
from processes import start

from gentrain.engine import checkpoint
from gentrain.engine.system import System

BUDGET = ("train.iterations=9", "train.validate_every=0", "train.checkpoint_every=3", "metrics=none")


def test_a_worker_that_is_killed_is_one_line_and_costs_no_checkpoint(workplace: Path, run: Run, count: Count) -> None:
    """What the out-of-memory killer does to the process that decodes images."""
    pictures = workplace / "pictures"
    for place in ("train", "test"):
        (pictures / place).mkdir(parents=True)
        for i in range(48):
            Image.fromarray(noise(8, 8, seed=i)).save(pictures / place / f"{i:03d}.png")
    data = ("data=folder", f"data.root={pictures}", "data.size=8", "data.channels=1", "data.cache=false")
    shared = ("size=tiny", "trainer=cpu", "trainer.threads=1", "model=dcgan", *BUDGET, "train.iterations=400")

    def murderous() -> None:
        original = System.iterate

        def iterate(self: System, batch: Any) -> None:
            original(self, batch)
            if self.clock.iteration == 7:
                mine = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True)
                os.kill(int(mine.stdout.split()[0]), signal.SIGKILL)
                (workplace / "fired").touch()

        System.iterate = iterate  # type: ignore[method-assign]

    log = workplace / "log"
    memory = ("data.in_memory_bytes=0", "trainer.workers=1", "name=run")
    child = start(log, *data, *shared, *memory, patch=murderous)
    code = child.wait(60)
    lines = [line for line in child.said().splitlines() if line.startswith("gentrain:")]
    newest = checkpoint.steps(workplace / "outputs" / "run" / "checkpoints")[0]
    good = code == 2 and len(lines) == 1 and "a data worker died" in lines[0] and checkpoint.load(newest) is not None
    assert "Traceback" not in child.said()
    count.says(injected=1, fired=int((workplace / "fired").exists()), survived=int(good))


def test_no_home_no_name_and_a_strict_mask(workplace: Path, count: Count) -> None:
    """As in a container: an environment of almost nothing, a home that cannot be written, files for the owner alone."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "gentrain", *words("model=dcgan", "name=run", *BUDGET), "train.validate_every=9"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, umask=0o077, check=False)
    folder = workplace / "outputs" / "run"
    modes = {path.stat().st_mode & 0o077 for path in folder.rglob("*")}
    good = ended.returncode == 0 and (folder / "samples" / "samples-latest.png").exists()
    count.says(injected=3, fired=3 if modes == {0} else 0, survived=3 * int(good))
    assert "Traceback" not in ended.stderr


def test_a_clock_that_jumps_changes_no_weight_and_no_order(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    assert run(*words("model=dcgan", "name=straight", *BUDGET)).code == 0
    jumps = iter(range(10**9, 0, -(10**5)))
    real = time.strftime
    fired = 0

    def jumping() -> float:
        nonlocal fired
        fired += 1
        return float(next(jumps))

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        patch.setattr(time, "strftime", lambda form, when=None: real(form, when or time.localtime(jumping())))
        assert run(*words("model=dcgan", "name=jumped", *BUDGET)).code == 0
    ends = [workplace / "outputs" / name / "checkpoints" / "last.ckpt" for name in ("straight", "jumped")]
    states = [checkpoint.load(path)["system"]["nets"] for path in ends]
    same = all((states[0][key] == states[1][key]).all() for key in states[0])
    newest = checkpoint.steps(workplace / "outputs" / "jumped" / "checkpoints")[0].name
    card = json.loads((workplace / "outputs" / "jumped" / "run.json").read_text(encoding="utf-8"))
    good = same and newest == checkpoint.file_name(9) and card["status"] == "finished"
    count.says(injected=1, fired=min(fired, 1), survived=int(good))
