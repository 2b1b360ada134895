"""A generator: from noise, codes and labels to samples."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.families.of_classes import OfClasses
from gentrain.game import Codes
from gentrain.nets.architecture import Architecture
from gentrain.nets.conditioning import Labels
from gentrain.nets.virtual import Referenced, virtual_layers
from gentrain.objectives.priors import truncated_normal
from gentrain.types import Images, Spec

Prior = Literal["normal", "uniform", "sphere"]


def prior_noise(
    prior: Prior,
    n: int,
    latent: int,
    device: torch.device,
    generator: torch.Generator | None,
    truncation: float | None = None,
) -> Tensor:
    """[n Z] from N(0, I), within +-``truncation`` if there is one, from the sphere of radius sqrt(Z), where N(0, I) has
    most of its mass, or from U(-1, 1)."""
    if truncation is not None:
        return truncated_normal(n, latent, truncation, device, generator)
    if prior in ("normal", "sphere"):
        z = torch.randn(n, latent, device=device, generator=generator)
        return z if prior == "normal" else z * (latent**0.5 / z.norm(dim=1, keepdim=True))
    return torch.rand(n, latent, device=device, generator=generator).mul_(2.0).sub_(1.0)


@dataclass(frozen=True, eq=False)
class Made:
    """Generated samples and what they were made of: labels int64 [B] and codes [B A], where there are any."""

    x: Tensor
    labels: Tensor | None
    codes: Tensor | None


class Generating(OfClasses, ABC):
    """What a GAN is when its critic is gone. ``latent`` numbers of noise from ``prior``, ``codes`` behind them,
    ``labels`` where it is asked by class. UserError for fewer than 1 number of noise."""

    sampled: tuple[str, ...] = ("generator",)

    def __init__(
        self,
        spec: Spec,
        players: Mapping[str, Moves],
        latent: int,
        prior: Prior,
        codes: Codes | None,
        labels: Labels | None,
        turns: Turns | None,
        ema: Ema | None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        if latent < 1:
            raise UserError(f"model.latent={latent}: at least 1")
        self.latent, self.codes, self.labels = latent, codes, labels
        self.prior: Prior = prior
        self.truncation: float | None = None
        self.conditional = labels is not None

    def build_generator(self, net: Architecture, reference: int) -> None:
        """Make ``nets["generator"]``; ``reference``: samples of the reference batch of virtual batch norm."""
        inputs = self.latent + (0 if self.codes is None else self.codes.width)
        self.nets["generator"] = (
            net.decoder(self.spec, inputs)
            if self.labels is None
            else self.labels.build_generator(self.spec, net, inputs)
        )
        if virtual_layers(self.nets["generator"]):
            self.nets["generator"] = Referenced(self.nets["generator"], *self._reference(reference))

    def generate(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Made:
        """Samples [n C H W] in [-1, 1] (or [n D]) from new noise."""
        z = self.prior_codes(n, generator)
        return Made(self._from(z, labels), labels, None if self.codes is None else z[:, self.latent :])

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise, and the codes behind it [n Z] on the system's device."""
        z = prior_noise(self.prior, n, self.latent, self.device, generator, self.truncation)
        return z if self.codes is None else torch.cat([z, self.codes.draw(n, self.device, generator)], dim=1)

    @property
    def round_codes(self) -> int:
        """So many first numbers of ``prior_codes`` are N(0, I): all directions alike, lengths nearly so."""
        return self.latent if self.prior == "normal" else 0

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B C H W] in [-1, 1] (or [B D]) for z of ``prior_codes`` [B Z]; of the classes int64 [B] where the system is
        conditional. ValueError without them."""
        if self.conditional and labels is None:
            raise ValueError("samples of this system are of a class: decode needs labels")
        return self._from(z, labels if self.conditional else None)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        if self.conditional and labels is None:
            labels = self.draw_labels(n, generator)
        return self.generate(n, labels if self.conditional else None, generator).x

    @property
    def has_tails(self) -> bool:
        return self.prior == "normal"

    def truncate(self, at: float | None) -> None:
        """From now on each number of the noise lies in [-at, at]; None: the whole prior. For samples, not for training.
        UserError for noise without tails, and for a bound of 0 or less."""
        if at is not None and not self.has_tails:
            raise UserError(
                f"truncation={at:g}: model.prior={self.prior} has no tails to cut off; it is for normal noise"
            )
        if at is not None and not at > 0:
            raise UserError(f"truncation={at:g}: above 0")
        self.truncation = at

    def _reference(self, n: int) -> list[Tensor]:
        """Inputs of a generator, chosen once; each class as often as another."""
        z = self.prior_codes(n)
        return [z, torch.arange(n) % self.spec.classes] if self.conditional else [z]

    def _from(self, z: Tensor, labels: Tensor | None) -> Tensor:
        made: Tensor = self.nets["generator"](z, labels) if self.conditional else self.nets["generator"](z)
        return made

    def labels_of(self, batch: Images) -> Tensor | None:
        """Those of the batch, where the generator is asked by class."""
        return batch.y if self.conditional else None
