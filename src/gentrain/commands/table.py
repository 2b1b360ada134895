"""``gentrain table DIR... [--data NAME]``: runs side by side, mean ± sd over seeds, a GAN beside a likelihood model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gentrain.commands.resume import FREE
from gentrain.config import nearest
from gentrain.errors import OK, UserError, one_line
from gentrain.report import table
from gentrain.report.columns import cell, chosen, existing
from gentrain.report.rows import Row, group
from gentrain.report.runs import OTHER_DATA, Run, Skipped, find

OPTIONS = ("data", "columns", "sort", "out")
SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json"}
FLAGS = ("all", "markdown", "csv", "json")
USAGE = "usage: gentrain table DIR... [data=NAME] [columns=a,b,c] [sort=KEY] [out=FILE] [--all|--markdown|--csv|--json]"
NAMED = 3
"""Runs that are named of each reason for passing over."""


@dataclass
class Asked:
    places: list[Path] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        """text, markdown, csv or json. UserError for two at a time, or a file of another kind."""
        kinds = self.flags - {"all"}
        if "out" in self.options:
            suffix = Path(self.options["out"]).suffix
            if suffix not in SUFFIXES:
                raise UserError(f"out={self.options['out']}: the name must end in {', '.join(SUFFIXES)}")
            kinds.add(SUFFIXES[suffix])
        if len(kinds) > 1:
            raise UserError(f"table: {' and '.join(sorted(kinds))} at a time: choose one")
        return kinds.pop() if kinds else "text"


def run(arguments: Sequence[str]) -> int:
    asked = read(arguments)
    kind = asked.kind
    runs, skipped = find(asked.places)
    runs, skipped = of_data(runs, skipped, asked.options.get("data"))
    if not runs:
        where = ", ".join(map(str, asked.places))
        raise UserError(f"table: no finished run with scores in {where}{said_of(skipped, ': ') or ' (no run folder)'}")
    rows, repeated = group(runs, FREE)
    skipped = [*skipped, *repeated]
    columns = existing(rows) if "all" in asked.flags else None
    if "columns" in asked.options:
        columns = chosen([name.strip() for name in asked.options["columns"].split(",") if name.strip()], rows)
        if not columns:
            raise UserError("columns=: name at least one")
    if "sort" in asked.options:
        rows = ordered(rows, asked.options["sort"])
    write(table.Comparison(rows, columns, skipped), kind, asked.options.get("out"))
    if skipped:
        print(one_line(f"gentrain: passed over {said_of(skipped)}"), file=sys.stderr)
    return OK


def read(arguments: Sequence[str]) -> Asked:
    """Folders, ``key=value`` or ``--key value``, and flags. UserError for any other."""
    asked = Asked()
    rest = iter(arguments)
    for argument in rest:
        dashed = argument.startswith("-")
        key, equals, value = argument.lstrip("-").partition("=") if dashed else argument.partition("=")
        if dashed and key in FLAGS and not equals:
            asked.flags.add(key)
        elif key in OPTIONS and (dashed or equals):
            given = value if equals else next(rest, None)
            if not given:
                raise UserError(f"{argument}: a value must follow")
            asked.options[key] = given
        elif dashed or (equals and key.isidentifier() and not Path(argument).exists()):
            known = [f"--{flag}" for flag in FLAGS] if dashed else OPTIONS
            raise UserError(
                f"table: {argument}: no such {'flag' if dashed else 'key'}{nearest(argument, known)}; {USAGE}"
            )
        else:
            asked.places.append(Path(argument))
    asked.places = asked.places or [Path("outputs")]
    return asked


def of_data(runs: Sequence[Run], skipped: Sequence[Skipped], data: str | None) -> tuple[list[Run], list[Skipped]]:
    """The runs of one data set. UserError if there are none."""
    if data is None:
        return list(runs), list(skipped)
    known = {run.data for run in runs}
    if data not in known and known:
        raise UserError(f"data={data}: no finished run with scores is of it{nearest(data, known)}")
    others = [Skipped(run.path, OTHER_DATA, run.data) for run in runs if run.data != data]
    return [run for run in runs if run.data == data], [*skipped, *others]


def said_of(skipped: Sequence[Skipped], before: str = "") -> str:
    """By reason, how many runs and which were passed over."""
    parts = []
    for why in dict.fromkeys(each.why for each in skipped):
        same = [each for each in skipped if each.why == why]
        named = [f"{each.path} ({each.detail})" if each.detail else str(each.path) for each in same[:NAMED]]
        more = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
        parts.append(f"{len(same)} {why}: {', '.join(named)}{more}")
    return before + "; ".join(parts) if parts else ""


def ordered(rows: Sequence[Row], key: str) -> list[Row]:
    """Within each data set by a column, smallest first; ``-key``: largest first. Rows without a value come last."""
    name = key.removeprefix("-")
    if name == "name":
        by_name = sorted(rows, key=lambda row: row.name, reverse=key != name)
        return sorted(by_name, key=lambda row: row.data)
    columns = chosen([name], rows)
    if len(columns) > 1:
        raise UserError(f"sort={key}: which of {', '.join(columns)}?")
    sign = -1.0 if key != name else 1.0
    means = {id(row): cell(row, columns[0]).mean for row in rows}

    def place(row: Row) -> tuple[str, bool, float]:
        mean = means[id(row)]
        return row.data, mean is None, 0.0 if mean is None else sign * mean

    return sorted(rows, key=place)


def write(comparison: table.Comparison, kind: str, out: str | None) -> None:
    """To stdout, or beside ``out`` and renamed to it."""
    if kind == "text":
        print(table.text(comparison, terminal_width(), sys.stdout.encoding or "ascii"))
        return
    made = {"markdown": table.markdown, "csv": table.as_csv, "json": table.as_json}[kind](comparison)
    if out is None:
        print(made, end="")
        return
    path = Path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(made, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from None
    print(f"{len(comparison.rows)} rows in {path}")


def terminal_width() -> int:
    """Letters in a line: of the terminal, of $COLUMNS, or plenty where it goes into a file."""
    from rich.console import Console

    return Console().width if sys.stdout.isatty() or os.environ.get("COLUMNS") else 160
