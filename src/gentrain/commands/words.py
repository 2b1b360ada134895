"""Reading what stands behind a command's word."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gentrain.config import nearest
from gentrain.errors import UserError
from gentrain.masking import mask_words


@dataclass
class Words:
    """Hydra overrides and the few flags that are ours."""

    overrides: list[str] = field(default_factory=list)
    multirun: bool = False
    config_name: str = "train"
    config_dirs: list[Path] = field(default_factory=list)
    sweep: str | None = None
    """For a job of a sweep: the command of the whole."""

    def command(self, word: str = "") -> str:
        """The command line again, to be pasted; secrets are masked. ``word``: of another command than train."""
        flags = ["-m"] if self.multirun else []
        for place in self.config_dirs:
            flags += ["-cd", str(place)]
        if self.config_name != Words.config_name:
            flags += ["-cn", self.config_name]
        return shlex.join(["gentrain", *([word] if word else []), *flags, *mask_words(self.overrides)])


def read(arguments: Sequence[str]) -> Words:
    """Split flags from overrides. UserError for an unknown flag or a flag without its value."""
    words, rest = place(arguments)
    for argument in rest:
        if argument in ("-m", "--multirun"):
            words.multirun = True
        elif argument.startswith("-"):
            known = ["--multirun", "--config-dir", "--config-name", "--help", "--version"]
            raise UserError(f"{argument}: no such flag{nearest(argument.split('=')[0], known)}")
        elif "=" not in argument and not argument.startswith("~"):
            raise UserError(f"{argument}: not of the form key=value")
        else:
            words.overrides.append(argument)
    return words


def place(arguments: Sequence[str]) -> tuple[Words, list[str]]:
    """Where the config lies (``-cd``, ``-cn``), and all other arguments as they came."""
    words, others = Words(), list[str]()
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("-cn", "--config-name"):
            words.config_name = value if equals else _value(flag, rest)
        elif flag in ("-cd", "--config-dir"):
            folder = Path(value if equals else _value(flag, rest))
            if not folder.is_dir():
                raise UserError(f"{flag} {folder}: no such folder")
            words.config_dirs.append(folder)
        else:
            others.append(argument)
    return words, others


def _value(flag: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise UserError(f"{flag}: a value must follow")
    return value


def options(arguments: Sequence[str], allowed: dict[str, str | None], word: str) -> dict[str, str]:
    """``key=value`` options of a command that is not about composing: unknown and missing keys are UserErrors.

    ``allowed``: default of each key; None marks a key that must be given.
    """
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in allowed:
            usage = " ".join(f"{k}=..." if d is None else f"[{k}={d}]" for k, d in allowed.items())
            raise UserError(
                f"{word}: {argument} is not one of its keys{nearest(key, allowed)}; usage: gentrain {word} {usage}"
            )
        given[key] = value
    for key, default in allowed.items():
        if key not in given:
            if default is None:
                raise UserError(f"{word}: {key}= is missing, e.g. gentrain {word} {key}=outputs/...")
            given[key] = default
    return given


def whole_number(text: str, key: str, *, least: int = 0) -> int:
    """An integer option, or a UserError."""
    try:
        number = int(text)
    except ValueError:
        raise UserError(f"{key}={text}: a whole number is needed") from None
    if number < least:
        raise UserError(f"{key}={text}: at least {least}")
    return number


def above_zero(text: str, key: str) -> float | None:
    """A number above 0, None where nothing was said, or a UserError."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{key}={text}: a number is needed") from None
    if not 0 < number < 1e6:
        raise UserError(f"{key}={text}: above 0, and below a million")
    return number


def yes(text: str, key: str) -> bool:
    """A true/false option, or a UserError."""
    if text.lower() not in ("true", "false"):
        raise UserError(f"{key}={text}: true or false is needed")
    return text.lower() == "true"
