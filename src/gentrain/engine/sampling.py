"""Drawing from a system outside of training: right mode, right weights, own random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.engine.progress import Steps
from gentrain.engine.system import System
from gentrain.evaluation.randomness import at_evaluation, isolated_rng
from gentrain.evaluation.temperature import tempered
from gentrain.evaluation.truncation import truncated

BATCH = 250
"""Samples are drawn in batches of this size whatever the caller does with them: the noise depends on it."""


Watch = Callable[[int, int], None]
"""Is told how many steps are done, of how many."""


@runtime_checkable
class Walks(Protocol):
    """Makes a batch of samples in many steps, and tells ``watch`` of each, where there is one."""

    watch: Watch | None


@contextlib.contextmanager
def watched(system: System, watch: Watch) -> Iterator[None]:
    """``watch`` is told of the steps of each batch that the system draws; of none by a system without steps."""
    if not isinstance(system, Walks):
        yield
        return
    before, system.watch = system.watch, watch
    try:
        yield
    finally:
        system.watch = before


@contextlib.contextmanager
def telling(system: System, title: str) -> Iterator[None]:
    """What the system draws tells how far it is, if it is slow."""
    with Steps(title) as steps, watched(system, steps):
        yield


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
    watch: Watch | None = None,
) -> Tensor:
    """``n`` samples as float32 on the CPU: [n C H W] in [-1, 1], or [n D]. The same seed gives the same samples.
    ``truncation``: bound of each number of the latent (``evaluation.truncation``); ``temperature``: of the samples
    (``evaluation.temperature``). ``watch`` is told of the steps of all batches together, by systems that have some."""
    generator = torch.Generator(system.device).manual_seed(seed)
    parts = []
    with at_rest(system, weights), tempered(system, temperature), truncated(system, truncation, seed=seed):
        for start in range(0, n, BATCH):
            stop = min(start + BATCH, n)
            some = None if labels is None else labels[start:stop].to(system.device)
            with contextlib.nullcontext() if watch is None else watched(system, _part(watch, start, n)):
                parts.append(system.sample(stop - start, labels=some, generator=generator).float().cpu().contiguous())  # type: ignore[operator]
    return torch.cat(parts)


def _part(watch: Watch, start: int, n: int) -> Watch:
    """Steps of the batch that begins at sample ``start``, as steps of all batches of ``n`` samples."""
    done, batches = start // BATCH, -(-n // BATCH)
    return lambda step, of: watch(done * of + step, batches * of)
