"""GAN: the first generative adversarial network, a dense generator against a maxout critic with dropout.

Paper: Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio 2014, "Generative Adversarial
Networks", arXiv 1406.2661, section 5 and algorithm 1; details from the authors' configuration for MNIST.
Adds: the pair of networks. The game itself is ``objectives.adversarial``: ``minimax`` (eq. 1) or ``nonsaturating``
(section 3, which the experiments used).
Departs: trained by Adam, not by SGD with rising momentum and falling rate; the generator's output biases start at 0
rather than at the logits of the data's mean image, since a network is built without looking at the data; samples come
from averaged weights. Works on the family's range [-1, 1] at the outside and on the paper's [0, 1] within. Vectors (toy
data) get a linear output.
Checked by: tests/test_nets.py (maxout by its definition, range, dropout only in the critic, gradients, shapes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.layers import Affine, set_biases
from gentrain.types import Spec

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class GoodfellowMLP:
    """An ``Architecture`` for any data.

    ``generator_hidden``: widths from the code to the data, ReLU between. ``critic_hidden``: maxout units of each layer,
    each the largest of ``pieces`` linear functions. ``input_dropout``, ``dropout``: in front of the critic's first and
    of all its later layers. ``generator_range``, ``critic_range``: weights start in U[-range, range].
    """

    generator_hidden: Sequence[int]
    critic_hidden: Sequence[int]
    pieces: int
    input_dropout: float
    dropout: float
    generator_range: float
    critic_range: float

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise UserError(f"model.net.pieces must be 1 or more, got {self.pieces}")
        for name in ("generator_hidden", "critic_hidden"):
            if any(width < 1 for width in getattr(self, name)):
                raise UserError(f"model.net.{name} needs widths of 1 or more, got {list(getattr(self, name))}")
        for name in ("generator_range", "critic_range"):
            if not getattr(self, name) > 0:
                raise UserError(f"model.net.{name} must be above 0, got {getattr(self, name)}")
        for name, rate in (("input_dropout", self.input_dropout), ("dropout", self.dropout)):
            if not 0.0 <= rate < 1.0:
                raise UserError(f"model.net.{name} must lie in [0, 1), got {rate}")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W] (in [-1, 1] where ``bounded``), or [B D'] for vectors, unbounded."""
        shape = (channels or spec.channels, *spec.shape[1:])
        layers: list[nn.Module] = []
        width = latent
        for wider in self.generator_hidden:
            layers += [nn.Linear(width, wider), nn.ReLU(inplace=True)]
            width = wider
        layers.append(nn.Linear(width, spec.numel // spec.channels * shape[0]))
        if spec.is_image:
            layers.append(nn.Unflatten(1, shape))
            if bounded:
                layers += [nn.Sigmoid(), Affine(2.0, -1.0)]
        return _initialised(nn.Sequential(*layers), self.generator_range)

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] or [B D] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] or [B D+more] -> the last maxout layer behind its dropout [B F], and F."""
        # Dropout puts numbers to 0: black in [0, 1], a grey that means something in [-1, 1].
        layers: list[nn.Module] = [nn.Flatten(), Affine(0.5, 0.5)] if spec.is_image else []
        width, rate = spec.numel // spec.channels * (spec.channels + more), self.input_dropout
        for units in self.critic_hidden:
            layers += [nn.Dropout(rate), Maxout(width, units, self.pieces)]
            width, rate = units, self.dropout
        layers.append(nn.Dropout(rate))
        return _initialised(nn.Sequential(*layers), self.critic_range), width

    def head(self, inputs: int, outputs: int) -> nn.Linear:
        """[B inputs] -> [B outputs]."""
        return _initialised(nn.Linear(inputs, outputs), self.critic_range)


class Maxout(nn.Module):
    """Each unit the largest of ``pieces`` linear functions: [B I] -> [B units] (Goodfellow et al. 2013, arXiv
    1302.4389)."""

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units * pieces)
        self.units, self.pieces = units, pieces

    def forward(self, x: Tensor) -> Tensor:
        pieces: Tensor = self.linear(x).unflatten(1, (self.units, self.pieces))  # [B units pieces]
        return pieces.amax(-1)


def _initialised(net: Net, limit: float) -> Net:
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -limit, limit)
    set_biases(net)
    return net
