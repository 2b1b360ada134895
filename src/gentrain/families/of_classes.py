"""Systems that may be asked for samples of a class."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable

import torch
from torch import Tensor

from gentrain.engine.system import System


class OfClasses(System, ABC):
    """One that knows how frequent each class is, if it is ``conditional`` (``capabilities.CountsClasses``)."""

    keeps = ("class_counts",)

    conditional = False
    class_counts: Tensor | None = None

    def give_class_counts(self, counts: Tensor) -> None:
        self.class_counts = counts

    def draw_labels(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """int64 [n], each class as often as in the training split."""
        return torch.multinomial(self.class_shares(), n, replacement=True, generator=generator)

    def class_shares(self) -> Tensor:
        """Share of each class among the training images [K], on the system's device. ValueError before they are
        known."""
        if self.class_counts is None:
            raise ValueError("give_class_counts was not called")
        counts = self.class_counts.float().to(self.device)
        return counts / counts.sum()

    def over_classes(self, log_likelihood: Callable[[int], Tensor]) -> Tensor:
        """log p(x) [B] of log p(x | class): the mixture over the classes that training has, by their shares."""
        shares = self.class_shares()
        return torch.logsumexp(
            torch.stack([log_likelihood(k) + share.log() for k, share in enumerate(shares) if share > 0]), dim=0
        )
