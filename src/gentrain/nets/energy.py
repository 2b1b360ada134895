"""Critics that are autoencoders: how badly a sample comes back is its energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.game import Verdict
from gentrain.nets.architecture import Architecture
from gentrain.nets.conditioning import CriticLabels
from gentrain.nets.layers import choose
from gentrain.types import Spec


@dataclass(frozen=True)
class Autoencoding:
    """A ``MakesCritic``: the architecture's encoder to ``code`` numbers and its decoder, unbounded.

    Energy: mean over all numbers of a sample of the ``squared`` (EBGAN) or ``absolute`` (BEGAN) error, so that a margin
    means the same at every size of images. UserError for other values, and for labels and heads, which it has no place
    for.
    """

    code: int
    error: Literal["squared", "absolute"] = "squared"
    gives_energy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choose(dict.fromkeys(("squared", "absolute"), 0), self.error, "model.critic.error")
        if self.code < 1:
            raise UserError(f"model.critic.code={self.code}: at least 1")

    def build(self, spec: Spec, net: Architecture, labels: CriticLabels | None, heads: Mapping[str, int]) -> nn.Module:
        if labels is not None or heads:
            raise UserError("model.critic: an autoencoding critic is not told labels and has no further heads")
        encoder, decoder = net.encoder(spec, self.code), net.decoder(spec, self.code, bounded=False)
        return EnergyCritic(encoder, decoder, power={"squared": 2, "absolute": 1}[self.error])


class EnergyCritic(nn.Module):
    """x [B C H W] or [B D] -> minus the energy [B 1], so that real samples score high as with every critic; features
    are the code [B code]."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, power: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.power = encoder, decoder, power

    def judge(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        code: Tensor = self.encoder(x)
        # The generator's gradient comes through both: what is rebuilt, and what it is held against.
        error = (self.decoder(code).float() - x.float()).flatten(1)  # [B D]
        energy = (error.square() if self.power == 2 else error.abs()).mean(1, keepdim=True)
        return Verdict(-energy, code, {})

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.judge(x, labels).score
