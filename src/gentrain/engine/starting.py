"""The first batch of a run, where layers take their first values from it (``nets.first_batch``)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gentrain.engine.ranks import share_first, world_size
from gentrain.nets.first_batch import first_values, uninitialised


def take_first_values(nets: nn.ModuleDict, forward: Callable[[], object]) -> None:
    """By a pass through the networks, where any of their layers still waits for it. Ranks take the values of the first
    one, whose batch is another than theirs."""
    layers = uninitialised(nets.values())
    if not layers:
        return
    with torch.no_grad(), first_values(layers):
        forward()
    if world_size() > 1:
        share_first(nets)
