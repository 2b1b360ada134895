"""What must not be written to a run folder or sent to a service: found by the name of its key, replaced by ``***``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

# "tokens" and "tokenizer" are the field's words for pieces of a sequence; "token" alone is a password.
_SECRET = r"(?:api_?-?key|passw(?:or)?d|secret|credential|token(?!s|iz))"
_KEY = re.compile(_SECRET, re.IGNORECASE)
_NUMBER = re.compile(r"api_?-?key|passw(?:or)?d|secret|credential", re.IGNORECASE)  # mask_token=0 is a place in a table
_PLURAL = re.compile(r"tokens", re.IGNORECASE)
_OVERRIDE = re.compile(rf"([\w.+~/@-]*{_SECRET}[\w.-]*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,&;]+)", re.IGNORECASE)
_LOGIN = re.compile(r"(://)[^/@\s]+@")


def mask_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` whose secrets read ``***``, at any depth.

    Masked are values under keys that contain api_key, token, password or secret, such keys inside strings
    (``logger.api_key=...`` in a list of overrides) and the login of an address (``https://name:word@host``). An empty
    value, None and booleans stay, and so does a number under ``...token...``: that one counts or is a place in a table.
    """
    return {key: _mask(value, str(key)) for key, value in config.items()}


def mask_text(text: str) -> str:
    """``text`` without the values of ``key=value`` pairs whose key names a secret, and without logins in addresses."""
    return _LOGIN.sub(rf"\1{MASK}@", _OVERRIDE.sub(rf"\1{MASK}", text))


def mask_words(words: Sequence[str]) -> list[str]:
    """The words of a command line without secrets. Each by itself: a value may hold blanks and quotes."""
    return [_mask_word(word) for word in words]


def _mask_word(word: str) -> str:
    key, equals, text = word.partition("=")
    value = None if text == "null" else float(text) if re.fullmatch(r"[-+]?\d*\.?\d+", text) else text
    if equals and _mask(value, key) == MASK:
        return f"{key}={MASK}"
    return mask_text(word) if isinstance(value, str) else word


def _mask(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        own = "_target_" in value or not _KEY.search(key)  # a part of a model may be called token_net
        return {k: _mask(v, str(k) if own else key) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mask(item, key) for item in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if isinstance(value, (int, float)):
        return MASK if _NUMBER.search(key) else value
    if _KEY.search(key) or _PLURAL.search(key):
        return MASK
    return mask_text(value) if isinstance(value, str) else value
