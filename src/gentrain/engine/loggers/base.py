"""What every logger can do, how secrets stay out of it, and how a failing service stays out of the training."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("gentrain")

FINISHED = "finished"
"""The status of a run that reached its end. Services show any other one as failed."""

MASK = "***"


class Logger(Protocol):
    """One destination of a run. Only rank 0 holds loggers."""

    def start(
        self, config: Mapping[str, Any], folder: Path, name: str, resume_at: int = 0, again: bool = False
    ) -> None:
        """``config``: the resolved config; ``folder``: the run folder; ``resume_at``: iteration of the checkpoint that
        the run continues from, 0 for a new run; ``again``: the scores of that iteration are about to be made again.
        """
        ...

    def scalars(self, values: Mapping[str, float], iteration: int, images: int) -> None:
        """Numbers at one point in time: ``iteration`` batches and ``images`` images seen."""
        ...

    def picture(self, key: str, path: Path, iteration: int, images: int) -> None:
        """A picture that already lies in the run folder."""
        ...

    def summary(self, values: Mapping[str, float | str]) -> None:
        """Final and best scores."""
        ...

    def finish(self, status: str) -> None:
        """Close the destination; harmless when called twice. ``status``: ``FINISHED`` or why the run ended early."""
        ...


# "tokens" and "tokenizer" are the field's words for pieces of a sequence; "token" alone is a password.
_SECRET = r"(?:api_?-?key|passw(?:or)?d|secret|credential|token(?!s|iz))"
_KEY = re.compile(_SECRET, re.IGNORECASE)
_PLURAL = re.compile(r"tokens", re.IGNORECASE)
_OVERRIDE = re.compile(rf"([\w.+~/@-]*{_SECRET}[\w.-]*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,&;]+)", re.IGNORECASE)
_LOGIN = re.compile(r"(://)[^/@\s]+@")


def mask_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` whose secrets read ``***``, at any depth.

    Masked are values under keys that contain api_key, token, password or secret, such keys inside strings
    (``logger.api_key=...`` in a list of overrides) and the login of an address (``https://name:word@host``). An empty
    value, None and booleans stay, and so does a number under ``...tokens``: that one counts.
    """
    return {key: _mask(value, str(key)) for key, value in config.items()}


def mask_text(text: str) -> str:
    """``text`` without the values of ``key=value`` pairs whose key names a secret, and without logins in addresses."""
    return _LOGIN.sub(rf"\1{MASK}@", _OVERRIDE.sub(rf"\1{MASK}", text))


def _mask(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {k: _mask(v, str(k) if not _KEY.search(key) else key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mask(item, key) for item in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if _KEY.search(key) or (_PLURAL.search(key) and not isinstance(value, (int, float))):
        return MASK
    return mask_text(value) if isinstance(value, str) else value


class Guard:
    """Calls a service that may fail without harm: the first failure is one warning line, after it all is quiet."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.quiet = False

    def __call__(self, action: Callable[[], object]) -> bool:
        """Whether ``action`` ran. False without trying once the service has failed."""
        if self.quiet:
            return False
        try:
            action()
        except Exception as error:
            self.fail(error)
            return False
        return True

    def fail(self, error: Exception) -> None:
        self.quiet = True
        log.warning("%s stopped (%s); training goes on, metrics.csv has every number", self.service, one_line(error))


def one_line(error: Exception) -> str:
    """Kind and first line of an error, short and without secrets."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return mask_text(f"{type(error).__name__}: {first}" if first else type(error).__name__)[:200]
