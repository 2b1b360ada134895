"""Invertible parts without networks inside: squeezing, normalisations, linear maps over channels, squashing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.first_batch import FirstBatch
from gentrain.nets.flows.bijection import Bijection, each_channel, float32, places, standardising


class Squeeze(Bijection):
    """[B C H W] -> [B 4C H/2 W/2]: each 2x2 square becomes channels, the square's upper row before its lower, so that
    halves of the channels are not the two colours of a checkerboard (Dinh et al. 2017, arXiv 1605.08803, figure 3)."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        b, channels, h, w = x.shape
        squares = x.view(b, channels, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return squares.reshape(b, 4 * channels, h // 2, w // 2), x.new_zeros(b)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        b, channels, h, w = z.shape
        squares = z.reshape(b, 2, 2, channels // 4, h, w).permute(0, 3, 4, 1, 5, 2)
        return squares.reshape(b, channels // 4, 2 * h, 2 * w)


class Flatten(Bijection):
    """[B *shape] -> [B D]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z.view(len(z), *self.shape)


class Permutation(Bijection):
    """Channel i of z is channel ``order[i]`` of x."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order.clone())
        self.order: Tensor

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z.index_select(1, torch.argsort(self.order))


class ActNorm(FirstBatch, Bijection):
    """(x + bias) * exp(factor * log_scale) for each channel, at first so that the first batch comes out with mean 0 and
    variance 1 (Kingma and Dhariwal 2018, arXiv 1807.03039, section 3.1). ``factor`` 3, as in their release: Adam then
    moves the scale three times as fast."""

    def __init__(self, channels: int, factor: float = 3.0) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.initialising:
            self.take(x)
        logs = self.factor * self.log_scale
        z = (x + each_channel(self.bias, x)) * each_channel(logs.exp(), x)
        return z, (places(x) * logs.sum()).expand(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z * each_channel((-self.factor * self.log_scale).exp(), z) - each_channel(self.bias, z)

    @torch.no_grad()
    def take(self, x: Tensor) -> None:
        """The first values, from a batch."""
        bias, log_scale = standardising(x)
        self.bias.copy_(bias)
        self.log_scale.copy_(log_scale / self.factor)


class InvertibleConvolution(Bijection):
    """A 1x1 convolution z = W x over the channels, at first a random rotation (arXiv 1807.03039, section 3.2).

    ``lu``: W = P L (U + diag(s)) with P and the signs of s fixed (eq. 10); L, U and log |s| stand in one matrix, below,
    above and on its diagonal, and the log-determinant is H W sum(log |s|). Else W itself, with its determinant in
    float64.
    """

    def __init__(self, channels: int, *, lu: bool = True) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        self.lu = lu
        if not lu:
            self.weight = nn.Parameter(rotation.float())
            return
        p, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        packed = lower.tril(-1) + upper.triu(1) + torch.diag(diagonal.abs().log())
        self.packed = nn.Parameter(packed.float())
        self.register_buffer("rows", p.argmax(1))
        self.register_buffer("signs", diagonal.sign().float())
        self.rows: Tensor
        self.signs: Tensor

    def matrix(self) -> tuple[Tensor, Tensor]:
        """W [C C] and log |det W|, float32."""
        if not self.lu:
            return self.weight, torch.linalg.slogdet(self.weight.double())[1].float()
        logs = self.packed.diagonal()
        upper = self.packed.triu(1) + torch.diag(self.signs * logs.exp())
        product = torch.addmm(upper, self.packed.tril(-1), upper)  # (L + 1) U with the ones of L's diagonal apart
        return product.index_select(0, self.rows), logs.sum()

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with float32(x):
            w, logdet = self.matrix()
            return over_channels(x, w), (places(x) * logdet).expand(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        with float32(z):
            w, _ = self.matrix()
            return over_channels(z, torch.linalg.inv(w.double()).float())


def over_channels(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + bias at each place of x [B C H W] or [B C]."""
    return F.linear(x, w, bias) if x.ndim == 2 else F.conv2d(x, w[:, :, None, None], bias)


class BatchNormFlow(Bijection):
    """(x - mean) / sqrt(variance + eps) for each channel (arXiv 1605.08803, section 3.7, eq. 17 and 18): in training
    with the batch's statistics, through which gradients go; at rest, and on any way back, with running averages."""

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            over = [0, *range(2, x.ndim)]
            variance, mean = torch.var_mean(x, over, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
        logs = -0.5 * torch.log(variance + self.eps)
        z = (x - each_channel(mean, x)) * each_channel(logs.exp(), x)
        return z, (places(x) * logs.sum()).expand(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z * each_channel((self.running_var + self.eps).sqrt(), z) + each_channel(self.running_mean, z)


class Scaling(Bijection):
    """x * exp(s), s a learned number for each of D dimensions (NICE, arXiv 1410.8516, section 3.3)."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dimensions))

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z * (-self.log_scale).exp()


class Centre(Bijection):
    """[0, 1) to [-1/2, 1/2)."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x - 0.5, x.new_zeros(len(x))

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return z + 0.5


class Logit(Bijection):
    """logit(alpha + (1 - 2 alpha) x) for x in [0, 1] (arXiv 1605.08803, section 4.1). Both ends are kept from 0 and 1;
    the formula in print, with 1 - alpha, leaves x = 1 at infinity. UserError for alpha outside (0, 1/2)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if not 0.0 < alpha < 0.5:
            raise UserError(f"model.net.alpha={alpha}: more than 0 and less than 0.5")
        self.alpha = alpha

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = torch.logit(self.alpha + (1.0 - 2.0 * self.alpha) * x)
        # 1 / (p (1 - p)) at p = sigmoid(z): softplus is exact in both tails.
        logs = math.log(1.0 - 2.0 * self.alpha) + F.softplus(z) + F.softplus(-z)
        return z, logs.flatten(1).sum(1)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return (torch.sigmoid(z) - self.alpha) / (1.0 - 2.0 * self.alpha)


class Sigmoid(Bijection):
    """All numbers to (0, 1)."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(x), -(F.softplus(x) + F.softplus(-x)).flatten(1).sum(1)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return torch.logit(z)
