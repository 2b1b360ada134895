"""``gentrain evaluate run=DIR``: score a trained run again with its stored protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentrain.commands.words import options, whole_number, yes
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder

KEYS = {"run": None, "checkpoint": "last", "weights": "ema", "samples": "", "device": "auto", "trust": "false"}


def run(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    given = options([a for a in arguments if a != "--json"], KEYS, "evaluate")
    folder = RunFolder.open(Path(given["run"]))
    trusted = yes(given["trust"], "trust")
    result = score(folder, given["checkpoint"], given["weights"], given["samples"], given["device"], trusted=trusted)
    if as_json:
        print(json.dumps(result, indent=2))
        return OK
    print(f"{folder.path} ({given['checkpoint']}, iteration {result['iteration']}, {result['weights']} weights)")
    for name, value in result["scores"].items():
        print(f"  {name:<16} {value!r}")
    print("protocol: " + ", ".join(f"{key}={value}" for key, value in result["protocol"].items()))
    return OK


def score(
    folder: RunFolder, which: str, weights: str, samples: str, device: str = "auto", *, trusted: bool
) -> dict[str, Any]:
    """Scores, protocol and seconds of one checkpoint."""
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}: ema or raw")
    from gentrain.config import build
    from gentrain.engine.fit import check_config
    from gentrain.engine.restore import load_system
    from gentrain.engine.session import Scoring
    from gentrain.engine.validation import score_system
    from gentrain.evaluation.protocol import require

    config = folder.config()
    check_config(config, trusted=trusted)
    system = load_system(folder, which, device=device, trusted=trusted)
    data = build(config["data"], trusted=trusted, where="data")
    stored = folder.card().get("data", {}).get("fingerprint")
    if stored != data.fingerprint:
        raise UserError(f"run={folder.path}: the data are no longer those it was trained on (fingerprint differs)")
    scoring = Scoring(**build(config["metrics"], trusted=trusted, where="metrics"))
    n = whole_number(samples, "samples", least=2) if samples else scoring.samples
    if not scoring.all:
        raise UserError(f"run={folder.path}: it was trained without metrics, there is nothing to score again")
    require(scoring.all, system, data, n=n)
    kind = weights if system.average is not None else "raw"
    report = score_system(system, data, scoring.all, n=n, seed=config["seed"], weights=kind)
    return {
        "run": str(folder.path),
        "checkpoint": which,
        "iteration": system.clock.iteration,
        "weights": kind,
        "scores": report.scores,
        "protocol": report.protocol,
        "seconds": round(report.seconds, 2),
    }
