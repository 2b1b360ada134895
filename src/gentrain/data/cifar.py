"""CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images, 32x32 RGB, ten classes.

Four layouts give the same data set: the binary and the Python archive, each packed or unpacked. The binary ones are
preferred, for the Python ones are pickles: those are read only if their published checksum fits, and even then by an
unpickler that can build arrays and nothing else. Archives are read in place; nothing is extracted.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gentrain.data.arrays import Pair, image_set
from gentrain.data.dataset import DataSet
from gentrain.data.files import MEMBER_LIMIT, checksum, download, page_hint, read_bytes, reason, shown
from gentrain.errors import UserError
from gentrain.types import PathText

BINARY = ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
PYTHON = ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
PYTHON_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
UNPACKED = 512 << 20
"""Bytes that an archive may unpack to; the published ones hold 186 million."""
_URL = "https://www.cs.toronto.edu/~kriz/"
_BINARY_FOLDER, _PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32

Reader = Callable[[str], bytes]
"""Content of a member by its name without a folder."""


def cifar10(
    root: PathText,
    size: int = 32,
    channels: int = 3,
    resample: str = "bicubic",
    download: bool = True,
    leave_out: Sequence[str | int] = (),
) -> DataSet:
    """Looked for in ``root``/cifar10, /CIFAR10 and ``root`` itself, else the binary archive is downloaded."""
    train, test = _load(Path(root).expanduser(), download)
    return image_set(
        "cifar10", _CLASSES, train, test, size=size, channels=channels, resample=resample, leave_out=leave_out
    )


def _load(root: Path, fetch: bool) -> tuple[Pair, Pair]:
    places = [root / "cifar10", root / "CIFAR10", root]
    for place in places:
        if (place / _BINARY_FOLDER).is_dir():
            return _from_binary(_folder_reader(place / _BINARY_FOLDER), place / _BINARY_FOLDER)
        if (place / BINARY[0]).is_file():
            return _from_binary(_tar_reader(place / BINARY[0], _BINARY_FOLDER), place / BINARY[0])
    for place in places:
        if (place / _PYTHON_FOLDER).is_dir():
            return _from_python(_checked_reader(place / _PYTHON_FOLDER), place / _PYTHON_FOLDER)
        if (place / PYTHON[0]).is_file():
            _verify(place / PYTHON[0], PYTHON[1])
            return _from_python(_tar_reader(place / PYTHON[0], _PYTHON_FOLDER), place / PYTHON[0])
    failure, target = "", places[0] / BINARY[0]
    if fetch:
        try:
            download([_URL + BINARY[0]], target, BINARY[1])
            return _from_binary(_tar_reader(target, _BINARY_FOLDER), target)
        except UserError as error:
            failure = f"; {error}"
    raise UserError(
        f"CIFAR-10 not found under {shown(root)}{failure}; get {_URL}{BINARY[0]} and put it into {shown(places[0])}"
    )


def _verify(path: Path, published: str) -> None:
    found = checksum(path)
    if found != published:
        raise UserError(
            f"{shown(path)}: md5 {found} is not the published {published}, so its pickles are not read; get it again, "
            f"or use {BINARY[0]}"
        )


def _folder_reader(folder: Path) -> Reader:
    return lambda name: read_bytes(folder / name)


def _checked_reader(folder: Path) -> Reader:
    def read(name: str) -> bytes:
        blob = read_bytes(folder / name)
        # Over the very bytes that will be unpickled: a second look at the file could see another one.
        if hashlib.md5(blob, usedforsecurity=False).hexdigest() != PYTHON_FILES[name]:
            _verify(folder / name, PYTHON_FILES[name])
            raise UserError(f"{shown(folder / name)}: changed while it was read; start again")
        return blob

    return read


def _tar_reader(path: Path, folder: str) -> Reader:
    wanted = {f"{folder}/{name}{suffix}" for name in PYTHON_FILES for suffix in ("", ".bin")}
    try:
        # As a stream, front to back: each byte is unpacked once, and counted.
        with _Bounded(path) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
            members = {
                member.name.removeprefix("./"): source.read()
                for member in archive
                if member.isreg() and member.name.removeprefix("./") in wanted and _fits(member)
                if (source := archive.extractfile(member)) is not None
            }
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, UserError) as error:
        raise UserError(f"{shown(path)}: damaged archive ({reason(error)}){page_hint(path)}; get it again") from error

    def read(name: str) -> bytes:
        if f"{folder}/{name}" not in members:
            raise UserError(f"{shown(path)}: holds no {folder}/{name}; get it again")
        return members[f"{folder}/{name}"]

    return read


class _Bounded(gzip.GzipFile):
    """Refuses to unpack without end."""

    left = UNPACKED

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise UserError(f"unpacks to more than {UNPACKED / 1e6:,.0f} MB")
        return content


def _fits(member: tarfile.TarInfo) -> bool:
    if member.size > MEMBER_LIMIT:  # a sparse member announces more than it holds
        raise UserError(f"{shown(member.name)} would be {member.size / 1e6:,.0f} MB")
    return True


def _from_binary(read: Reader, source: Path) -> tuple[Pair, Pair]:
    """Records of one label byte and 3072 pixels, red plane first, each plane by rows."""

    def load(name: str) -> Pair:
        data = np.frombuffer(read(f"{name}.bin"), np.uint8)
        if data.size == 0 or data.size % (1 + _PIXELS):
            raise UserError(
                f"{shown(source)}: {name}.bin has {data.size} bytes, not records of {1 + _PIXELS}; get it again"
            )
        records = data.reshape(-1, 1 + _PIXELS)
        return _pair(records[:, 1:], records[:, 0], source, name)

    return _joined(load)


def _from_python(read: Reader, source: Path) -> tuple[Pair, Pair]:
    """Pickled dicts with ``data`` uint8 [N 3072] and ``labels``."""

    def load(name: str) -> Pair:
        try:
            batch = _ArraysOnly(io.BytesIO(read(name)), encoding="latin1").load()
            return _pair(batch["data"], np.array(batch["labels"], dtype=np.uint8), source, name)
        except (pickle.UnpicklingError, KeyError, EOFError, TypeError, ValueError) as error:
            raise UserError(f"{shown(source)}: {name} is not a CIFAR-10 batch ({reason(error)})") from error

    return _joined(load)


def _pair(pixels: NDArray[np.uint8], labels: NDArray[np.uint8], source: Path, name: str) -> Pair:
    if labels.max(initial=0) > 9:
        raise UserError(f"{shown(source)}: {name} has label {labels.max()}, but classes are 0..9; get it again")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels  # [N 32 32 3], [N]


def _joined(load: Callable[[str], Pair]) -> tuple[Pair, Pair]:
    parts = [load(name) for name in PYTHON_FILES if name != "test_batch"]
    train = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    return train, load("test_batch")


class _ArraysOnly(pickle.Unpickler):
    """md5 can be forged, so the checksum alone does not make a pickle harmless."""

    _allowed = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name == "_reconstruct":
            module = "numpy._core.multiarray"  # the old name warns
        return super().find_class(module, name)
