"""``gentrain check model=... data=...``: compose and validate, train nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gentrain.commands.words import read
from gentrain.errors import OK


def run(arguments: Sequence[str]) -> int:
    words = read(arguments)
    from gentrain.compose import compose, expand

    jobs = expand(words.overrides) if words.multirun else [words.overrides]
    for overrides in jobs:
        config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
        from gentrain.engine.fit import rehearse

        facts = rehearse(config)
        print(f"good: {' '.join(overrides) or 'the default config'}: {facts}")
    return OK
