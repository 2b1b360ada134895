"""Image files decoded once into one file of uint8, which is then read into memory or mapped.

The file's name holds a hash of the source's fingerprint and of all that decides the pixels, so a changed folder or
another size is another file. It appears by a rename when it is whole: a kill half-way leaves a hidden leftover that the
next start sweeps away.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gentrain.data import pool
from gentrain.data.dataset import FileRows, MemmapRows, Rows, TensorRows
from gentrain.data.decode import Recipe
from gentrain.data.files import BadFileError, Files, flushed, locked, reason, shown
from gentrain.disk import cache_folder, sync_folder
from gentrain.errors import UserError


@dataclass(frozen=True)
class Storage:
    """Where decoded pixels live. Up to ``in_memory_bytes`` a split is held in memory, above that it is mapped from the
    cache file; with ``cache`` false there is no such file and each image is decoded whenever it is asked for.
    """

    in_memory_bytes: int = 1 << 30
    cache: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.in_memory_bytes < 0:
            raise UserError(f"data.in_memory_bytes={self.in_memory_bytes}: 0 (map every split) or more")

    @property
    def folder(self) -> Path:
        """``cache_dir``, else gentrain's own: $GENTRAIN_CACHE, $XDG_CACHE_HOME/gentrain or ~/.cache/gentrain."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else cache_folder()


def splits(parts: Sequence[tuple[str, Files]], recipe: Recipe, storage: Storage) -> list[tuple[Rows, str]]:
    """The x of each split, given by title, and the fingerprint of its files.

    Raises BadFileError with the path of the first bad file; its ``rows`` are those of all splits.
    """
    try:
        return [(rows(files, recipe, storage, title), files.fingerprint()) for title, files in parts]
    except BadFileError as error:
        error.rows = tuple(FileRows(files, recipe) for _, files in parts)
        raise


def rows(files: Files, recipe: Recipe, storage: Storage, title: str) -> Rows:
    """The x of a split: decoded now and kept, or decoded on demand. Raises UserError with the path of a bad file."""
    if not storage.cache or len(files) == 0:
        return FileRows(files, recipe)
    shape = (len(files), recipe.channels, recipe.size, recipe.size)
    path = _cached(files, recipe, storage, title, shape)
    if int(np.prod(shape)) <= storage.in_memory_bytes:
        return TensorRows(torch.from_numpy(np.load(path, allow_pickle=False)))
    return MemmapRows(np.load(path, mmap_mode="r", allow_pickle=False))


def _cached(files: Files, recipe: Recipe, storage: Storage, title: str, shape: tuple[int, ...]) -> Path:
    key = hashlib.sha256(f"{files.fingerprint()} {recipe.key}".encode()).hexdigest()[:32]
    folder = storage.folder
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', title)}-{recipe.size}px-{key}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with locked(folder / f".{path.name}.lock"):  # the ranks of one job build it once; the others wait here
            if not _whole(path, shape):
                _build(path, files, recipe, shape, title)
    except OSError as error:
        size = f"{np.prod(shape) / 1e9:.2g} GB"
        raise UserError(
            f"cannot write the cache of {size} in {shown(folder)} ({reason(error)}); set data.cache_dir or "
            "GENTRAIN_CACHE to another folder, or data.cache=false"
        ) from error
    return path


def _whole(path: Path, shape: tuple[int, ...]) -> bool:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing, or cut short by a full or failing disk
        return False
    return bool(array.shape == shape and array.dtype == np.uint8)


def sweep(folder: Path) -> None:
    """Remove what killed processes left. A part whose lock is held is being written."""
    for part in folder.glob(".*.part"):
        lock = part.with_suffix(".lock")
        with suppress(OSError), locked(lock, wait=False) as free:
            if free:
                part.unlink()


def _build(path: Path, files: Files, recipe: Recipe, shape: tuple[int, ...], title: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as out:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            for block in _watched(pool.over(pool.pixels, files, recipe), len(files), title):
                out.write(block.data)
            flushed(out)
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _watched(blocks: Iterable[NDArray[np.uint8]], total: int, title: str) -> Iterator[NDArray[np.uint8]]:
    """Show progress on the error stream, so that results can be piped; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"decoding {title}", total=total)
        for block in blocks:
            yield block
            progress.advance(task, len(block))
