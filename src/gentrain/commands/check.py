"""``gentrain check model=... data=...``: compose and validate, train nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gentrain.commands.words import read
from gentrain.errors import OK
from gentrain.folder import safe_name
from gentrain.masking import mask_words


def run(arguments: Sequence[str]) -> int:
    words = read(arguments[1:] if arguments and arguments[0] == "train" else arguments)
    from gentrain.compose import compose, expand

    jobs = expand(words.overrides) if words.multirun else [words.overrides]
    for overrides in jobs:
        config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
        from gentrain.engine.fit import rehearse

        facts = rehearse(config)
        if config["name"] is not None:
            safe_name(config["name"], "name")
        chosen = " ".join(mask_words(overrides)) or "the default config"
        print(f"good: {chosen}: {facts}", flush=True)
    return OK
