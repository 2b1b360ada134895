"""Autoencoder: a network that copies its input through a code smaller than it.

Paper: Hinton and Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks, Science 313 (deep
autoencoders by gradient descent, codes of 2 to 30 numbers).
Adds: a code that is a point. The squared error, the networks and the one player are the family's.
Departs: trained from random weights by Adam, without the layers of restricted Boltzmann machines before; ReLU; squared
error for cross-entropy on grey pixels. No sparsity penalty for codes wider than the data, and no density fitted to the
codes afterwards: it does not sample.
Checked by: tests/test_autoencoders.py (a linear one reaches the error of PCA), tests/test_contract.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Point:
    """A code without noise: the encoder's output itself, [B Z]."""

    latent: int

    @property
    def outputs(self) -> int:
        return self.latent

    def mean(self, output: Tensor) -> Tensor:
        return output

    def draw(self, output: Tensor) -> Tensor:
        return output
