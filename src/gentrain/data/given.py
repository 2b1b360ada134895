"""Pictures made by any tool, as samples to be scored: a folder of image files, or an array file.

The traps of other people's arrays are range and layout: floats in [-1, 1] taken for [0, 1] move every score and look
like a result. So bytes are taken as they are, for all else the range must be said, and what does not fit what was said
is refused. Nothing is resized unless that is said too.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gentrain.data.dataset import FileRows, content_hash, spread
from gentrain.data.decode import Recipe, fitted, one_of, planes
from gentrain.data.files import BadFileError, FolderFiles, reason, shown
from gentrain.data.folder import class_of, listed
from gentrain.errors import UserError
from gentrain.types import Spec

RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
NAMES = ("arr_0", "samples", "images", "x")
"""Of the array in an .npz file, in this order; labels are ``arr_1``, ``labels`` or ``y``."""
LABELS = ("arr_1", "labels", "y")
LIMIT = 16 << 30
"""Bytes of an array, and half of the memory that is free: a small file can announce any size."""
OVERVIEW = "grid.png"
"""What ``gentrain sample`` puts beside its files: no sample."""
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Given:
    """``x``: uint8 [N C H W]. ``y``: int64 [N], or None where no labels came or their classes are not the data's.
    ``facts``: for the protocol: where from, how many, a fingerprint of the pixels, what was done to them."""

    x: Tensor
    y: Tensor | None
    facts: dict[str, Any]


def pictures(
    place: Path, spec: Spec, *, values: str | None = None, resize: str = "none", limit: int | None = None
) -> Given:
    """What lies at ``place``, made to fit ``spec``.

    A folder: image files but for ``grid.png``; sub-folders are classes. A file: ``.npy``, or ``.npz`` with one of
    ``NAMES``, of shape [N H W C], [N C H W] or, for grey, [N H W]; uint8, or another type whose range ``values`` (a key
    of ``RANGES``) says. ``resize``: none, crop or stretch (``gentrain.data.decode``). ``limit``: so many of them,
    spread over them all.
    Raises UserError for whatever does not fit.
    """
    if values is not None:
        one_of("range", values, tuple(RANGES))
    recipe = Recipe(spec.size, spec.channels, resize)
    if place.is_dir():
        x, labels, files = _folder(place, spec, recipe, limit)
        lossy = sum(name.lower().endswith(LOSSY) for name in files)
    elif place.suffix in (".npz", ".npy"):
        x, labels = _array(place, spec, recipe, values, limit)
        lossy = 0
    elif place.exists():
        raise UserError(f"samples={shown(place)}: a folder of images, .npz or .npy is needed; pickles are not opened")
    else:
        raise UserError(f"samples={shown(place)}: no such folder or file")
    facts = {
        "path": str(place.absolute()),
        "count": len(x),
        "fingerprint": content_hash([x, labels]),
        "resize": "none" if resize == "none" else f"{resize} {recipe.resample}",
        "lossy_files": lossy,
    }
    return Given(x, labels, facts)


def _folder(place: Path, spec: Spec, recipe: Recipe, limit: int | None) -> tuple[Tensor, Tensor | None, Sequence[str]]:
    names = [name for name in listed(place, "samples") if name != OVERVIEW]
    if not names:
        raise UserError(f"samples={shown(place)}: nothing in it but {OVERVIEW}")
    names = [names[i] for i in spread(len(names), limit).tolist()]
    rows = FileRows(FolderFiles(place, names), recipe)
    try:
        x = rows.take(torch.arange(len(names)))
    except BadFileError as error:
        error.rows = (rows,)
        raise
    except UserError as error:
        raise UserError(str(error).replace("set resize=", "say resize=")) from error
    number = {name: label for label, name in enumerate(spec.class_names)}
    classes = [class_of(name) for name in names]
    known = bool(number) and all(name in number for name in classes)
    return x, torch.tensor([number[name] for name in classes]) if known else None, names


def _array(
    place: Path, spec: Spec, recipe: Recipe, values: str | None, limit: int | None
) -> tuple[Tensor, Tensor | None]:
    try:
        found, labels = _load_npz(place) if place.suffix == ".npz" else (_load_npy(place), None)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError, NotImplementedError) as error:
        said = "it holds pickled objects, which are not opened" if "pickle" in str(error) else reason(error)
        raise UserError(f"samples={shown(place)}: cannot be read ({said})") from error
    if found.ndim < 3 or len(found) == 0:
        raise UserError(f"samples={shown(place)}: shape {found.shape}; [N H W C], [N C H W] or [N H W] is needed")
    y = None
    if labels is not None:
        y = _labels(labels, len(found), spec, place)
    index = spread(len(found), limit)
    found, y = found[index.numpy()], None if y is None else y[index]
    return torch.from_numpy(_fit(_planes(_bytes(found, values, place), spec, place), spec, recipe, place)), y


def _load_npy(place: Path) -> NDArray[Any]:
    with place.open("rb") as file:
        _refuse_huge(file, place)
    loaded: NDArray[Any] = np.load(place, allow_pickle=False)
    return loaded


def _load_npz(place: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    with zipfile.ZipFile(place) as archive:
        there = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        images = next((name for name in NAMES if name in there), None)
        if images is None:
            raise UserError(f"samples={shown(place)}: no array called {', '.join(NAMES)} (there are: {sorted(there)})")
        labels = next((name for name in LABELS if name in there), None)
        for name in (images, labels):
            if name is not None:
                with archive.open(f"{name}.npy") as file:
                    _refuse_huge(file, place)
    with np.load(place, allow_pickle=False) as arrays:
        return arrays[images], None if labels is None else arrays[labels]


def _refuse_huge(file: IO[bytes], place: Path) -> None:
    """By the array's header alone."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.hasobject:
        raise UserError(f"samples={shown(place)}: it holds pickled objects, which are not opened")
    size = math.prod(shape) * kind.itemsize
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else LIMIT
    if size > min(LIMIT, free):
        raise UserError(
            f"samples={shown(place)}: an array of {size / 1e9:,.1f} GB, the limit is {min(LIMIT, free) / 1e9:,.1f} GB; "
            "cut it into several, or give a folder of images"
        )


def _bytes(x: NDArray[Any], values: str | None, place: Path) -> NDArray[np.uint8]:
    """uint8 0..255. UserError unless the range is known and holds all values."""
    if x.dtype == np.uint8:
        if values not in (None, "0..255"):
            raise UserError(f"range={values}: {shown(place)} holds bytes, which are 0..255")
        return x
    if x.dtype.kind not in "fiu":
        raise UserError(f"samples={shown(place)}: type {x.dtype}; uint8 or numbers with range= are needed")
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"samples={shown(place)}: it holds nan or inf")
    if values is None:
        raise UserError(
            f"samples={shown(place)}: values of type {x.dtype} from {low:.4g} to {high:.4g}: say what black and white "
            f"are with range={'|'.join(RANGES)}"
        )
    black, white = RANGES[values]
    if low < black or high > white:
        raise UserError(f"range={values}: the values of {shown(place)} go from {low:.4g} to {high:.4g}")
    if (black < 0 <= low) or (white > 1 >= high):  # it would pass, as pictures without their darker or brighter half
        raise UserError(
            f"range={values}: the values of {shown(place)} go from {low:.4g} to {high:.4g} only, which looks like 0..1"
        )
    scaled = (x.astype(np.float64) - black) * (255.0 / (white - black))
    return np.rint(scaled).astype(np.uint8)


def _planes(x: NDArray[np.uint8], spec: Spec, place: Path) -> NDArray[np.uint8]:
    """[N C H W]. The axis of 1 or 3 is that of the channels."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        return x
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    raise UserError(f"samples={shown(place)}: shape {x.shape}; [N H W C] or [N C H W] with 1 or 3 channels is needed")


def _fit(x: NDArray[np.uint8], spec: Spec, recipe: Recipe, place: Path) -> NDArray[np.uint8]:
    if x.shape[1:] == tuple(spec.shape):
        return x
    if x.shape[2:] != tuple(spec.shape[1:]) and recipe.resize == "none":
        raise UserError(
            f"samples={shown(place)}: {x.shape[3]}x{x.shape[2]} pixels, the data have {spec.size}x{spec.size}: say "
            "resize=crop or resize=stretch (antialiased), or choose data.size="
        )
    made = []
    for one in x:
        picture = Image.fromarray(one[0] if len(one) == 1 else np.ascontiguousarray(one.transpose(1, 2, 0)))
        made.append(planes(fitted(picture.convert("L" if spec.channels == 1 else "RGB"), shown(place), recipe)))
    return np.stack(made)


def _labels(labels: NDArray[Any], count: int, spec: Spec, place: Path) -> Tensor | None:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"samples={shown(place)}: labels of shape {labels.shape} and type {labels.dtype}; one whole "
            f"number for each of {count} images is needed"
        )
    if not spec.classes:
        return None
    if labels.min() < 0 or labels.max() >= spec.classes:
        raise UserError(
            f"samples={shown(place)}: labels from {labels.min()} to {labels.max()}, the data have classes 0 to "
            f"{spec.classes - 1}"
        )
    return torch.from_numpy(labels.astype(np.int64))
