"""Pictures that any other tool has made: a folder of image files, or NumPy's arrays, as uint8 [N C H W].

Nothing is guessed that would move a score: one size, one number of channels and one range hold for all, and a change of
size or channels is made where it is said. What was found and what was done is kept beside the pixels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentrain.data import array_files, pool
from gentrain.data.dataset import BothRows, DataSet, Rows, Split, TensorRows, content_hash, spread
from gentrain.data.decode import SUFFIXES, Look, look
from gentrain.data.files import BadFileError, FolderFiles, shown
from gentrain.data.fit import Said, check_bytes, fit
from gentrain.data.folder import class_of, walk
from gentrain.data.given_arrays import read_arrays
from gentrain.data.levels import Levels
from gentrain.errors import UserError
from gentrain.types import Spec

NAMED = 3
"""Bad files that a message names; the others are counted."""
LOSSY = ("JPEG", "WEBP")
SPLITS = ("train", "test")
OVERVIEW = "grid.png"
"""What ``gentrain sample`` puts beside its pictures: all of them on one sheet."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """``x``: uint8 [N C H W]. ``y``: int64 [N], places in ``classes``, or numbers of classes where there are no names,
    or None. ``facts``: where they come from and what was done to them, for the protocol; plain types."""

    x: Tensor
    y: Tensor | None
    classes: tuple[str, ...]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.x)

    def labels(self, spec: Spec) -> Tensor | None:
        """int64 [N] in the data's numbering; None without labels, or if some are no classes of the data."""
        if self.y is None:
            return None
        if self.classes:
            number = {name: place for place, name in enumerate(spec.class_names)}
            if not number.keys() >= set(self.classes):
                return None
            return torch.tensor([number[name] for name in self.classes])[self.y]
        return self.y if int(self.y.min()) >= 0 and int(self.y.max()) < spec.classes else None


def read(place: Path, said: Said, key: str, shape: tuple[int, ...] | None = None, *, single: bool = False) -> Pictures:
    """The pictures at ``place``: a folder of image files (its sub-folders are classes), a folder of ``.npz`` or
    ``.npy`` files, or one such file; with ``single`` one image file too. ``shape``: [C S S] they are held against;
    None: they stay as they are.

    Raises UserError that begins with ``key`` or a path, before much is read wherever the heads of files tell.
    """
    home = place.expanduser()
    if home.is_dir():
        images, arrays = _sorted_out(home, key)
    elif single and home.is_file() and home.suffix.lower() in SUFFIXES:
        home, images, arrays = home.parent, [home.name], []
    elif home.exists():
        images, arrays = [], [home]
        if home.suffix.lower() not in array_files.SUFFIXES:
            raise UserError(f"{key}={shown(place)}: {_why_not(home.name)}")
    else:
        raise UserError(f"{key}={shown(place)}: there is no such folder or file")
    said_facts = {"path": str(place.expanduser().absolute()), "files": len(images) or len(arrays)}
    if arrays:
        x, y, facts = read_arrays(arrays, said, shape, key)
        classes: tuple[str, ...] = ()
    else:
        x, y, classes, facts = _images(home, images, said, shape, key)
    levels = f"{int(x.min())}..{int(x.max())}"
    return Pictures(x, y, classes, said_facts | facts | {"levels": levels, "fingerprint": content_hash([x])})


def _sorted_out(home: Path, key: str) -> tuple[list[str], list[Path]]:
    """Relative paths of image files, or paths of arrays. Raises UserError for a folder of both or of neither."""
    every = sorted(walk(home, ("",)), key=_counted_up)
    images = [name for name in every if name.lower().endswith(SUFFIXES)]
    arrays = [home / name for name in every if name.lower().endswith(array_files.SUFFIXES)]
    if images and arrays:
        raise UserError(
            f"{key}={shown(home)}: {len(images)} image files and {len(arrays)} arrays; which are meant? Move the others"
        )
    if not images and not arrays:
        pickled = [name for name in every if name.lower().endswith(array_files.PICKLES)]
        why = f"{shown(pickled[0])}: {_why_not(pickled[0])}" if pickled else f"no pictures in it; {_why_not('')}"
        raise UserError(f"{key}={shown(home)}: {why}")
    return images, arrays


def _counted_up(name: str) -> tuple[list[tuple[int, bytes]], bytes]:
    """2.png before 10.png: the order of the array that they would have been, on which random subsets depend."""
    parts = re.split(rb"([0-9]+)", whole_name := os.fsencode(name))
    numbers = [(int(part), b"") if place % 2 and len(part) < 20 else (-1, part) for place, part in enumerate(parts)]
    return numbers, whole_name


def _why_not(name: str) -> str:
    if name.lower().endswith(array_files.PICKLES):
        return "a pickle can run code and is not opened; save uint8 [N H W C] with numpy.savez"
    return f"give a folder of images ({' '.join(SUFFIXES)}), or {' or '.join(array_files.SUFFIXES)} files"


def _images(
    home: Path, names: Sequence[str], said: Said, shape: tuple[int, ...] | None, key: str
) -> tuple[Tensor, Tensor | None, tuple[str, ...], dict[str, Any]]:
    overview = {"left_out": OVERVIEW} if OVERVIEW in names and len(names) > 1 else {}
    names = [name for name in names if name != OVERVIEW or not overview]
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        raise UserError(
            f"{shown(home / loose[0])} lies beside class folders ({len(loose)} of {len(names)} images do); give one of "
            f"them as {key}=, or move it"
        )
    if said.range not in (None, "0..255"):
        raise UserError(f"range={said.range}: image files are bytes in 0..255; a range is for arrays")
    chosen = [names[place] for place in chosen_places(len(names), said.n).tolist()]
    files = FolderFiles(home, chosen)
    looks = _looks(files, key)
    size = _one_size(files, looks, key)
    done = fit(size, {each.grey for each in looks}, said, shape, key)
    check_bytes(len(chosen), done.recipe, key)
    levels = Levels(np.dtype(np.uint8), said.range, f"{key}={shown(home)}")
    try:
        blocks = [
            torch.from_numpy(levels.bytes_of(done.kept(block, levels.where)))
            for block in pool.over(pool.pixels, files, done.recipe)
        ]
    except BadFileError as error:
        complaints = [line for some in pool.over(pool.complaints, files, done.recipe) for line in some]
        raise _bad(complaints or [str(error)], len(files), key) from error
    levels.finish()
    formats = Counter(each.format for each in looks)
    facts: dict[str, Any] = {"found": len(names), "count": len(chosen), "stored": _counted(formats), "range": "0..255"}
    facts |= {"resize": done.resize, "channels": done.channels} | overview
    lossy = sum(formats[name] for name in LOSSY)
    if lossy:
        facts["lossy"] = f"{lossy} of {len(chosen)} files are JPEG or WebP: compression moves every distance"
    classes = tuple(sorted({class_of(name) for name in chosen} - {""}))
    y = torch.tensor([classes.index(class_of(name)) for name in chosen]) if classes else None
    return torch.cat(blocks), y, classes, facts


def chosen_places(found: int, n: int | None) -> Tensor:
    """int64: all of ``found`` places, or ``n`` spread evenly over them. Raises UserError if there are fewer."""
    if n is not None and n > found:
        raise UserError(f"n={n}: there are {found} pictures")
    return spread(found, n)


def _looks(files: FolderFiles, key: str) -> list[Look]:
    found, complaints = [], []
    for place in range(len(files)):
        try:
            found.append(look(files.read(place), files.where(place)))
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise _bad(complaints, len(files), key)
    return found


def _bad(complaints: Sequence[str], count: int, key: str) -> UserError:
    more = f"; and {len(complaints) - NAMED} more" if len(complaints) > NAMED else ""
    return UserError(f"{key}: {len(complaints)} of {count} files cannot be used: {'; '.join(complaints[:NAMED])}{more}")


def _one_size(files: FolderFiles, looks: Sequence[Look], key: str) -> tuple[int, int]:
    sizes = Counter(each.size for each in looks)
    (size, most), *others = sizes.most_common()
    if others:
        odd = next(place for place, each in enumerate(looks) if each.size != size)
        width, height = looks[odd].size
        raise UserError(
            f"{key}: {files.where(odd)} has {width}x{height} pixels, {most} of {len(looks)} files have "
            f"{size[0]}x{size[1]}: pictures of one size are needed; move it elsewhere (photographs of many sizes are "
            "data=folder)"
        )
    return size


def _counted(formats: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(formats.items()))


class OneSetError(UserError):
    """A score that needs training and held-out images apart."""


@dataclass(frozen=True)
class _NoTraining:
    """Stands for the training images where there is one set of pictures to hold others against."""

    count: int
    name: str

    def __len__(self) -> int:
        return self.count

    def take(self, index: Tensor) -> Tensor:
        raise OneSetError(
            f"reference={self.name} is one set of pictures, and a score asks for training and held-out images apart: "
            "leave that metric out (~metrics....), or use data=folder data.root=... with folders train and test"
        )


@dataclass(frozen=True, eq=False)
class OneSet(DataSet):
    """A data set whose test split is all there is. Asking for its training images raises OneSetError."""

    def __post_init__(self) -> None:
        """The pictures were looked at when they were read."""


def one_set(pictures: Pictures, place: Path) -> OneSet:
    """The pictures as what others are held against, with their own classes."""
    y, classes = pictures.y, pictures.classes
    if y is not None and not classes:
        classes = tuple(str(number) for number in range(int(y.max()) + 1)) if int(y.min()) >= 0 else ()
        y = y if classes else None
    name = place.expanduser().absolute().name
    train: Rows = _NoTraining(len(pictures), shown(name))
    spec = Spec(tuple(pictures.x.shape[1:]), class_names=classes)
    fingerprint = content_hash([pictures.x, repr(classes), y])
    return OneSet(f"folder:{name}", spec, Split(train, y), Split(TensorRows(pictures.x), y), fingerprint)


def whole(data: DataSet) -> OneSet:
    """Both splits of a data set as one set."""
    train, test = data.train, data.test
    y = torch.cat([train.y, test.y]) if train.y is not None and test.y is not None else None
    both = Split(BothRows(train.x, test.x), y)
    absent: Rows = _NoTraining(len(both), data.name.removeprefix("folder:"))
    fingerprint = content_hash([data.fingerprint, "both splits"])
    return OneSet(data.name, data.spec, Split(absent, y), both, fingerprint)


def refuse_splits(place: Path) -> None:
    """Raise UserError for a folder with train and test in it: as one set the two would be mixed."""
    if all((place.expanduser() / name).is_dir() for name in SPLITS):
        raise UserError(
            f"reference={shown(place)}: it holds folders train and test; name one of them, or use data=folder "
            f"data.root={shown(place)} data.size=..."
        )
