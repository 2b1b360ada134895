"""Masked autoregressive flows of the zuko library (an extra: gentrain[flows]) as one of our parts."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection, float32


def library() -> Any:
    """``zuko``. UserError where it is not installed."""
    try:
        return importlib.import_module("zuko")
    except ModuleNotFoundError:
        raise UserError(
            "model.net: masked autoregressive flows are those of zuko, which is missing: pip install 'gentrain[flows]'"
        ) from None


class Autoregressive(Bijection):
    """A transformation of zuko's, x [B D] -> z [B D], in float32: its univariate maps are computed in what its networks
    return. Backwards it takes one pass for each group of numbers that depend on each other."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with float32(x):
            z, logdet = self.transform(c).call_and_ladj(x)
            return z, logdet

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        with float32(z):
            x: Tensor = self.transform(c).inv(z)
            return x


def alternating_orders(dimensions: int, transforms: int) -> list[Tensor]:
    """The order of the data, and its reverse, by turns."""
    order = torch.arange(dimensions)
    return [order if number % 2 == 0 else order.flip(0) for number in range(transforms)]
