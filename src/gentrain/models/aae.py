"""Adversarial autoencoder: a critic of codes holds an autoencoder's codes against any prior that can be drawn from.

Paper: Makhzani, Shlens, Jaitly, Goodfellow, Frey 2016, Adversarial Autoencoders, arXiv 1511.05644: section 2 (the two
phases), 2.3 (labels beside the codes), 5 (semi-supervised: classes and style, each with its critic).
Adds to the family of adversarial autoencoders: priors known by draws (a ring of Gaussians, a swiss roll, one-hot
classes), and a code made of class probabilities and style. The players and their order are the family's.
Departs: Adam but at the paper's size; the squared error is a sum over pixels; the priors' numbers are ours.
Clusters without labels (the paper's section 6) are not built.
Checked by: tests/test_aae.py (draws against densities and shapes, who moves when, labels), tests/test_contract.py.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.errors import UserError


@dataclass(frozen=True)
class RingMixture:
    """``components`` equal Gaussians in the plane, their centres at ``radius`` on a circle, component k at the angle
    2 pi k / components; ``radial`` and ``tangential``: their standard deviations along the radius and across it. Each
    class has its component (section 2.3, figure 4)."""

    components: int
    radius: float
    radial: float
    tangential: float

    def __post_init__(self) -> None:
        for name in ("components", "radius", "radial", "tangential"):
            if not getattr(self, name) > 0:
                raise UserError(f"model.prior.{name}={getattr(self, name)}: above 0")

    @property
    def spread(self) -> float:
        centres = self.radius if self.components > 1 else 0.0  # of several the mean is the middle of the circle
        return math.sqrt((centres**2 + self.radial**2 + self.tangential**2) / 2.0)

    def require(self, latent: int) -> None:
        _require_plane(latent)

    def require_classes(self, classes: int) -> None:
        if classes != self.components:
            raise UserError(f"model.prior.components={self.components}: the data have {classes} classes, one for each")

    def draw(self, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return self._around(torch.randint(self.components, (n,), device=device, generator=generator), generator)

    def draw_labelled(self, labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
        any_of = torch.randint(self.components, labels.shape, device=labels.device, generator=generator)
        return self._around(torch.where(labels == classes, any_of, labels), generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """[B] nats for z [B 2]."""
        angle = torch.arange(self.components, device=z.device) * (2.0 * math.pi / self.components)
        cos, sin = angle.cos(), angle.sin()  # [M]
        x, y = z.float().unbind(1)
        along = (torch.outer(x, cos) + torch.outer(y, sin) - self.radius) / self.radial  # [B M]
        across = (torch.outer(y, cos) - torch.outer(x, sin)) / self.tangential
        constant = math.log(2.0 * math.pi * self.radial * self.tangential * self.components)
        return torch.logsumexp(-0.5 * (along.square() + across.square()), dim=1) - constant

    def _around(self, which: Tensor, generator: torch.Generator | None) -> Tensor:
        angle = which * (2.0 * math.pi / self.components)
        noise = torch.randn(len(which), 2, device=which.device, generator=generator)
        along, across = self.radius + self.radial * noise[:, 0], self.tangential * noise[:, 1]
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([along * cos - across * sin, along * sin + across * cos], dim=1)  # [n 2]


@dataclass(frozen=True)
class SwissRoll:
    """A spiral in the plane, ``turns`` times around up to ``radius``, plus N(0, noise^2 I); points are spread over its
    area, u uniform with distance radius sqrt(u) and angle 2 pi turns sqrt(u). Class k of K has the piece with u in
    [k/K, (k+1)/K] (section 2.3, figure 4)."""

    turns: float
    radius: float
    noise: float

    def __post_init__(self) -> None:
        for name in ("turns", "radius", "noise"):
            if not getattr(self, name) > 0:
                raise UserError(f"model.prior.{name}={getattr(self, name)}: above 0")

    @property
    def spread(self) -> float:
        # With s = sqrt(u), the mean is radius times the integral over [0, 1] of 2 s^2 e^(i a s), not the origin.
        a = 2j * math.pi * self.turns
        mean = 2.0 * (cmath.exp(a) * (1.0 / a - 2.0 / a**2 + 2.0 / a**3) - 2.0 / a**3)
        return math.sqrt(self.radius**2 * (0.5 - abs(mean) ** 2) / 2.0 + self.noise**2)

    def require(self, latent: int) -> None:
        _require_plane(latent)

    def require_classes(self, classes: int) -> None:
        """Any number of pieces can be cut."""

    def draw(self, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        return self._along(torch.rand(n, device=device, generator=generator), generator)

    def draw_labelled(self, labels: Tensor, classes: int, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(labels.shape, device=labels.device, generator=generator)
        return self._along(torch.where(labels == classes, u, (labels + u) / classes), generator)

    def _along(self, u: Tensor, generator: torch.Generator | None) -> Tensor:
        root = u.sqrt()
        angle = 2.0 * math.pi * self.turns * root
        curve = self.radius * torch.stack([root * angle.cos(), root * angle.sin()], dim=1)
        return curve + self.noise * torch.randn(len(u), 2, device=u.device, generator=generator)


@dataclass(frozen=True)
class ClassesAndStyle:
    """The code of section 5: ``classes`` probabilities (softmax), then style numbers as the encoder gives them, in all
    ``latent``. Nothing is drawn; the one-hot prior makes the probabilities sharp."""

    latent: int
    classes: int

    @property
    def outputs(self) -> int:
        return self.latent

    def logits(self, output: Tensor) -> Tensor:
        """[B K] of the encoder's output."""
        return output[:, : self.classes]

    def mean(self, output: Tensor) -> Tensor:
        return torch.cat([F.softmax(self.logits(output), dim=1), output[:, self.classes :]], dim=1)

    def draw(self, output: Tensor) -> Tensor:
        return self.mean(output)


def _require_plane(latent: int) -> None:
    if latent != 2:
        raise UserError(f"model.latent={latent}: this prior lies in the plane, so 2")
