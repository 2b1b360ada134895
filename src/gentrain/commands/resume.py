"""``gentrain resume run=DIR``: go on from the newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gentrain.commands.train import go, summary
from gentrain.commands.words import options, yes
from gentrain.errors import OK
from gentrain.folder import RunFolder


def run(arguments: Sequence[str]) -> int:
    given = options(arguments, {"run": None, "trust": "false"}, "resume")
    folder = RunFolder.open(Path(given["run"]))
    if folder.card().get("status") == "finished":
        print(f"{folder.path}: finished already\n{summary(folder)}")
        return OK
    config = folder.config()
    trusted = yes(given["trust"], "trust")
    from gentrain.engine import fit

    fit.check_config(config, trusted=trusted)
    _, world = fit.count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
    code = go(folder, config, world, resume=True, trusted=trusted)
    if code == OK:
        print(summary(folder))
    return code
