"""``gentrain extractor data=NAME [data.key=value ...] [out=FOLDER]``: train a domain extractor for labelled data."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrain.commands.words import read, whole_number, yes
from gentrain.config import nearest
from gentrain.errors import OK, UserError

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


def _real(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{key}={text}: a number is needed") from None


def _widths(text: str, key: str) -> tuple[int, ...]:
    return tuple(whole_number(part.strip(), key, least=1) for part in text.strip("[]").split(","))


RECIPE: dict[str, Callable[[str, str], Any]] = {
    "widths": _widths, "features": whole_number, "epochs": whole_number, "batch": whole_number, "lr": _real,
    "weight_decay": _real, "dropout": _real, "shift": whole_number, "flip": yes,
}  # fmt: skip
"""How each key of a recipe is read; those that are not given suit the data (``recipe_for``)."""
OWN = ("out", "seed", *RECIPE)


def run(arguments: Sequence[str]) -> int:
    words = read(arguments)
    if words.multirun:
        raise UserError("extractor: -m: one data set at a time")
    given, overrides = _split(words.overrides)
    changes = {key: RECIPE[key](text, key) for key, text in given.items() if key in RECIPE}
    seed = whole_number(given.get("seed", "0"), "seed")
    from gentrain.compose import compose

    config = compose(overrides, config_name=words.config_name, config_dirs=words.config_dirs).config
    from gentrain.config import build
    from gentrain.evaluation.domain import read_card, store
    from gentrain.evaluation.extractor_training import check_trainable, make, recipe_for

    data = build(config["data"], where="data")
    if "widths" in changes:
        changes.setdefault("features", changes["widths"][-1])
    check_trainable(data)
    out = Path(given["out"]).expanduser() if "out" in given else store()
    recipe = replace(recipe_for(data), **changes)
    weights = make(data, recipe, seed, out, words.command("extractor"), lambda line: print(line, flush=True))
    card = read_card(weights)
    print(f"{weights}: accuracy {card.accuracy:.4f} on {card.test_images} test images; SHA-256 {card.sha256}")
    for row in card.floor:
        scores = f"fd_domain {row['fd_domain']:.4g} kid_domain {row['kid_domain']:.4g}"
        print(f"  floor at {row['n']:.0f} real images: {scores}")
    if card.accuracy <= float(data.test.y.bincount().max()) / len(data.test):
        print("  note: no better than always naming the commonest class: its features say little; try more epochs=")
    alone = _chosen(data) == weights
    more = "" if alone else f" metrics.scores.distances.extractor.weights={weights}"
    print(f"score with it: {shlex.join([*overrides, 'metrics=domain'])}{more}")
    return OK


def _chosen(data: DataSet) -> Path | None:
    """What metrics=domain takes for these data where no file is named."""
    from gentrain.evaluation.domain import Domain

    try:
        return Domain().path(data)
    except UserError:
        return None


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Keys of our own, and what says which data. UserError for any other, and if no data are named."""
    given, data = dict[str, str](), list[str]()
    for word in words:
        key, _, value = word.partition("=")
        path = key.lstrip("+~")
        if path in ("data", "data_root") or path.startswith("data."):
            data.append(word)
        elif key in OWN:
            given[key] = value
        else:
            known = ("data", "data_root", *OWN)
            raise UserError(f"extractor: {word} is not one of its keys{nearest(key, known)}; data.key=value goes too")
    if not any(word.startswith("data=") for word in data):
        raise UserError("extractor: data= is missing, e.g. gentrain extractor data=fashion_mnist flip=true")
    return given, data
