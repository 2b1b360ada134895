"""Inject every fault of the catalogue at full length and write what came of it.

    python scripts/faults.py [--out outputs/faults.json] [--short] [-n WORKERS]

For each row: tests, injected, fired, survived, seconds. Exit code 1 if any fault was not survived.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "faults"))

from catalogue import ROWS  # noqa: E402


@dataclass
class Case:
    """One test that ran: where it stands, how it ended, what it noted."""

    place: str
    passed: bool
    skipped: bool
    seconds: float
    facts: dict[str, str] = field(default_factory=dict)


def run(tests: Sequence[str], *, full: bool, workers: int) -> list[Case]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-n", str(workers), "--timeout=3000"]
        subprocess.run([*command, *(["--full"] if full else []), *tests], cwd=ROOT, check=False)
        return read(report)


def read(report: Path) -> list[Case]:
    """The cases of a JUnit report."""
    cases = []
    for case in ElementTree.parse(report).iter("testcase"):
        place = case.get("classname", "").replace(".", "/") + ".py::" + case.get("name", "")
        facts = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
        bad = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        cases.append(Case(place, not bad and not skipped, skipped, float(case.get("time", "0")), facts))
    return cases


def belongs(case: Case, test: str) -> bool:
    """Whether a case is one of ``file`` or ``file::function``."""
    function = case.place.split("[")[0]
    return function == f"tests/{test}" or function.startswith(f"tests/{test}::")


def summarise(cases: Sequence[Case]) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    for number, row in ROWS.items():
        mine = [case for case in cases if any(belongs(case, test) for test in row.tests) and not case.skipped]
        counts = {key: sum(_count(case, key) for case in mine) for key in ("injected", "fired", "survived")}
        rows[str(number)] = {"fault": row.title, "tests": len(mine), **counts}
        rows[str(number)] |= {"seconds": round(sum(case.seconds for case in mine), 1)}
        slowest = [float(case.facts["slowest_seconds"]) for case in mine if "slowest_seconds" in case.facts]
        rows[str(number)] |= {"slowest_seconds": max(slowest)} if slowest else {}
        rows[str(number)] |= {"missing": row.missing} if row.missing else {}
    return rows


def _count(case: Case, key: str) -> int:
    """What the case noted; otherwise it stands for one fault, survived if it passed."""
    if key in case.facts:
        return int(case.facts[key]) if case.passed or key != "survived" else 0
    return int(case.passed) if key == "survived" else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "faults.json")
    parser.add_argument("--short", action="store_true", help="the counts of make test")
    parser.add_argument("-n", type=int, default=2, help="processes (default: %(default)s)")
    chosen = parser.parse_args(argv)
    tests = sorted({f"tests/{test}" for row in ROWS.values() for test in row.tests})
    start = time.monotonic()
    cases = run(tests, full=not chosen.short, workers=chosen.n)
    rows = summarise(cases)
    whole = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "full": not chosen.short,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "rows": rows,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    lost = [number for number, row in rows.items() if row["survived"] != row["injected"]]
    print(f"{len(rows)} rows, {sum(int(str(row['injected'])) for row in rows.values())} faults: {chosen.out}")
    if lost:
        print(f"not survived: rows {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
