"""``gentrain check model=... data=...``: compose and validate, train nothing. Every bad image is named."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gentrain.commands.words import read
from gentrain.config import Node
from gentrain.errors import MISTAKE, OK, one_line
from gentrain.folder import safe_name
from gentrain.masking import mask_words

SHOWN = 20
"""Bad files that are named; the rest are counted."""


def run(arguments: Sequence[str]) -> int:
    words = read(arguments[1:] if arguments and arguments[0] == "train" else arguments)
    from gentrain.compose import compose, expand

    jobs = expand(words.overrides) if words.multirun else [words.overrides]
    for overrides in jobs:
        config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
        from gentrain.data.files import BadFileError
        from gentrain.engine.fit import rehearse

        try:
            facts = rehearse(config)
            complaints = _of_unread(config)
        except BadFileError as error:
            complaints = _of(error.rows) or [str(error)]
        if complaints:
            return _tell(complaints)
        if config["name"] is not None:
            safe_name(config["name"], "name")
        chosen = " ".join(mask_words(overrides)) or "the default config"
        print(f"good: {chosen}: {facts}", flush=True)
    return OK


def _of_unread(config: Node) -> list[str]:
    """What is wrong with files that are decoded while training. Those that are cached were all decoded just now."""
    if config["data"].get("cache", True):
        return []
    from gentrain.config import build

    data = build(config["data"], where="data")
    return _of((data.train.x, data.test.x))


def _of(rows: Sequence[Any]) -> list[str]:
    return [line for part in rows if hasattr(part, "complaints") for line in part.complaints()]


def _tell(complaints: Sequence[str]) -> int:
    for line in complaints[:SHOWN]:
        print(f"gentrain: {one_line(line)}", file=sys.stderr)
    more = f"and {len(complaints) - SHOWN} more: " if len(complaints) > SHOWN else ""
    files = "1 bad file" if len(complaints) == 1 else f"{len(complaints)} bad files"
    print(f"gentrain: {more}{files}", file=sys.stderr)
    return MISTAKE
