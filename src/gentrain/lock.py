"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gentrain.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are then up to the user
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. UserError naming the process that has it already.

    The system drops the lock with its process, however that dies, so there are no stale ones. Record locks are not
    inherited: a data worker that outlives its parent for a moment does not hold it.
    """
    path = folder / ".lock"
    try:
        opened = path.open("a+", encoding="ascii")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from None
    with opened as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(f"{folder}: {owner} is at work in it; wait for it, or choose another name=") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} of {os.uname().nodename}")
        file.flush()
        yield
