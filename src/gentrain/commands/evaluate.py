"""``gentrain evaluate run=DIR``: score a trained run again with its stored protocol, or under other metrics.
``gentrain evaluate samples=PLACE data=NAME``: score pictures that any tool has made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrain.commands.words import options, place, whole_number, yes
from gentrain.config import Node
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from gentrain.data.dataset import DataSet

KEYS = {
    "run": None, "checkpoint": "last", "weights": "ema", "samples": "", "device": "auto", "trust": "false", "out": "",
}  # fmt: skip
OF_PICTURES = {
    "samples": None, "reference": "", "range": "", "resize": "none", "n": "", "seed": "0", "device": "auto", "out": "",
}  # fmt: skip
"""Their defaults; other words choose data and metrics as in training."""


def run(arguments: Sequence[str]) -> int:
    words, rest = place([a for a in arguments if a != "--json"])
    keys = {word.split("=")[0] for word in rest}
    of_pictures = "run" not in keys and "samples" in keys
    allowed = OF_PICTURES if of_pictures else KEYS
    others = [word for word in rest if _composes(word, of_pictures=of_pictures)]
    given = options([word for word in rest if word not in others], allowed, "evaluate")
    if given["out"] and Path(given["out"]).suffix != ".json":
        raise UserError(f"out={given['out']}: a name that ends in .json is needed")
    if of_pictures:
        result = score_pictures(given, others, words.config_dirs)
        title = f"{result['samples']} against {result['protocol']['data']}"
    else:
        folder = RunFolder.open(Path(given["run"]))
        trusted = yes(given["trust"], "trust")
        instead = (others, words.config_dirs) if others else None
        result = score(
            folder, given["checkpoint"], given["weights"], given["samples"], given["device"], trusted=trusted,
            instead=instead,
        )  # fmt: skip
        title = f"{folder.path} ({given['checkpoint']}, iteration {result['iteration']}, {result['weights']} weights)"
    text = json.dumps(result, indent=2)
    if given["out"]:
        _write(Path(given["out"]), text)
    if "--json" in arguments:
        print(text)
        return OK
    print(title)
    width = max(map(len, result["scores"]))
    for name, value in result["scores"].items():
        print(f"  {name:<{width}} {value!r}")
    print("protocol: " + ", ".join(f"{key}={value}" for key, value in result["protocol"].items()))
    return OK


def _composes(word: str, *, of_pictures: bool) -> bool:
    """Whether a word is about composing: of a run only the metrics, of pictures whatever the data need."""
    key = word.split("=")[0].lstrip("+~")
    groups = ("data", "metrics", "data_root", "size") if of_pictures else ("metrics",)
    return key.split(".")[0] in groups


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={path}: cannot be written ({error.strerror})") from error


def score(
    folder: RunFolder,
    which: str,
    weights: str,
    samples: str,
    device: str = "auto",
    *,
    trusted: bool,
    instead: tuple[Sequence[str], Sequence[Path]] | None = None,
) -> dict[str, Any]:
    """Scores, protocol and seconds of one checkpoint. ``instead``: words that choose other metrics than the stored
    ones, and the config folders to find them in."""
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}: ema or raw")
    from gentrain.config import build
    from gentrain.engine.fit import check_config
    from gentrain.engine.restore import load_system
    from gentrain.engine.session import Scoring
    from gentrain.engine.validation import score_system
    from gentrain.evaluation.protocol import promised, require
    from gentrain.evaluation.reference import FeatureCache

    config = folder.config()
    if instead is not None:
        config = {**config, "metrics": _other_metrics(config, *instead)}
    check_config(config, trusted=trusted)
    system = load_system(folder, which, device=device, trusted=trusted)
    data = build(config["data"], trusted=trusted, where="data")
    stored = folder.card().get("data", {}).get("fingerprint")
    if stored != data.fingerprint:
        raise UserError(f"run={folder.path}: the data are no longer those it was trained on (fingerprint differs)")
    scoring = Scoring(**build(config["metrics"], trusted=trusted, where="metrics"))
    n = whole_number(samples, "samples", least=2) if samples else scoring.samples
    if not scoring.all:
        raise UserError(
            f"run={folder.path}: it was trained without metrics; say which, e.g. metrics=domain (gentrain list metrics)"
        )
    require(scoring.scores, system, data, n=n)
    require(scoring.at_end, system, data, n=n, section="metrics.at_end")
    promised(scoring.all, system, data)
    kind = weights if system.average is not None else "raw"
    report = score_system(
        system, data, scoring.all, n=n, seed=config["seed"], weights=kind, cache=FeatureCache.on_disk()
    )
    return {
        "run": str(folder.path),
        "checkpoint": which,
        "iteration": system.clock.iteration,
        "weights": kind,
        "scores": report.scores,
        "protocol": report.protocol,
        "seconds": round(report.seconds, 2),
    }


def _other_metrics(config: Node, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    """The metrics section as if the run had been started with these words."""
    from gentrain.compose import compose

    chosen = config["choices"]
    words = [f"{group}={chosen[group]}" for group in ("model", "data", "size") if chosen.get(group)]
    if not any(word.startswith("metrics=") for word in overrides) and chosen.get("metrics"):
        words.append(f"metrics={chosen['metrics']}")
    return compose([*words, *overrides], config_dirs=config_dirs).config["metrics"]


class Pictures:
    """What stands in for a system where there are only samples. ``conditional``: whether their classes are known."""

    def __init__(self, x: Tensor, labels: Tensor | None) -> None:
        self.x, self.conditional = x, labels is not None

    def sample(self, n: int, *, labels: object = None, generator: object = None) -> Tensor:
        """The first ``n``, uint8 [n C H W]."""
        return self.x[:n]


def score_pictures(given: Mapping[str, str], words: Sequence[str], config_dirs: Sequence[Path]) -> dict[str, Any]:
    """Scores and protocol of images made elsewhere against a data set, or against another folder of images."""
    from gentrain.compose import compose
    from gentrain.config import build
    from gentrain.data.given import pictures
    from gentrain.engine.restore import device_called
    from gentrain.engine.session import Scoring
    from gentrain.evaluation.protocol import evaluate, require
    from gentrain.evaluation.reference import FeatureCache
    from gentrain.evaluation.subject import Subject

    if given["reference"]:
        words = [*_of_folder(given["reference"], words), *words]
    elif not any(word.startswith("data=") for word in words):
        raise UserError("evaluate: samples= are held against data=NAME (gentrain list data) or reference=FOLDER")
    config = compose(words, config_dirs=config_dirs).config
    seed, limit = whole_number(given["seed"], "seed"), whole_number(given["n"], "n", least=2) if given["n"] else None
    data = build(config["data"], where="data")
    scoring = Scoring(**build(config["metrics"], where="metrics"))
    if given["reference"]:
        data = _whole(data)
    metrics = dict(scoring.scores if given["reference"] else scoring.all)  # one folder has no second split
    if not metrics:
        raise UserError("metrics=none: nothing would be scored; see gentrain list metrics")
    if not data.spec.is_image:
        raise UserError(f"data {data.name!r} are vectors: only images can be given as samples")
    made = pictures(
        Path(given["samples"]).expanduser(), data.spec, values=given["range"] or None, resize=given["resize"],
        limit=limit,
    )  # fmt: skip
    stand_in = Pictures(made.x, made.y)
    require(metrics, stand_in, data, n=len(made.x), key="samples")
    subject = Subject(
        data, stand_in, stand_in.sample, n=len(made.x), seed=seed, device=device_called(given["device"]), labels=made.y,
        cache=FeatureCache.on_disk(),
    )  # fmt: skip
    report = evaluate(metrics, subject, "given")
    protocol = report.protocol | {"made_elsewhere": made.facts}
    return {"samples": made.facts["path"], "scores": report.scores, "protocol": protocol}


def _of_folder(reference: str, words: Sequence[str]) -> list[str]:
    if any(word.startswith("data=") for word in words):
        raise UserError("evaluate: either data=NAME or reference=FOLDER")
    root = Path(reference).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"reference={reference}: no such folder; for a data set say data=NAME")
    if not any(word.startswith(("data.size=", "data.channels=")) for word in words):
        raise UserError(
            f"reference={reference}: say which size and channels are compared, e.g. data.size=32 data.channels=3 "
            "data.resize=none"
        )
    quoted = str(root).replace("\\", "\\\\").replace("'", "\\'")
    return ["data=folder", f"data.root='{quoted}'"]


def _whole(data: DataSet) -> DataSet:
    """Both splits are all of the images: which of them is the reference does not matter then."""
    from gentrain.data.dataset import BothRows, Split, content_hash

    y = None
    if data.train.y is not None and data.test.y is not None:
        import torch

        y = torch.cat([data.train.y, data.test.y])
    both = Split(BothRows(data.train.x, data.test.x), y)
    return replace(data, train=both, test=both, fingerprint=content_hash([data.fingerprint, "both splits"]))
