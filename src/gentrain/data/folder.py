"""Any folder of images: the user's own data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gentrain.data.cache import Storage, splits
from gentrain.data.dataset import DataSet, Split, content_hash
from gentrain.data.decode import SUFFIXES, Recipe, check_size
from gentrain.data.files import FolderFiles, reason, shown
from gentrain.data.leave_out import leaving_out
from gentrain.errors import UserError
from gentrain.types import PathText, Spec


def folder(
    root: PathText,
    size: int = 64,
    channels: int = 3,
    resize: str = "crop",
    resample: str = "bicubic",
    test_fraction: float = 0.1,
    in_memory_bytes: int = 1 << 30,
    cache: bool = True,
    cache_dir: PathText | None = None,
    leave_out: Sequence[str | int] = (),
) -> DataSet:
    """Every image below ``root``. Sub-folders, where there are any, are the classes.

    With both ``root``/train and ``root``/test those are the splits. Otherwise a hash of each file's relative path
    decides, so that new files move no old one to the other side. With ``resize`` "none" every image must have ``size``.
    Raises UserError naming the path for a folder or file that cannot be used.
    """
    check_size(size, native=size if resize == "none" and 1 <= size <= 128 else None)
    recipe = Recipe(size, channels, resize, resample)
    storage = Storage(in_memory_bytes, cache, cache_dir)
    home = Path(root).expanduser()
    if (home / "train").is_dir() and (home / "test").is_dir():
        parts = [(home / "train", _listed(home / "train")), (home / "test", _listed(home / "test"))]
    else:
        parts = [(home, names) for names in _divided(home, test_fraction)]
    classes = tuple(sorted({class_of(name) for name in parts[0][1]} - {""}))
    labels = [_labels(place, names, classes) for place, names in parts]
    titles = (f"{home.name}-train", f"{home.name}-test")
    files = [FolderFiles(place, names) for place, names in parts]
    (train, mark), (test, other_mark) = splits(list(zip(titles, files, strict=True)), recipe, storage)
    spec = Spec((channels, size, size), class_names=classes)
    fingerprint = content_hash([mark, labels[0], other_mark, labels[1], recipe.key])
    data = DataSet(f"folder:{home.name}", spec, Split(train, labels[0]), Split(test, labels[1]), fingerprint)
    return leaving_out(data, leave_out)


def _listed(home: Path) -> list[str]:
    """Relative paths of all images, sorted. Raises UserError if there are none, or only some lie in class folders."""
    if not home.is_dir():
        raise UserError(f"{shown(home)}: no such folder; set data.root to a folder of images")
    names = sorted(walk(home), key=os.fsencode)
    if not names:
        raise UserError(f"{shown(home)}: no images in it; known endings are {' '.join(SUFFIXES)}")
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        raise UserError(
            f"{shown(home / loose[0])} lies beside class folders ({len(loose)} of {len(names)} images do); move it "
            "into one, or elsewhere"
        )
    return names


def walk(home: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
    """Relative paths of the files below ``home`` that end so, hidden ones left out. Follows links to folders, but
    enters none twice: a link to a parent would never end. Raises UserError for a folder that cannot be read."""
    waiting, seen = [""], set[tuple[int, int]]()
    while waiting:
        below = waiting.pop()
        try:
            here = (home / below).stat()
            entries = sorted(os.scandir(home / below), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise UserError(f"{shown(home / below)}: cannot be read ({reason(error)})") from error
        if (here.st_dev, here.st_ino) in seen:
            continue
        seen.add((here.st_dev, here.st_ino))
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        folders = [entry.name for entry in entries if _is_folder(entry)]
        waiting += [f"{below}{name}/" for name in reversed(folders)]
        for name in {entry.name for entry in entries} - set(folders):
            if name.lower().endswith(suffixes):
                yield below + name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; whoever reads it says so
        return False


def _divided(home: Path, test_fraction: float) -> tuple[list[str], list[str]]:
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction={test_fraction} must lie between 0 and 1")
    names = _listed(home)
    held_out = [_position(name) < test_fraction for name in names]
    train = [name for name, held in zip(names, held_out, strict=True) if not held]
    test = [name for name, held in zip(names, held_out, strict=True) if held]
    if not train or not test:
        empty = "test" if train else "train"
        raise UserError(
            f"{shown(home)}: the {empty} split is empty with {len(names)} images and test_fraction={test_fraction}; "
            "change it, or make folders train and test"
        )
    return train, test


def _position(name: str) -> float:
    """In [0, 1), uniform over names."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / (1 << 48)


def class_of(name: str) -> str:
    """The first sub-folder of a relative path, or nothing."""
    return name.split("/", 1)[0] if "/" in name else ""


def _labels(place: Path, names: list[str], classes: tuple[str, ...]) -> torch.Tensor | None:
    """int64 [N], or None where there are no sub-folders. Raises UserError for a class that the training split lacks."""
    number = {name: label for label, name in enumerate(classes or ("",))}
    for name in names:
        if class_of(name) not in number:
            raise UserError(
                f"{shown(place / name)}: its class is not among the training images' {len(classes)} classes"
            )
    return torch.tensor([number[class_of(name)] for name in names]) if classes else None
