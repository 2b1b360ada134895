"""Base distributions of flows: what a code is drawn from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection
from gentrain.nets.flows.multiscale import MultiScale
from gentrain.nets.layers import choose
from gentrain.types import Spec, Terms

LOG_2PI = math.log(2.0 * math.pi)


class Base(nn.Module, ABC):
    """p(z), or p(z | y) where it is ``conditional`` on classes y int64 [B]."""

    conditional = False
    is_round = False
    """Whether it is N(0, I): all directions alike."""

    @abstractmethod
    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """[B] nats for z [B Z]."""

    @abstractmethod
    def at(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        """z [B Z] that standard noise of ``draw`` becomes."""

    def draw(self, n: int, dimensions: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Standard noise [n Z], which a temperature multiplies."""
        return torch.randn(n, dimensions, device=device, generator=generator)

    def terms(self, z: Tensor, y: Tensor | None) -> Terms:
        """What is minimised besides, by name."""
        return {}


class MakesBase(Protocol):
    """A frozen recipe (a config target)."""

    def build(self, spec: Spec, flow: Bijection) -> Base:
        """UserError where it does not fit the data or the flow."""
        ...


class Normal(Base):
    """N(0, I)."""

    is_round = True

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return log_normal(z)

    def at(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        return noise


class Logistic(Base):
    """Independent standard logistic numbers (NICE, arXiv 1410.8516, section 3.4)."""

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return -(F.softplus(z) + F.softplus(-z)).sum(1)

    def at(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        return noise

    def draw(self, n: int, dimensions: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(n, dimensions, device=device, generator=generator)
        return torch.logit(u, eps=1e-7)


class TopNormal(Base):
    """Standard normal numbers but for the last, the ``top`` [C H W] of several scales: N(mean, sd^2) with mean and log
    sd of each channel learned (``learntop`` of Glow's release), from 0, and where there are ``classes`` with the
    class's own added to both; then a linear classifier of the top's means over H W is trained with ``weight``."""

    def __init__(self, top: tuple[int, int, int], classes: int, weight: float) -> None:
        super().__init__()
        self.top, self.weight, self.conditional = top, weight, classes > 0
        self.parameters_of = nn.Parameter(torch.zeros(2 * top[0]))
        self.of_class = nn.Parameter(torch.zeros(classes, 2 * top[0])) if classes else None
        self.classifier = nn.Linear(top[0], classes) if classes and weight else None
        if self.classifier is not None:
            nn.init.zeros_(self.classifier.weight)

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        aside, top = self._parts(z)
        mean, logs = self._moments(y)
        nats = log_normal((top - mean) * (-logs).exp()) - math.prod(self.top[1:]) * logs.sum((1, 2))
        return nats + log_normal(aside)

    def at(self, noise: Tensor, y: Tensor | None = None) -> Tensor:
        aside, top = self._parts(noise)
        mean, logs = self._moments(y)
        return torch.cat([aside, torch.addcmul(mean, top, logs.exp()).flatten(1)], dim=1)

    def terms(self, z: Tensor, y: Tensor | None) -> Terms:
        if self.classifier is None or y is None:
            return {}
        logits = self.classifier(self._parts(z)[1].mean(2)).float()
        return {"classification": self.weight * F.cross_entropy(logits, y)}

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What was put aside [B *], and the top [B C H*W]."""
        size = math.prod(self.top)
        return z[:, :-size], z[:, -size:].reshape(len(z), self.top[0], -1)

    def _moments(self, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log sd, each [B or 1 C 1]."""
        both = self.parameters_of[None]
        if self.of_class is not None:
            if y is None:
                raise ValueError("the classes are missing")
            both = both + self.of_class[y]
        mean, logs = both[:, :, None].chunk(2, dim=1)
        return mean, logs


KINDS: dict[str, Callable[[], Base]] = {"normal": Normal, "logistic": Logistic}


@dataclass(frozen=True)
class StandardBase:
    """Independent standard numbers; ``kind``: normal or logistic. UserError for another."""

    kind: str = "normal"

    def __post_init__(self) -> None:
        choose(KINDS, self.kind, "model.base.kind")

    def build(self, spec: Spec, flow: Bijection) -> Base:
        return KINDS[self.kind]()


@dataclass(frozen=True)
class LearnedTop:
    """``conditional``: on the class; ``classification``: weight of a classifier of the codes, 0 for none. UserError for
    a flow without scales, and for data without classes where they are asked for."""

    conditional: bool = False
    classification: float = 0.0

    def __post_init__(self) -> None:
        if not self.classification >= 0:
            raise UserError(f"model.base.classification={self.classification}: 0 or more")

    def build(self, spec: Spec, flow: Bijection) -> Base:
        scales = [part for part in flow.modules() if isinstance(part, MultiScale)]
        if not scales:
            raise UserError("model.base: a learned top is of flows with several scales; use StandardBase")
        if self.conditional and not spec.classes:
            raise UserError("model.base.conditional=true: the data have no classes; choose data that have, or false")
        return TopNormal(scales[0].top, spec.classes if self.conditional else 0, self.classification)


def log_normal(z: Tensor) -> Tensor:
    """[B] nats of z [B *] under N(0, I)."""
    z = z.flatten(1)
    return -0.5 * (z.square().sum(1) + z.shape[1] * LOG_2PI)
