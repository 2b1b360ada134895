"""``gentrain -m key=a,b ...``: every combination, each job in its own process, folder and log; one table at the end.

All jobs are composed and checked before the first one starts. A job gets its frozen config and nothing else: no job can
change another's settings, and one that dies, however it dies, takes nobody with it. A signal to the sweep goes on to
the jobs that run, which save and stop; the others are not started.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gentrain.commands.jobs import FINISHED, NOT_STARTED, STOPPED, Job, plan
from gentrain.commands.words import Words
from gentrain.config import Node
from gentrain.errors import FAULT, OK

GRACE_SECONDS = 60.0
"""A job that was told to stop and is still there after so long is killed: one iteration and one checkpoint fit in."""

ECHO_SECONDS = 0.5
"""A signal that comes again within so long is the same one: ``timeout`` and batch systems send it to a process and to
its group."""


class Stop:
    """Which signal has asked the sweep to stop, and whether a second one has asked for haste."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.at = 0.0
        self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere no handler can be set
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self.at = number, now
        elif now - self.at > ECHO_SECONDS:
            self.at_once = True


def run(words: Words) -> int:
    from gentrain.compose import compose, expand
    from gentrain.engine import fit

    fit.refuse_foreign_launcher()

    combinations, configs = list[list[str]](), list[Node]()
    for asked in expand(words.overrides):
        config = compose(asked, config_name=words.config_name, config_dirs=words.config_dirs).config
        fit.check_config(config)
        for overrides in compared(asked, config, expand):
            if overrides != asked:
                config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
                fit.check_config(config)
            fit.count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
            combinations.append(overrides)
            configs.append(config)
    with Stop() as stop:
        root, jobs = plan(words, combinations, configs)
        done = [job for job in jobs if job.code == 0]
        print(f"{len(jobs)} jobs in {root}" + (f", {len(done)} of them done before" if done else ""))
        settings = configs[0]["sweep"]
        try:
            run_all([job for job in jobs if job.code is None], settings["parallel"], stop, retries=settings["retry"])
        finally:
            print(table(jobs))
        return verdict(jobs, root, stop)


def compared(asked: list[str], config: Node, expand: Callable[[list[str]], list[list[str]]]) -> list[list[str]]:
    """The jobs of one that was asked for: itself, or where its config is a comparison (``sweep.over``,
    ``sweep.variants``) every combination of the first with each of the second. What the command line says of a key is
    not swept over."""
    said = {_key(word) for word in asked}
    over = [word for word in config["sweep"].get("over") or () if _key(word) not in said]
    variants = list((config["sweep"].get("variants") or {}).values()) or [[]]
    return [job for words in variants for job in expand([*asked, *over, *words])]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def verdict(jobs: Sequence[Job], root: Path, stop: Stop) -> int:
    """Say how to go on with what was stopped and how many failed. Returns the exit code of the sweep."""
    open_ended = [job.folder.path.name for job in jobs if job.status in (STOPPED, NOT_STARTED)]
    failed = [job for job in jobs if job.failed]
    if len(jobs) > 1 and any(job.status == FINISHED for job in jobs):
        print(f"mean and spread over seeds: gentrain table {shlex.quote(str(root))}")
    if open_ended:
        each = " ".join(shlex.quote(name) for name in open_ended)
        print(f"to go on: the same command again, or gentrain resume run={shlex.quote(str(root))}/FOLDER of: {each}")
    if failed:
        print(f"gentrain: {len(failed)} of {len(jobs)} jobs failed", file=sys.stderr)
    if stop.received is not None and open_ended:
        return 128 + stop.received
    return FAULT if failed or open_ended else OK


def run_all(jobs: Sequence[Job], parallel: int, stop: Stop, retries: int = 0) -> None:
    """Run every job, ``parallel`` at a time, and one that fails up to ``retries`` times more, from its last checkpoint.
    None is left behind, whether a signal or an exception ends this."""
    waiting, running = list(jobs), list[Job]()
    slots = list(range(parallel))
    taken: dict[int, int] = {}
    try:
        while running or (waiting and stop.received is None):
            while waiting and slots and stop.received is None:
                job = waiting[0]
                taken[id(job)] = slots.pop(0)
                _start(job, taken[id(job)], parallel)
                running.append(waiting.pop(0))
                print(f"start  {job.name}", flush=True)
            if stop.received is not None and _tell(running, stop):
                print(f"stopping {len(running)} jobs; a second signal kills them", file=sys.stderr, flush=True)
            time.sleep(0.05)
            for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                running.remove(job)
                slots.append(taken.pop(id(job)))
                _finish(job)
                if job.failed and job.tries <= retries and stop.received is None:
                    waiting.append(job)
    finally:
        for job in waiting:
            if job.folder.card().get("status") == "created":
                job.folder.update_card(status=NOT_STARTED)
        _end(running, stop)


def _tell(running: Sequence[Job], stop: Stop) -> bool:
    """Pass the signal on, once; kill after the grace period or when asked again. Whether any job heard it now."""
    late = stop.at_once or time.monotonic() - stop.at > GRACE_SECONDS
    heard = False
    for job in running:
        assert job.process is not None
        if late:
            _kill(job)
        elif not job.told:
            # To the job alone: one of several devices hands it to its ranks itself, and twice would be haste.
            job.process.send_signal(signal.SIGINT if stop.received == signal.SIGINT else signal.SIGTERM)
            heard = True
        job.told = True
    return heard


def _kill(job: Job) -> None:
    """Kill the job with all that it started; harmless where nothing is left."""
    assert job.process is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(job.process.pid, signal.SIGKILL)


def _end(running: Sequence[Job], stop: Stop) -> None:
    """When the sweep itself fails: the jobs save and stop all the same."""
    if running and stop.received is None:
        stop.received, stop.at = signal.SIGTERM, time.monotonic()
    while any(job.process is not None and job.process.poll() is None for job in running):
        _tell(running, stop)
        time.sleep(0.05)
    for job in running:
        _finish(job)


def _start(job: Job, slot: int, parallel: int) -> None:
    from gentrain.engine.launch import clean_environment, worker_command

    environment = clean_environment()
    gpus = _visible_gpus()
    if parallel > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    job.log = (job.folder.path / "console.txt").open("ab")  # what it said before it failed stays there
    job.started, job.code = time.monotonic(), None
    job.tries += 1
    job.process = subprocess.Popen(
        worker_command(job.folder.path, resume=job.again or job.tries > 1, trusted=True),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=job.log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C goes to all processes of a terminal: it must reach a job once, through here
    )


def _visible_gpus() -> list[str]:
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]


def _finish(job: Job) -> None:
    assert job.process is not None
    assert job.log is not None
    job.log.close()
    job.code, job.seconds = job.process.wait(), time.monotonic() - job.started
    if job.status == FINISHED:
        print(f"done   {job.name} ({job.seconds:.0f} s)", flush=True)
        return
    _kill(job)  # ranks that outlive the process that started them
    unfinished = job.folder.card().get("status") in ("running", "created")
    if job.status == STOPPED:
        if unfinished:
            job.folder.update_card(status=STOPPED)
        print(f"stop   {job.name} ({job.seconds:.0f} s)", flush=True)
        return
    reason = f"signal {-job.code}" if job.code < 0 else f"exit code {job.code}"
    last = _last_line(job.folder.path / "console.txt")
    if unfinished:
        job.folder.update_card(status="failed", error=f"{reason}: {last}")
    print(f"FAILED {job.name} ({reason}; {job.folder.path / 'console.txt'}): {last}", file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def table(jobs: Sequence[Job]) -> str:
    """One line a job: what differs, how it ended, its final scores."""
    from gentrain.report.table import blocks, number

    cards = [job.folder.card() for job in jobs]
    names = list(dict.fromkeys(name for card in cards for name in (card.get("final") or {})))
    body = []
    for job, card in zip(jobs, cards, strict=True):
        final = card.get("final") or {}
        scores = [number(final[name]) if name in final else "-" for name in names]
        body.append([job.name, job.status, *scores, f"{job.seconds:.0f}", job.folder.path.name])
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    return blocks(["job", "status", *names, "seconds", "folder"], body, width)
