"""What a decoder's output says about a pixel: p(x | z) for 8-bit images.

Every likelihood here is the probability of the *integers* that an image is stored as, not a density on [-1, 1]: the
Gaussian and the logistic are integrated over the bin of each of the 256 levels, the two edge bins reaching to infinity.
Their nats are therefore those of a discrete model, bounded by 0, and nats / (C H W ln 2) is bits/dim that may stand
beside any other model's. A density would need dequantisation first and can be driven to infinity on constant pixels.

A decoder is asked for raw numbers (``bounded=False``) with ``channels(C)`` channels; ``head()`` goes behind it.
Squashing to the range of the data is done here, in one place.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.objectives.units import Binary
from gentrain.types import LikelihoodOn, Spec, to_signed

HALF_BIN = 1.0 / 255.0
"""Half the distance of two neighbouring levels in [-1, 1]."""

LOG_SCALE_FLOOR, LOG_SCALE_CEILING = -6.0, 3.0
"""Range of a learned log scale, in units of [-1, 1]. At the floor a pixel is known to within its own bin: below it
there is nothing to win. At the ceiling the 256 bins are still told apart in float32."""


class PixelLikelihood(ABC):
    """p(x | z) of one image, pixels independent given z (a ``DataLikelihood``)."""

    @property
    def of_vectors(self) -> str:
        """What stands for it where data are vectors."""
        return "loss=density"

    def require(self, spec: Spec) -> None:
        """UserError unless the data are images."""
        if not spec.is_image:
            raise UserError(
                "model.loss: this likelihood is of the 256 levels of images, and data= gives vectors: choose images, "
                f"or {self.of_vectors}"
            )

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        """uint8 [B C H W] to the float32 target [B C H W] that ``log_prob`` takes.

        ``fixed``: where the target is drawn, an image always gets the same draw, as an evaluation wants it: two bounds
        on the likelihood are then bounds on that of one set of images.
        """
        return to_signed(require_bytes(x))

    @abstractmethod
    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """[B] nats per image, summed over C H W, for ``output`` [B C' H W]."""

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Minus ``log_prob``: [B] nats."""
        return -self.log_prob(output, target)


BINARISATION: dict[str, Literal["threshold", "static", "dynamic"]] = {
    "threshold": "threshold",
    "once": "static",
    "sample": "dynamic",
}
"""What the literature calls ``binarize``."""


@dataclass(frozen=True)
class Bernoulli(PixelLikelihood):
    """Pixels that are 0 or 1; the decoder's output is the logit of 1 (Kingma and Welling 2014, appendix C.1).

    ``binarize``: ``threshold`` at half brightness; ``sample``: each pixel is on with its brightness as probability,
    drawn anew each time (dynamic binarisation); ``once``: the same drawn once for all, a function of the image (as the
    fixed binarisation of Larochelle and Murray 2011, with other draws than theirs); ``none``: cross-entropy with grey
    pixels, as in the PyTorch example, which trains but is not the likelihood of anything. Nats are those of the binary
    image, so bits/dim is not defined.
    """

    binarize: Literal["threshold", "sample", "once", "none"] = "threshold"

    def __post_init__(self) -> None:
        if self.binarize not in ("threshold", "sample", "once", "none"):
            raise UserError(f"binarize must be threshold, sample, once or none, got {self.binarize!r}")

    @property
    def of_vectors(self) -> str:
        return "loss=squared" if self.binarize == "none" else super().of_vectors

    @property
    def likelihood_on(self) -> LikelihoodOn:
        if self.binarize == "none":
            return LikelihoodOn(bits=None, exact=False)
        return LikelihoodOn(bits=1, binarisation=BINARISATION[self.binarize])

    def channels(self, c: int) -> int:
        return c

    def head(self) -> nn.Module:
        return nn.Identity()

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        unit = require_bytes(x).float() / 255.0
        if self.binarize == "threshold":
            return (unit >= 0.5).float()
        if self.binarize == "none":
            return unit
        return (_own_noise(x) < unit).float() if fixed or self.binarize == "once" else torch.bernoulli(unit)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        _require_channels(output, target.shape[1])
        # Summed over pixels, not averaged: the average would weigh the image's 1/(C H W) against a KL term in full.
        return -F.binary_cross_entropy_with_logits(output.float(), target, reduction="none").flatten(1).sum(1)  # [B]

    def mean(self, output: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(output.float()) - 1.0

    # What an autoregressive network asks besides (``objectives.pixel_heads.PixelHead``).

    def colours(self, c: int) -> int:
        return c

    def seen(self, target: Tensor) -> Tensor:
        return 2.0 * target - 1.0

    def uniforms(self, c: int) -> int:
        return 1

    def draw_pixel(self, output: Tensor, pixel: Tensor, step: int, uniform: Tensor, temperature: float) -> Tensor:
        pixel = pixel.clone()
        pixel[:, step] = 2.0 * (uniform[:, 0] < torch.sigmoid(output[:, step].float() / temperature)).float() - 1.0
        return pixel

    def units(self, spec: Spec) -> Binary:
        """As visible units of a Boltzmann machine. UserError for grey ones: they are none of its states."""
        if self.binarize == "none":
            raise UserError("loss.binarize=none: this machine has binary units: threshold, sample or once")
        return Binary(spec, self)

    def draw(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ~ p(x | z), 0 or 1; no gradient goes through it."""
        return torch.bernoulli(torch.sigmoid(output.detach().float()), generator=generator)


@dataclass(frozen=True)
class Gaussian(PixelLikelihood):
    """Pixels N(mu, sigma^2), mu = tanh(output) in [-1, 1], integrated over each level's bin.

    ``scale`` is sigma in units of [-1, 1]: a number (1/sqrt(2) trains as the squared error does); ``shared``: one
    learned number for all pixels, held by ``head()``; ``pixel``: learned for each pixel, from C more channels of the
    decoder.
    """

    scale: float | Literal["shared", "pixel"] = "shared"
    likelihood_on: ClassVar[LikelihoodOn] = LikelihoodOn()

    def __post_init__(self) -> None:
        if isinstance(self.scale, str):
            if self.scale not in ("shared", "pixel"):
                raise UserError(f"scale must be a number, shared or pixel, got {self.scale!r}")
        elif not math.exp(LOG_SCALE_FLOOR) <= self.scale <= math.exp(LOG_SCALE_CEILING):
            raise UserError(f"scale must lie in 0.0025 .. 20 (units of [-1, 1]), got {self.scale}")

    def channels(self, c: int) -> int:
        return 2 * c if self.scale == "pixel" else c

    def head(self) -> nn.Module:
        return SharedScale() if self.scale == "shared" else nn.Identity()

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        mu, log_scale = self._split(output, target.shape[1])
        inverse = torch.exp(-log_scale)
        upper = (target - mu + HALF_BIN) * inverse  # [B C H W]
        lower = (target - mu - HALF_BIN) * inverse
        return _with_open_edges(
            target,
            below=_log_ndtr(upper),
            above=_log_ndtr(-lower),
            inside=_log_normal_mass(lower, upper),
        )

    def mean(self, output: Tensor) -> Tensor:
        return self._split(output)[0]

    def _split(self, output: Tensor, c: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean [B C H W] and log sigma, which broadcasts against it."""
        output = output.float()
        if self.scale == "pixel":
            return _mean_and_scale(output, c)
        if self.scale == "shared":
            _require_channels(output, None if c is None else c + 1)
            return torch.tanh(output[:, :-1]), bounded(output[:, -1:])
        _require_channels(output, c)
        return torch.tanh(output), torch.full((), math.log(self.scale), device=output.device)


@dataclass(frozen=True)
class DiscretizedLogistic(PixelLikelihood):
    """Pixels logistic(mu, s), both from the decoder (2 C channels), integrated over each level's bin.

    One component of PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517, eq. 2), without its conditioning between
    channels.
    """

    likelihood_on: ClassVar[LikelihoodOn] = LikelihoodOn()

    def channels(self, c: int) -> int:
        return 2 * c

    def head(self) -> nn.Module:
        return nn.Identity()

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        mu, log_scale = _mean_and_scale(output.float(), target.shape[1])
        inverse = torch.exp(-log_scale)
        below = F.logsigmoid((target - mu + HALF_BIN) * inverse)
        above = F.logsigmoid(-(target - mu - HALF_BIN) * inverse)
        # sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)): a product, so nothing cancels however far the bin
        # is.
        width = 2.0 * HALF_BIN * inverse
        return _with_open_edges(target, below=below, above=above, inside=below + above + log1mexp(width))

    def mean(self, output: Tensor) -> Tensor:
        return _mean_and_scale(output.float())[0]


class SharedScale(nn.Module):
    """Adds one channel that holds a single learned log sigma: [B C H W] -> [B C+1 H W].

    Starts at sigma = 1/sqrt(2), where the likelihood is the squared error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(2.0)))

    def forward(self, mean: Tensor) -> Tensor:
        scale = self.log_scale.to(mean.dtype).expand(mean.shape[0], 1, *mean.shape[2:])
        return torch.cat([mean, scale], dim=1)  # [B C+1 H W]


def _mean_and_scale(output: Tensor, c: int | None = None) -> tuple[Tensor, Tensor]:
    _require_channels(output, None if c is None else 2 * c)
    mu, raw = output.chunk(2, dim=1)
    return torch.tanh(mu), bounded(raw)


def bounded(raw: Tensor) -> Tensor:
    """Log scale kept inside its range by two soft steps: the identity between, fading gradients beyond."""
    floored = LOG_SCALE_FLOOR + F.softplus(raw - LOG_SCALE_FLOOR, beta=2.0)
    return LOG_SCALE_CEILING - F.softplus(LOG_SCALE_CEILING - floored, beta=2.0)


def _with_open_edges(target: Tensor, *, below: Tensor, above: Tensor, inside: Tensor) -> Tensor:
    """Log mass of the bin that each pixel fell in, summed: [B] nats. Level 0 takes all below it, 255 all above."""
    bins = torch.where(target < -1.0 + HALF_BIN, below, torch.where(target > 1.0 - HALF_BIN, above, inside))
    return bins.flatten(1).sum(1)


def _log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) for lower < upper, exact in both tails."""
    # Mirrored into the lower tail, where log Phi resolves a difference that Phi, at 1 - 1e-9, no longer does.
    flip = lower + upper > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_a, log_b = _log_ndtr(a), _log_ndtr(b)
    return log_b + log1mexp(log_b - log_a)


def _log_ndtr(x: Tensor) -> Tensor:
    """log Phi(x), the standard normal's log distribution function."""
    result: Tensor = torch.special.log_ndtr(x)
    return result


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^-x) for x > 0."""
    return torch.log(-torch.expm1(-x))


def _own_noise(x: Tensor) -> Tensor:
    """U[0, 1) [B C H W], a function of each image: the same in any batch, run and on any device."""
    images = x.cpu().contiguous()
    seeds = [zlib.crc32(image.numpy().tobytes()) for image in images]
    noise = [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(x.device)


def require_bytes(x: Tensor) -> Tensor:
    if x.dtype != torch.uint8:
        raise UserError(f"pixel likelihoods need 8-bit images, got {x.dtype} data: choose image data or another loss")
    return x


def _require_channels(output: Tensor, expected: int | None) -> None:
    if expected is not None and output.shape[1] != expected:
        raise ValueError(f"decoder output has {output.shape[1]} channels, the likelihood needs {expected}")
