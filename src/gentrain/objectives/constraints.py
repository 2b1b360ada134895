"""What is done to a critic's weights after each of its steps, instead of a term in its loss."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Constraint(Protocol):
    """Changes the weights of a network in place."""

    def __call__(self, net: nn.Module) -> None: ...
