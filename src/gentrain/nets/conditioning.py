"""How class labels enter a generator and a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.architecture import Architecture, Modulated
from gentrain.nets.layers import choose
from gentrain.nets.modulation import ClassVectors
from gentrain.types import Spec


class CriticLabels(Protocol):
    """The critic's side of a choice of ``model.labels``."""

    def planes(self, spec: Spec) -> int:
        """Channels (numbers, for vectors) that labels add to what the critic sees."""
        ...

    def build(self, spec: Spec, width: int) -> nn.Module | None:
        """A module with ``seen(x, labels) -> x`` and ``scored(score, features, labels) -> score`` for features of
        ``width`` numbers."""
        ...


@dataclass(frozen=True)
class Labels:
    """Where labels enter, ``model.labels``.

    ``generator``: ``concat`` puts the one-hot label beside z (Mirza and Osindero 2014, arXiv 1411.1784), ``embedding``
    a learned vector of ``width`` numbers, ``batch_norm`` makes gain and bias of each normalisation a function of it
    (de Vries et al. 2017, arXiv 1707.00683; Miyato and Koyama 2018, arXiv 1802.05637), per class where ``shared`` is
    false, through one embedding of ``width`` numbers where it is true (BigGAN: Brock et al. 2019, arXiv 1809.11096).
    ``critic``: ``concat`` adds a plane for each class, ``embedding`` one learned plane, ``projection`` adds the inner
    product of features and a vector of the class to the score (Miyato and Koyama 2018, eq. 3), ``none`` shows it none
    (AC-GAN). UserError for other values.
    """

    generator: Literal["concat", "embedding", "batch_norm"] = "concat"
    critic: Literal["concat", "embedding", "projection", "none"] = "concat"
    width: int = 128
    shared: bool = False

    def __post_init__(self) -> None:
        choose(dict.fromkeys(("concat", "embedding", "batch_norm"), 0), self.generator, "model.labels.generator")
        choose(dict.fromkeys(("concat", "embedding", "projection", "none"), 0), self.critic, "model.labels.critic")
        if self.width < 1:
            raise UserError(f"model.labels.width={self.width}: at least 1")

    def build_generator(self, spec: Spec, net: Architecture, latent: int) -> nn.Module:
        """(z [B Z], labels int64 [B]) -> samples. UserError for data without classes, and where the network has no
        normalisation to modulate."""
        classes = _classes(spec)
        if self.generator == "batch_norm":
            if not isinstance(net, Modulated):
                raise UserError(
                    f"model.labels.generator=batch_norm: {type(net).__name__} cannot modulate its normalisation; "
                    "choose concat or embedding"
                )
            vector = ClassVectors(classes, self.width) if self.shared else OneHot(classes)
            width = self.width if self.shared else classes
            body = net.modulated_decoder(spec, latent, width, one_hot=not self.shared)
            return LabelledGenerator(body, vector, beside=False)
        embedded = self.generator == "embedding"
        vector = ClassVectors(classes, self.width) if embedded else OneHot(classes)
        width = self.width if embedded else classes
        return LabelledGenerator(net.decoder(spec, latent + width), vector, beside=True)

    def planes(self, spec: Spec) -> int:
        return {"concat": _classes(spec), "embedding": 1 if spec.is_image else self.width}.get(self.critic, 0)

    def build(self, spec: Spec, width: int) -> nn.Module | None:
        classes = _classes(spec)
        if self.critic == "none":
            return None
        if self.critic == "projection":
            return Projection(classes, width)
        if self.critic == "concat":
            return Planes(OneHot(classes), spec)
        numbers = spec.shape[1] * spec.shape[2] if spec.is_image else self.width
        return Planes(nn.Embedding(classes, numbers), spec)


def _classes(spec: Spec) -> int:
    if spec.classes < 2:
        raise UserError("model.labels: data= gives no classes: choose other data, or a model without labels")
    return spec.classes


class OneHot(nn.Module):
    """Labels int64 [B] -> float [B K]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.classes).float()


class LabelledGenerator(nn.Module):
    """(z [B Z], labels int64 [B]) -> samples; the vector of the label stands ``beside`` z or modulates the network."""

    def __init__(self, net: nn.Module, vector: nn.Module, *, beside: bool) -> None:
        super().__init__()
        self.net, self.vector, self.beside = net, vector, beside

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        condition: Tensor = self.vector(labels)
        made: Tensor = self.net(torch.cat([z, condition], dim=1)) if self.beside else self.net(z, condition)
        return made


class Planes(nn.Module):
    """The label's vector as further channels of what the critic sees: constant planes for a one-hot vector, one plane
    of H W numbers for an embedding; further numbers for vectors."""

    def __init__(self, vector: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.vector = vector
        self.constant = isinstance(vector, OneHot)

    def seen(self, x: Tensor, labels: Tensor) -> Tensor:
        """[B C+K H W] for x [B C H W]; [B D+K] for x [B D]."""
        more: Tensor = self.vector(labels).to(x.dtype)
        if x.ndim == 4:
            sides = x.shape[2:]
            more = more[:, :, None, None].expand(-1, -1, *sides) if self.constant else more.view(-1, 1, *sides)
        return torch.cat([x, more], dim=1)

    def scored(self, score: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        return score


class Projection(nn.Module):
    """Adds <v_y, features> to the score (Miyato and Koyama 2018, arXiv 1802.05637, eq. 3)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.vector = nn.Embedding(classes, width)
        nn.init.normal_(self.vector.weight, std=width**-0.5)

    def seen(self, x: Tensor, labels: Tensor) -> Tensor:
        return x

    def scored(self, score: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """[B 1] + [B 1]."""
        vector: Tensor = self.vector(labels)
        return score + (vector * features).sum(1, keepdim=True)
