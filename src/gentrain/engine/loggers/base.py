"""What every logger can do, and how a failing service stays out of the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gentrain.masking import mask_text

log = logging.getLogger("gentrain")

FINISHED = "finished"
"""The status of a run that reached its end. Services show any other one as failed."""


class Logger(Protocol):
    """One destination of a run. Only rank 0 holds loggers."""

    def start(
        self, config: Mapping[str, Any], folder: Path, name: str, resume_at: int = 0, again: bool = False
    ) -> None:
        """``config``: the resolved config; ``folder``: the run folder; ``resume_at``: iteration of the checkpoint that
        the run continues from, 0 for a new run; ``again``: the scores of that iteration are about to be made again.
        """
        ...

    def scalars(self, values: Mapping[str, float], iteration: int, images: int) -> None:
        """Numbers at one point in time: ``iteration`` batches and ``images`` images seen."""
        ...

    def picture(self, key: str, path: Path, iteration: int, images: int) -> None:
        """A picture that already lies in the run folder."""
        ...

    def summary(self, values: Mapping[str, float | str]) -> None:
        """Final and best scores."""
        ...

    def finish(self, status: str) -> None:
        """Close the destination; harmless when called twice. ``status``: ``FINISHED`` or why the run ended early."""
        ...


class Guard:
    """Calls a service that may fail without harm: the first failure is one warning line, after it all is quiet."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.quiet = False

    def __call__(self, action: Callable[[], object]) -> bool:
        """Whether ``action`` ran. False without trying once the service has failed."""
        if self.quiet:
            return False
        try:
            action()
        except Exception as error:
            self.fail(error)
            return False
        return True

    def fail(self, error: Exception) -> None:
        self.quiet = True
        log.warning("%s stopped (%s); training goes on, metrics.csv has every number", self.service, one_line(error))


def one_line(error: Exception) -> str:
    """Kind and first line of an error, short and without secrets."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return mask_text(f"{type(error).__name__}: {first}" if first else type(error).__name__)[:200]
