"""What the output of an autoregressive network says about the next pixel: probabilities of levels, and draws from them.

A head is a likelihood of ``objectives.likelihoods`` that can also draw one pixel. Its target is the picture in [-1, 1],
each level at one value, which is what the network sees too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.errors import UserError
from gentrain.objectives.likelihoods import HALF_BIN, PixelLikelihood, log1mexp, require_bytes
from gentrain.types import LikelihoodOn, Spec, to_signed

LOG_SCALE_FLOOR = -7.0
"""Of a logistic, in units of [-1, 1] (PixelCNN++'s)."""

LOG_BIN = math.log(2.0 * HALF_BIN)


@runtime_checkable
class PixelHead(Protocol):
    """The likelihood of an autoregressive network (``loss=``)."""

    @property
    def likelihood_on(self) -> LikelihoodOn: ...

    def require(self, spec: Spec) -> None:
        """UserError for data that it is no likelihood of."""
        ...

    def channels(self, c: int) -> int:
        """Outputs that a pixel of ``c`` colours needs."""
        ...

    def colours(self, c: int) -> int:
        """Groups of outputs that must not see each other's later colours: ``c``, or 1 where the head ties the colours
        of a pixel by itself."""
        ...

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        """uint8 [B C H W] -> target [B C H W] (see ``PixelLikelihood.prepare``)."""
        ...

    def seen(self, target: Tensor) -> Tensor:
        """What the network is shown: float32 [B C H W] in [-1, 1]."""
        ...

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """-log p [B] nats for the network's output [B C' H W]."""
        ...

    def draw_pixel(self, output: Tensor, pixel: Tensor, step: int, uniform: Tensor, temperature: float) -> Tensor:
        """The pixel [B C] in [-1, 1] after ``step`` of ``colours(C)`` steps, from the network's output [B C'] with what
        came before; ``uniform``: numbers of U[0, 1) [B uniforms(C)], new ones at each step. ``temperature`` below 1
        narrows the distribution: logits are divided by it, scales multiplied."""
        ...

    def uniforms(self, c: int) -> int:
        """Random numbers that a step takes."""
        ...


@runtime_checkable
class StagedHead(PixelHead, Protocol):
    """One that tells a pixel in stages: that of all pixels before the next one begins (``nets.stages``). ``step`` of
    ``draw`` goes on counting through them."""

    def stages(self, c: int) -> tuple[int, ...]:
        """Outputs of each stage, side by side in ``channels(c)``."""
        ...

    def shown(self, x: Tensor, stage: int) -> Tensor:
        """What the network of a stage is shown of pixels x [B C ...] in [-1, 1]: that stage alone, in [-1, 1]."""
        ...


def require_head(loss: object) -> PixelHead:
    """UserError for a loss that cannot say how probable the next pixel is, or is the likelihood of nothing."""
    if not isinstance(loss, PixelHead) or loss.likelihood_on.bits is None:
        raise UserError(
            "model.loss: an autoregressive model needs the probability of a pixel's levels: loss=categorical, "
            "logistic_mixture, or bernoulli (binarize: threshold, once or sample)"
        )
    return loss


@dataclass(frozen=True)
class Categorical(PixelLikelihood):
    """A softmax over ``levels`` levels of each colour (van den Oord et al. 2016, arXiv 1601.06759, section 3.3). Fewer
    than 256: the most significant bits. UserError for what is no power of 2 in 2 .. 256."""

    levels: int = 256

    def __post_init__(self) -> None:
        if self.levels not in (2, 4, 8, 16, 32, 64, 128, 256):
            raise UserError(f"model.loss.levels={self.levels}: 2, 4, 8, 16, 32, 64, 128 or 256")

    @property
    def likelihood_on(self) -> LikelihoodOn:
        return LikelihoodOn(bits=self.levels.bit_length() - 1)

    def channels(self, c: int) -> int:
        return c * self.levels

    def colours(self, c: int) -> int:
        return c

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        """int64 levels [B C H W]."""
        return require_bytes(x).long().div(256 // self.levels, rounding_mode="floor")

    def seen(self, target: Tensor) -> Tensor:
        return target.float().mul(2.0 / (self.levels - 1)).sub_(1.0)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        logits = output.float().reshape(len(output), target.shape[1], self.levels, *output.shape[2:]).transpose(1, 2)
        return -F.cross_entropy(logits, target, reduction="none").flatten(1).sum(1)

    def uniforms(self, c: int) -> int:
        return 1

    def draw_pixel(self, output: Tensor, pixel: Tensor, step: int, uniform: Tensor, temperature: float) -> Tensor:
        logits = output[:, step * self.levels : (step + 1) * self.levels].float()
        return _written(pixel, step, self.seen(_chosen(logits / temperature, uniform[:, 0])))


@dataclass(frozen=True)
class CategoricalInDepth(Categorical):
    """The ``first`` most significant bits of every pixel, then the rest given all of those, each a softmax over its
    levels (depth upscaling: Menick and Kalchbrenner 2019, arXiv 1812.01608, section 3.2). UserError where that leaves
    no bits to one of them."""

    first: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.first < self._bits:
            raise UserError(f"model.loss.first={self.first}: 1 .. {self._bits - 1} of the {self._bits} bits")

    @property
    def _bits(self) -> int:
        return self.levels.bit_length() - 1

    @property
    def _parts(self) -> tuple[Categorical, Categorical]:
        return Categorical(2**self.first), Categorical(2 ** (self._bits - self.first))

    def stages(self, c: int) -> tuple[int, ...]:
        return tuple(part.channels(c) for part in self._parts)

    def channels(self, c: int) -> int:
        return sum(self.stages(c))

    def shown(self, x: Tensor, stage: int) -> Tensor:
        level = x.add(1.0).mul((self.levels - 1) / 2.0).round().long()
        return self._parts[stage].seen(self._part_of(level, stage))

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        outputs = torch.split(output, list(self.stages(target.shape[1])), dim=1)
        of_each = [part.log_prob(outputs[i], self._part_of(target, i)) for i, part in enumerate(self._parts)]
        return of_each[0] + of_each[1]

    def draw_pixel(self, output: Tensor, pixel: Tensor, step: int, uniform: Tensor, temperature: float) -> Tensor:
        stage, colour = divmod(step, pixel.shape[1])
        levels, before = self._parts[stage].levels, sum(self.stages(pixel.shape[1])[:stage])
        logits = output[:, before + colour * levels : before + (colour + 1) * levels].float()
        level = _chosen(logits / temperature, uniform[:, 0])
        rest = self._parts[1].levels
        if stage == 0:
            level = level * rest
        else:
            whole = pixel[:, colour].add(1.0).mul((self.levels - 1) / 2.0).round().long()
            level = level + whole.div(rest, rounding_mode="floor") * rest
        return _written(pixel, colour, self.seen(level))

    def _part_of(self, level: Tensor, stage: int) -> Tensor:
        rest = self._parts[1].levels
        return level % rest if stage else level.div(rest, rounding_mode="floor")


@dataclass(frozen=True)
class LogisticMixture(PixelLikelihood):
    """A mixture of ``components`` logistics over the 256 levels, one for the whole pixel (Salimans et al. 2017, arXiv
    1701.05517, eq. 2 and 3): the mean of a colour is shifted by multiples of the colours before it, which the mixture's
    weights do not depend on. Edge levels take all that lies beyond.

    Outputs of a component: its logit, C means, C log scales, C (C-1) / 2 factors (through tanh). The mass of a bin is
    computed as a product that does not cancel, so that no density has to stand in for it where it is small; drawn
    colours are rounded to the level whose bin they fell in, which makes draws exactly those of the discrete mixture.
    """

    components: int = 10

    def __post_init__(self) -> None:
        if self.components < 1:
            raise UserError(f"model.loss.components={self.components}: at least 1")

    @property
    def likelihood_on(self) -> LikelihoodOn:
        return LikelihoodOn()

    def channels(self, c: int) -> int:
        return self.components * (1 + 2 * c + c * (c - 1) // 2)

    def colours(self, c: int) -> int:
        return 1

    def seen(self, target: Tensor) -> Tensor:
        return target

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        return to_signed(require_bytes(x))

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        logits, means, log_scales, factors = self._split(output.float(), target.shape[1])  # [B K (C) H W]
        x = target.unsqueeze(1)  # [B 1 C H W]
        given = [x[:, :, colour] for colour in range(target.shape[1])]
        shifted = [self._shift(means, factors, given[:colour], colour) for colour in range(len(given))]
        centred = x - torch.stack(shifted, dim=2)
        inverse = torch.exp(-log_scales)
        below = F.logsigmoid((centred + HALF_BIN) * inverse)
        above = F.logsigmoid(-(centred - HALF_BIN) * inverse)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)); what is left of the last factor where its width is
        # divided out is 1 for a scale that makes it too small for float32.
        width = (2.0 * HALF_BIN * inverse).clamp_min(1e-6)
        inside = below + above + (LOG_BIN - log_scales) + (log1mexp(width) - width.log())
        mass = torch.where(x < -1.0 + HALF_BIN, below, torch.where(x > 1.0 - HALF_BIN, above, inside))
        nats = torch.logsumexp(F.log_softmax(logits, dim=1) + mass.sum(2), dim=1)  # [B H W]
        return nats.flatten(1).sum(1)

    def uniforms(self, c: int) -> int:
        return 1 + c

    def draw_pixel(self, output: Tensor, pixel: Tensor, step: int, uniform: Tensor, temperature: float) -> Tensor:
        logits, means, log_scales, factors = self._split(output.float()[:, :, None, None], pixel.shape[1])
        chosen = _chosen(logits[:, :, 0, 0] / temperature, uniform[:, 0])
        rows = torch.arange(len(chosen), device=chosen.device)
        means, log_scales, factors = (some[rows, chosen][:, None] for some in (means, log_scales, factors))
        colours: list[Tensor] = []
        for colour in range(pixel.shape[1]):
            mean = self._shift(means, factors, [before[:, None, None, None] for before in colours], colour)[:, 0, 0, 0]
            scale = log_scales[:, 0, colour, 0, 0].exp() * temperature
            drawn = mean + scale * torch.logit(uniform[:, 1 + colour], eps=1e-7)
            level = drawn.clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
            colours.append(level.div(127.5).sub(1.0))
        return torch.stack(colours, dim=1)

    def _split(self, output: Tensor, c: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [B K H W], means and log scales [B K C H W], factors [B K C(C-1)/2 H W] of output [B C' H W]."""
        rest = output.reshape(len(output), self.components, -1, *output.shape[2:])
        logits, means, log_scales, factors = torch.split(rest, [1, c, c, c * (c - 1) // 2], dim=2)
        return logits[:, :, 0], means, log_scales.clamp_min(LOG_SCALE_FLOOR), torch.tanh(factors)

    @staticmethod
    def _shift(means: Tensor, factors: Tensor, earlier: list[Tensor], colour: int) -> Tensor:
        """Mean [B K H W] of a colour given those before it, each [B 1 H W]."""
        mean = means[:, :, colour]
        for place, value in enumerate(earlier):
            mean = mean + factors[:, :, colour * (colour - 1) // 2 + place] * value
        return mean


def _chosen(logits: Tensor, uniform: Tensor) -> Tensor:
    """A category int64 [B] of softmax(logits [B K]) by the inverse distribution function at ``uniform`` [B]: rounding
    moves a choice only where a number falls on the very edge."""
    upto = F.softmax(logits, dim=1).cumsum(1)
    return (upto < uniform[:, None] * upto[:, -1:]).sum(1).clamp_max(logits.shape[1] - 1)


def _written(pixel: Tensor, colour: int, value: Tensor) -> Tensor:
    pixel = pixel.clone()
    pixel[:, colour] = value
    return pixel
