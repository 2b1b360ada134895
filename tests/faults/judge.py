"""What every fault test asks of a command that met a mistake, and how it counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from conftest import Outcome, Run

PATIENCE = 20.0
"""Seconds of this process that one refusal may take; on a clock that stands while others have the processor."""


def lines(ended: Outcome) -> list[str]:
    return ended.err.splitlines()


def plain(ended: Outcome) -> None:
    """Done or refused, at most one line of ours on stderr when it is refused, never a traceback."""
    assert ended.code in (0, 2), ended
    assert "Traceback" not in ended.err + ended.out, ended.err
    if ended.code == 2:
        assert len(lines(ended)) == 1, ended.err
        assert ended.err.startswith("gentrain: "), ended.err


def refused(ended: Outcome, *fragments: str) -> None:
    """One line, exit code 2, and every fragment in it."""
    plain(ended)
    assert ended.code == 2, ended
    for fragment in fragments:
        assert fragment in ended.err, (fragment, ended.err)


def timed(run: Run, *words: str) -> Outcome:
    start = time.process_time()
    ended = run(*words)
    assert time.process_time() - start < PATIENCE, words
    return ended


def everything_below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def stands_nowhere(canary: str, folder: Path, *, besides: Sequence[str] = ()) -> None:
    """No file below a folder holds the text, nor is one named after it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in besides]
    assert files
    for path in files:
        assert canary not in path.name
        assert canary.encode() not in path.read_bytes(), f"{canary} stands in {path.relative_to(folder)}"
