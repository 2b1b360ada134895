"""Rows side by side: for a terminal of any width, as Markdown, CSV or JSON.

People read numbers rounded to their spread over seeds; files for machines hold them in full.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gentrain.records import dumped
from gentrain.report.columns import BEST, NOT_MEASURED, Cell, cell, default, heading, score_of
from gentrain.report.rows import Row, protocol_notes
from gentrain.report.runs import Skipped

ABSENT = "n.m."
"""For what was not measured; what cannot be is ``--`` with a letter that says why."""

NAME_WIDTH = 14
BETWEEN = 3
"""Blanks between two columns."""
Order = Callable[[Sequence[Row]], Sequence[Row]]


@dataclass(frozen=True)
class Comparison:
    """Rows of one or more data sets. ``columns``: keys; None: a readable choice for each data set."""

    rows: Sequence[Row]
    columns: Sequence[str] | None = None
    skipped: Sequence[Skipped] = ()

    def parts(self) -> Iterator[tuple[str, list[Row], list[str]]]:
        """For each data set: its name, rows, columns. Scores on different data are never side by side."""
        for data, rows in groupby(self.rows, key=lambda row: row.data):
            there = list(rows)
            yield data, there, list(default(there) if self.columns is None else self.columns)


def number(value: float) -> str:
    """Four digits, whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def with_spread(mean: float, sd: float) -> str:
    """``1.771 ± 0.052``: two digits of the spread, and as many decimals of the mean."""
    if sd == 0:
        return f"{number(mean)} ± 0"
    places = 1 - int(f"{sd:.1e}".partition("e")[2])
    if places > 6 or max(abs(mean), sd) >= 1e12:
        return f"{_leading(mean, sd)} ± {sd:.1e}"
    if places >= 0:
        return f"{mean:.{places}f} ± {sd:.{places}f}"
    return f"{round(mean, places):.0f} ± {round(sd, places):.0f}"


def _leading(mean: float, sd: float) -> str:
    """A mean beside a spread that is written with an exponent."""
    if 1e-3 <= abs(mean) < 1e6:
        return f"{mean:.6g}"
    digits = (int(f"{x:.1e}".partition("e")[2]) for x in (mean, sd))
    return f"{mean:.{min(max(next(digits) - next(digits) + 1, 0), 6)}e}"


def words(found: Cell) -> str:
    """A cell on its own: the number with its spread and bound, or in words why there is none."""
    if found.mean is None:
        return found.gap
    same = found.is_fact and found.sd == 0
    scale, unit = (60, " s") if found.in_minutes and found.mean < 1 else (1, "")  # 0.006667 minutes tell nobody much
    mean, sd = found.mean * scale, None if found.sd is None or same else found.sd * scale
    text = (number(mean) if sd is None else with_spread(mean, sd)) + unit
    return f"{found.bound} {text}" if found.bound else text


class Letters:
    """Marks for remarks below a table, one letter for each text: a, b, ..., z, aa, ab, ..."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def mark(self, text: str) -> str:
        if text not in self.known:
            place, letter = len(self.known), ""
            while place >= 0:
                place, rest = divmod(place, 26)
                letter, place = chr(97 + rest) + letter, place - 1
            self.known[text] = letter
        return f"[{self.known[text]}]"

    def lines(self) -> list[str]:
        return [f"[{letter}] {text}" for text, letter in self.known.items()]


def remarks(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """What must be known to read these numbers rightly."""
    said = []
    if any(len(row.runs) > 1 for row in rows):
        said.append("mean ± standard deviation over seeds; n: number of seeds")
    if any(len(row.runs) == 1 for row in rows):
        said.append("n = 1: one seed, its spread over seeds is unknown")
    found = [cell(row, column) for row in rows for column in columns]
    if any(each.bound for each in found):
        said.append("<=, >=: bounds; the true figure is at most, at least so much")
    if any(column.startswith(BEST) for column in columns):
        said.append("best: of the checkpoint that such scores chose, so optimistic; the final one was not chosen")
    if len(rows) > 1 and any(score_of(column) in row.runs[0].final for row in rows for column in columns):
        said += protocol_notes(rows)
    devices = sorted({run.device for row in rows for run in row.runs})
    if len(devices) > 1 and any(c in ("seconds", "minutes") or c.endswith("_per_second") for c in columns):
        said.append(f"times are of different devices: {', '.join(devices)}")
    for row in rows:
        said += [f"{row.name}, seed {run.seed}: {remark}" for run in row.runs for remark in run.remarks]
    return said


def text(table: Comparison, width: int, encoding: str = "utf-8") -> str:
    """For a terminal of ``width`` letters: more columns than fit go on in further blocks below."""
    out = []
    for data, rows, columns in table.parts():
        letters = Letters()
        body = [[row.name, str(len(row.runs)), *(_marked(cell(row, c), letters) for c in columns)] for row in rows]
        headings = [data, "n", *(heading(column) for column in columns)]
        out.append(blocks(headings, body, width))
        if any(part == ABSENT for line in body for part in line):
            out.append(f"{ABSENT}: {NOT_MEASURED}")
        out += [*letters.lines(), *remarks(rows, columns), ""]
    whole = "\n".join(_folded(line, width) if "\n" not in line else line for line in out).rstrip()
    try:
        whole.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        whole = whole.replace("±", "+-").replace("─", "-").encode("ascii", "backslashreplace").decode()
    return whole


def _marked(found: Cell, letters: Letters) -> str:
    if found.gap == NOT_MEASURED:
        return ABSENT
    if found.mean is None:
        return f"-- {letters.mark(found.gap)}"
    return f"{words(found)} {letters.mark(found.note)}" if found.note else words(found)


def _folded(line: str, width: int) -> str:
    import textwrap

    return textwrap.fill(line, max(width, 20), subsequent_indent="    ", break_on_hyphens=False)


def blocks(headings: Sequence[str], body: Sequence[Sequence[str]], width: int) -> str:
    """A table whose first column comes again in each block that is needed for all columns to fit into ``width``.
    Text is shown as it is: it holds no markup."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    heads = [re.sub(r" ", "\n", head) for head in headings]
    wide = [
        max(cell_len(part) for part in [*head.split("\n"), *(line[i] for line in body)]) for i, head in enumerate(heads)
    ]
    first = min(wide[0], max(NAME_WIDTH, width // 3))
    parts, room = [list[int]()], 0
    for i in range(1, len(heads)):
        if parts[-1] and room < wide[i] + BETWEEN:
            parts.append([])
        room = (room if parts[-1] else width - first) - wide[i] - BETWEEN
        parts[-1].append(i)
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:  # rich itself would end the process with exit code 1 on a closed pipe
        for place, chosen in enumerate(parts):
            if place:
                console.print()
            view = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
            view.add_column(Text(heads[0].replace("\n", " ")), overflow="fold", width=first)
            for i in chosen:
                view.add_column(Text(heads[i], justify="right"), justify="right", overflow="fold")
            for line in body:
                view.add_row(Text(line[0]), *(Text(line[i]) for i in chosen))
            console.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def markdown(table: Comparison) -> str:
    """A table for each data set, remarks below it."""
    out = []
    for data, rows, columns in table.parts():
        letters = Letters()
        lines = [[data, "n", *(heading(column) for column in columns)], ["---", *["---:"] * (len(columns) + 1)]]
        for row in rows:
            cells = [cell(row, column) for column in columns]
            marks = [f" {letters.mark(found.note)}" if found.note else "" for found in cells]
            parts = [f"{words(found)}{mark}" for found, mark in zip(cells, marks, strict=True)]
            lines.append([row.name, str(len(row.runs)), *parts])
        out += [f"| {' | '.join(line if i == 1 else map(_plain, line))} |" for i, line in enumerate(lines)]
        out += ["", *(f"- {_plain(note)}" for note in [*letters.lines(), *remarks(rows, columns)]), ""]
    return "\n".join(out)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>|!#&~])", r"\\\1", text)


def as_csv(table: Comparison) -> str:
    """One line for each row, numbers in full: for a column x the mean, ``x:sd`` over seeds, ``x:n`` values,
    ``x:bound``. Where there is no number, words."""
    parts = list(table.parts())
    columns = list(dict.fromkeys(column for _, _, columns in parts for column in columns))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["data", "name", "seeds", *(f"{c}{of}" for c in columns for of in ("", ":sd", ":n", ":bound"))])
    for row in table.rows:
        line: list[object] = [_inert(row.data), _inert(row.name), " ".join(map(str, row.seeds))]
        for column in columns:
            found = cell(row, column)
            mean = found.gap if found.mean is None else found.mean
            line += [mean, "" if found.sd is None else found.sd, len(found.values), found.bound]
        writer.writerow(line)
    return out.getvalue()


def _inert(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def as_json(table: Comparison) -> str:
    """Everything: means, spreads, the value of each seed, protocols, remarks, and what was passed over."""
    parts = list(table.parts())
    tables = [
        {"data": data, "rows": [_record(row, columns) for row in rows], "remarks": remarks(rows, columns)}
        for data, rows, columns in parts
    ]
    skipped = [{"run": str(each.path), "why": each.why, "detail": each.detail} for each in table.skipped]
    return dumped({"tables": tables, "passed_over": skipped})


def _record(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "name": row.name,
        "model": row.model,
        "differs": row.differs,
        "seeds": row.seeds,
        "runs": [str(run.path) for run in row.runs],
        "devices": sorted({run.device for run in row.runs}),
        "protocol": row.protocol,
        "columns": {column: _cell_record(cell(row, column)) for column in columns},
    }


def _cell_record(found: Cell) -> dict[str, Any]:
    if found.mean is None:
        return {"mean": None, "undefined" if found.undefined else "missing": found.gap}
    record = {"mean": found.mean, "sd": found.sd, "n": len(found.values), "values": list(found.values)}
    return record | {key: value for key, value in (("bound", found.bound), ("note", found.note)) if value}
