"""Penalties on the critic's gradient with respect to its input, and weight clipping.

A gradient penalty reads the slope at each sample by itself, so the critic must treat samples one by one: batch
normalisation is refused, and whatever else mixes samples (``refuse_mixing``).
Norms run over all dimensions but the first; everything is float32 with autocast off, since a second derivative in half
precision loses the slope that the penalty is about.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gentrain.errors import UserError
from gentrain.types import Terms

Critic = Callable[[Tensor], Tensor]
"""Float samples [B ...] to scores [B] or [B K]."""


class Penalty(Protocol):
    """A term of the critic's loss. ``per_sample``: the critic must treat the samples of a batch independently.
    ``every``: it acts in iterations divisible by it, multiplied by it, so that its weight is that of each iteration
    (lazy regularisation, Karras et al. 2020, arXiv 1912.04958)."""

    @property
    def per_sample(self) -> bool: ...

    @property
    def every(self) -> int: ...

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Terms:
        """Named terms, already weighted, for float samples [B ...] of equal shape."""
        ...


def gradient_norms(critic: Critic, x: Tensor) -> Tensor:
    """Slope ||grad_x critic(x)||_2 at each sample [B].

    Differentiable with respect to the critic (second order) where gradients are enabled. ``x`` is cut from its graph:
    nothing reaches a generator. 1e-12 under the root keeps the derivative finite where the slope is 0.
    """
    return squared_gradient_norms(critic, x).add(1e-12).sqrt()  # [B]


def squared_gradient_norms(critic: Critic, x: Tensor) -> Tensor:
    """Squared slope at each sample [B], under the conditions of ``gradient_norms``. A critic of several outputs gives
    the slope of their sum: v^T J for outputs that are weighed by v."""
    differentiable = torch.is_grad_enabled()
    # enable_grad: a slope can also be measured under no_grad, for a log.
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().float().requires_grad_()
        # The sum's gradient is each sample's own gradient as long as no sample sees another: hence refuse_mixing.
        (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=differentiable)
        return gradient.flatten(1).square().sum(1)  # [B]


def gradient_penalty(
    critic: Critic, real: Tensor, fake: Tensor, *, target: float = 1.0, one_sided: bool = False
) -> Tensor:
    """Mean over samples of (slope - target)^2 at random points between real and fake samples.

    WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028, eq. 3 and algorithm 1): x_hat = e x + (1 - e) G(z) with one
    e ~ U[0, 1] per sample. ``one_sided`` punishes only slopes above the target (their section 4).
    Raises ValueError where the shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real {tuple(real.shape)} and fake {tuple(fake.shape)} samples must have one shape")
    epsilon = _one_per_sample(real)  # [B 1 ...]
    between = torch.lerp(fake.detach().float(), real.detach().float(), epsilon)
    return _distance_to(gradient_norms(critic, between), target, one_sided)


def r1(critic: Critic, real: Tensor) -> Tensor:
    """Half the mean squared slope at real samples (Mescheder et al. 2018, arXiv 1801.04406, eq. 9 with gamma = 1)."""
    return 0.5 * squared_gradient_norms(critic, real).mean()


def r2(critic: Critic, fake: Tensor) -> Tensor:
    """Half the mean squared slope at generated samples (Mescheder et al. 2018, eq. 10 with gamma = 1)."""
    return r1(critic, fake)


def dragan(critic: Critic, real: Tensor, *, target: float = 1.0) -> Tensor:
    """Mean over samples of (slope - target)^2 around the data (Kodali et al. 2017, arXiv 1705.07215).

    The noise is that of the authors' code, not the Gaussian of the text: U[0, 1) per number, times half the standard
    deviation of the batch, times one U[0, 1) per sample.
    """
    real = real.detach().float()
    noise = 0.5 * real.std() * torch.rand_like(real)
    return _distance_to(gradient_norms(critic, real + _one_per_sample(real) * noise), target, one_sided=False)


@dataclass(frozen=True)
class GradientPenalty:
    """WGAN-GP's ``weight * gradient_penalty`` (lambda of eq. 3). ``target`` 0 is the zero-centred one (Thanh-Tung et
    al. 2019, arXiv 1902.03984), of critics that need not be Lipschitz."""

    weight: float
    one_sided: bool = False
    target: float = 1.0
    every: int = 1
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("model.penalties: gradient penalty", self.every, weight=self.weight, target=self.target)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Terms:
        mean = gradient_penalty(critic, real, fake, target=self.target, one_sided=self.one_sided)
        return {"gradient_penalty": self.every * self.weight * mean}


@dataclass(frozen=True)
class R1:
    """``gamma / 2`` times the mean squared slope at real samples."""

    gamma: float
    every: int = 1
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("model.penalties: R1", self.every, gamma=self.gamma)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Terms:
        return {"r1": self.every * self.gamma * r1(critic, real)}


@dataclass(frozen=True)
class R2:
    """``gamma / 2`` times the mean squared slope at generated samples."""

    gamma: float
    every: int = 1
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("model.penalties: R2", self.every, gamma=self.gamma)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Terms:
        return {"r2": self.every * self.gamma * r2(critic, fake)}


@dataclass(frozen=True)
class Dragan:
    """DRAGAN's ``weight`` times the penalty around the data."""

    weight: float
    every: int = 1
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("model.penalties: DRAGAN", self.every, weight=self.weight)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Terms:
        return {"dragan": self.every * self.weight * dragan(critic, real)}


_REMEDY = "set model.net.critic_norm=none, layer or instance, or choose another model/net"
_REMEDIES = {
    "decoder": "set model.net.decoder_norm=none, layer or instance",  # of a critic that is an autoencoder
    "heads": "set model.critic.batch_norm=false",  # of a critic's further outputs
}


def refuse_mixing(
    net: nn.Module, x: Tensor | None = None, labels: Tensor | None = None, *, what: str = "critic",
    penalty: str = "the gradient penalty",
) -> None:  # fmt: skip
    """UserError naming the first layer that mixes the samples of a batch, in a network that a per-sample penalty is
    about to be used on: batch norm, any whose ``mixes_samples`` is true, and with ``x`` any whose output for one sample
    depends on the others of its batch (virtual or conditional batch norm, minibatch features, attention over the
    batch). That is asked of a copy of ``net``, in training mode, with two batches like ``x`` [B ...] (B at least 2)
    that share their first sample; the state of torch's CPU generator is left as it was."""
    for name, layer in net.named_modules():
        normalises = isinstance(layer, _BatchNorm)
        if normalises or getattr(layer, "mixes_samples", False):
            remedy = _REMEDIES.get(name.split(".")[0], _REMEDY) if normalises else "leave model/critic out"
            raise UserError(
                f"{what} layer '{name}' is {type(layer).__name__}, which mixes the samples of a batch, but "
                f"{penalty} is per sample: {remedy}"
            )
    if x is None or any(getattr(layer, "mixes_samples", None) is False for layer in net.modules()):
        return  # one that does, and was let past on purpose: all behind it differs too
    _refuse_dependence(net, x, labels, what, penalty)


def _refuse_dependence(net: nn.Module, x: Tensor, labels: Tensor | None, what: str, penalty: str) -> None:
    copied = copy.deepcopy(net).train()
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim and len(out) == len(x):
            seen.append((name, out[0].detach().clone()))

    for name, layer in copied.named_modules():
        if layer is not copied:
            layer.register_forward_hook(lambda _, __, out, name=name: watch(name, out))
    passes = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for others in (x, x, x.roll(1, -1) * -0.5):  # the first pass lets a layer that keeps a reference batch take one
            seen.clear()
            torch.default_generator.manual_seed(0)  # the same units drop out
            watch("score", copied(torch.cat([x[:1], others[1:]]), *([] if labels is None else [labels])))
            passes.append(list(seen))
    layers = dict(copied.named_modules())
    for (name, one), (_, other) in zip(*passes[1:], strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-6):
            raise UserError(
                f"{what} layer '{name}' ({type(layers.get(name, copied)).__name__}) mixes the samples of a batch, but "
                f"{penalty} is per sample: leave out the one or the other"
            )


@torch.no_grad()
def clip_weights(module: nn.Module, bound: float) -> None:
    """Clamp every parameter to [-bound, bound] in place (WGAN, arXiv 1701.07875, algorithm 1, line 7).

    Buffers stay: the running statistics of a normalisation are measurements, not weights.
    """
    if not bound > 0:
        raise UserError(f"weight clipping: bound={bound}: a number above 0 is needed")
    for parameter in module.parameters():
        parameter.clamp_(-bound, bound)


def _one_per_sample(x: Tensor) -> Tensor:
    """U[0, 1) of shape [B 1 ...] that broadcasts over all numbers of a sample."""
    return torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device)


def _distance_to(norms: Tensor, target: float, one_sided: bool) -> Tensor:
    excess = norms - target  # [B]
    return (F.relu(excess) if one_sided else excess).square().mean()


def refuse_negative(what: str, **numbers: float) -> None:
    """UserError naming the first number that is below 0 or none at all."""
    for name, value in numbers.items():
        if not value >= 0:
            raise UserError(f"{what}: {name}={value}: 0 or more is needed")


def _check(what: str, every: int, **numbers: float) -> None:
    refuse_negative(what, **numbers)
    if every < 1:
        raise UserError(f"{what}: every={every}: at least 1")
