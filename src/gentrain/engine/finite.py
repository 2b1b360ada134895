"""Numbers that are no longer finite: said in one line that names the player, and never written to a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from gentrain.errors import UserError


class NonFiniteError(UserError):
    """A loss, a gradient or a weight became NaN or infinite."""


def diverged(iteration: int, what: str, player: str | None = None) -> NonFiniteError:
    """The error for ``what`` (``the loss of the critic``), with the switches that usually help."""
    at = f"model.players.{player or '<player>'}"
    return NonFiniteError(
        f"iteration {iteration}: {what} is not finite; a smaller {at}.optimizer.lr or ++{at}.clip=1 usually helps"
    )


def refuse_non_finite(state: Any, iteration: int, where: str = "") -> None:
    """NonFiniteError if any tensor of a state holds NaN or infinity: such a state is never written."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not torch.isfinite(state).all():
            raise NonFiniteError(f"iteration {iteration}: {where} holds NaN or infinity; the checkpoint is not written")
    elif isinstance(state, dict):
        for key, value in state.items():
            refuse_non_finite(value, iteration, f"{where}.{key}" if where else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            refuse_non_finite(value, iteration, f"{where}[{i}]")
