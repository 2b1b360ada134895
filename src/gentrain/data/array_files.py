"""NumPy's files (``.npy``, ``.npz``) from anywhere: nothing in them is run, and nothing is unpacked before its size and
type are known.

A pickle inside is refused by its header. Numbers come in blocks, so that a small file that unpacks to many gigabytes
never fills the memory.
"""

from __future__ import annotations

import math
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gentrain.data.files import BYTES_LIMIT, open_zip, page_hint, reason, shown
from gentrain.errors import UserError

SUFFIXES = (".npz", ".npy")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".p")
NAMED, MEMBERS = 8, 64
"""Arrays of an archive that a message names, and that it may hold."""


@dataclass(frozen=True)
class StoredArray:
    """The head of one array. ``member``: its name in an ``.npz``, or nothing for an ``.npy``."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    begins: int

    @property
    def where(self) -> str:
        return f"{shown(self.path)}:{shown(self.member.removesuffix('.npy'))}" if self.member else shown(self.path)

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The array in order, ``rows`` of its first axis at a time. Raises UserError where the file is not whole."""
        if self.fortran:
            whole = self.whole()
            yield from (whole[first : first + rows] for first in range(0, len(whole), rows))
            return
        each = self.size // max(self.shape[0], 1)
        with self._opened() as source:
            source.read(self.begins)
            for first in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - first)
                blob = self._exactly(source, count * each)
                yield np.frombuffer(blob, self.dtype).reshape(count, *self.shape[1:])

    def whole(self) -> NDArray[Any]:
        """All of it at once. Raises UserError above 1 GiB."""
        if self.size > BYTES_LIMIT:
            raise UserError(
                f"{self.where}: {self.size / 1e6:,.0f} MB, the limit is {BYTES_LIMIT / 1e6:,.0f} for an array that is"
                " read at once (labels, Fortran order); save it in several files, in C order"
            )
        with self._opened() as source:
            source.read(self.begins)
            flat = np.frombuffer(self._exactly(source, self.size), self.dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")

    def _exactly(self, source: IO[bytes], count: int) -> bytes:
        blob = source.read(count)
        if len(blob) != count:
            raise UserError(f"{self.where}: damaged: the file ends before the array does; save it again")
        return blob

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        with _refusing(self.where):
            if not self.member:
                with self.path.open("rb") as source:
                    yield source
                return
            with open_zip(self.path) as archive, archive.open(self.member) as source:
                yield source


def arrays_in(path: Path) -> dict[str, StoredArray]:
    """The heads of all arrays of a file by name (``""`` in an ``.npy``). Raises UserError with the path for what is no
    plain file, for pickled objects, and for a file whose size is not what its head says."""
    _plain(path)
    if path.suffix.lower() == ".npy":
        with _refusing(shown(path)), path.open("rb") as source:
            return {"": _head(source, path, "", path.stat().st_size)}
    with open_zip(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if not names:
            inside = ", ".join(shown(name) for name in archive.namelist()[:NAMED]) or "nothing"
            raise UserError(f"{shown(path)}: no arrays in it ({inside}); save it with numpy.savez")
        if len(names) > MEMBERS:
            raise UserError(f"{shown(path)}: {len(names)} arrays in it, {MEMBERS} at most; save the pictures as one")
        found = {}
        for name in names:
            with _refusing(f"{shown(path)}:{shown(name)}"), archive.open(name) as source:
                found[name.removesuffix(".npy")] = _head(source, path, name, archive.getinfo(name).file_size)
        return found


def _plain(path: Path) -> None:
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({reason(error)})") from error
    if not stat.S_ISREG(state.st_mode):  # a pipe would be waited on for ever
        raise UserError(f"{shown(path)}: not a plain file; replace or remove it")


def _head(source: IO[bytes], path: Path, member: str, size: int) -> StoredArray:
    """``size``: of the unpacked file in bytes, by its folder or by the archive's list."""
    where = f"{shown(path)}:{shown(member)}" if member else shown(path)
    try:
        version = np.lib.format.read_magic(source)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise UserError(f"{where}: format {version[0]}.{version[1]}, 1.0 or 2.0 is read; save plain numbers")
        shape, fortran, dtype = readers[version](source)
    except ValueError as error:
        raise UserError(f"{where}: not an array of NumPy{page_hint(path)}; save it with numpy.save or savez") from error
    if dtype.hasobject:
        raise UserError(f"{where}: holds pickled Python objects, which can run code; save an array of plain numbers")
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise UserError(f"{where}: shape {list(shape)} of {dtype}: no array is like that; save it again")
    found = StoredArray(path, member, tuple(int(side) for side in shape), dtype, bool(fortran), source.tell())
    if found.begins + found.size != size:
        raise UserError(
            f"{found.where}: damaged: its head promises {found.size:,} bytes ({list(found.shape)} of {dtype}), there "
            f"are {size - found.begins:,}; save it again"
        )
    return found


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """Whatever a file's reader raises becomes one line about it."""
    try:
        yield
    except (UserError, GeneratorExit, KeyboardInterrupt):
        raise
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{where}: cannot be read ({reason(error)}); save it again") from error
    except Exception as error:  # zlib.error and its kin, by codec; what a spoilt header makes of a parser
        raise UserError(f"{where}: damaged ({reason(error)}); save it again") from error
