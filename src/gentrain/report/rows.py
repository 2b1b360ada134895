"""Runs that differ only in their seed become one row, named by what sets it apart from the other rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gentrain.report.runs import TWICE, Run, Skipped, mapping, shown

DERIVED = ("wants", "size", "kind", "loss", "turns")
"""Keys of a config that are resolved into others and change nothing by themselves."""

NOT_DECIDING = ("seed", "device", "versions", "size", "channels")
"""Fields of a protocol that change a score in its last digits at most, or repeat another field."""

KEYS_SHOWN, FIELDS_SHOWN = 3, 8


@dataclass
class Row:
    """One system: the runs of all its seeds, in the order of the seeds."""

    runs: list[Run]
    name: str = ""
    differs: dict[str, Any] = field(default_factory=dict)
    """What sets it apart from the rows of the same model, by key of the config."""

    @property
    def model(self) -> str:
        return self.runs[0].model

    @property
    def data(self) -> str:
        return self.runs[0].data

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.runs[0].protocol


def group(runs: Iterable[Run], free: Sequence[str]) -> tuple[list[Row], list[Skipped]]:
    """Rows by (data, name), and runs that repeat a seed of their row: a second look at one seed is no second seed.

    ``free``: keys of the config, and all below them, that do not change where a run ends.
    """
    known: dict[str, dict[int, Run]] = {}
    flats: dict[str, dict[str, Any]] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: (run.created, str(run.path)), reverse=True):  # of two, the newer counts
        flat = _identity(run, free)
        key = json.dumps([run.data, run.model, flat], sort_keys=True, default=str)
        flats[key] = flat
        if run.seed in known.setdefault(key, {}):
            repeated.append(Skipped(run.path, TWICE, str(known[key][run.seed].path)))
        else:
            known[key][run.seed] = run
    rows = {key: Row([same[seed] for seed in sorted(same)]) for key, same in known.items()}
    for data, model in sorted({(row.data, row.model) for row in rows.values()}):
        alike = {key: row for key, row in rows.items() if (row.data, row.model) == (data, model)}
        _name(list(alike.values()), [flats[key] for key in alike], free)
    return sorted(rows.values(), key=lambda row: (row.data, row.name)), repeated


def _identity(run: Run, free: Sequence[str]) -> dict[str, Any]:
    """By dotted key: the config without what is free, and what decides a score in the protocol."""
    config = {key: value for key, value in run.config.items() if key not in (*DERIVED, "seed")}
    flat = {
        key: value for key, value in flatten(config).items() if not any(f"{key}.".startswith(f"{f}.") for f in free)
    }
    flat["trainer.devices"] = run.world_size  # a batch norm sees the batch of one device
    return flat | {f"protocol.{key}": value for key, value in deciding(run.protocol).items()}


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; a list is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def deciding(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a protocol on which a score depends, by dotted key."""
    if not protocol:
        return {"unknown": True}
    kept = {key: value for key, value in protocol.items() if key not in NOT_DECIDING}
    extractors = mapping(kept.get("extractors"))
    kept["extractors"] = {
        name: facts if isinstance(facts, Mapping) else {"sha256": facts} for name, facts in extractors.items()
    }
    return flatten(kept)


def _name(rows: Sequence[Row], flats: Sequence[Mapping[str, Any]], free: Sequence[str]) -> None:
    """Name the rows of one model by the choices and keys that differ among them."""
    choices = [choice for choice in _varying([row.runs[0].choices for row in rows]) if choice not in free]
    keys = _varying(flats)
    configs = [key for key in keys if not key.startswith("protocol.")]
    if configs and not _same_configs(flats, configs):
        keys = configs  # the protocol differs because the config does
    choices = [c for c in choices if _explains_any(c, keys, rows, flats)]
    left = [key for key in keys if not any(_explains(c, key, rows, flats) for c in choices)]
    merged = _merge(sorted(left, key=lambda key: (key.count("."), key)), flats)
    taken: dict[str, int] = {}
    for row, flat in zip(rows, flats, strict=True):
        own = row.runs[0].choices
        parts = [f"{choice}={own[choice]}" for choice in choices if choice in own]
        parts += [f"{label}={_brief(flat.get(key, 'absent'))}" for label, key in merged[:KEYS_SHOWN]]
        if len(merged) > KEYS_SHOWN:
            parts.append(f"(+{len(merged) - KEYS_SHOWN} keys)")
        row.differs = {**{c: own.get(c) for c in choices}, **{key: flat.get(key, "absent") for key in left}}
        row.name = shown(" ".join([row.model, *parts]))
        taken[row.name] = taken.get(row.name, 0) + 1
        if taken[row.name] > 1:
            row.name += f" #{taken[row.name]}"


def _same_configs(flats: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> bool:
    """Whether two rows have one config, and only their protocols differ."""
    seen = [json.dumps([flat.get(key, "absent") for key in keys], default=str) for flat in flats]
    return len(set(seen)) < len(seen)


def _varying(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if len({_text(flat.get(key, "absent")) for flat in flats}) > 1]


def _explains(choice: str, key: str, rows: Sequence[Row], flats: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the value of ``key`` follows from that of ``choice``: it lies below what the choice decides, or the
    choice (size, experiment) decides keys everywhere; and no two rows of one choice differ in it."""
    path = choice.replace("/", ".")
    own = any(isinstance(row.runs[0].config.get(path.split(".")[0]), dict) for row in rows)
    if own and not f"{key}.".startswith((f"{path}.", f"model.{path}.")):
        return False
    values: dict[str | None, str] = {}
    for row, flat in zip(rows, flats, strict=True):
        value = _text(flat.get(key, "absent"))
        if values.setdefault(row.runs[0].choices.get(choice), value) != value:
            return False
    return True


def _explains_any(choice: str, keys: Sequence[str], rows: Sequence[Row], flats: Sequence[Mapping[str, Any]]) -> bool:
    return any(_explains(choice, key, rows, flats) for key in keys)


def _merge(keys: Sequence[str], flats: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(label, key): as much of the end of a key as tells it from all others. Keys of one name whose values are the same
    everywhere are one."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        found.setdefault((key.split(".")[-1], _text([flat.get(key, "absent") for flat in flats])), []).append(key)
    every = {key for flat in flats for key in flat}
    labels = []
    for same in found.values():
        parts = same[0].split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        alone = (end for end in ends if not any(f".{key}".endswith(f".{end}") for key in every - set(same)))
        labels.append((next(alone, same[0]), same[0]))
    return labels


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= 23 else f"...{text[-20:]}"  # paths and targets differ at their ends


def protocol_notes(rows: Sequence[Row]) -> list[str]:
    """Where the protocols of rows differ in what decides a score, one line for each field: such scores do not compare.

    A metric or extractor that only some rows have decides no score that they share.
    """
    unknown = [row for row in rows if not row.protocol]
    known = [row for row in rows if row.protocol]
    notes = [f"protocol not recorded: {_names(unknown)}"] if unknown else []
    flats = [deciding(row.protocol) for row in known]
    for key in sorted({key for flat in flats for key in flat}):
        # A field that a card lacks is unknown, null is a value. Where nothing was drawn, no score is of samples.
        sides = [(row, flat[key]) for row, flat in zip(known, flats, strict=True) if key in flat]
        notes += _differing(key, [side for side in sides if (key, side[1]) != ("samples", 0)])
    names = [(row, sorted(there)) for row in known if (there := mapping(row.protocol.get("extractors")))]
    if any(not set(a) & set(b) for _, a in names for _, b in names):
        notes += _differing("extractors", names)
    more = [f"protocols differ in {len(notes) - FIELDS_SHOWN} more fields"] if len(notes) > FIELDS_SHOWN else []
    return notes[:FIELDS_SHOWN] + more


def _differing(key: str, values: Sequence[tuple[Row, Any]]) -> list[str]:
    sides: dict[str, list[Row]] = {}
    for row, value in values:
        sides.setdefault(_text(value), []).append(row)
    if len(sides) < 2:
        return []
    each = "; ".join(f"{shown(_brief(json.loads(value)))} ({_names(same)})" for value, same in sides.items())
    return [f"protocols differ in {shown(key)}: {each}"]


def _names(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - KEYS_SHOWN} more" if len(rows) > KEYS_SHOWN else ""
    return ", ".join(row.name for row in rows[:KEYS_SHOWN]) + more
