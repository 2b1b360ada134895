"""``gentrain weights [--json]``: the files that metrics may need, where each one is, or where to put it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gentrain.errors import OK, UserError
from gentrain.evaluation.weight_files import FILES, VARIABLE, WeightFile, locate, store, verify


def run(arguments: Sequence[str]) -> int:
    unknown = [argument for argument in arguments if argument != "--json"]
    if unknown:
        raise UserError(f"weights: {unknown[0]}: it takes no words, and --json is its only flag")
    records = [record(file) for file in FILES]
    if "--json" in arguments:
        print(json.dumps(records, indent=2))
        return OK
    for entry in records:
        size = f"{entry['bytes']:,} bytes" if entry["bytes"] else "size not published"
        needs = f", needs gentrain[{entry['extra']}]" if entry["extra"] else ""
        print(f"{entry['extractor']} ({entry['choice']}{needs})")
        print(f"  {'file':<9} {' or '.join(entry['names'])}, {size}, {entry['licence']}")
        print(f"  {'sha256':<9} {entry['sha256'] or 'not published'}")
        print(f"  {'from':<9} {entry['url']}")
        print(f"  {'state':<9} {_state(entry)}")
    print(f"A folder of your own is looked into first: {VARIABLE}=FOLDER. Nothing is downloaded while it is set.")
    return OK


def record(file: WeightFile) -> dict[str, Any]:
    """Plain facts of one file. ``found``: its path, or None; ``complaint``: what is wrong with it or its place."""
    found, complaint = None, None
    try:
        found = locate(file)
        if found is not None:
            verify(file, found)
    except UserError as error:
        complaint = str(error)
    return {
        "extractor": file.extractor,
        "choice": file.choice,
        "names": list(file.names),
        "bytes": file.size,
        "sha256": file.sha256,
        "licence": file.licence,
        "url": file.url,
        "extra": file.extra,
        "found": None if found is None else str(found),
        "complaint": complaint,
        "put": str(store()),
        "stand_in": file.stand_in,
    }


def _state(entry: dict[str, Any]) -> str:
    if entry["complaint"]:
        return str(entry["complaint"]).removeprefix("metrics: ")
    if entry["found"]:
        return f"found: {entry['found']}"
    return f"not here: put it into {entry['put']}, or let it be downloaded; {entry['stand_in']} stands in without it"
