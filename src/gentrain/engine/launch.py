"""Start the ranks of one job from its run folder, and end them together.

Each rank reads the job's frozen, resolved config. Re-running the command line in the children, as the plain stack does,
starts a sweep inside each rank of a sweep and lets a search hand every rank other numbers.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gentrain.engine.loop import STOPPING

PLACE_VARIABLES = (
    "LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "PL_GLOBAL_SEED", "PL_SEED_WORKERS", "TORCHELASTIC_RUN_ID",
)  # fmt: skip
"""Variables that tell a process its place among ranks. They must not leak into another job."""

GRACE_SECONDS = 15.0


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in PLACE_VARIABLES}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker_command(folder: Path, *, resume: bool, trusted: bool) -> list[str]:
    """The command that runs the job of a folder in a fresh process."""
    flags = (["--resume"] if resume else []) + (["--trust"] if trusted else [])
    return [sys.executable, "-m", "gentrain.engine.worker", str(folder), *flags]


def launch(folder: Path, world: int, *, resume: bool, trusted: bool) -> int:
    """Run ``world`` ranks on this machine and return the job's exit code.

    When one rank ends badly the others are told to stop and killed after a grace period; stderr names the rank.
    """
    common = {**clean_environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common["OMP_NUM_THREADS"] = common.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world)))
    command = worker_command(folder, resume=resume, trusted=trusted)
    with contextlib.ExitStack() as files:
        ranks = []
        for rank in range(world):
            place = {"LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
            log = None if rank == 0 else files.enter_context((folder / f"rank-{rank}.log").open("w"))
            ranks.append(subprocess.Popen(command, env={**common, **place}, stdout=log, stderr=log))
        with _forwarding(ranks):
            return _wait(ranks, folder)


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path) -> int:
    first_bad: int | None = None
    stop_at = 0.0
    while any(process.poll() is None for process in ranks):
        if first_bad is None:
            first_bad = next((i for i, process in enumerate(ranks) if process.poll() not in (None, 0)), None)
            if first_bad is not None:
                _send(ranks, signal.SIGTERM)
                stop_at = time.monotonic() + GRACE_SECONDS
        elif time.monotonic() > stop_at:
            _send(ranks, signal.SIGKILL)
        time.sleep(0.05)
    codes = [process.returncode for process in ranks]
    if first_bad is None:
        first_bad = next((i for i, code in enumerate(codes) if code != 0), None)
    if first_bad is None:
        return 0
    code = codes[first_bad]
    if code not in (130, 143):
        log = folder / f"rank-{first_bad}.log"
        where = "" if first_bad == 0 else f"; {_last_words(log)}its log is {log}"
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(f"gentrain: rank {first_bad} of {len(ranks)} {reason}{where}", file=sys.stderr)
    return 128 - code if code < 0 else code


def _last_words(log: Path) -> str:
    """The last line of a rank's log: the others only heard that it had gone."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    last = re.sub(r"^\[rank\d+\]: ", "", lines[-1].strip()) if lines else ""
    return f"it said last: {last}; " if last else ""


def _send(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)


@contextlib.contextmanager
def _forwarding(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to the ranks, which save and stop."""
    before = {number: signal.signal(number, lambda received, _frame: _send(ranks, received)) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _send(ranks, signal.SIGKILL)
