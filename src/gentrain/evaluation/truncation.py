"""Samples from a truncated prior, with the batch statistics that belong to them.

Truncation trades diversity for fidelity (Brock et al. 2019, arXiv 1809.11096, section 3.1). Under another distribution
of z the means and variances inside a generator are others than those that its batch norms kept in training: they are
measured anew, over many batches ("standing statistics").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gentrain.errors import UserError

PASSES, BATCH = 16, 250
"""Batches that standing statistics are measured over (16 in the authors' code), and samples in each."""


@runtime_checkable
class Truncates(Protocol):
    """Can draw its latent from the middle of the prior alone."""

    truncation: float | None
    """The bound in use; None: the whole prior."""

    @property
    def has_tails(self) -> bool:
        """Whether the prior has any to cut off."""
        ...

    def truncate(self, at: float | None) -> None:
        """From now on each number of the latent lies in [-at, at]. UserError where that cannot be."""
        ...


@contextmanager
def truncated(system: Any, at: float | None, *, passes: int = PASSES, seed: int = 0) -> Iterator[None]:
    """Inside, each number of the latent lies in [-at, at], and the statistics of batch norms that sampling needs are of
    such samples. None: the whole prior, and nothing is changed. For a system at rest (``engine.sampling.at_rest``),
    whose weights in place are meant. ``passes``: batches that the statistics are of; 0 leaves those of training, under
    which less spread of z is less spread inside (a batch norm behind a linear layer of z takes its scale out again
    where its statistics follow). UserError for a system or a number that it cannot be done with."""
    if at is None:
        yield
        return
    if not isinstance(system, Truncates):
        raise UserError(f"truncation={at:g}: {type(system).__name__} has no latent that could be truncated")
    before = system.truncation
    system.truncate(at)
    try:
        with standing(system, passes=passes, seed=seed) if passes else nullcontext():
            yield
    finally:
        system.truncate(before)


@contextmanager
def standing(system: Any, *, passes: int = PASSES, seed: int = 0) -> Iterator[None]:
    """Inside, the running means and variances of the batch norms that samples pass are the plain averages over
    ``passes`` batches of samples as the system draws them now; outside they are as before."""
    layers = [
        layer
        for name in system.sampled
        for layer in system.nets[name].modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    kept = [({name: x.clone() for name, x in layer.named_buffers()}, layer.momentum) for layer in layers]
    try:
        if layers:
            _measure(system, layers, passes, seed)
            for layer, (buffers, _) in zip(layers, kept, strict=True):
                if not layer.num_batches_tracked:  # no sample passes it: a critic's, that stands beside for its classes
                    _put_back(layer, buffers)
        yield
    finally:
        for layer, (buffers, momentum) in zip(layers, kept, strict=True):
            layer.momentum = momentum
            _put_back(layer, buffers)


def _put_back(layer: _BatchNorm, buffers: Mapping[str, Tensor]) -> None:
    for name, value in buffers.items():
        layer.get_buffer(name).copy_(value)


def _measure(system: Any, layers: list[_BatchNorm], passes: int, seed: int) -> None:
    generator = torch.Generator(system.device).manual_seed(seed)
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches, not one that forgets
        layer.train()
    try:
        for _ in range(passes):
            system.sample(BATCH, generator=generator)
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
