"""A generator that was made worse on purpose: constant width and no normalisation, against DCGAN's critic.

Paper: Arjovsky, Chintala, Bottou 2017, "Wasserstein GAN", arXiv 1701.07875, section 4.3 and figure 6: without batch
normalisation and with a constant number of filters a standard GAN fails where a WGAN still makes samples; Gulrajani et
al. 2017, arXiv 1704.00028, table 2, has the same generator.
Departs: DCGAN's kernel of 4; sizes and padding as DCGAN's.
Checked by: tests/test_nets.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gentrain.errors import UserError
from gentrain.nets.dcgan import DCGAN
from gentrain.nets.layers import BASE, cropped, require_square_images
from gentrain.types import Spec


@dataclass(frozen=True)
class CrippledDCGAN:
    """An ``Architecture`` for square images: ``critic`` is DCGAN's whole, the generator has ``width`` channels in each
    stage, ReLU and nothing else. UserError for other values."""

    critic: DCGAN
    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"model.net.width must be 1 or more, got {self.width}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        require_square_images(spec)
        width, stages = self.width, (spec.canvas // BASE).bit_length() - 1
        layers: list[nn.Module] = [
            nn.Linear(latent, width * BASE * BASE),
            nn.Unflatten(1, (width, BASE, BASE)),
            nn.ReLU(inplace=True),
        ]
        for _ in range(stages - 1):
            layers += [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        layers.append(nn.ConvTranspose2d(width, channels or spec.channels, 4, stride=2, padding=1))
        return nn.Sequential(*layers, *cropped(spec, bounded=bounded))

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        return self.critic.encoder(spec, out)

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Module, int]:
        """x [B C+more H W] -> [B F], and F."""
        return self.critic.trunk(spec, more)

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """[B inputs] -> [B outputs]."""
        return self.critic.head(inputs, outputs)
