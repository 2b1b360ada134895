"""Seconds until a command has answered, each time in a fresh process: CPU time, wall time, memory.

    python benchmarks/startup.py [--rounds N] [--quick]

CPU time is what counts: wall time is that of whatever else the machine does. Byte code is cached, as it is after the
first start of an installed package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import common

GENTRAIN = ("-m", "gentrain")
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "gentrain --help": (*GENTRAIN, "--help"),
    "gentrain list": (*GENTRAIN, "list"),
    "gentrain list models --json": (*GENTRAIN, "list", "models", "--json"),
    'python -c "import torch"': ("-c", "import torch"),
    "gentrain check size=tiny": (*GENTRAIN, "check", "size=tiny"),
}
GOAL_CPU_SECONDS = 0.3
GOALS = ("gentrain --help", "gentrain list", "gentrain list models --json")
"""Commands that answer from files, and must not wait for torch."""


def once(arguments: tuple[str, ...], folder: str) -> dict[str, float]:
    """Run one process to its end. SystemExit if it fails."""
    # Some containers forbid byte code, and every start would compile the package anew.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(arguments)} failed: {errors.read().decode(errors='replace').strip()[-500:]}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB here
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "mib": usage.ru_maxrss / unit}


def measure(rounds: int, *, warm_up: bool) -> dict[str, dict[str, Any]]:
    """Median and all rounds of each command, in turns, after one round that fills the caches."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + warm_up):
            for name, arguments in COMMANDS.items():
                measured = once(arguments, folder)
                if turn >= warm_up:
                    runs[name].append(measured)
    return {name: _summary(measured) for name, measured in runs.items()}


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "cpu_seconds": common.summary([run["cpu"] for run in runs]),
        "wall_seconds": common.summary([run["wall"] for run in runs]),
        "peak_mib": round(max(run["mib"] for run in runs)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    chosen = common.parser(str(__doc__).split("\n", 1)[0]).parse_args(argv)
    rounds = chosen.rounds or (1 if chosen.quick else 9)
    machine = common.machine()
    commands = measure(rounds, warm_up=not chosen.quick)
    print(f"startup: medians of {rounds} fresh processes; {machine['cpu']}, {machine['cores']} cores")
    for name, found in commands.items():
        line = (
            f"  {name:<28} {found['cpu_seconds']['median']:>7.3f} s CPU {found['wall_seconds']['median']:>7.3f} s wall"
        )
        line += f" {found['peak_mib']:>5} MiB"
        print(line + (f"   goal < {GOAL_CPU_SECONDS} s CPU" if name in GOALS else ""))
    goals = {name: {"cpu_seconds_below": GOAL_CPU_SECONDS} for name in GOALS}
    record = {"machine": machine, "rounds": rounds, "quick": chosen.quick, "commands": commands, "goals": goals}
    common.write("startup", record, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
