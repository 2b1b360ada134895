"""Which samples stand in which batch: a pure function of (seed, epoch, position).

Nothing is kept but the current epoch's permutation, so a run resumes by naming an iteration.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from gentrain.errors import UserError


def hashed(*parts: int | str) -> int:
    """63 bits from all parts. Neighbouring seeds and epochs give unrelated numbers, which plain sums would not."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Order:
    """Batches without replacement; every epoch is a fresh permutation and drops its last, incomplete batch.

    ``group``: so many samples side by side stay side by side: groups are permuted, not samples. Raises UserError if
    there are fewer samples than one batch holds, or a batch would cut a group.
    """

    def __init__(self, n: int, batch_size: int, seed: int, group: int = 1) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: a batch needs at least 1 sample")
        if n < batch_size:
            raise UserError(
                f"{n} samples are fewer than one batch of {batch_size}; set batch_size to {n} or less, or add data"
            )
        if batch_size % group:
            raise UserError(
                f"train.batch_size={batch_size}: the data come in groups of {group} that belong together; use a "
                f"multiple of {group}"
            )
        self.n = n
        self.group = group
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = n // batch_size
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def epoch(self, iteration: int) -> int:
        return iteration // self.batches_per_epoch

    def permutation(self, epoch: int) -> Tensor:
        """int64 [n]: the order of all samples in an epoch. Shared, not copied: do not write to it."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(hashed("order", self.seed, epoch))
            groups = torch.randperm(self.n // self.group, generator=generator)
            if self.group > 1:
                groups = (groups[:, None] * self.group + torch.arange(self.group)).flatten()
            self._permutation = groups
            self._epoch = epoch
        return self._permutation

    def span(self, iteration: int) -> tuple[int, int]:
        """First and past-the-last place of the iteration's batch in its epoch's permutation."""
        start = iteration % self.batches_per_epoch * self.batch_size
        return start, start + self.batch_size

    def batch(self, iteration: int) -> Tensor:
        """int64 [batch_size] for the 0-based iteration. A view of the permutation: do not write to it."""
        start, stop = self.span(iteration)
        return self.permutation(self.epoch(iteration))[start:stop]
