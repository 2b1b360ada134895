"""``gentrain [train] model=... data=...``: compose, freeze into a run folder, train; ``-m`` does it for many."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from gentrain.check import with_absolute_paths
from gentrain.commands.words import Words, read
from gentrain.config import Node
from gentrain.errors import MISTAKE, OK, UserError
from gentrain.folder import RunFolder, new_path, safe_name


def run(arguments: Sequence[str]) -> int:
    words = read(arguments)
    if words.multirun:
        from gentrain.commands import sweep

        return sweep.run(words)
    from gentrain.compose import compose

    composed = compose(words.overrides, config_name=words.config_name, config_dirs=words.config_dirs)
    config = composed.config
    from gentrain.engine import fit

    fit.check_config(config)
    _, world = fit.count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
    fit.refuse_foreign_launcher()
    earlier = begun(config)
    if earlier is not None:
        from gentrain.commands.resume import go_on_with

        return go_on_with(earlier, with_absolute_paths(config))
    folder = make_folder(config, words)
    try:
        code = go(folder, folder.config(), world, resume=False, trusted=True)
    except UserError:
        forget_unless_started(folder)
        raise
    if code == OK:
        print(summary(folder))
    elif code == MISTAKE:
        forget_unless_started(folder)
    return code


def begun(config: Node) -> RunFolder | None:
    """The run that ``resume=auto`` goes on with, if it was begun before. UserError without a name to find it by."""
    if config["resume"] != "auto":
        return None
    if config["name"] is None:
        raise UserError("resume=auto: name= is missing, by which the run is found again")
    path = new_path(Path(config["output"]), config["name"])
    return RunFolder.open(path) if (path / "config.yaml").exists() else None


def forget_unless_started(folder: RunFolder) -> None:
    """Remove the folder of a run that a mistake ended before its first iteration."""
    if folder.card().get("status") == "created":
        shutil.rmtree(folder.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.path.parent.rmdir()  # <model>-<data>, if this was the first run in it


def make_folder(config: Node, words: Words, path: Path | None = None) -> RunFolder:
    """Freeze the config into a new run folder, with absolute paths: a run is resumed and scored from any folder."""
    from gentrain.engine.fit import card_for

    choices = config["choices"]
    if path is None:
        parent = Path(config["output"])
        if config["name"] is None:
            parent /= safe_name(f"{choices['model']}-{choices['data']}", "model")
        path = new_path(parent, config["name"])
    if (path / "config.yaml").exists():
        raise UserError(f"{path} is a run already; resume run={path}, or choose another name=")
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} holds other files; choose another name= or output=")
    card = card_for(config, words.command())
    if words.sweep is not None:
        card["sweep"] = words.sweep
    return RunFolder.create(path, with_absolute_paths(config), card)


def go(folder: RunFolder, config: Node, world: int, *, resume: bool, trusted: bool) -> int:
    """Train in this process, or start the ranks."""
    if world > 1:
        from gentrain.engine.launch import launch

        return launch(folder.path, world, resume=resume, trusted=trusted)
    from gentrain.engine.fit import fit

    return fit(folder, config, resume=resume, trusted=trusted)


def summary(folder: RunFolder) -> str:
    """Where the pictures, scores and checkpoints of a finished run lie, in a few lines."""
    card = folder.card()
    lines = []
    best = card.get("best") or {}
    for title, scores in (("final", card.get("final")), ("best", best.get("at_end") or best.get("scores"))):
        if scores:
            where = f" (iteration {card['best']['iteration']})" if title == "best" else ""
            lines.append(f"{title}{where}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    speed = card.get("images_per_second")
    if speed:
        lines.append(
            f"trained on {card['images']} images in {card['seconds']:.0f} s ({speed:.0f} images/s while training)"
        )
    pictures = sorted(folder.samples.glob("*-latest.png"))
    lines += [f"picture      {path}" for path in pictures]
    lines.append(f"scores       {folder.card_file}")
    lines.append(f"checkpoints  {folder.checkpoints}")
    return "\n".join(lines)
