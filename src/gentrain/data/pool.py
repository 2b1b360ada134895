"""Image files worked on by several processes, in order.

Imports no torch: a worker starts in a few hundredths of a second.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gentrain.data.decode import Recipe, decode
from gentrain.data.files import BadFileError, Files
from gentrain.errors import UserError

PARALLEL_FROM = 1000
"""Fewer files are decoded in this process: starting others would take longer."""
CHUNK = 64

T = TypeVar("T")
Task = Callable[[Files, Recipe, Iterable[int]], T]


def over(task: Task[T], files: Files, recipe: Recipe) -> Iterator[T]:
    """``task`` of each stretch of the files, in their order. ``task`` is a function of a module, for it travels.

    Raises UserError if a process dies, and whatever ``task`` raises.
    """
    spans = [range(first, min(first + CHUNK, len(files))) for first in range(0, len(files), CHUNK)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or len(files) < PARALLEL_FROM:
        yield from (task(files, recipe, span) for span in spans)
        return
    with ProcessPoolExecutor(min(cores, 32), _context(), initializer=_start, initargs=(task, files, recipe)) as pool:
        try:
            yield from pool.map(_work, spans)
        except BrokenProcessPool as error:
            raise UserError(
                "a process decoding images died (out of memory?); free some, or set data.cache=false"
            ) from error


def pixels(files: Files, recipe: Recipe, places: Iterable[int]) -> NDArray[np.uint8]:
    """uint8 [B C H W]. Raises BadFileError for the first file that is none of the images asked for."""
    return np.stack([_one(files, recipe, place) for place in places])


def complaints(files: Files, recipe: Recipe, places: Iterable[int]) -> list[str]:
    """What is wrong with each bad file, one line each."""
    found = []
    for place in places:
        try:
            _one(files, recipe, place)
        except BadFileError as error:
            found.append(str(error))
    return found


def _one(files: Files, recipe: Recipe, place: int) -> NDArray[np.uint8]:
    try:
        return decode(files.read(place), files.where(place), recipe)
    except BadFileError:
        raise
    except UserError as error:
        raise BadFileError(str(error)) from error


def _context() -> BaseContext:
    """Not plain fork: a process that holds threads or a GPU cannot be forked safely."""
    import multiprocessing

    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not once per worker
    return context


_given: Sequence[Any]


def _start(*given: Any) -> None:
    """Once per worker: 200,000 names need not travel with every chunk."""
    global _given
    _given = given
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers outlive a killed parent: they wait on a pipe that they hold open themselves."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(span: range) -> Any:
    task, files, recipe = _given
    return task(files, recipe, span)
