"""Feeding Lightning: short runs of batches that end where something is due, and a flag for signals."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from gentrain.engine.clock import Clock
from gentrain.types import Images

LENGTH = 16
"""Most batches in one block: Lightning's own cost per step is shared by so many."""


class Blocks:
    """Iterable over blocks of batches, from the clock's iteration to the end of the run.

    A block never crosses a multiple of one of ``stops``, so that what is due every n iterations happens exactly there.
    Batches are drawn when they are used: a block read ahead costs no memory.
    """

    def __init__(self, stream: Callable[[int], Iterator[Images]], clock: Clock, stops: Sequence[int]) -> None:
        self.stream = stream
        self.clock = clock
        self.stops = sorted({stop for stop in stops if stop > 0})

    def __iter__(self) -> Iterator[Iterator[Images]]:
        position, total = self.clock.iteration, self.clock.total
        source = self.stream(position)
        while position < total:
            end = min(position + LENGTH, total, *((position // stop + 1) * stop for stop in self.stops))
            yield itertools.islice(source, end - position)
            position = end


class Interrupted(BaseException):
    """A signal came while something ran that may be dropped at once."""


STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""SIGUSR1 (which Windows lacks) is how a cluster's scheduler announces that time is running out."""


class Hurried(BaseException):
    """Ctrl-C came a second time. Not a KeyboardInterrupt, of which Lightning makes exit code 1."""


class Signals:
    """Turns signals into a flag that the loop reads between iterations; a second SIGINT acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._droppable = False

    def __enter__(self) -> Signals:
        for number in STOPPING:
            self._before[number] = signal.getsignal(number)
        self.hold()
        return self

    def hold(self) -> None:
        """Be the handler, also where Lightning's Trainer has put its own over this one when it began: that one ends the
        run with an exception and exit code 0, and talks to the other ranks from inside the handler."""
        if threading.current_thread() is threading.main_thread():  # elsewhere, whoever started the thread handles them
            for number in self._before:
                signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises ``Interrupted`` where it falls: for work that can be done again later."""
        self._droppable = True
        try:
            if self.received is not None:
                raise Interrupted
            yield
        finally:
            self._droppable = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise Hurried
        self.received = number
        if self._droppable:
            self._droppable = False
            raise Interrupted

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for the others."""
        return 0 if self.received is None else 130 if self.received == signal.SIGINT else 143
