"""Critics: a trunk of any architecture, a score, and further heads on the same features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gentrain.errors import UserError
from gentrain.game import Verdict
from gentrain.nets.architecture import Architecture, Trunked
from gentrain.nets.between import Between
from gentrain.nets.conditioning import CriticLabels
from gentrain.types import Spec


class MakesCritic(Protocol):
    """A choice of what a critic is: ``model.critic``."""

    def build(self, spec: Spec, net: Architecture, labels: CriticLabels | None, heads: Mapping[str, int]) -> nn.Module:
        """A module whose ``judge(x, labels=None)`` gives a ``Verdict`` with an output in ``more`` for each of
        ``heads`` (name to width), and whose ``forward`` gives the score alone. UserError where the architecture cannot
        do it."""
        ...


class Critic(nn.Module):
    """x [B C H W] or [B D], labels int64 [B] or None -> scores [B 1]."""

    def __init__(
        self,
        trunk: nn.Module,
        score: nn.Module,
        labels: nn.Module | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.score, self.labels = trunk, score, labels
        self.heads = nn.ModuleDict(dict(heads or {}))

    def judge(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        """The score and all that stands on the same features."""
        if self.labels is not None:
            x = self.labels.seen(x, labels)  # type: ignore[operator]
        features: Tensor = self.trunk(x)
        score: Tensor = self.score(features)
        if self.labels is not None:
            score = self.labels.scored(score, features, labels)  # type: ignore[operator]
        return Verdict(score, features, {name: head(features) for name, head in self.heads.items()})

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.judge(x, labels).score


@dataclass(frozen=True)
class Scoring:
    """The usual critic: one number on the features of the architecture's trunk. ``between``: layers between those and
    the score alone; labels and further heads stand on the features themselves."""

    between: Between | None = None

    def build(self, spec: Spec, net: Architecture, labels: CriticLabels | None, heads: Mapping[str, int]) -> nn.Module:
        if not isinstance(net, Trunked):
            if labels is not None or heads or self.between is not None:
                raise UserError(
                    f"model.net: {type(net).__name__} makes critics without labels, further heads or "
                    "model.critic.between only"
                )
            return Critic(net.encoder(spec, 1), nn.Identity())
        planes = 0 if labels is None else labels.planes(spec)
        trunk, width = net.trunk(spec, planes)
        side = None if labels is None else labels.build(spec, width)
        if self.between is None:
            score = net.head(width, 1)
        else:
            layers, seen = self.between.build(width)
            score = nn.Sequential(layers, net.head(seen, 1))
        return Critic(trunk, score, side, {name: net.head(width, outputs) for name, outputs in heads.items()})


def spectral_norm(net: nn.Module, eps: float = 1e-6) -> nn.Module:
    """Divide each weight of ``net`` by its largest singular value, as a step of power iteration in each training
    pass (or turn: ``one_estimate``) estimates it (Miyato et al. 2018, arXiv 1802.05957, algorithm 1); in place. Nothing
    moves in eval mode."""
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
    for layer in [layer for layer in net.modules() if isinstance(layer, kinds)]:
        torch.nn.utils.parametrizations.spectral_norm(layer, eps=eps)
        divisions = cast("parametrize.ParametrizationList", layer.parametrizations.weight)  # type: ignore[union-attr]
        divisions[-1] = _InFloat32(divisions[-1])  # the first may be another's: a weight norm
    return net


class _InFloat32(nn.Module):
    """What it holds, with autocast off: bfloat16 products have two or three digits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            divided: Tensor = self.inner(weight)
            return divided


def one_estimate() -> contextlib.AbstractContextManager[None]:
    """Inside, the weight of each layer under spectral normalisation is computed once, in the first pass, and serves all
    further ones: real and generated samples, a gradient penalty and the aims see one and the same critic, and there is
    one step of power iteration in a turn, as in algorithm 1. The first pass must be one that needs gradients."""
    return parametrize.cached()


@contextlib.contextmanager
def held_estimate(nets: nn.Module) -> Iterator[None]:
    """Inside, the weights of layers under spectral normalisation are computed by the estimate that there is, without a
    step of power iteration: for the further parts of a turn whose batch is cut into several."""
    moving = [layer for layer in nets.modules() if isinstance(layer, _InFloat32) and layer.inner.training]
    try:
        for layer in moving:
            layer.inner.eval()
        yield
    finally:
        for layer in moving:
            layer.inner.train()
