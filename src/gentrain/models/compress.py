"""Learned image compression: transforms, rounding and an entropy model trained together for rate and distortion.

Paper: Balle, Laparra, Simoncelli 2017, End-to-end Optimized Image Compression, arXiv 1611.01704: eqs. 1 and 2 (GDN and
its approximate inverse), section 3 (uniform noise for rounding); Balle, Minnen, Singh, Hwang, Johnston 2018,
Variational Image Compression with a Scale Hyperprior, arXiv 1802.01436, appendix 6.1 (the factorised density).
Adds: GDN, strided transforms, a density of each latent channel that is convolved with the unit box, squared error of
pixel levels, or 1 - MS-SSIM. Rate, rounding and the range coder are the family's.
Departs: beta and gamma are squares (plus a floor) in place of a projection, and gamma needs not be symmetric; latents
are rounded about the median of their density, found by bisection, without the auxiliary loss that the authors' later
releases train it with; images of 8 to 128 pixels, padded to a multiple of the stride by their border;
MS-SSIM as distortion (arXiv 1802.01436 trains on it too) has as many scales as fit, 5 from 176 pixels on.
Checked by: tests/test_compression.py (GDN by its formula and by inversion, the density's integral and sums, rates of
noise and of rounding, real bits and a lossless way there and back), tests/test_contract.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.layers import Crop, Pad, set_biases
from gentrain.objectives.similarity import multi_scale
from gentrain.types import Spec

BETA_FLOOR, GAMMA_START, CROSS_START = 1e-6, 0.1, 1e-4
KERNEL = 5
STEPS = 4.0
"""Latents of untrained networks are about so many steps of rounding wide: with fewer all of them are one symbol."""
SMALLEST = 32
"""Side in pixels of images that MS-SSIM can be trained on: with less there is one scale."""


def full(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """No autocast inside: squares, and latents far from 0, need the digits."""
    return torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


class GDN(nn.Module):
    """Generalised divisive normalisation y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2) at each place (arXiv
    1611.01704, eq. 1), [B C H W]; ``inverse``: the product with that root in place of the quotient (eq. 2), which is
    one step of a fixed-point iteration for its inverse. beta > 0 and gamma >= 0 whatever the parameters."""

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.root_beta = nn.Parameter(torch.ones(channels))
        gamma = GAMMA_START * torch.eye(channels) + CROSS_START / channels
        self.root_gamma = nn.Parameter(gamma.sqrt())

    @property
    def beta(self) -> Tensor:
        return self.root_beta.square() + BETA_FLOOR

    @property
    def gamma(self) -> Tensor:
        return self.root_gamma.square()

    def forward(self, x: Tensor) -> Tensor:
        with full(x):
            x = wide(x)
            power = F.conv2d(x.square(), self.gamma[:, :, None, None], self.beta)
            return x * (power.sqrt() if self.inverse else power.rsqrt())


class Analysis(nn.Module):
    """x in [-1, 1] [B C H W] -> latents [B M h w], float32 or wider."""

    def __init__(self, before: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.before, self.last = before, last

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        with full(h):
            y: Tensor = self.last(wide(h))
        return y


@dataclass(frozen=True)
class GDNTransforms:
    """Analysis and synthesis transforms of square images: ``stages`` 5x5 convolutions of stride 2, with GDN between
    them and inverse GDN in the mirrored synthesis. ``width``: channels between the stages. UserError for other data or
    values."""

    width: int = 128
    stages: int = 4

    def __post_init__(self) -> None:
        for name in ("width", "stages"):
            if getattr(self, name) < 1:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least 1")

    def latent_shape(self, spec: Spec, channels: int) -> tuple[int, int, int]:
        """(M, h, w) of the latents."""
        side = self._canvas(spec) // 2**self.stages
        return channels, side, side

    def analysis(self, spec: Spec, channels: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B M h w]."""
        size, canvas = spec.size, self._canvas(spec)
        layers: list[nn.Module] = [Pad(size, canvas)] if size != canvas else []
        widths = [spec.channels, *[self.width] * (self.stages - 1)]
        for c_in, c_out in pairwise(widths):
            layers += [self._down(c_in, c_out), GDN(c_out)]
        last = self._down(widths[-1], channels)
        with torch.no_grad():
            last.weight.mul_(STEPS)
        return Analysis(nn.Sequential(*layers), last)

    def synthesis(self, spec: Spec, channels: int) -> nn.Module:
        """[B M h w] -> x about [-1, 1], unbounded [B C H W]."""
        size, canvas = spec.size, self._canvas(spec)
        widths = [channels, *[self.width] * (self.stages - 1)]
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise(widths):
            layers += [self._up(c_in, c_out), GDN(c_out, inverse=True)]
        layers.append(self._up(widths[-1], spec.channels))
        with torch.no_grad():
            next(layer for layer in layers if isinstance(layer, nn.ConvTranspose2d)).weight.div_(STEPS)
        return nn.Sequential(*layers, *([Crop(size, canvas)] if size != canvas else []))

    def _canvas(self, spec: Spec) -> int:
        """The side, padded to a multiple of the stride."""
        if not spec.is_image or spec.shape[1] != spec.shape[2]:
            what = "x".join(map(str, spec.shape))
            raise UserError(f"model/net=gdn needs square images, and the data are {what}: choose data of images")
        stride: int = 2**self.stages
        return -(-spec.size // stride) * stride

    @staticmethod
    def _down(c_in: int, c_out: int) -> nn.Conv2d:
        """Halves an even side; keeps the variance of what it is given."""
        layer = nn.Conv2d(c_in, c_out, KERNEL, stride=2, padding=KERNEL // 2)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        set_biases(layer)
        return layer

    @staticmethod
    def _up(c_in: int, c_out: int) -> nn.ConvTranspose2d:
        """Doubles the side; each output pixel sees about a quarter of the kernel."""
        layer = nn.ConvTranspose2d(c_in, c_out, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1)
        nn.init.normal_(layer.weight, std=2.0 / math.sqrt(c_in * KERNEL**2))
        set_biases(layer)
        return layer


class FactorizedDensity(nn.Module):
    """p(y~) of each of ``channels`` channels on its own: a density convolved with the unit box, as the sum of a latent
    and U(-1/2, 1/2) has (arXiv 1802.01436, appendix 6.1).

    Its cumulative c = sigmoid(f_K .. f_1) is monotone: f_k(x) = g_k(softplus(H) x + b), g_k(x) = x + tanh(a) tanh(x),
    with the identity for g_K. ``filters``: widths between the layers. ``start``: how wide the untrained density is.
    Computed in float32, or float64 for float64 latents. UserError for other values.
    """

    def __init__(self, channels: int, filters: Sequence[int] = (3, 3, 3), start: float = 10.0) -> None:
        super().__init__()
        if not start > 0:
            raise UserError(f"model.density.start={start}: above 0")
        if any(width < 1 for width in filters):
            raise UserError(f"model.density.filters={list(filters)}: widths of 1 or more")
        widths = [1, *filters, 1]
        scale = start ** (1 / (len(filters) + 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            value = math.log(math.expm1(1 / scale / after))  # softplus of it is 1 / (scale after)
            self.matrices.append(nn.Parameter(torch.full((channels, after, before), value)))
            self.biases.append(nn.Parameter(torch.empty(channels, after, 1).uniform_(-0.5, 0.5)))
        for width in filters:
            self.factors.append(nn.Parameter(torch.zeros(channels, width, 1)))

    def logits(self, y: Tensor) -> Tensor:
        """Of the cumulative: log(c / (1 - c)) [M N] for y [M N]."""
        with full(y):
            h = wide(y)[:, None]  # [M 1 N]
            for k, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
                h = F.softplus(matrix.to(h.dtype)) @ h + bias.to(h.dtype)
                if k < len(self.factors):
                    h = h + torch.tanh(self.factors[k].to(h.dtype)) * torch.tanh(h)
            return h[:, 0]

    def bits(self, y: Tensor) -> Tensor:
        """-log2 (c(y + 1/2) - c(y - 1/2)) [B M h w] of latents, noisy or rounded, [B M h w]."""
        flat = wide(y).transpose(0, 1).flatten(1)  # [M B*h*w]
        lower, upper = self.logits(flat - 0.5), self.logits(flat + 0.5)
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no cancellation however far the tail.
        gap = (upper - lower).clamp_min(torch.finfo(flat.dtype).tiny)
        nats = -(F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-gap)))
        shape = (y.shape[1], y.shape[0], *y.shape[2:])
        return (nats / math.log(2.0)).view(shape).transpose(0, 1)


@dataclass(frozen=True)
class SquaredLevels:
    """Mean squared error per pixel and channel of levels 0..255, the distortion of arXiv 1611.01704 (lambda times it is
    added to bits per pixel). The pictures are not clipped or rounded in training."""

    def require(self, spec: Spec) -> None:
        """Images of any size will do."""

    def distortion(self, back: Tensor, x: Tensor) -> Tensor:
        """[B] for ``back`` about [-1, 1] and x uint8 [B C H W]."""
        return ((back + 1.0) * 127.5 - x.to(back.dtype)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Dissimilarity:
    """``weight`` times 1 - MS-SSIM, which is 0 for equal pictures, about 1 for unlike ones, and has no unit; lambda
    times ``weight`` are bits per pixel for a whole 1. The pictures are not clipped or rounded in training. For images
    of 32 pixels or more, with as many scales as fit (2 at 32, 5 from 176 on); UserError for smaller ones."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"model.loss.weight={self.weight}: above 0")

    def require(self, spec: Spec) -> None:
        if not spec.is_image or spec.size < SMALLEST:
            raise UserError(
                f"loss=ms_ssim: images of {SMALLEST} pixels or more, and these are {spec.size}: use "
                f"data.size={SMALLEST} or more, or loss=levels"
            )

    def distortion(self, back: Tensor, x: Tensor) -> Tensor:
        """[B] for ``back`` about [-1, 1] and x uint8 [B C H W]."""
        return self.weight * (1.0 - multi_scale((back + 1.0) * 127.5, x.to(back.dtype)))
