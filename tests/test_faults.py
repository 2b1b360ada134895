"""The catalogue of faults names tests that exist, and what a run of them is counted as."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    """scripts/faults.py as a module."""
    spec = importlib.util.spec_from_file_location("faults_script", ROOT / "scripts" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_row_has_a_test_that_exists_or_a_reason(faults: Any) -> None:
    assert sorted(faults.ROWS) == list(range(1, 72))
    for number, row in faults.ROWS.items():
        assert bool(row.tests) != bool(row.missing), f"row {number}"
        for test in row.tests:
            file, _, function = test.partition("::")
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), f"row {number}: {test}"


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[x]" time="1"/>
<testcase classname="tests.test_a" name="test_one[y]" time="1"><failure/></testcase>
<testcase classname="tests.test_b" name="test_two" time="2"><properties>
<property name="injected" value="20"/><property name="fired" value="20"/><property name="survived" value="20"/>
</properties></testcase>
<testcase classname="tests.test_c" name="test_three" time="1"><skipped/></testcase>
<testcase classname="tests.test_b" name="test_two_more" time="9"/>
</testsuite></testsuites>"""


def test_a_case_counts_what_it_notes_or_one_and_a_failed_one_is_not_survived(
    faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.xml").write_text(REPORT, encoding="utf-8")
    row = type(next(iter(faults.ROWS.values())))
    rows = {1: row("a", ("test_a.py::test_one",)), 2: row("b", ("test_b.py::test_two",)), 3: row("c", ("test_c.py",))}
    monkeypatch.setattr(faults, "ROWS", rows)
    found = faults.summarise(faults.read(tmp_path / "report.xml"))
    counts = [[found[n][key] for key in ("tests", "injected", "fired", "survived")] for n in ("1", "2", "3")]
    assert counts == [[2, 2, 2, 1], [1, 20, 20, 20], [0, 0, 0, 0]]
