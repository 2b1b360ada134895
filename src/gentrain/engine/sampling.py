"""Drawing from a system outside of training: right mode, right weights, own random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from gentrain.engine.system import System
from gentrain.evaluation.randomness import at_evaluation, isolated_rng
from gentrain.evaluation.temperature import tempered
from gentrain.evaluation.truncation import truncated

BATCH = 250
"""Samples are drawn in batches of this size whatever the caller does with them: the noise depends on it."""


@contextlib.contextmanager
def at_rest(system: System, weights: str = "ema") -> Iterator[None]:
    """No gradients, networks in eval mode, the chosen weights; at the end all is as before, random states too."""
    with isolated_rng(), torch.no_grad(), system.weights(weights), at_evaluation(system.nets), system.autocast():
        yield


def draw(
    system: System,
    n: int,
    *,
    seed: int,
    weights: str = "ema",
    labels: Tensor | None = None,
    truncation: float | None = None,
    temperature: float | None = None,
) -> Tensor:
    """``n`` samples as float32 on the CPU: [n C H W] in [-1, 1], or [n D]. The same seed gives the same samples.
    ``truncation``: bound of each number of the latent (``evaluation.truncation``);
    ``temperature``: of the samples (``evaluation.temperature``)."""
    generator = torch.Generator(system.device).manual_seed(seed)
    parts = []
    with at_rest(system, weights), tempered(system, temperature), truncated(system, truncation, seed=seed):
        for start in range(0, n, BATCH):
            stop = min(start + BATCH, n)
            some = None if labels is None else labels[start:stop].to(system.device)
            parts.append(system.sample(stop - start, labels=some, generator=generator).float().cpu().contiguous())  # type: ignore[operator]
    return torch.cat(parts)
