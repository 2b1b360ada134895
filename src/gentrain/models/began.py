"""BEGAN: an autoencoding critic held in balance with the generator by a weight that is steered, not chosen.

Paper: Berthelot, Schumm, Metz 2017, BEGAN: Boundary Equilibrium Generative Adversarial Networks, arXiv 1703.10717:
section 3.3 (the equilibrium gamma = E L(G(z)) / E L(x)), 3.4 (the losses and the control of k), 3.4.1 (the measure of
convergence), 3.5 (the networks).
Adds to the adversarial family: that loss, which has a state, and convolutional networks of ELUs without normalisation.
The critic itself is ``nets.energy``, which EBGAN shares.
Departs: the generator ends in tanh, as all of ours; from 4x4 up where images are smaller than 16 pixels; both players
move on one set of samples (model.fresh_noise=true draws anew), and k is moved by those, in the critic's turn; rates
fall on a schedule instead of when the measure stalls; no vanishing residuals, no skip connections from the code. With
train.accumulate each part of a batch moves k.
Checked by: tests/test_ebgan.py (k against its recurrence, its bounds, the checkpoint; terms, gradients), the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.game import Round
from gentrain.nets.layers import BASE, Crop, Pad, require_square_images
from gentrain.types import Spec, Terms


@final
class Equilibrium(nn.Module):
    """A loss with a state. With L = minus the score, the error of the critic's autoencoder:

        critic      L(x) - k L(G(z))        k <- clip(k + rate (gamma L(x) - L(G(z))), 0, 1) after it
        generator   L(G(z))

    ``gamma``: error of samples over that of images at the equilibrium; smaller: clearer and more alike. ``rate``:
    lambda_k. ``k`` is 0 at first. Logs ``equilibrium/k`` and ``equilibrium/measure`` = L(x) + |gamma L(x) - L(G(z))|.
    UserError for numbers out of their range.
    """

    probabilistic: ClassVar[bool] = False
    needs_lipschitz: ClassVar[bool] = False
    relative: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = True
    centred: ClassVar[bool] = False

    def __init__(self, gamma: float = 0.5, rate: float = 0.001) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise UserError(f"loss.gamma={gamma}: above 0 and at most 1")
        if not rate > 0:
            raise UserError(f"loss.rate={rate}: above 0")
        self.gamma, self.rate = gamma, rate
        self.register_buffer("k", torch.zeros(()))
        self.k: Tensor

    def critic(self, real: Tensor, fake: Tensor) -> Terms:
        error, of_samples = -real.float().mean(), -fake.float().mean()
        terms = {"real": error, "fake": -self.k.clone() * of_samples}
        if torch.is_grad_enabled():  # a turn, not a look
            with torch.no_grad():
                self.k.add_(self.rate * (self.gamma * error - of_samples)).clamp_(0.0, 1.0)
        return terms

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Terms:
        return {"adversarial": -fake.float().mean()}

    def watch(self, seen: Round) -> Terms:
        error, of_samples = -seen.real_verdict.score.float().mean(), -seen.on_fake.score.float().mean()
        measure = error + (self.gamma * error - of_samples).abs()
        return {"equilibrium/k": self.k.clone(), "equilibrium/measure": measure}


@dataclass(frozen=True)
class EluConvolutions:
    """An ``Architecture`` for square images: two 3x3 convolutions with ELU at each size.

    Decoder: ``width`` channels at all sizes, sides doubled by nearest neighbours. Encoder: ``width``, 2 ``width``, ...,
    one more with each halving, which a convolution of stride 2 does. UserError for other data or values.
    """

    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"model.net.width must be 1 or more, got {self.width}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        base, halvings = self._sizes(spec)
        width = self.width
        layers: list[nn.Module] = [nn.Linear(latent, width * base * base), nn.Unflatten(1, (width, base, base))]
        for i in range(halvings + 1):
            layers += [nn.Upsample(scale_factor=2, mode="nearest")] if i else []
            layers += [*_elu(width, width), *_elu(width, width)]
        layers.append(nn.Conv2d(width, channels or spec.channels, 3, padding=1))
        if spec.size != spec.canvas:
            layers.append(Crop(spec.size, spec.canvas))
        return nn.Sequential(*layers, nn.Tanh()) if bounded else nn.Sequential(*layers)

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out], linear at the end."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> [B F], the last feature map as a vector; and F."""
        base, halvings = self._sizes(spec)
        layers: list[nn.Module] = [Pad(spec.size, spec.canvas)] if spec.size != spec.canvas else []
        layers += _elu(spec.channels + more, self.width)
        before = self.width
        for i in range(halvings + 1):
            width = self.width * (i + 1)
            layers += [*_elu(before, width), *_elu(width, width)]
            layers += _elu(width, width, stride=2) if i < halvings else []
            before = width
        return nn.Sequential(*layers, nn.Flatten()), before * base * base

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return nn.Linear(inputs, outputs)

    @staticmethod
    def _sizes(spec: Spec) -> tuple[int, int]:
        """Side of the smallest feature map, and how often the canvas is halved to it."""
        require_square_images(spec)
        base = 2 * BASE if spec.canvas >= 4 * BASE else BASE
        return base, (spec.canvas // base).bit_length() - 1


def _elu(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1), nn.ELU(inplace=True)]
