"""``metrics.csv`` in the run folder: every number of a run, in a file that anything can read."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gentrain.engine.loggers.base import log

FIXED = ("iteration", "images", "seconds")


class MetricsCsv:
    """Columns: iteration, images, seconds of training, then keys in order of first appearance.

    Each call of ``scalars`` is one row, on disk when the call returns; several rows may share an iteration. Numbers
    are written so that they read back exactly; a missing value is an empty cell, NaN and infinity are nan and inf.
    A disk that refuses to be written to costs a warning: rows wait in memory until it takes them again.
    """

    def __init__(self) -> None:
        self.path = Path(os.devnull)
        self._columns: list[str] = list(FIXED)
        self._waiting: list[dict[str, str]] = []
        self._size = 0
        self._warned = False
        self._began = time.monotonic()

    def start(
        self, config: Mapping[str, Any], folder: Path, name: str, resume_at: int = 0, again: bool = False
    ) -> None:
        """Begin anew, or with ``resume_at`` drop the rows that are younger than the checkpoint and go on.

        ``again``: of the rows of that iteration only the first stays, its terms; its scores come again.
        """
        self.path = folder / "metrics.csv"
        folder.mkdir(parents=True, exist_ok=True)
        old = self.path.read_bytes() if resume_at > 0 and self.path.exists() else b""
        self._columns, rows = parse(old)
        kept = [row for row in rows if int(row[0]) <= resume_at]
        if again:
            kept = [row for i, row in enumerate(kept) if int(row[0]) < resume_at or i == 0 or kept[i - 1][0] != row[0]]
        self._began = time.monotonic() - (float(kept[-1][2]) if kept else 0.0)
        self._waiting, self._warned = [], False
        self._replace(_lines([self._columns, *kept]))

    def scalars(self, values: Mapping[str, float], iteration: int, images: int) -> None:
        if not values:
            return
        row = {"iteration": str(iteration), "images": str(images), "seconds": f"{time.monotonic() - self._began:.3f}"}
        self._waiting.append(row | {key: repr(float(value)) for key, value in values.items()})
        self._write()

    def picture(self, key: str, path: Path, iteration: int, images: int) -> None:
        """Nothing: the picture lies in the run folder already."""

    def summary(self, values: Mapping[str, float | str]) -> None:
        """Nothing: final scores are in the run card."""

    def finish(self, status: str) -> None:
        self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        new = [key for key in dict.fromkeys(key for row in self._waiting for key in row) if key not in self._columns]
        try:
            if new:
                self._widen(new)
            self._append(_lines([[row.get(key, "") for key in self._columns] for row in self._waiting]))
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written (%s); training goes on, rows wait in memory", self.path, error)
            self._warned = True
            return
        self._waiting.clear()

    def _widen(self, new: list[str]) -> None:
        columns, rows = parse(self.path.read_bytes()[: self._size])
        self._replace(_lines([[*columns, *new], *([*row, *[""] * len(new)] for row in rows)]))
        self._columns = [*columns, *new]

    def _replace(self, data: bytes) -> None:
        """Write beside the file and rename, so that a reader or a kill never meets half of it."""
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            beside.write_bytes(data)
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)
        self._size = len(data)

    def _append(self, data: bytes) -> None:
        # Written at the known end, so that the half row a full disk left behind is overwritten by the next attempt.
        with self.path.open("r+b") as file:
            file.seek(self._size)
            file.write(data)
            file.truncate()
        self._size += len(data)


def parse(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a ``metrics.csv``; the three fixed columns and no rows if it is not one.

    The last line is left out where a kill cut it off: without its line end, a number may have lost digits.
    """
    whole = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace")
    lines = list(csv.reader(io.StringIO(whole)))
    if not lines or tuple(lines[0][: len(FIXED)]) != FIXED:
        return list(FIXED), []
    header = lines[0]
    return header, [row for row in lines[1:] if len(row) == len(header) and row[0].isdigit()]


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
