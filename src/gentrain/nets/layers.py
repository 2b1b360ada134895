"""Blocks shared by the architectures: activations and normalisations by name, padding to the canvas, initialisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.config import nearest
from gentrain.errors import UserError
from gentrain.nets.virtual import VirtualBatchNorm
from gentrain.types import Spec

T = TypeVar("T")
L = TypeVar("L", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

BASE = 4
"""Side of the smallest feature map of convolutional networks: a code is projected to it, an encoder ends at it."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

# A normalisation is a list of layers, so that "none" leaves no layer behind.
IMAGE_NORMS: dict[str, Callable[[int], list[nn.Module]]] = {
    "batch": lambda channels: [nn.BatchNorm2d(channels)],
    "instance": lambda channels: [nn.InstanceNorm2d(channels, affine=True)],
    # Statistics over C H W of each sample, gain and bias per channel: independent of H and W, as in WGAN-GP's critics.
    "layer": lambda channels: [nn.GroupNorm(1, channels)],
    "none": lambda channels: [],
}

# What a generator may have besides: a critic has no reference batch.
DECODER_NORMS: dict[str, Callable[[int], list[nn.Module]]] = IMAGE_NORMS | {
    "virtual": lambda channels: [VirtualBatchNorm(channels)]
}

VECTOR_NORMS: dict[str, Callable[[int], list[nn.Module]]] = {
    "batch": lambda width: [nn.BatchNorm1d(width)],
    "layer": lambda width: [nn.LayerNorm(width)],
    "none": lambda width: [],
}

VECTOR_DECODER_NORMS: dict[str, Callable[[int], list[nn.Module]]] = VECTOR_NORMS | {
    "virtual": lambda width: [VirtualBatchNorm(width)]
}

INITS: dict[str, Callable[[Tensor], object]] = {
    "default": lambda weight: weight,
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "normal": partial(nn.init.normal_, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
}
"""Rules for weight matrices; "default" keeps PyTorch's. All but it set biases to 0."""


def choose(table: Mapping[str, T], name: str, key: str) -> T:
    """``table[name]``, or a UserError that names the config key and the valid names near it."""
    if name in table:
        return table[name]
    raise UserError(f"{key}={name}: unknown{nearest(name, table)}")


def require_square_images(spec: Spec) -> None:
    """UserError for data that convolutional networks between 4x4 and the pixels cannot take."""
    if not spec.is_image:
        raise UserError(
            f"model.net: convolutions make images, and the data are vectors of {spec.numel} numbers: use model/net=mlp"
        )
    if spec.shape[1] != spec.shape[2]:
        raise UserError(
            f"model.net: this one needs square images, got {spec.shape[1]}x{spec.shape[2]}: choose a data.size"
        )
    if spec.canvas < 2 * BASE:
        raise UserError(f"model.net: this one needs images of 5 pixels or more, got {spec.size}: choose a data.size")


class Pad(nn.Module):
    """Repeats the border of [B C size size] up to [B C canvas canvas].

    Slices and concatenation instead of ``F.pad``: on a GPU the backward of its replicate mode adds in no fixed order,
    and two runs with one seed would differ.
    """

    def __init__(self, size: int, canvas: int) -> None:
        super().__init__()
        self.before = (canvas - size) // 2
        self.after = canvas - size - self.before

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
            shape = list(x.shape)
            shape[dim] = self.before
            head = first.expand(shape)
            shape[dim] = self.after
            x = torch.cat([head, x, last.expand(shape)], dim=dim)
        return x

    def extra_repr(self) -> str:
        return f"{self.before}, {self.after}"


class Crop(nn.Module):
    """The middle [B C size size] of [B C canvas canvas]: what ``Pad`` added, taken away."""

    def __init__(self, size: int, canvas: int) -> None:
        super().__init__()
        self.size = size
        self.before = (canvas - size) // 2

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(2, self.before, self.size).narrow(3, self.before, self.size)

    def extra_repr(self) -> str:
        return f"{self.size}"


def padded(spec: Spec) -> list[nn.Module]:
    """What stands in front of a convolutional encoder: images of the data's size on the canvas."""
    return [Pad(spec.size, spec.canvas)] if spec.size != spec.canvas else []


def cropped(spec: Spec, *, bounded: bool) -> list[nn.Module]:
    """What stands behind a convolutional decoder: the data's size of the canvas; in [-1, 1] where ``bounded``."""
    layers: list[nn.Module] = [Crop(spec.size, spec.canvas)] if spec.size != spec.canvas else []
    return [*layers, nn.Tanh()] if bounded else layers


class Affine(nn.Module):
    """x -> scale * x + shift, constant."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def require_batch_norm(norm: str) -> None:
    """UserError where a generator that a class is to modulate has no batch norm."""
    if norm != "batch":
        raise UserError(
            f"model.net.decoder_norm={norm}: model.labels.generator=batch_norm modulates batch norm: set it to batch, "
            "or choose concat or embedding"
        )


def set_biases(module: nn.Module, value: float = 0.0) -> None:
    """Set the bias of every layer that has one."""
    for layer in module.modules():
        bias = getattr(layer, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.constant_(bias, value)


def weight_normalised(layer: L, gain: float) -> L:
    """A linear layer or convolution whose weights are, for each output, a direction and a length (Salimans and Kingma
    2016, arXiv 1602.07868), in place; the length is ``gain`` at first and biases are 0."""
    over = [dim for dim in range(layer.weight.ndim) if dim != (along := int(isinstance(layer, nn.ConvTranspose2d)))]
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.normal_().mul_(gain / torch.linalg.vector_norm(layer.weight, dim=over, keepdim=True))
    torch.nn.utils.parametrizations.weight_norm(layer, dim=along)
    return layer


class ToOneChannel(nn.ConvTranspose2d):
    """A transposed convolution to one channel. In eval mode without gradients on a CPU it is a matrix product and a sum
    of overlapping patches: torch's kernel works on 16 channels where there is one, a fifth of DCGAN's sampling time.
    Equal but for rounding; in bf16 the patches are summed in float32. Training is left as it is."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002 (torch's name)
        plain = not self.training and not torch.is_grad_enabled() and input.device.type == "cpu"
        if not plain or output_size is not None or self.out_channels != 1 or self.dilation != (1, 1):
            return super().forward(input, output_size)
        n, c, height, width = input.shape
        patches = input.permute(0, 2, 3, 1).reshape(-1, c) @ self.weight.reshape(c, -1)  # [B*H*W k*k]
        columns = patches.view(n, height * width, -1).transpose(1, 2).float()
        pad = (int(self.padding[0]), int(self.padding[1]))
        size = (self._side(height, 0, pad[0]), self._side(width, 1, pad[1]))
        made = F.fold(
            columns, size, (self.kernel_size[0], self.kernel_size[1]), 1, pad, (self.stride[0], self.stride[1])
        )
        return made if self.bias is None else made + self.bias[:, None, None]

    def _side(self, side: int, axis: int, pad: int) -> int:
        return (side - 1) * self.stride[axis] - 2 * pad + self.kernel_size[axis] + self.output_padding[axis]
