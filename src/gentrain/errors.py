"""Exit codes, and mistakes shown as one line. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user's: shown as one line, exit code 2, never with a traceback.

    The message says what is wrong, where, which valid names are near, and what to do.
    """


class LostRankError(Exception):
    """Another process of a job has gone or hangs. One line, exit code 1: the fault is not where this is raised."""


def one_line(error: object) -> str:
    """Its text on one line, without signs that would steer a terminal."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


OK, FAULT, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def guarded(work: Callable[[], int], *, debug: bool = False) -> int:
    """Run ``work``; a user's mistake becomes one line on stderr and exit code 2, a fault of ours keeps its traceback.

    ``debug`` (or GENTRAIN_DEBUG=1) shows the traceback always.
    """
    try:
        code = work()
        sys.stdout.flush()  # here, not at the interpreter's end, where a reader that has gone would be a traceback
        return code
    except (UserError, LostRankError) as error:
        if debug or os.environ.get("GENTRAIN_DEBUG"):
            raise
        print(f"gentrain: {one_line(error)}", file=sys.stderr)
        return MISTAKE if isinstance(error, UserError) else FAULT
    except KeyboardInterrupt:
        print("gentrain: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`gentrain list | head`): not a fault, and nothing can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
