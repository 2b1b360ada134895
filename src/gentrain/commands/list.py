"""``gentrain list [models|data|losses|...] [--json]``: what there is, read from the config files themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentrain.commands.words import place
from gentrain.config import conf_dir, load_yaml, nearest
from gentrain.errors import OK, UserError

GROUPS = {
    "models": "model",
    "data": "data",
    "losses": "loss",
    "nets": "model/net",
    "priors": "model/prior",
    "penalties": "model/penalty",
    "metrics": "metrics",
    "experiments": "experiment",
    "sizes": "size",
    "trainers": "trainer",
    "loggers": "logger",
    "turns": "turns",
    "callbacks": "callbacks",
    "debug": "debug",
}


def run(arguments: Sequence[str]) -> int:
    words, arguments = place(arguments)
    names = [a for a in arguments if not a.startswith("-")]
    unknown = [a for a in arguments if a.startswith("-") and a != "--json"]
    if unknown:
        raise UserError(f"list: {unknown[0]}: no such flag (there are: --config-dir, --json)")
    for name in names:
        if name not in GROUPS:
            raise UserError(f"list: {name}: unknown{nearest(name, GROUPS)}")
    found = {name: entries(GROUPS[name], words.config_dirs) for name in (names or GROUPS)}
    if "--json" in arguments:
        print(json.dumps(found[names[0]] if len(names) == 1 else found, indent=2))
    else:
        _show(found)
    return OK


def entries(group: str, config_dirs: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """One record for each option of a config group: its name, its first comment, and a model's ``about``. Of two files
    of one name, the one in the earlier folder counts, as when it is chosen."""
    files: dict[str, Path] = {}
    for folder in (*config_dirs, conf_dir()):
        for file in (folder / group).glob("*.yaml"):
            files.setdefault(file.stem, file)
    return [_entry(files[name]) for name in sorted(files)]


def _entry(file: Path) -> dict[str, Any]:
    about = load_yaml_or_empty(file).get("about", {})
    title = {"title": about.pop("name")} if "name" in about else {}
    return {"name": file.stem, "what": first_comment(file), **title, **about}


def load_yaml_or_empty(file: Path) -> dict[str, Any]:
    text = file.read_text(encoding="utf-8")
    return load_yaml(file) if any(line and not line.startswith("#") for line in text.splitlines()) else {}


def first_comment(file: Path) -> str:
    """First sentence of the comment at the head of a config file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    text = " ".join(lines)
    end = next((i for i in range(len(text) - 1) if text[i] in ".;" and text[i + 1] == " "), len(text))
    return text[:end].rstrip(".")


def _show(found: dict[str, list[dict[str, Any]]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160)
    for title, records in found.items():
        about = any("paper" in record for record in records)
        columns = ["name", "family", "paper", "arxiv", "can"] if about else ["name", "what"]
        table = Table(title=f"{title} ({GROUPS[title]}=...)", box=SIMPLE_HEAD, title_justify="left")
        for column in columns:
            table.add_column(column, style="bold" if column == "name" else None, overflow="fold")
        for record in records:
            shown = {**record, "can": ", ".join(record.get("can", []))}
            table.add_row(*(str(shown.get(column, "")) for column in columns))
        with console.capture() as captured:  # rich itself would end the process with exit code 1 on a closed pipe
            console.print(table)
        print(captured.get(), end="")
