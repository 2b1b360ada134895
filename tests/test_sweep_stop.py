"""A sweep that is interrupted: its jobs save and stop, none is left behind, and it says how to go on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, words

from gentrain.commands import sweep

LONG = ("model=dcgan", "metrics=none", "train.iterations=1000000", "train.validate_every=0", "train.checkpoint_every=0")


def cards(workplace: Path) -> list[dict[str, Any]]:
    files = sorted(workplace.glob("outputs/sweeps/*/*/run.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def processes_of(place: Path) -> list[int]:
    """Processes whose command line names a folder under ``place``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(place).encode() in line and b"gentrain.engine.worker" in line:
            found.append(int(entry.name))
    return found


@pytest.fixture
def no_orphans(workplace: Path) -> Iterator[None]:
    yield
    left = processes_of(workplace)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def long_sweep(workplace: Path) -> Iterator[subprocess.Popen[str]]:
    """Three endless jobs, two at a time, both of them training."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gentrain", "-m", *words(*LONG), "seed=0,1,2", "sweep.parallel=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs these tests in the background of a script has them ignore Ctrl-C, and so would the sweep.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: [card["status"] for card in cards(workplace)] == ["running", "running", "created"])
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.usefixtures("no_orphans")
def test_a_signal_goes_on_to_the_jobs_which_save(
    number: int, code: int, workplace: Path, long_sweep: subprocess.Popen[str], run: Run
) -> None:
    os.killpg(long_sweep.pid, number)  # to the whole group, as a terminal does on Ctrl-C
    out, err = long_sweep.communicate(timeout=60)
    assert long_sweep.returncode == code
    assert "Traceback" not in err
    assert [card["status"] for card in cards(workplace)] == ["stopped", "stopped", "not started"]
    assert [card.get("iteration", 0) > 0 for card in cards(workplace)] == [True, True, False]
    folders = sorted(workplace.glob("outputs/sweeps/*/*"))
    assert [(folder / "checkpoints" / "last.ckpt").exists() for folder in folders] == [True, True, False]
    rows = out[out.index("─") :].splitlines()  # of the table
    assert [sum(word in row for row in rows) for word in ("stopped", "not started")] == [2, 1]
    hint = next(line for line in out.splitlines() if line.startswith("to go on: "))
    root, names = re.findall(r"gentrain resume run=(\S+)/FOLDER of: (.*)", hint)[0]
    assert [Path(root) / name for name in shlex.split(names)] == [folder.relative_to(workplace) for folder in folders]
    for folder in (folders[0], folders[2]):
        config = folder / "config.yaml"
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("iterations: 1000000", f"iterations: {now(folder) + 2}"), encoding="utf-8")
        assert run("resume", f"run={folder}", "allow=train.iterations").code == 0
    assert [card["status"] for card in cards(workplace)] == ["finished", "stopped", "finished"]


def now(folder: Path) -> int:
    return int(json.loads((folder / "run.json").read_text(encoding="utf-8")).get("iteration", 0))


DEAF = """
import json, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
card = Path(sys.argv[1]) / "run.json"
card.write_text(json.dumps({**json.loads(card.read_text()), "status": "running"}))
time.sleep(600)  # gentrain.engine.worker
"""

SLOW = """
import sys, {module} as sweep
sweep.GRACE_SECONDS = {grace}
import gentrain.engine.launch as launch
launch.worker_command = lambda folder, **_: [sys.executable, "-c", {deaf!r}, str(folder)]
from gentrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("grace", "signals"), [(1.0, 1), (600.0, 2)])
@pytest.mark.usefixtures("no_orphans")
def test_a_job_that_does_not_stop_is_killed(grace: float, signals: int, workplace: Path) -> None:
    """After the grace period, or at once when the signal comes a second time; an echo of the first is none."""
    code = SLOW.format(module=sweep.__name__, grace=grace, deaf=DEAF)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-m", *words(*LONG), "seed=0,1"], stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: [card["status"] for card in cards(workplace)] == ["running", "created"])
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # the echo
        if signals > 1:
            time.sleep(1.0)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        out, _err = process.communicate(timeout=30)
        assert time.monotonic() - began < 30
        assert process.returncode == 143
        assert [card["status"] for card in cards(workplace)] == ["stopped", "not started"]
        assert "to go on: " in out
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("no_orphans")
def test_a_fault_of_the_sweep_itself_leaves_no_job_behind(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = list[float](), time.sleep

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        real(seconds)
        if len(calls) == 5:
            raise OSError("a fault")

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    with pytest.raises(OSError, match="a fault"):
        run("-m", *words(*LONG), "seed=0,1")
    assert [card["status"] for card in cards(workplace)] == ["stopped", "not started"]


def test_a_sweep_hears_no_signal_that_nohup_has_turned_off(workplace: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with sweep.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with sweep.Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
