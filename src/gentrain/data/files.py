"""Files on disk: image collections (a folder or a zip), fingerprints, locks and checked downloads."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urljoin, urlsplit

from gentrain.errors import UserError

CONTENT_LIMIT = 64 << 20
"""Bytes up to which a folder's fingerprint reads the files; above it, names, sizes and times must do."""

BYTES_LIMIT = 1 << 30
"""No file that is read whole may be larger: beyond what any picture of allowed size takes, and below what machines
have."""

MEMBER_LIMIT = 64 << 20
"""Bytes that one image in a zip may unpack to: a few kB can hold gigabytes of zeros."""


class BadFileError(UserError):
    """A file that cannot be used. ``rows``: where to look for more of them (``FileRows`` of all splits)."""

    rows: tuple[Any, ...] = ()


class Files(Protocol):
    """An ordered collection of files, wherever they are kept. Can be pickled for worker processes."""

    def __len__(self) -> int: ...

    def read(self, place: int) -> bytes:
        """Content of one file. Raises UserError with its path if it cannot be read."""
        ...

    def where(self, place: int) -> str:
        """What to call the file in a message."""
        ...

    def fingerprint(self) -> str:
        """sha256 in hex that changes when a file does."""
        ...


def shown(path: Path | str) -> str:
    """A path fit for a one-line message, whatever bytes its name holds: none of them may steer a terminal."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """First line of an error's text, or its type where it has none."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_bytes(path: Path, limit: int = BYTES_LIMIT) -> bytes:
    """Raises BadFileError with the path, also for what is no plain file (a pipe would be waited on for ever)."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as source:
            state = os.fstat(source.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise BadFileError(f"{shown(path)}: not a plain file; replace or remove it")
            if state.st_size > limit:
                raise BadFileError(
                    f"{shown(path)}: {state.st_size / 1e6:,.0f} MB, the limit is {limit / 1e6:,.0f}; make it smaller or"
                    " remove it"
                )
            return source.read()
    except OSError as error:
        raise BadFileError(f"{shown(path)}: cannot be read ({reason(error)})") from error


@dataclass(frozen=True)
class FolderFiles:
    """``names`` are paths relative to ``root``, with forward slashes."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, place: int) -> bytes:
        return read_bytes(self.root / self.names[place])

    def where(self, place: int) -> str:
        return shown(self.root / self.names[place])

    def fingerprint(self) -> str:
        """Of the content up to 64 MiB; beyond that of names, sizes and modification times."""
        try:
            states = [(self.root / name).stat() for name in self.names]
        except OSError as error:
            raise BadFileError(f"{shown(str(error.filename))}: cannot be read ({reason(error)})") from error
        by_content = sum(state.st_size for state in states) <= CONTENT_LIMIT
        digest = hashlib.sha256()
        for place, (name, state) in enumerate(zip(self.names, states, strict=True)):
            mark = hashlib.sha256(self.read(place)).hexdigest() if by_content else str(state.st_mtime_ns)
            digest.update(os.fsencode(name) + f"\0{state.st_size}\0{mark}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ZipFiles:
    """Members of a zip file, read in place. None may be larger than ``limit`` bytes when it is unpacked."""

    path: Path
    names: Sequence[str]
    limit: int = MEMBER_LIMIT
    # One handle per process: workers that inherit one would share its position in the file.
    _open: dict[int, zipfile.ZipFile] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self.names, "limit": self.limit, "_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            object.__setattr__(self, key, value)

    def _archive(self) -> zipfile.ZipFile:
        if os.getpid() not in self._open:
            self._open[os.getpid()] = open_zip(self.path)
        return self._open[os.getpid()]

    def read(self, place: int) -> bytes:
        archive = self._archive()
        try:
            size = archive.getinfo(self.names[place]).file_size  # zipfile unpacks no more than is announced
            if size > self.limit:
                raise BadFileError(
                    f"{self.where(place)}: {size / 1e6:,.0f} MB unpacked, the limit is {self.limit / 1e6:,.0f}; get the"
                    " zip again"
                )
            return archive.read(self.names[place])
        except BadFileError:
            raise
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise BadFileError(f"{self.where(place)}: cannot be read ({reason(error)}); get the zip again") from error
        except Exception as error:  # zlib.error and its kin, by codec
            raise BadFileError(f"{self.where(place)}: damaged ({reason(error)}); get the zip again") from error

    def where(self, place: int) -> str:
        return f"{shown(self.path)}:{shown(self.names[place])}"

    def fingerprint(self) -> str:
        """Of names, sizes and checksums in the zip's directory: exact, and without reading the members."""
        digest = hashlib.sha256()
        for name in self.names:
            info = self._archive().getinfo(name)
            digest.update(os.fsencode(name) + f"\0{info.file_size}\0{info.CRC}\0".encode())
        return digest.hexdigest()


def open_zip(path: Path) -> zipfile.ZipFile:
    """Raises UserError; download pages saved under the archive's name are called what they are."""
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a spoilt list of members meets more than BadZipFile
        raise UserError(f"{shown(path)}: not a zip file ({reason(error)}){page_hint(path)}; get it again") from error


def page_hint(path: Path) -> str:
    """Names the commonest cause of a file in the wrong format: a web page saved in its place."""
    with suppress(OSError), path.open("rb") as source:
        return ", it is a web page" if source.read(64).lstrip().startswith(b"<") else ""
    return ""


def checksum(path: Path, kind: str = "md5") -> str:
    """Hex digest of a file's content. Raises UserError with the path."""
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, kind).hexdigest()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({reason(error)})") from error


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file. Yields False if another process holds it and ``wait`` is false.

    The lock is the kernel's: it ends with the process, so a kill leaves none behind. Where there is no ``fcntl`` every
    caller is let in; files are still put in place whole, by a rename.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with path.open("wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def flushed(handle: IO[bytes]) -> None:
    """Written to the disk itself, not only handed to the system."""
    handle.flush()
    os.fsync(handle.fileno())


def download(urls: Sequence[str], target: Path, md5: str) -> None:
    """Fetch ``target`` from the first of ``urls`` that answers; only content with the published checksum is kept, and
    whatever lies there already stays until it has come. Redirections to another host, or from https to http, are not
    followed.

    Raises UserError with the last failure.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    lock, failure = target.with_name(f".{target.name}.lock"), ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock):  # the ranks of one job must not all download
            for url in urls:
                try:
                    fetch = pooch.HTTPDownloader(progressbar=Bar(target.name), hooks={"response": _stay})
                    pooch.retrieve(url, f"md5:{md5}", target.name, target.parent, downloader=fetch)
                    return
                except _RefusedError as error:
                    failure = f"{url}: {error}"
                except ValueError:
                    failure = f"{url}: not the published checksum"
                except OSError as error:  # those of requests too, whose texts run over many lines
                    failure = f"{url}: {error.strerror or type(error).__name__}"
    except OSError as error:
        failure = f"{shown(target)}: {reason(error)}"
    finally:
        with suppress(OSError):
            lock.unlink()
            target.parent.rmdir()  # only if nothing came
    raise UserError(f"download failed ({failure})")


class _RefusedError(OSError):
    """An answer that is not looked at."""


def _stay(response: Any, **_settings: Any) -> None:
    """A hook of requests, called before a redirection is followed."""
    if not response.is_redirect:
        return
    here = urlsplit(response.url)
    there = urlsplit(urljoin(response.url, response.headers["location"]))
    if there.hostname != here.hostname or (here.scheme, there.scheme) == ("https", "http"):
        raise _RefusedError(f"it sends us on to {there.scheme}://{there.hostname}, which is not what was published")


class Bar:
    """Rich's progress bar behind pooch's interface (tqdm's). Ends what brings ``limit`` bytes or takes ``seconds``."""

    def __init__(self, title: str, limit: int | None = None, seconds: float = float("inf")) -> None:
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task(title, total=None)
        self.limit, self.until = limit or BYTES_LIMIT, time.monotonic() + seconds
        self.total = self.received = 0
        self.started = False

    def update(self, amount: int) -> None:
        self.received += amount
        if self.received > self.limit:  # an answer without end would fill the disk
            raise _RefusedError(f"more than {self.limit / 1e6:,.0f} MB came")
        if time.monotonic() > self.until:
            raise _RefusedError(f"too slow: {self.received / 1e6:,.0f} MB came in all the time it was given")
        if not self.started:
            self.progress.start()
            self.progress.update(self.task, total=self.total or None)
            self.started = True
        self.progress.advance(self.task, amount)

    def reset(self) -> None:
        self.received = 0
        self.progress.reset(self.task, total=self.total or None)

    def close(self) -> None:
        self.progress.stop()
