"""Evaluation draws random numbers, changes modes and leaves no trace: scores on or off, training goes the same way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def at_evaluation(module: nn.Module) -> Iterator[None]:
    """Dropout and batch statistics off, then every module back into the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch (CPU and CUDA) start from ``seed`` (None: go on from
    where they are); outside they are as they were before, whatever was drawn and whether or not it failed."""
    python = random.getstate()
    legacy = np.random.get_state()  # noqa: NPY002 (other people's code draws from it)
    cpu = torch.get_rng_state()
    # Seeding a CUDA that is not in use yet would leave a seed behind for its first use.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
