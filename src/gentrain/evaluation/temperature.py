"""Samples at a temperature: the noise that they are made of, multiplied (Kingma and Dhariwal 2018, arXiv 1807.03039,
section 6, whose faces are drawn at 0.7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from gentrain.errors import UserError


@runtime_checkable
class Tempers(Protocol):
    """Can draw its samples at another temperature than 1."""

    temperature: float | None
    """The one in use; None: 1."""

    def temper(self, at: float | None) -> None:
        """From now on samples are drawn at this temperature, above 0."""
        ...


@contextmanager
def tempered(system: Any, at: float | None) -> Iterator[None]:
    """Inside, samples are drawn at temperature ``at``; None: nothing is changed. UserError for a system without one,
    and for a number that it cannot be."""
    if at is None:
        yield
        return
    if not isinstance(system, Tempers):
        raise UserError(f"temperature={at:g}: {type(system).__name__} has no temperature to draw its samples at")
    if not at > 0:
        raise UserError(f"temperature={at:g}: above 0")
    before = system.temperature
    system.temper(at)
    try:
        yield
    finally:
        system.temper(before)
