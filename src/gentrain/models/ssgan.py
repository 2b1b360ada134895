"""Semi-supervised GAN: a classifier of few labelled images that also tells unlabelled images from generated ones.

Paper: Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen 2016, Improved Techniques for Training GANs, arXiv
1606.03498, section 5 (K + 1 classes, the last logit fixed at 0), section 3.1 (feature matching); networks and numbers
of the authors' code for MNIST.
Adds to the adversarial family: a critic of K class logits l whose score is log sum exp l, so that P(real) = Z / (Z + 1)
with Z = sum exp l; the cross-entropy of labelled images. The rest is the family's: the nonsaturating critic's loss with
weight 1/2, a generator that matches features alone.
Departs: the hidden layers' scales of weight normalisation are learned (theirs are set once from 500 images and stay);
labelled images are drawn with replacement; both players see the same unlabelled batch in an iteration (theirs: two).
Checked by: tests/test_ssgan.py (gradients of the explicit K + 1 classes, and that a free last logit differs; a constant
on all logits; which images the labelled term sees), tests/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.game import CLASS_HEAD, Round, Verdict
from gentrain.nets.architecture import Architecture, Trunked
from gentrain.nets.conditioning import CriticLabels
from gentrain.nets.layers import Affine, weight_normalised
from gentrain.types import Images, Spec, Terms


class ClassLogits:
    """A ``MakesCritic``: K class logits on the trunk's features, and nothing else."""

    def build(self, spec: Spec, net: Architecture, labels: CriticLabels | None, heads: Mapping[str, int]) -> nn.Module:
        if labels is not None or heads:
            raise UserError("model.critic: a critic of class logits is not told labels and has no further heads")
        if not isinstance(net, Trunked):
            raise UserError(f"model.net: {type(net).__name__} makes critics in one piece; choose dcgan, mlp, ssgan_mlp")
        if spec.classes < 2:
            raise UserError("model.critic: data= gives no classes: choose other data")
        trunk, width = net.trunk(spec)
        return ClassCritic(trunk, net.head(width, spec.classes))


class ClassCritic(nn.Module):
    """x [B C H W] or [B D] -> logits of the classes [B K]; the score is their log sum exp [B 1]."""

    def __init__(self, trunk: nn.Module, logits: nn.Module) -> None:
        super().__init__()
        self.trunk, self.logits = trunk, logits

    def judge(self, x: Tensor, labels: Tensor | None = None) -> Verdict:
        features: Tensor = self.trunk(x)
        logits: Tensor = self.logits(features)
        return Verdict(logits.float().logsumexp(1, keepdim=True), features, {CLASS_HEAD: logits})

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.judge(x, labels).score


@final
class FewLabels(nn.Module):
    """An ``Aim``: the critic minimises ``weight`` times the cross-entropy of as many labelled images as the batch has,
    drawn with replacement from ``labels_per_class`` of each class. The labels of the batch itself are not looked at.
    UserError for numbers out of their range."""

    needs_real: ClassVar[bool] = False
    labels_per_class: int | None

    def __init__(self, labels_per_class: int = 10, weight: float = 1.0) -> None:
        super().__init__()
        if labels_per_class < 1:
            raise UserError(f"model.aims: few labels: labels_per_class={labels_per_class}: at least 1")
        if not weight > 0:
            raise UserError(f"model.aims: few labels: weight={weight}: above 0")
        self.labels_per_class, self.weight = labels_per_class, weight
        self.labelled: Images | None = None  # a function of the data and the seed: no part of the state

    def give_labelled(self, images: Images) -> None:
        self.labelled = images

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        if self.labelled is None or self.labelled.y is None:
            raise UserError("model.aims: few labels: this system hands out no labelled images; model=ssgan, acgan do")
        # From the global generator, whose state a checkpoint holds.
        place = torch.randint(len(self.labelled), (len(seen.real),))
        some = Images(self.labelled.x[place], self.labelled.y[place]).to(seen.real.device)
        assert some.y is not None
        logits = seen.judge(some.signed).more.get(CLASS_HEAD)
        if logits is None:
            raise UserError("model.critic: this one gives no class logits: few labels need ClassLogits (model=ssgan)")
        return {"labelled": self.weight * F.cross_entropy(logits.float(), some.y)}

    def generator(self, seen: Round) -> Terms:
        return {}


@dataclass(frozen=True)
class SalimansMLP:
    """An ``Architecture`` for any data: the dense networks of the authors' MNIST experiment.

    ``hidden``: ReLU layers of the critic, weight-normalised (Salimans and Kingma 2016, arXiv 1602.07868), between which
    N(0, ``noise``^2) is added, N(0, ``input_noise``^2) to pixels in [0, 1]; no noise at rest. Features are the last of
    them. ``generator_hidden``: softplus layers behind batch normalisation, from the noise on; the output is
    weight-normalised. UserError for values out of their range.
    """

    hidden: Sequence[int]
    generator_hidden: Sequence[int]
    input_noise: float
    noise: float

    def __post_init__(self) -> None:
        for name in ("hidden", "generator_hidden"):
            if not getattr(self, name) or any(width < 1 for width in getattr(self, name)):
                raise UserError(f"model.net.{name} needs widths of 1 or more, got {list(getattr(self, name))}")
        for name in ("input_noise", "noise"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.net.{name}={getattr(self, name)}: 0 or more")

    def decoder(self, spec: Spec, latent: int, *, channels: int | None = None, bounded: bool = True) -> nn.Module:
        """z [B Z] -> [B C' H W] (in [-1, 1] where ``bounded``), or [B D'] for vectors, unbounded."""
        shape = (channels or spec.channels, *spec.shape[1:])
        layers: list[nn.Module] = []
        for before, after in pairwise([latent, *self.generator_hidden]):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.Softplus()]
        layers.append(
            weight_normalised(nn.Linear(self.generator_hidden[-1], spec.numel // spec.channels * shape[0]), 1.0)
        )
        if spec.is_image:
            layers.append(nn.Unflatten(1, shape))
            if bounded:
                layers += [nn.Sigmoid(), Affine(2.0, -1.0)]
        return nn.Sequential(*layers)

    def encoder(self, spec: Spec, out: int) -> nn.Module:
        """x in [-1, 1] [B C H W] or [B D] -> [B out]."""
        trunk, width = self.trunk(spec)
        return nn.Sequential(*trunk, self.head(width, out))

    def trunk(self, spec: Spec, more: int = 0) -> tuple[nn.Sequential, int]:
        """x [B C+more H W] or [B D+more] -> the last hidden layer [B F], and F."""
        layers: list[nn.Module] = [nn.Flatten(), Affine(0.5, 0.5)] if spec.is_image else []
        layers.append(GaussianNoise(self.input_noise))
        inputs = spec.numel // spec.channels * (spec.channels + more)
        for i, (before, after) in enumerate(pairwise([inputs, *self.hidden])):
            layers += [GaussianNoise(self.noise)] if i else []
            # sqrt(2) in front of a ReLU keeps the size of what passes, which the authors reach by looking at the data.
            layers += [weight_normalised(nn.Linear(before, after), 2.0**0.5), nn.ReLU()]
        return nn.Sequential(*layers), self.hidden[-1]

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """[B inputs] -> [B outputs], behind the noise that the features do not have."""
        return nn.Sequential(GaussianNoise(self.noise), weight_normalised(nn.Linear(inputs, outputs), 1.0))


class GaussianNoise(nn.Module):
    """x + N(0, sd^2) in training, x at rest."""

    def __init__(self, sd: float) -> None:
        super().__init__()
        self.sd = sd

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sd * torch.randn_like(x) if self.training and self.sd > 0 else x

    def extra_repr(self) -> str:
        return f"{self.sd}"
