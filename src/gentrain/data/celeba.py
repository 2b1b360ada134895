"""CelebA, aligned and cropped (Liu et al., arXiv 1411.7766): 202,599 faces of 178x218 pixels with 40 attributes.

Its licence asks everyone to fetch it by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gentrain.data.cache import Storage, splits
from gentrain.data.dataset import DataSet, Split, content_hash
from gentrain.data.decode import Recipe, check_size
from gentrain.data.files import Files, FolderFiles, ZipFiles, open_zip, read_bytes, shown
from gentrain.errors import UserError
from gentrain.types import PathText, Spec

_ATTRIBUTES, _PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
_IMAGES = "img_align_celeba"
_NATIVE = (178, 218)
_TRAIN, _TEST = 0, 2  # the official partition; 1 is validation


def celeba(
    root: PathText,
    size: int = 64,
    channels: int = 3,
    crop: int | None = 140,
    resample: str = "bicubic",
    in_memory_bytes: int = 1 << 30,
    cache: bool = True,
    cache_dir: PathText | None = None,
) -> DataSet:
    """Official partition; y is uint8 [N 40], 1 where the list has 1 and 0 where it has -1.

    ``crop``: side of the central square that is cut before resizing; 140 is the close crop of the WAE papers, null
    takes the full width. FID depends on it. Looked for in ``root``/celeba, ``root``/CelebA and ``root`` itself.
    Raises UserError naming the files to get by hand.
    """
    check_size(size)
    recipe = Recipe(size, channels, "crop", resample, crop, expect=_NATIVE)
    storage = Storage(in_memory_bytes, cache, cache_dir)
    home = _home(Path(root).expanduser())
    names, attributes, y = _attributes(_list_file(home, _ATTRIBUTES))
    partition = _partition(_list_file(home, _PARTITION), names)
    chosen = [np.flatnonzero(partition == part) for part in (_TRAIN, _TEST)]
    files = [_images(home, [names[place] for place in places]) for places in chosen]
    labels = [torch.from_numpy(y[places]) for places in chosen]
    titles = ("celeba-train", "celeba-test")
    (train, mark), (test, other_mark) = splits(list(zip(titles, files, strict=True)), recipe, storage)
    spec = Spec((channels, size, size), attribute_names=attributes)
    fingerprint = content_hash([mark, labels[0], other_mark, labels[1], recipe.key])
    return DataSet("celeba", spec, Split(train, labels[0]), Split(test, labels[1]), fingerprint)


def _home(root: Path) -> Path:
    for folder in (root / "celeba", root / "CelebA", root):
        if any((folder / sub / name).exists() for sub in (".", "Img") for name in (_IMAGES, f"{_IMAGES}.zip")):
            return folder
    raise UserError(
        f"CelebA not found under {shown(root)}; get {_IMAGES}.zip, {_ATTRIBUTES} and {_PARTITION} by hand from "
        f"https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and put them into {shown(root / 'celeba')}"
    )


def _list_file(home: Path, name: str) -> Path:
    for sub in (".", "Anno", "Eval"):
        if (home / sub / name).is_file():
            return home / sub / name
    raise UserError(f"{shown(home)} lacks {name}; get it by hand where {_IMAGES} came from and put it there")


def _lines(path: Path) -> list[str]:
    return read_bytes(path).decode("utf-8", "replace").rstrip().splitlines()


def _attributes(path: Path) -> tuple[list[str], tuple[str, ...], NDArray[np.uint8]]:
    """File names, attribute names, uint8 [N A]. Layout: a count, the names, then ``000001.jpg -1 1 ...``."""
    lines = _lines(path)
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        raise UserError(f"{shown(path)}: line 1 should be the number of images; get the file again")
    attributes = tuple(lines[1].split())
    names: list[str] = []
    y = np.empty((len(lines) - 2, len(attributes)), dtype=np.uint8)
    for place, line in enumerate(lines[2:]):
        name, *values = line.split() or [""]
        if len(values) != len(attributes) or not {"1", "-1"}.issuperset(values):
            wanted = f"a name and {len(attributes)} values of 1 or -1"
            raise UserError(f"{shown(path)}: line {place + 3} is not {wanted}; get the file again")
        names.append(name)
        y[place] = [value == "1" for value in values]
    if str(len(names)) != lines[0].strip():
        raise UserError(f"{shown(path)}: {len(names)} images where line 1 announces {lines[0].strip()}; get it again")
    if len(set(names)) != len(names):
        raise UserError(f"{shown(path)}: {len(names) - len(set(names))} images stand in it twice; get it again")
    return names, attributes, y


def _partition(path: Path, names: list[str]) -> NDArray[np.uint8]:
    """uint8 [N]: 0 train, 1 validation, 2 test, in the order of ``names``."""
    parts: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise UserError(f"{shown(path)}: line {number} is not a name and 0, 1 or 2; get the file again")
        parts[fields[0]] = int(fields[1])
    missing = [name for name in names if name not in parts]
    if missing:
        raise UserError(f"{shown(path)}: {len(missing)} images have no line, the first is {missing[0]}; get it again")
    unknown = sorted(parts.keys() - set(names))
    if unknown:
        raise UserError(
            f"{shown(path)}: {len(unknown)} of its images are not in {_ATTRIBUTES}, the first is {unknown[0]}; the two "
            "lists do not belong together"
        )
    return np.array([parts[name] for name in names], dtype=np.uint8)


def _images(home: Path, names: list[str]) -> Files:
    """The images of one split, from the folder if there is one, else from the zip. Raises UserError if one lacks."""
    for sub in (home, home / "Img"):
        folder, archive = sub / _IMAGES, sub / f"{_IMAGES}.zip"
        if folder.is_dir():
            nested = folder / _IMAGES  # as one popular repackaging has it
            folder = nested if nested.is_dir() else folder
            _demand(names, {path.name for path in folder.iterdir()}, folder)
            return FolderFiles(folder, names)
        if archive.is_file():
            with open_zip(archive) as members:
                _demand([f"{_IMAGES}/{name}" for name in names], set(members.namelist()), archive)
            return ZipFiles(archive, [f"{_IMAGES}/{name}" for name in names])
    raise UserError(f"{shown(home)} lacks {_IMAGES}; get {_IMAGES}.zip by hand and put it there")


def _demand(names: list[str], present: set[str], place: Path) -> None:
    missing = [name for name in names if name not in present]
    if missing:
        raise UserError(
            f"{shown(place)} lacks {len(missing)} of {len(names)} images, the first is {missing[0]}; get it again"
        )
