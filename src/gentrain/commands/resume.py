"""``gentrain resume run=DIR``: go on from the newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gentrain.commands.train import go, summary
from gentrain.commands.words import options, yes
from gentrain.config import Node
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder
from gentrain.masking import mask_secrets

FREE = (
    *("choices", "about", "published", "name", "output", "data_root", "trust", "resume", "sweep"),
    *("logger", "callbacks", "trainer"),
    *("data.root", "data.cache_dir", "train.log_every", "train.checkpoint_every", "train.keep", "train.on_nonfinite"),
)
"""Keys that change where a run takes place and what is written of it, not where it ends."""

SHOWN = 5


def run(arguments: Sequence[str]) -> int:
    given = options(arguments, {"run": None, "allow": "", "trust": "false"}, "resume")
    folder = RunFolder.open(Path(given["run"]))
    allowed = [key for key in given["allow"].split(",") if key]
    if folder.card().get("status") == "finished" and not allowed:
        print(_finished(folder))
        return OK
    return go_on(folder, allowed, trusted=yes(given["trust"], "trust"))


def go_on_with(folder: RunFolder, config: Node) -> int:
    """``resume=auto``: the run of this name, if the command asks for the same one."""
    refuse_changes(folder.config(), mask_secrets(config), (), f"resume=auto: {folder.path}", "choose another name=")
    if folder.card().get("status") == "finished":
        print(_finished(folder))
        return OK
    return go_on(folder, trusted=True)


def _finished(folder: RunFolder) -> str:
    why = folder.card().get("stopped_early")
    lines = [f"{folder.path}: finished already"]
    if why:
        remedy = "another train.patience in its config.yaml and allow=train.patience go on with it"
        lines.append(f"stopped early at {why}; {remedy}")
    return "\n".join([*lines, summary(folder)])


def go_on(folder: RunFolder, allowed: Sequence[str] = (), *, trusted: bool) -> int:
    """Resume the run of a folder. UserError if its config is no longer the one it was trained with."""
    config = folder.config()
    from gentrain.engine import checkpoint, fit

    fit.check_config(config, trusted=trusted)
    found = checkpoint.newest_whole(folder.checkpoints, folder.card().get("id"))
    if found is not None:
        refuse_changes(found[1]["config"], config, allowed, str(folder.config_file))
    _, world = fit.count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
    code = go(folder, config, world, resume=True, trusted=trusted)
    if code == OK:
        print(summary(folder))
    return code


def refuse_changes(before: Node, now: Node, allowed: Sequence[str], where: str, remedy: str = "") -> None:
    """UserError naming the keys that differ, unless they are ``FREE`` or below one of ``allowed``."""
    then, today = dict(_flat(before)), dict(_flat(now))
    differing = [key for key in {**then, **today} if then.get(key, "absent") != today.get(key, "absent")]
    kept = [key for key in differing if not any(f"{key}.".startswith(f"{free}.") for free in (*FREE, *allowed))]
    if kept:
        each = [f"{key} ({then.get(key, 'absent')} -> {today.get(key, 'absent')})" for key in kept[:SHOWN]]
        more = f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        raise UserError(
            f"{where}: not what the run was trained with: {', '.join(each)}{more}; put it back, or"
            f" {remedy or 'say allow=' + ','.join(kept[:SHOWN]) + ' if it is meant'}"
        )


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
