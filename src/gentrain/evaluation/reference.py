"""What is known of real images is kept: their features, and the Gaussian fitted to them, in memory and on disk.

A file on disk says in its header which images, extractor and versions it was made with, and the hash of its content.
It is used only if all of that is what is asked for now; otherwise the numbers are computed again and one line says why.
So a cache can make an evaluation quicker and cannot change it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gentrain.data.cache import Storage, sweep
from gentrain.data.dataset import content_hash, spread
from gentrain.data.files import flushed, locked, reason, shown
from gentrain.disk import sync_folder
from gentrain.errors import UserError, one_line
from gentrain.evaluation.extractors import Extractor, ExtractorSource, Features
from gentrain.evaluation.gaussian import Gaussian

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet, Split

BLOCK = 2048
"""Reference images in memory at a time."""

FORMAT = 1
"""Of the files, and of how their numbers are computed: one more whenever either changes."""

CONTENT = "content"
NAMING = ("kind", "data", "shape", "split", "count", "extractor", "device")
"""The fields that decide a file's name. One that differs in another field has been overtaken, and is written over."""

Fields = dict[str, str]
Tensors = dict[str, Tensor]


def split_of(data: DataSet, name: str) -> Split:
    """The split called train or test; UserError for another name."""
    splits = {"train": data.train, "test": data.test}
    if name not in splits:
        raise UserError(f"metrics: split={name!r} is neither train nor test")
    return splits[name]


def counted(data: DataSet, split: str, *limits: int | None) -> int:
    """Samples of a split, or the least of the ``limits`` that are not None where that is less."""
    return min(n for n in (len(split_of(data, split)), *limits) if n is not None)


class FeatureCache:
    """Loaded extractors, and features and Gaussians of real images; hand one to all Subjects of a run and real images
    pass once. With a ``folder`` they pass once for all runs that share it. Two processes may use one folder, and one
    that cannot be written to only costs the time."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._extractors: dict[tuple[ExtractorSource, str, str], Extractor] = {}
        self._features: dict[tuple[str, ...], Features] = {}
        self._gaussians: dict[tuple[str, ...], Gaussian] = {}

    @classmethod
    def on_disk(cls) -> FeatureCache:
        """In the cache folder ($GENTRAIN_CACHE, else $XDG_CACHE_HOME/gentrain, else ~/.cache/gentrain)/statistics."""
        return cls(Storage().folder / "statistics")

    def extractor(self, source: ExtractorSource, data: DataSet, device: torch.device | str) -> Extractor:
        key = (source, data.name, str(device))
        if key not in self._extractors:
            self._extractors[key] = source.load(data, device)
        return self._extractors[key]

    def reference(
        self, extractor: Extractor, data: DataSet, split: str, count: int, device: torch.device | str = "cpu"
    ) -> Features:
        """Features of ``count`` images spread over a split, computed on ``device``."""
        fields = describe("features", extractor, data, split, count, device)
        key = tuple(fields.values())
        if key not in self._features:
            kept = self._kept(fields, lambda: _extract(extractor, data, split, count))
            self._features[key] = Features(kept["features"], kept.get("logits"))
        return self._features[key]

    def gaussian(
        self, extractor: Extractor, data: DataSet, split: str, count: int, device: torch.device | str = "cpu"
    ) -> Gaussian:
        """Of those features, with its factor. From disk it comes without them."""
        fields = describe("gaussian", extractor, data, split, count, device)
        key = tuple(fields.values())
        if key not in self._gaussians:

            def fit() -> Tensors:
                fitted = Gaussian.of(self.reference(extractor, data, split, count, device).features, "reference")
                return {"mean": fitted.mean, "covariance": fitted.covariance, "factor": fitted.factor.contiguous()}

            kept = self._kept(fields, fit)
            self._gaussians[key] = Gaussian(kept["mean"], kept["covariance"], count).with_factor(kept["factor"])
        return self._gaussians[key]

    def has(self, extractor: Extractor, data: DataSet, split: str, count: int, device: torch.device | str) -> bool:
        """Whether ``reference`` would not have to compute: features are in memory, or a file of their name is there."""
        fields = describe("features", extractor, data, split, count, device)
        there = self.folder is not None and _there(self.folder / file_name(fields))
        return there or tuple(fields.values()) in self._features

    def _kept(self, fields: Fields, compute: Callable[[], Tensors]) -> Tensors:
        if self.folder is None:
            return compute()
        path = self.folder / file_name(fields)
        found = read(path, fields)
        if found is None:
            found = compute()
            write(path, found, fields)
        return found


def describe(
    kind: str, extractor: Extractor, data: DataSet, split: str, count: int, device: torch.device | str
) -> Fields:
    """All that decides the numbers. ``resize`` is the extractor's own word on how it changes sizes, where it has one;
    every extractor takes 8 bits."""
    return {
        "format": str(FORMAT),
        "kind": kind,
        "data": data.name,
        "fingerprint": data.fingerprint,
        "shape": "x".join(map(str, data.spec.shape)),
        "split": split,
        "count": str(count),
        "extractor": extractor.name,
        "sha256": extractor.sha256,
        "features": str(extractor.num_features),
        "resize": str(getattr(extractor, "resize", "none")),
        "bits": "8",
        "device": torch.device(device).type,
        "torch": str(torch.__version__),
    }


def file_name(fields: Fields) -> str:
    """Readable, and one for each combination of the ``NAMING`` fields."""
    key = hashlib.sha256(repr([fields[name] for name in NAMING]).encode()).hexdigest()[:16]
    said = "-".join(fields[name] for name in ("kind", "extractor", "data", "split", "count"))
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', said)[:120]}-{key}.safetensors"


def read(path: Path, fields: Fields) -> Tensors | None:
    """The tensors of a file whose fields are these and whose content is whole; None, and a line on stderr unless there
    simply is none, for any other."""
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            differing = [name for name in fields if header.get(name) != fields[name]]
            if differing:
                _refused(path, "; ".join(_difference(name, header, fields) for name in differing))
                return None
            # Copies: what is checked here must be what is used later, whatever becomes of the file.
            found: Tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        if _there(path):  # otherwise another process has taken it away since
            _refused(path, f"cannot be read ({reason(error)})")
        return None
    if header.get(CONTENT) != _hash(found):
        _refused(path, "damaged: the content is not what was written")
        return None
    return found


def write(path: Path, tensors: Tensors, fields: Fields) -> None:
    """Whole or not at all. Where that fails one line says so, and nothing else happens."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with locked(path.with_name(f".{path.name}.lock"), wait=False) as free:
            if not free:
                return  # another process is at it, and writes the same
            try:
                save_file(tensors, part, {**fields, CONTENT: _hash(tensors)})
                with part.open("r+b") as handle:
                    flushed(handle)
                part.replace(path)
                sync_folder(path.parent)
            finally:
                part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        _say(f"reference statistics are not kept in {shown(path.parent)} ({reason(error)}): the next run computes them")


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # there, and not for us
        return True


def _extract(extractor: Extractor, data: DataSet, split: str, count: int) -> Tensors:
    rows = split_of(data, split)
    parts = [extractor(rows.take(index).x) for index in torch.split(spread(len(rows), count), BLOCK)]
    found = {"features": torch.cat([part.features for part in parts])}
    logits = [part.logits for part in parts if part.logits is not None]
    return found | {"logits": torch.cat(logits)} if logits else found


def _hash(tensors: Tensors) -> str:
    return content_hash(part for name in sorted(tensors) for part in (name, tensors[name]))


def _difference(name: str, header: Fields, fields: Fields) -> str:
    return f"{name} is {header.get(name, 'missing')!r}, wanted {fields[name]!r}"


def _refused(path: Path, why: str) -> None:
    _say(f"reference statistics {shown(path)}: {why}; they are computed again")


def _say(text: str) -> None:
    print(f"gentrain: {one_line(text)}", file=sys.stderr)
