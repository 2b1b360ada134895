"""``gentrain -m key=a,b ...``: every combination, each job in its own process, folder and log; one table at the end.

All jobs are composed and checked before the first one starts. A job gets its frozen config and nothing else: no job can
change another's settings, and one that dies, however it dies, takes nobody with it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gentrain.commands.train import make_folder
from gentrain.commands.words import Words
from gentrain.config import Node
from gentrain.errors import FAULT, OK
from gentrain.folder import RunFolder, new_path


@dataclass
class Job:
    name: str
    folder: RunFolder
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    code: int | None = None
    started: float = 0.0
    seconds: float = 0.0


def run(words: Words) -> int:
    from gentrain.compose import compose, expand
    from gentrain.engine import fit

    fit.refuse_foreign_launcher()
    combinations = expand(words.overrides)
    configs: list[Node] = []
    for overrides in combinations:
        config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
        fit.check_config(config)
        fit.count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
        configs.append(config)
    first = configs[0]
    root = new_path(Path(first["output"]) / "sweeps", first["name"])
    jobs = []
    for number, (overrides, config) in enumerate(zip(combinations, configs, strict=True)):
        name = " ".join(sorted(set(overrides) - set(words.overrides))) or "the only one"
        job_words = Words(overrides, config_name=words.config_name, config_dirs=words.config_dirs)
        place = root / f"{number:03d}-{_plain(name)}"
        jobs.append(Job(name, make_folder(config, job_words, place)))
    print(f"{len(jobs)} jobs in {root}")
    run_all(jobs, parallel=max(1, first["jobs"]["parallel"]))
    print(table(jobs))
    failed = [job for job in jobs if job.code != 0]
    if failed:
        print(f"gentrain: {len(failed)} of {len(jobs)} jobs failed", file=sys.stderr)
    return FAULT if failed else OK


def run_all(jobs: Sequence[Job], parallel: int) -> None:
    """Run every job, ``parallel`` at a time. An interrupt stops the running jobs, which save first."""
    waiting, running = list(jobs), list[Job]()
    slots = list(range(parallel))
    taken: dict[int, int] = {}
    try:
        while waiting or running:
            while waiting and slots:
                job = waiting.pop(0)
                taken[id(job)] = slots.pop(0)
                _start(job, taken[id(job)], parallel)
                running.append(job)
            time.sleep(0.05)
            for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                running.remove(job)
                slots.append(taken.pop(id(job)))
                _finish(job)
    finally:
        for job in running:
            assert job.process is not None
            job.process.terminate()
        for job in running:
            assert job.process is not None
            job.process.wait()
            _finish(job)


def _start(job: Job, slot: int, parallel: int) -> None:
    from gentrain.engine.launch import clean_environment, worker_command

    environment = clean_environment()
    gpus = _visible_gpus()
    if parallel > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    job.log = (job.folder.path / "console.txt").open("wb")
    job.started = time.monotonic()
    job.process = subprocess.Popen(
        worker_command(job.folder.path, resume=False, trusted=True),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=job.log,
        stderr=subprocess.STDOUT,
    )
    print(f"start  {job.name}", flush=True)


def _visible_gpus() -> list[str]:
    import os

    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]


def _finish(job: Job) -> None:
    assert job.process is not None
    assert job.log is not None
    job.log.close()
    job.code, job.seconds = job.process.returncode, time.monotonic() - job.started
    if job.code == 0:
        print(f"done   {job.name} ({job.seconds:.0f} s)", flush=True)
        return
    reason = f"signal {-job.code}" if job.code < 0 else f"exit code {job.code}"
    last = _last_line(job.folder.path / "console.txt")
    if job.folder.card().get("status") in ("running", "created"):
        job.folder.update_card(status="failed", error=f"{reason}: {last}")
    print(f"FAILED {job.name} ({reason}; {job.folder.path / 'console.txt'}): {last}", file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def table(jobs: Sequence[Job]) -> str:
    """One line a job: what differs, how it ended, its final scores."""
    from rich.console import Console
    from rich.table import Table

    cards = [job.folder.card() for job in jobs]
    names = list(dict.fromkeys(name for card in cards for name in (card.get("final") or {})))
    view = Table(title="sweep", title_justify="left")
    for column in ("job", "status", *names, "seconds", "folder"):
        view.add_column(column, overflow="fold")
    for job, card in zip(jobs, cards, strict=True):
        final = card.get("final") or {}
        scores = [f"{final[name]:.4g}" if name in final else "-" for name in names]
        status = "finished" if job.code == 0 else f"failed ({job.code})"
        view.add_row(job.name, status, *scores, f"{job.seconds:.0f}", job.folder.path.name)
    console = Console(width=None if sys.stdout.isatty() else 200)
    with console.capture() as captured:
        console.print(view)
    return captured.get().rstrip()


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "=.,_-" else "-" for c in name)[:80]
