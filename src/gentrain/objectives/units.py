"""Data as the visible units of a Boltzmann machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.types import LikelihoodOn, Spec, to_signed


class Pixels(Protocol):
    """A likelihood of pixels that are 0 or 1."""

    @property
    def likelihood_on(self) -> LikelihoodOn: ...

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor: ...


class Binary:
    """``pixels`` made 0 or 1, each a unit. UserError for vectors."""

    gaussian = False

    def __init__(self, spec: Spec, pixels: Pixels) -> None:
        if not spec.is_image:
            raise UserError(
                "model.loss: these units are binary pixels, and data= gives vectors: choose images, or "
                "loss=unit_gaussian"
            )
        self.shape, self.pixels = spec.shape, pixels

    @property
    def likelihood_on(self) -> LikelihoodOn:
        return self.pixels.likelihood_on

    @property
    def log_volume(self) -> Tensor:
        return torch.zeros(())

    def begin(self, x: Tensor) -> None:
        pass

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        return self.pixels.prepare(x, fixed=fixed).flatten(1)

    def show(self, mean: Tensor) -> Tensor:
        return 2.0 * mean.view(-1, *self.shape) - 1.0


@dataclass(frozen=True)
class UnitGaussian:
    """``floor``: least standard deviation, in the data's units: a pixel that never changes would be divided by 0
    (config target)."""

    floor: float = 0.1

    def __post_init__(self) -> None:
        if not self.floor > 0:
            raise UserError(f"loss.floor={self.floor}: above 0")

    def units(self, spec: Spec) -> Standardised:
        return Standardised(spec, self.floor)


class Standardised(nn.Module):
    """Real numbers with mean 0 and variance 1 over the training data, each pixel or number by itself (Hinton 2012, A
    practical guide to training restricted Boltzmann machines, section 13.2). The likelihood is a density: of images in
    [-1, 1], of vectors as they are.
    """

    gaussian = True
    likelihood_on = LikelihoodOn(bits=None)

    def __init__(self, spec: Spec, floor: float = 0.1) -> None:
        super().__init__()
        self.shape, self.floor = spec.shape, floor
        self.register_buffer("mean", torch.zeros(spec.numel))
        self.register_buffer("scale", torch.ones(spec.numel))
        self.mean: Tensor
        self.scale: Tensor

    @property
    def log_volume(self) -> Tensor:
        return self.scale.double().log().sum()

    def begin(self, x: Tensor) -> None:
        flat = to_signed(x).flatten(1)
        self.mean.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0, correction=0).clamp(min=self.floor))

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        return (to_signed(x).flatten(1).float() - self.mean) / self.scale

    def show(self, mean: Tensor) -> Tensor:
        x = (mean * self.scale + self.mean).view(-1, *self.shape)
        return x.clamp(-1.0, 1.0) if len(self.shape) == 3 else x
