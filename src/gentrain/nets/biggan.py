"""BigGAN's generator and critic.

Paper: Brock, Donahue, Simonyan 2019, "Large Scale GAN Training for High Fidelity Natural Image Synthesis", arXiv
1809.11096, section 3 and appendix B (figure 15, table 4).
Adds over the networks of SAGAN (``resnet_gan``): skip-z, orthogonal weights at the start, and as many channels between
as behind the two convolutions of a critic's block. The class embedding shared by all normalisations is
``model.labels.shared``.
Skip-z: z is cut into equal chunks, one for the first layer and one for each block, where it stands beside the class
vector; gain and bias of the block's normalisations are linear in both.
Departs: without classes skip-z modulates by the chunks alone; per-class tables and skip-z together are one linear map
of the one-hot label and the chunk (the authors have skip-z with the shared embedding only); the class embedding starts
as N(0, 1).
Checked by: tests/test_biggan.py (parameter counts against table 1 of the paper, the five switches one by one, chunks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.layers import BASE
from gentrain.nets.modulation import Conditional, ConditionalSequential, modulated
from gentrain.nets.resnet_gan import ResNetGAN, Stages, stages_of
from gentrain.types import Spec


class Hierarchical(nn.Module):
    """(z [B Z], c [B condition] or None) -> samples: the first chunk of z goes into the first layer, the i-th further
    one beside c into the i-th block."""

    def __init__(self, first: nn.Module, blocks: list[nn.Module], last: nn.Module, chunk: int) -> None:
        super().__init__()
        self.first, self.blocks, self.last = first, nn.ModuleList(blocks), last
        self.chunk = chunk

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        chunks = iter(torch.split(z, self.chunk, dim=1))
        x: Tensor = self.first(next(chunks))
        for block in self.blocks:
            if isinstance(block, Conditional):
                own = next(chunks)
                x = block(x, own if c is None else torch.cat([c, own], dim=1))
            else:
                x = block(x)
        pixels: Tensor = self.last(x)
        return pixels


@dataclass(frozen=True)
class BigGAN:
    """An ``Architecture`` for square images. ``skip_z``: whether each block sees its own chunk of z. The other numbers
    as in ``ResNetGAN``. UserError for a z that the chunks do not come out even of."""

    stages: Mapping[str, Stages]
    width: int = 96
    attention: int | str | None = "half"
    skip_z: bool = True
    decoder_norm: str = "batch"
    init: str = "orthogonal"

    def __post_init__(self) -> None:
        self._plain()  # which refuses what is wrong

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W]; in [-1, 1] where ``bounded``."""
        if not self.skip_z:
            return self._plain().decoder(spec, latent, channels=channels, bounded=bounded)
        return self._hierarchical(spec, latent, 0, channels, bounded)

    def modulated_decoder(self, spec: Spec, latent: int, condition: int, *, one_hot: bool) -> nn.Module:
        """(z [B Z], c [B condition]) -> [B C H W] in [-1, 1]."""
        if not self.skip_z:
            return self._plain().modulated_decoder(spec, latent, condition, one_hot=one_hot)
        return self._hierarchical(spec, latent, condition, None, True)

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B out]."""
        return self._plain().encoder(spec, out)

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] -> sums over places of the last feature map [B F], and F."""
        return self._plain().trunk(spec, more)

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return self._plain().head(inputs, outputs)

    def _plain(self) -> ResNetGAN:
        return ResNetGAN(
            self.stages,
            width=self.width,
            attention=self.attention,
            wide=True,
            decoder_norm=self.decoder_norm,
            init=self.init,
        )

    def _hierarchical(
        self, spec: Spec, latent: int, condition: int, channels: int | None, bounded: bool
    ) -> Hierarchical:
        if self.decoder_norm != "batch":
            raise UserError(
                f"model.net.decoder_norm={self.decoder_norm}: skip-z modulates batch norm: set it to batch, or "
                "model.net.skip_z=false"
            )
        net, widths = self._plain(), stages_of(self.stages, spec).generator
        chunk = chunk_of(latent, len(widths))
        norm = modulated(condition + chunk, one_hot=False)
        top = widths[0] * self.width
        first = nn.Sequential(nn.Linear(chunk, top * BASE * BASE, bias=False), nn.Unflatten(1, (top, BASE, BASE)))
        last = ConditionalSequential(*net.to_pixels(spec, channels, bounded))
        return net.initialised(Hierarchical(first, net.growing(spec, norm), last, chunk))


def chunk_of(latent: int, chunks: int) -> int:
    """Numbers of z in each of so many equal chunks. UserError where they do not come out even."""
    if latent < chunks or latent % chunks:
        below = max(latent // chunks, 1) * chunks
        near = f"{below} or {below + chunks}" if latent > chunks else f"{chunks}"
        raise UserError(
            f"model.latent: skip-z cuts the {latent} numbers that enter the generator into {chunks} equal chunks, "
            f"which does not come out even: {near}, or model.net.skip_z=false"
        )
    return latent // chunks
