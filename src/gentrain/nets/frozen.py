"""A network that is looked through: used by a loss, never trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gentrain.errors import UserError


class Frozen(nn.Module):
    """Feature maps of images by a network that stays as it is: gradients go through it and never into it.

    ``net``: float [B C H W] in [-1, 1] -> feature maps, [B C' H' W'] each; ``name``: what it is, in words; ``sha256``:
    of its weights. It is always in evaluation mode. In a state dict stands which network it is, not its weights;
    forward raises UserError where that was another one when the run began.
    """

    def __init__(self, net: nn.Module, *, name: str, sha256: str) -> None:
        super().__init__()
        self.name, self.sha256 = name, sha256
        # In a tuple it is no part of this module: no optimiser, checkpoint or switch to training mode comes upon it.
        self._held = (net.float().eval().requires_grad_(False),)
        self._before: dict[str, str] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self._before is not None and self._before["sha256"] != self.sha256:
            raise UserError(
                f"model.loss: the run began with features of {self._before['name']}, and here is {self.name}: its loss "
                "would be another one; put the file back (`gentrain weights`), or start a new run"
            )
        maps: tuple[Tensor, ...] = self._held[0](x)
        return maps

    def get_extra_state(self) -> dict[str, str]:
        return {"name": self.name, "sha256": self.sha256}

    def set_extra_state(self, state: dict[str, str]) -> None:
        self._before = state

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Frozen:
        self._held[0]._apply(fn)  # type: ignore[no-untyped-call]  # it goes to the devices that its user goes to
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
