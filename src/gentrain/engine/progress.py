"""What a user sees while it trains: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESH_SECONDS = 0.1


class RichProgress:
    """Iterations done, images per second, time left, the players' terms and the last scores.

    On a terminal it is a live display (``NO_COLOR`` is honoured); into a pipe or a file it is one line each
    ``every_seconds`` and one at each score. A closed or broken output ends the display, never the training.
    ``live`` overrides the choice between the two; ``now`` is the clock in seconds.
    """

    def __init__(
        self,
        quiet: bool = False,
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
        live: bool | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        # A program started with its standard output closed has none at all.
        output: TextIO | None = sys.stdout if stream is None else stream
        self.quiet = quiet or output is None
        self.every_seconds = every_seconds
        self._stream = io.StringIO() if output is None else output
        self._live = _is_terminal(self._stream) if live is None else live
        self._now = now
        self._display: Live | None = None
        self._running = False
        self._shown = now()
        self._speed = 0.0
        self._terms: dict[str, float] = {}
        self._scores: dict[str, float] = {}
        self._begin(0, 0, "")

    def start(self, total: int, initial: int, title: str) -> None:
        """``total``: iterations of the run; ``initial``: those a resumed run has behind it."""
        self._begin(total, initial, title)
        self._running = True
        if self._live:
            self._guarded(self._open)
        else:
            at = f" (continues at {initial})" if initial else ""
            self.line(f"{title}: {total} iterations{at}")

    def update(self, iteration: int, images_per_second: float, terms: Mapping[str, float]) -> None:
        """``terms``: means of the last window under their logger keys (``loss/<player>/<term>``)."""
        self._iteration, self._speed = iteration, images_per_second
        self._terms = {key.removeprefix("loss/"): value for key, value in terms.items()}
        now = self._now()
        self._history.append((now, iteration))
        if self._display is not None and (now - self._shown >= REFRESH_SECONDS or iteration >= self._total):
            self._shown = now
            self._guarded(self._display.refresh)
        elif not self._live and now - self._shown >= self.every_seconds:
            self._report()

    def score(self, name: str, value: float) -> None:
        """A metric of the validation that has just ended."""
        self._scores[name.removeprefix("metric/")] = value
        if self._display is not None:
            self._guarded(self._display.refresh)
        elif not self._live:
            self._report()

    def line(self, text: str) -> None:
        """One line of text, above the bar where there is one."""
        display = self._display
        if self.quiet:
            return
        if display is None:
            self._guarded(lambda: _write(self._stream, text))
        else:
            self._guarded(lambda: display.console.print(Text(_fit(text, self._stream)), soft_wrap=True))

    def stop(self) -> None:
        """Leave the last state on the screen; harmless when called twice."""
        if not self._running:
            return
        self._running = False
        display, self._display = self._display, None
        if display is not None:
            self._guarded(display.stop)
        elif not self._live and self._iteration != self._reported:
            self._report()

    def _begin(self, total: int, initial: int, title: str) -> None:
        self._total, self._iteration, self._title = total, initial, _fit(title, self._stream)
        self._speed, self._terms, self._scores = 0.0, {}, {}
        self._shown = self._now()
        self._reported = initial
        # The last updates only: the first iterations compile and fill caches, and would spoil the estimate for long.
        self._history: deque[tuple[float, int]] = deque([(self._shown, initial)], maxlen=100)

    def _open(self) -> None:
        if self.quiet:
            return
        # No refresh thread: data workers are forked from this process, and a thread may hold a lock at that moment.
        display = Live(
            console=_Console(file=self._stream, force_terminal=True, soft_wrap=False),
            get_renderable=self._render,
            auto_refresh=False,
            vertical_overflow="crop",
        )
        display.start(refresh=True)
        self._display = display

    def _report(self) -> None:
        self._shown, self._reported = self._now(), self._iteration
        percent = f" ({100 * self._iteration // self._total}%)" if self._total else ""
        parts = [f"{self._iteration}/{self._total}{percent}", f"{self._speed:.4g} images/s", f"{self._left()} left"]
        self.line("  ".join([*parts, *_numbers(self._terms), *_numbers(self._scores)]))

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None, None):
            bar.add_column(ratio=ratio, no_wrap=True, overflow="crop")
        bar.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._iteration, width=None),
            Text(f"{self._iteration}/{self._total}", style="cyan"),
            Text(f"{self._speed:.4g} images/s", style="green"),
            Text(f"{self._left()} left", style="yellow"),
        )
        below = Text("  ".join(_numbers(self._terms)), style="dim")
        below.append("  " if self._terms and self._scores else "")
        below.append("  ".join(_numbers(self._scores)), style="not dim bold")
        return Group(bar, below)

    def _left(self) -> str:
        (began, first), (now, last) = self._history[0], self._history[-1]
        if last <= first or now <= began:
            return "?"
        return duration((self._total - last) * (now - began) / (last - first))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError):
            display, self.quiet, self._display = self._display, True, None
            _silence(self._stream)
            if display is not None:
                with suppress(OSError, ValueError):
                    display.stop()


class Steps:
    """How far something is that takes many steps: nothing for the first ``after`` seconds, then one line that is
    written over on a terminal, and elsewhere a line each ``every_seconds``. To the error output, so that what a command
    prints stays alone. Another count of steps is another task. ``live`` and ``now`` as for ``RichProgress``."""

    def __init__(
        self,
        title: str,
        stream: TextIO | None = None,
        live: bool | None = None,
        after: float = 2.0,
        every_seconds: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self._now = title, now
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream is not None and _is_terminal(self._stream) if live is None else live
        self._pause = REFRESH_SECONDS if self._live else every_seconds
        self._began = now()
        self._next = self._began + after
        self._done, self._shown = 0, False

    def __call__(self, done: int, of: int) -> None:
        now = self._now()
        if done <= self._done:  # begun anew
            self._began = now
        self._done = done
        if now >= self._next:
            self._next = now + self._pause
            left = duration((of - done) * (now - self._began) / done) if done else "?"
            self._show(f"{self.title}: {done}/{of} steps ({100 * done // of}%)  {left} left")

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._shown:
            self._write("\r\x1b[K")

    def _show(self, text: str) -> None:
        self._shown = True
        self._write(f"\r{text}\x1b[K" if self._live else f"{text}\n")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            self._stream.write(text)
            self._stream.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich ends the program here. The reader of the output has gone, and the training goes on."""
        raise OSError("the output is closed")


def duration(seconds: float) -> str:
    """``45s``, ``3m12s``, ``1h02m`` or ``2d03h``."""
    whole = max(int(seconds + 0.5), 0)
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // part:02d}{part_name}"
    return f"{whole}s"


def _numbers(values: Mapping[str, float]) -> list[str]:
    return [f"{key} {value:.4g}" for key, value in values.items()]


def _is_terminal(stream: TextIO) -> bool:
    # Not rich's own test: FORCE_COLOR, common on build servers, would turn a log file into a live display.
    try:
        return stream.isatty() and os.environ.get("TERM", "") != "dumb"
    except ValueError:
        return False


def _fit(text: str, stream: TextIO) -> str:
    """``text`` without the characters that the output cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def _write(stream: TextIO, text: str) -> None:
    stream.write(_fit(text, stream) + "\n")
    stream.flush()


def _silence(stream: TextIO) -> None:
    """Point a broken standard output at nothing, or the next ``print`` of anybody else ends the program."""
    if stream not in (sys.stdout, sys.__stdout__):
        return
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
