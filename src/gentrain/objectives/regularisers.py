"""Terms of a game that look at scores and weights rather than at slopes: values for ``model.aims``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from gentrain.errors import UserError
from gentrain.game import Round
from gentrain.objectives.penalties import refuse_negative
from gentrain.types import Spec, Terms


@dataclass(frozen=True)
class Orthogonal:
    """beta ||W W^T * (1 - I)||_F^2, summed over layers: a layer's filters, the rows of W, are to be orthogonal, of any
    length (Brock et al. 2019, arXiv 1809.11096, section 3.1).

    ``of_generator``, ``of_critic``: beta for each player. W is [outputs, inputs * taps] of the dense and convolutional
    layers; embeddings are left out. Of a layer under spectral normalisation it is the undivided weight, the one that
    the player moves.
    """

    of_generator: float = 0.0
    of_critic: float = 0.0
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_negative("model.aims: orthogonal", of_generator=self.of_generator, of_critic=self.of_critic)

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        return {"orthogonal": self.of_critic * overlap(seen.critic)} if self.of_critic > 0 else {}

    def generator(self, seen: Round) -> Terms:
        return {"orthogonal": self.of_generator * overlap(seen.generator)} if self.of_generator > 0 else {}


def overlap(net: nn.Module) -> Tensor:
    """Sum of the squared inner products of every two different filters of each layer: a scalar, float32."""
    sums = []
    for w in _filters(net):
        with torch.autocast(w.device.type, enabled=False):
            gram = w.float() @ w.float().T  # [K K]
            sums.append(gram.square().sum() - gram.diagonal().square().sum())
    if not sums:
        raise UserError("model.aims: orthogonal: the network has neither dense nor convolutional layers")
    return torch.stack(sums).sum()


def _filters(net: nn.Module) -> Iterator[Tensor]:
    """W [outputs, inputs * taps] of each layer, shared ones once."""
    known: set[int] = set()
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            moved, weight = _undivided(layer)
            if id(moved) not in known:
                known.add(id(moved))
                yield (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


def _undivided(layer: nn.Module) -> tuple[Any, Any]:
    """What the player moves of a layer's weight, and the weight before spectral normalisation: reading it behind that
    would be one more step of its power iteration. Weight normalisation moves lengths and directions."""
    if not is_parametrized(layer, "weight"):
        return layer.weight, layer.weight
    parts: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    if parts.is_tensor:
        return parts.original, parts.original
    return parts.original1, parts[0](parts.original0, parts.original1)


@dataclass(frozen=True)
class Consistency:
    """weight * (D(x) - D(T(x)))^2, a mean over the batch: flips and shifts are not to change the score (Zhang et al.
    2020, arXiv 1910.12027, section 2, of the last layer alone). Both sides have a gradient.

    ``of_real``, ``of_fake``: weights on real samples and, for the balanced form (Zhao et al. 2020, arXiv 2002.04724),
    on generated ones. ``flip``: mirror half of the images left-right. ``shift``: pixels at most, each way, the border
    reflected.
    """

    of_real: float = 10.0
    of_fake: float = 0.0
    flip: bool = True
    shift: int = 4
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_negative("model.aims: consistency", of_real=self.of_real, of_fake=self.of_fake, shift=self.shift)
        if not (self.flip or self.shift):
            raise UserError("model.aims: consistency: neither flip nor shift changes an image: set one of them")

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        if not spec.is_image:
            raise UserError("model.aims: consistency: flips and shifts are of images, and the data are vectors")
        if self.shift >= min(spec.shape[1:]):
            raise UserError(
                f"model.aims: consistency: shift={self.shift}: less than the images' {min(spec.shape[1:])} pixels"
            )
        return {}

    def critic(self, seen: Round) -> Terms:
        terms: Terms = {}
        if self.of_real > 0:
            terms["consistency"] = self.of_real * self._change(seen, seen.real, seen.real_verdict.score)
        if self.of_fake > 0:
            terms["consistency_fake"] = self.of_fake * self._change(seen, seen.fake, seen.on_fake.score)
        return terms

    def generator(self, seen: Round) -> Terms:
        return {}

    def _change(self, seen: Round, x: Tensor, score: Tensor) -> Tensor:
        again = seen.judge(moved(x, flip=self.flip, shift=self.shift), seen.labels).score
        return (score.float() - again.float()).square().mean()


def moved(x: Tensor, *, flip: bool, shift: int) -> Tensor:
    """Images [B C H W], each shifted by its own whole numbers of pixels in U{-shift .. shift} along both sides, the
    border reflected, and with ``flip`` half of them mirrored left-right. Drawn from torch's global generator."""
    b, c, h, w = x.shape
    ranks = [torch.arange(n, device=x.device) for n in (b, c, h, w)]
    by = torch.randint(-shift, shift + 1, (2, b, 1), device=x.device)
    rows, columns = _reflected(ranks[2] + by[0], h), _reflected(ranks[3] + by[1], w)  # [B H], [B W]
    if flip:
        columns = torch.where(torch.rand(b, 1, device=x.device) < 0.5, columns.flip(1), columns)
    return x[ranks[0][:, None, None, None], ranks[1][:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places outside 0 .. size-1 mirrored at the border's pixel."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


class LeCam(nn.Module):
    """weight * (mean (D(x) - a_F)^2 + mean (D(G(z)) - a_R)^2) with moving averages a_R, a_F of the critic's scores of
    real and of generated samples (Tseng et al. 2021, arXiv 2104.03310), for training on few data.

    ``decay``: of the averages, for each of the critic's turns; they hold the present batch too, and need no warm-up.
    ``one_sided``: punish only scores that tell the two apart (r above a_F, f below a_R), as many implementations do.
    """

    needs_real: ClassVar[bool] = False

    def __init__(self, weight: float, decay: float = 0.99, one_sided: bool = False) -> None:
        super().__init__()
        refuse_negative("model.aims: lecam", weight=weight)
        if not 0.0 <= decay < 1.0:
            raise UserError(f"model.aims: lecam: decay={decay}: must lie in [0, 1)")
        self.weight, self.decay, self.one_sided = weight, decay, one_sided
        self.register_buffer("sums", torch.zeros(2))  # of real and generated scores, with falling weights
        self.register_buffer("share", torch.zeros(()))  # the sum of these weights: a division by it takes out the start
        self.sums: Tensor
        self.share: Tensor

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        real, fake = seen.real_verdict.score.float(), seen.on_fake.score.float()
        with torch.no_grad():
            self.sums.lerp_(torch.stack([real.mean(), fake.mean()]), 1.0 - self.decay)
            self.share.lerp_(torch.ones_like(self.share), 1.0 - self.decay)
            average_real, average_fake = (self.sums / self.share).unbind()
        apart, below = real - average_fake, average_real - fake
        if self.one_sided:
            apart, below = apart.relu(), below.relu()
        return {"lecam": self.weight * (apart.square().mean() + below.square().mean())}

    def generator(self, seen: Round) -> Terms:
        return {}


class HistoricalAverage(nn.Module):
    """weight * ||theta - (1/t) sum theta[i]||^2 with the weights theta[1 .. t] of a player's earlier turns (Salimans et
    al. 2016, arXiv 1606.03498, section 3.3).

    ``of_generator``, ``of_critic``: weight for each player, 0 keeps nothing of it. One number is kept for each
    weight. It travels in the checkpoint and is no buffer: all ranks have the same, and need not tell each other. In
    float32 the mean hardly moves any more after some hundred thousand turns.
    """

    needs_real: ClassVar[bool] = False

    def __init__(self, of_generator: float = 0.0, of_critic: float = 0.0) -> None:
        super().__init__()
        refuse_negative("model.aims: historical", of_generator=of_generator, of_critic=of_critic)
        self.of_generator, self.of_critic = of_generator, of_critic
        self._means: dict[str, list[Tensor]] = {}
        self._turns: dict[str, list[int]] = {}  # how many, and the iteration of the last

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        return self._term("critic", self.of_critic, seen.critic, seen.iteration)

    def generator(self, seen: Round) -> Terms:
        return self._term("generator", self.of_generator, seen.generator, seen.iteration)

    def _term(self, name: str, weight: float, net: nn.Module, iteration: int) -> Terms:
        if weight == 0:
            return {}
        now = list(net.parameters())
        means = self._means.get(name) or [p.detach().clone() for p in now]
        self._means[name] = means = [m.to(p.device) for m, p in zip(means, now, strict=True)]
        distance = torch.stack([(p - m).float().square().sum() for p, m in zip(now, means, strict=True)]).sum()
        count, last = self._turns.get(name, [0, 0])
        if iteration != last:  # once in a turn, however many parts its batch is cut into
            torch._foreach_lerp_(means, [p.detach() for p in now], 1.0 / (count + 1))
            self._turns[name] = [count + 1, iteration]
        return {"historical": weight * distance}

    def get_extra_state(self) -> dict[str, Any]:
        return {"means": self._means, "turns": self._turns}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self._means = {name: [mean.clone() for mean in means] for name, means in state["means"].items()}
        self._turns = {name: list(turns) for name, turns in state["turns"].items()}
