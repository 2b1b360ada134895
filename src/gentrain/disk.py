"""Where gentrain keeps files of its own, and what it takes for a rename to be on the disk itself."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """$GENTRAIN_CACHE, else $XDG_CACHE_HOME/gentrain, else ~/.cache/gentrain."""
    if os.environ.get("GENTRAIN_CACHE"):
        return Path(os.environ["GENTRAIN_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gentrain"


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it outlives a power cut."""
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
