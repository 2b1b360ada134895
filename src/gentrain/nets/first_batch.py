"""Layers whose parameters take their first values from the first batch (data-dependent initialisation).

The layers do it in their own forward pass while ``initialising``; the system that trains them says when
(``engine.starting``), once: ``initialised`` travels in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FirstBatch(nn.Module):
    """Such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialised", torch.tensor(False))
        self.initialised: Tensor
        self.initialising = False


def uninitialised(nets: Iterable[nn.Module]) -> list[FirstBatch]:
    """Layers that still wait for their first batch."""
    layers = (layer for net in nets for layer in net.modules())
    return [layer for layer in layers if isinstance(layer, FirstBatch) and not bool(layer.initialised)]


@contextmanager
def first_values(layers: Iterable[FirstBatch]) -> Iterator[None]:
    """A forward pass inside gives these layers their first values, in the order in which it goes through them."""
    waiting = list(layers)
    for layer in waiting:
        layer.initialising = True
    try:
        yield
    finally:
        for layer in waiting:
            layer.initialising = False
    for layer in waiting:
        layer.initialised.fill_(True)
