"""Results as JSON that every program reads: JSON knows no nan and no inf, though a score may be either.

Such a number becomes null, and ``not_finite`` at the root says which they were, by dotted key: ``final.fid: nan``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NOTE = "not_finite"
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def dumped(record: Mapping[str, Any]) -> str:
    """Indented, with an end of line; what JSON has no type for is written as text."""
    found: dict[str, str] = {}
    plain = _plain(record, "", found)
    return json.dumps(plain | ({NOTE: found} if found else {}), indent=2, default=str, allow_nan=False) + "\n"


def _plain(value: Any, at: str, found: dict[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner, f"{at}.{key}" if at else str(key), found) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{at}.{place}", found) for place, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        found[at] = str(float(value))
        return None
    return value


def restored(record: dict[str, Any]) -> dict[str, Any]:
    """What was ``dumped`` and read again, its nan and inf back in their places, without the note. Changes ``record``,
    which may be anything that JSON can hold."""
    noted = record.pop(NOTE, None)
    if not isinstance(noted, dict):
        return record
    left: list[tuple[str, Any]] = [("", record)]
    while left:
        at, node = left.pop()
        for key, value in list(node.items()) if isinstance(node, dict) else enumerate(node):
            path = f"{at}.{key}" if at else str(key)
            if isinstance(value, dict | list):
                left.append((path, value))
            elif value is None and isinstance(said := noted.get(path), str) and said in VALUES:
                node[key] = VALUES[said]
    return record
