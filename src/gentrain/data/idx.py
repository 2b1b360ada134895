"""MNIST and Fashion-MNIST in their published IDX files, plain or gzipped.

MNIST: LeCun et al., 1998. Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv 1708.07747. Both: 60,000 training and 10,000 test
images, grey, 28x28, ten classes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gentrain.data.arrays import Pair, image_set
from gentrain.data.dataset import DataSet
from gentrain.data.files import download, page_hint, read_bytes, reason, shown
from gentrain.errors import UserError
from gentrain.types import PathText

_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SIDE = 28
_LIMIT = 256 << 20  # bytes, unpacked: five times the training images, for a packed file of 200 kB can hold as much


@dataclass(frozen=True)
class Publication:
    """Where a set is published, and how to know it."""

    title: str
    folders: tuple[str, ...]
    """Below the data root, most particular first."""
    urls: tuple[str, ...]
    md5: tuple[str, ...]
    """Of the published .gz files, in the order of their names."""
    labels_md5: str
    """Of the unpacked training labels."""
    system_folder: str | None = None
    advice: str = ""


MNIST = Publication(
    title="MNIST",
    folders=("MNIST/raw", "mnist", "MNIST", "."),
    urls=("https://ossci-datasets.s3.amazonaws.com/mnist/",),
    md5=(
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    labels_md5="a25bea736e30d166cdddb491f175f624",
)
FASHION_MNIST = Publication(
    title="Fashion-MNIST",
    folders=("FashionMNIST/raw", "fashion_mnist", "fashion-mnist", "."),
    urls=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    md5=(
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    labels_md5="9018921c3c673c538a1fc5bad174d6f9",
    system_folder="/usr/share/datasets/fashion-mnist",
    advice=", or `apt-get install dataset-fashion-mnist` on Debian",
)
_DIGITS = tuple(str(digit) for digit in range(10))
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def mnist(
    root: PathText,
    size: int = 28,
    channels: int = 1,
    resample: str = "bicubic",
    download: bool = True,
    leave_out: Sequence[str | int] = (),
) -> DataSet:
    """Looked for in ``root``/MNIST/raw, /mnist, /MNIST and ``root`` itself, else downloaded to ``root``/mnist."""
    train, test = _load(MNIST, root, download)
    return image_set(
        "mnist", _DIGITS, train, test, size=size, channels=channels, resample=resample, leave_out=leave_out
    )


def fashion_mnist(
    root: PathText,
    size: int = 28,
    channels: int = 1,
    resample: str = "bicubic",
    download: bool = True,
    leave_out: Sequence[str | int] = (),
) -> DataSet:
    """Looked for as MNIST is (FashionMNIST/raw, fashion_mnist), then where Debian's package puts it."""
    train, test = _load(FASHION_MNIST, root, download)
    return image_set(
        "fashion_mnist", _CLOTHES, train, test, size=size, channels=channels, resample=resample, leave_out=leave_out
    )


def _load(which: Publication, root: str, fetch: bool) -> tuple[Pair, Pair]:
    paths = _locate(which, Path(root).expanduser(), fetch)
    blobs = [_unpacked(path) for path in paths]
    seen = hashlib.md5(blobs[1], usedforsecurity=False).hexdigest()
    for other in (MNIST, FASHION_MNIST):  # the two share their file names
        if other is not which and seen == other.labels_md5:
            raise UserError(
                f"{shown(paths[1].parent)} holds {other.title}, not {which.title}; move it to its own folder"
            )
    arrays = [_parsed(blob, path) for blob, path in zip(blobs, paths, strict=True)]
    for place in (0, 2):
        _check_pair(arrays[place], arrays[place + 1], paths[place], paths[place + 1])
    return (arrays[0], arrays[1]), (arrays[2], arrays[3])


def _locate(which: Publication, root: Path, fetch: bool) -> list[Path]:
    """The four files, plain or .gz. Raises UserError that says which to put where."""
    folders = [root / name for name in which.folders]
    if which.system_folder is not None:
        folders.append(Path(which.system_folder))
    incomplete = ""
    for folder in folders:
        found = [_either(folder, name) for name in _NAMES]
        if all(found):
            return [path for path in found if path is not None]
        if any(found):
            missing = ", ".join(name for name, path in zip(_NAMES, found, strict=True) if path is None)
            incomplete = incomplete or f" ({shown(folder)} lacks {missing})"
    target = root / which.folders[1]
    failure = ""
    if fetch:
        try:
            for name, md5 in zip(_NAMES, which.md5, strict=True):
                download([f"{url}{name}.gz" for url in which.urls], target / f"{name}.gz", md5)
            return [target / f"{name}.gz" for name in _NAMES]
        except UserError as error:
            failure = f"; {error}"
    raise UserError(
        f"{which.title} not found under {shown(root)}{incomplete}{failure}; put {', '.join(_NAMES)} (or their .gz) "
        f"into {shown(target)}{which.advice}"
    )


def _either(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # as some mirrors spell it
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def _unpacked(path: Path) -> bytes:
    blob = read_bytes(path, _LIMIT)
    if path.suffix != ".gz":
        return blob
    if not blob:  # which gzip takes for nothing, well packed
        raise UserError(f"{shown(path)}: empty file; get it again")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(blob)) as packed:
            content = packed.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise UserError(f"{shown(path)}: unpacks to more than {_LIMIT / 1e6:,.0f} MB; get it again")
        return content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)}: damaged gzip file ({reason(error)}){page_hint(path)}; get it again") from error


def _parsed(blob: bytes, path: Path) -> NDArray[np.uint8]:
    """IDX: two zero bytes, type 8 (unsigned byte), number of dimensions, each in 4 bytes, big-endian, then the data."""
    rank = blob[3] if len(blob) >= 4 and blob[:3] == b"\0\0\x08" else 0
    if rank not in (1, 3) or len(blob) < 4 + 4 * rank:
        raise UserError(f"{shown(path)}: not an IDX file of bytes{page_hint(path)}; get it again")
    shape = tuple(int(side) for side in np.frombuffer(blob, ">u4", rank, 4))
    data = np.frombuffer(blob, np.uint8, offset=4 + 4 * rank)
    if data.size != math.prod(shape):
        raise UserError(f"{shown(path)}: {data.size} bytes of data where {shape} are announced; get it again")
    return data.reshape(shape)


def _check_pair(x: NDArray[np.uint8], y: NDArray[np.uint8], images: Path, labels: Path) -> None:
    if x.shape[1:] != (_SIDE, _SIDE):
        raise UserError(f"{shown(images)}: shape {x.shape}, not images of {_SIDE}x{_SIDE}")
    if y.shape != x.shape[:1]:
        raise UserError(f"{shown(labels)}: shape {y.shape} for {len(x)} images; the files do not belong together")
    if y.size and y.max() > 9:
        raise UserError(f"{shown(labels)}: label {y.max()}, but classes are 0..9; get it again")
