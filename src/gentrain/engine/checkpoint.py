"""Checkpoints that are whole or not there.

One file holds everything. It is written beside its target, flushed to disk and renamed, so a kill at any moment leaves
either the old file or the new one. The SHA-256 of all bytes stands in the ZIP comment at the file's end: a flipped bit
or a cut tail is seen when it is read, and the file still opens with ``torch.load(path, weights_only=True)``.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import struct
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentrain.disk import sync_folder
from gentrain.errors import UserError

FORMAT = 3
MARK = b"gentrain-sha256:"
COMMENT_SIZE = len(MARK) + 64
END_RECORD_SIZE = 22
NAME = re.compile(r"iteration-(\d{9})\.ckpt")


PASSING = (errno.EIO, errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of network file systems that may be gone a moment later."""

RETRY_SECONDS = 1.0


class DamagedError(UserError):
    """A checkpoint whose bytes are not those that were written."""


def file_name(iteration: int) -> str:
    return f"iteration-{iteration:09d}.ckpt"


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` (tensors and plain values) whole or not at all. Raises UserError naming the path if it cannot."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, _signed(buffer.getvalue()))


def load(path: Path) -> dict[str, Any]:
    """Read and verify. DamagedError if the checksum does not fit; nothing but tensors and plain values is unpickled."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    verify(data, path)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedError(
            f"{path}: refused, it holds more than tensors and plain values ({type(error).__name__})"
        ) from None
    if state.get("format") != FORMAT:
        raise UserError(f"{path}: checkpoint format {state.get('format')}, this gentrain reads {FORMAT}")
    return state


def verify(data: bytes, path: Path) -> None:
    comment = data[-COMMENT_SIZE:]
    if len(data) < COMMENT_SIZE + END_RECORD_SIZE or not comment.startswith(MARK):
        raise DamagedError(f"{path}: not a whole gentrain checkpoint ({len(data)} bytes, no checksum at its end)")
    digest = hashlib.sha256(data[:-COMMENT_SIZE]).hexdigest().encode()
    if digest != comment[len(MARK) :]:
        raise DamagedError(
            f"{path}: damaged, SHA-256 is {digest[:12].decode()}..., written was {comment[len(MARK) :][:12]!r}"
        )


def _signed(archive: bytes) -> bytes:
    # The last 22 bytes are the ZIP end record; its last two hold the length of the comment that follows.
    if archive[-END_RECORD_SIZE:][:4] != b"PK\x05\x06":
        raise zipfile.BadZipFile("torch.save did not end in a plain ZIP end record")
    body = archive[:-2] + struct.pack("<H", COMMENT_SIZE)
    return body + MARK + hashlib.sha256(body).hexdigest().encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside ``path``, flush to disk, rename over it, flush the folder. Tried again once where a disk hiccups."""
    for last in (False, True):
        try:
            _write_beside(path, data)
            break
        except OSError as error:
            if last or error.errno not in PASSING:
                raise UserError(f"{path}: cannot be written, {len(data):,} bytes needed ({error.strerror})") from None
            time.sleep(RETRY_SECONDS)
    sync_folder(path.parent)


def _write_beside(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove half-written files whose writer is gone."""
    for part in folder.glob(".*.part"):
        pid = re.search(r"\.(\d+)\.[^.]*\.part$", part.name)
        if pid is None or not _alive(int(pid[1])):
            part.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def link(source: Path, name: str) -> None:
    """Make ``name`` (``last.ckpt``) the same file as ``source``: a hard link, or a copy where that is impossible."""
    target = source.with_name(name)
    temporary = source.with_name(f".{name}.{os.getpid()}.link.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def steps(folder: Path) -> list[Path]:
    """The step files of a run, newest first."""
    return sorted((p for p in folder.glob("iteration-*.ckpt") if NAME.fullmatch(p.name)), reverse=True)


def newest_whole(folder: Path, run: str | None = None) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint that verifies, its content, and a line for each one passed over: damaged, not of the
    iteration that it is called by, or not of ``run`` (the id in the run card)."""
    passed_over: list[str] = []
    for path in steps(folder):
        try:
            state = load(path)
            belongs(state, path, run)
            return path, state, passed_over
        except DamagedError as error:
            passed_over.append(str(error))
    if passed_over:
        raise UserError(f"{folder}: no whole checkpoint is left ({'; '.join(passed_over)})")
    return None


def belongs(state: Mapping[str, Any], path: Path, run: str | None) -> None:
    """DamagedError if a whole checkpoint is another one than its place says."""
    iteration = state["system"]["clock"]["iteration"]
    if path.name != file_name(iteration):
        raise DamagedError(f"{path}: holds iteration {iteration}")
    if run is not None and state["run"] != run:
        raise DamagedError(f"{path}: is of another run ({state['run']}, this one is {run})")


def retire(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest step files. ``best.ckpt`` is a file of its own and stays."""
    for path in steps(folder)[max(keep, 1) :]:
        path.unlink(missing_ok=True)
