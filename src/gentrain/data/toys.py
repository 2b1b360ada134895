"""Points in the plane with a known density: mode coverage and likelihood can be checked against the truth.

Numbers of the toy experiments of WGAN-GP (Gulrajani et al., arXiv 1704.00028, figure 3), as in the authors' release,
whose divisors bring each set to about unit standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gentrain.data.dataset import DataSet, Density, in_memory
from gentrain.errors import UserError
from gentrain.types import Spec

_ROWS = 256  # points whose distances to all components are held at once; few enough to stay in the cache


def _log_mixture(x: Tensor, centres: Tensor, weights: Tensor, std: float) -> Tensor:
    """[B] nats: log of the sum over centres [M D] of weight [M] times N(x; centre, std^2 I)."""
    centres, logits = centres.to(x), weights.log().to(x)
    constant = centres.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    parts = []
    for first in range(0, len(x), _ROWS):
        rows = x[first : first + _ROWS]
        squares = (rows[:, None] - centres).square().sum(-1)  # [B M]; not cdist, whose shortcut loses digits here
        parts.append(torch.logsumexp(logits - squares / (2 * std * std), dim=1) - constant)
    return torch.cat(parts) if parts else x.new_empty(0)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal Gaussians N(mode, mode_std^2 I) around ``modes`` [M D]."""

    modes: Tensor
    mode_std: float

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """float32 [n D]."""
        which = torch.randint(len(self.modes), (n,), generator=generator)
        noise = torch.randn(n, self.modes.shape[1], generator=generator)
        return self.modes[which] + self.mode_std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """[B] nats, in closed form."""
        count = len(self.modes)
        return _log_mixture(x, self.modes, torch.full((count,), 1 / count), self.mode_std)


@dataclass(frozen=True)
class Spiral:
    """(t cos t, t sin t) with t uniform on [1.5 pi, 4.5 pi], plus N(0, noise^2 I), all divided by ``scale``."""

    noise: float
    scale: float
    panels: int = 128
    modes: Tensor | None = None

    @property
    def mode_std(self) -> float:
        return self.noise / self.scale

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """float32 [n 2]."""
        curve = self._curve(torch.rand(n, generator=generator))
        return curve + self.mode_std * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """[B] nats, with the integral over t by Gauss-Legendre quadrature, eight points in each panel.

        A panel is at most four noise deviations long (for noise 0.25), which leaves an error below 1e-3 nats on the
        curve and around its ends; the midpoint rule with four times the points errs by 2e-2 there.
        """
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
        starts = torch.arange(self.panels, dtype=torch.float64)
        u = (starts[:, None] + (nodes + 1) / 2) / self.panels  # [panels 8]
        return _log_mixture(x, self._curve(u.flatten()), weights.repeat(self.panels) / (2 * self.panels), self.mode_std)

    def _curve(self, u: Tensor) -> Tensor:
        t = 1.5 * math.pi * (1 + 2 * u)  # [n]
        return torch.stack((t * t.cos(), t * t.sin()), dim=1) / self.scale  # [n 2]


def ring(
    modes: int = 8,
    radius: float = 2.0,
    std: float = 0.02,
    scale: float = 1.414,
    train_size: int = 100_000,
    test_size: int = 10_000,
    seed: int = 0,
) -> DataSet:
    """Equal Gaussians on a circle, one on the positive x-axis. ``radius`` and ``std`` are divided by ``scale``."""
    _positive(modes=modes, radius=radius, std=std, scale=scale)
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    centres = radius / scale * torch.stack((angle.cos(), angle.sin()), dim=1)  # [M 2]
    return _points("ring", Mixture(centres.float(), std / scale), train_size, test_size, seed)


def grid(
    side: int = 5,
    spacing: float = 2.0,
    std: float = 0.05,
    scale: float = 2.828,
    train_size: int = 100_000,
    test_size: int = 10_000,
    seed: int = 0,
) -> DataSet:
    """``side`` x ``side`` equal Gaussians about the origin. ``spacing`` and ``std`` are divided by ``scale``."""
    _positive(side=side, spacing=spacing, std=std, scale=scale)
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * (spacing / scale)
    centres = torch.cartesian_prod(line, line).reshape(-1, 2)  # [M 2]
    return _points("grid", Mixture(centres.float(), std / scale), train_size, test_size, seed)


def swissroll(
    noise: float = 0.25,
    scale: float = 7.5,
    train_size: int = 100_000,
    test_size: int = 10_000,
    seed: int = 0,
) -> DataSet:
    """One spiral of one and a half turns with Gaussian noise: one connected mode, so there are none to count."""
    _positive(noise=noise, scale=scale)
    return _points("swissroll", Spiral(noise, scale), train_size, test_size, seed)


def _positive(**values: float) -> None:
    for key, value in values.items():
        if value <= 0:
            raise UserError(f"{key}={value} must be above 0")


def _points(name: str, density: Density, train_size: int, test_size: int, seed: int) -> DataSet:
    generator = torch.Generator().manual_seed(seed)
    x = density.sample(train_size + test_size, generator)  # [N 2]
    return in_memory(name, Spec(shape=(2,)), (x[:train_size], None), (x[train_size:], None), density)
