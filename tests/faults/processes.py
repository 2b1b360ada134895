"""Real processes to do harm to: forks of this one, in which everything is imported already."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gentrain.cli import main

Patch = Callable[[], None]


@dataclass
class Child:
    """A forked process that runs a command of gentrain."""

    pid: int
    log: Path

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code, or minus the signal that ended it. Killed, and TimeoutError, if it does not end in time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(f"no end after {seconds} s: {self.said()}")

    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(log: Path, *arguments: str, patch: Patch | None = None) -> Child:
    """Run ``gentrain arguments`` in a fork, behind ``patch()``."""
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 70  # the child never returns into pytest
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        # pytest's own stdout writes to a file of its own, not to descriptor 1.
        sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        if patch is not None:
            patch()
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def dies_in(owner: object, name: str, *, when: Callable[[], bool] = lambda: True, behind: bool = False) -> Patch:
    """A patch: the process is killed at a call of ``owner.name`` for which ``when()`` holds, before it or behind it."""

    def patch() -> None:
        original = getattr(owner, name)

        def deadly(*a: object, **k: object) -> object:
            now = when()
            if now and not behind:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*a, **k)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, deadly)

    return patch
