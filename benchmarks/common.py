"""What the benchmarks share: the machine, rounds in turns, ratios, one JSON file per case.

Nothing heavy is imported here: ``startup.py`` measures processes and must start none of torch itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

Times = dict[str, list[float]]
"""Seconds of each contestant, one number per round."""

Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu``: of this process alone, over all its threads. It holds on a busy machine, where wall time does not."""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=positive, help="interleaved rounds that count (one more warms up)")
    made.add_argument("--quick", action="store_true", help="a few iterations: does it run? The numbers mean nothing")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON files (default: %(default)s)")
    return made


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def machine() -> dict[str, Any]:
    """Processor, cores, the two bf16 instruction sets, and the load average of the last minute."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        pass
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "amx_bf16": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of what is measured and of what it stands on."""
    found = {name: metadata.version(name) for name in ("torch", "lightning", "hydra-core")}
    return {"python": platform.python_version(), **found}


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, now: Callable[[], float] = time.perf_counter
) -> Times:
    """A B C A B C ...: what else the machine does falls on all alike. The first round warms up and is left out."""
    times: Times = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            start = now()
            work()
            if turn:
                times[name].append(now() - start)
    return times


def ratios(times: Times, base: str) -> dict[str, dict[str, Any]]:
    """How many times as long as ``base`` each other contestant takes: of medians, and the median over paired rounds."""
    own = times[base]
    result = {}
    for name, other in times.items():
        if name != base:
            paired = [b / a for a, b in zip(own, other, strict=True)]
            result[name] = {
                "of_medians": round(statistics.median(other) / statistics.median(own), 3),
                "paired": round(statistics.median(paired), 3),
                "paired_range": [round(min(paired), 3), round(max(paired), 3)],
            }
    return result


def summary(values: Sequence[float]) -> dict[str, Any]:
    """The median and every round, to four digits behind the point."""
    return {"median": round(statistics.median(values), 4), "rounds": [round(value, 4) for value in values]}


def milliseconds(times: Times, steps: int) -> dict[str, dict[str, Any]]:
    """Of each contestant, per step."""
    return {name: summary([1e3 * value / steps for value in values]) for name, values in times.items()}


def write(case: str, record: Mapping[str, Any], out: Path) -> Path:
    """``<out>/<case>.json``, with the date, the machine and the versions in front."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{case}.json"
    whole = {"case": case, "date": time.strftime("%Y-%m-%d"), **record, "versions": versions()}
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return path
