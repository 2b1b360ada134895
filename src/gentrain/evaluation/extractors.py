"""What turns images into numbers that can be compared: the contract, and the guard at its door.

A distance between two sets of images is a distance between features of them, so the extractor is part of the
definition of the score. It is named and hashed in every result; scores by different extractors never share a key.

The classic silent fault is the range: floats in [-1, 1] where bytes were meant move a Fréchet distance by orders of
magnitude and look like a perfect score. So an extractor takes uint8 and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class Features:
    """``features``: float32 [B D]. ``logits``: float32 [B K], or None where the extractor is no classifier."""

    features: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return self.features.shape[0]


class Keys(NamedTuple):
    """Under which names an extractor's scores are reported: only the Inception network earns ``fid``.

    ``distance``: of the Fréchet distance. ``suffix``: of all other names (``kid_domain``). ``classifier``: whether it
    gives logits.
    """

    distance: str
    suffix: str
    classifier: bool = True

    @property
    def kernel(self) -> str:
        return self.named("kid")

    @property
    def score(self) -> str | None:
        """The Inception score; None where the extractor is no classifier."""
        return self.named("is") if self.classifier else None

    def named(self, base: str) -> str:
        """``precision`` becomes ``precision_domain``; under Inception it stays as it is."""
        return f"{base}{self.suffix}"


class Extractor(Protocol):
    """A loaded, frozen network. The same image gives the same features, whatever stands beside it in the batch."""

    name: str
    sha256: str
    """Of the weights file."""
    num_features: int
    classes: tuple[str, ...]
    """Of the logits; empty where there are none."""
    resize: str
    """What is done to an image that is not of the network's size, in words; ``none`` if nothing."""
    bits: int
    """Of the pixels that are scored."""

    def __call__(self, x: Tensor) -> Features:
        """Features of x, uint8 [B C H W] in 0..255. Raises TypeError for another dtype, ValueError for a shape."""
        ...


class ExtractorSource(Protocol):
    """How a config names an extractor: known at start-up, loaded when the first score needs it."""

    keys: ClassVar[Keys]

    def check(self, data: DataSet) -> None:
        """Raise UserError if there is no such extractor for these data. Cheap: called at start-up."""
        ...

    def num_features(self, data: DataSet) -> int:
        """D, without loading the weights."""
        ...

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Extractor: ...


class FrozenExtractor:
    """An Extractor around a network that maps uint8 [B C H W] to (features [B D], logits [B K] or None).

    Evaluation mode, no gradients, float32 without autocast or TF32, whatever the caller has switched on. Images go
    through in blocks of ``block``, so that a large set fits into memory. ``channels`` are those the network wants:
    a single grey channel is repeated where it wants three. ``resize``: what the network does to sizes that are not
    its own, for the record.
    """

    bits = 8

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        sha256: str,
        num_features: int,
        classes: tuple[str, ...],
        shape: tuple[int | None, int | None, int | None],
        resize: str = "none",
        block: int = 256,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.sha256, self.num_features, self.classes = name, sha256, num_features, classes
        self.resize = resize
        self.record: dict[str, str | float] = {}
        """What else a protocol should hold of it."""
        self._shape, self._block = shape, block
        self._device = torch.device(device)
        self._net = net.to(self._device, torch.float32).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Features:
        """x: uint8 [B C H W] on any device. Returns float32 features [B D] and logits [B K], if any, on the CPU."""
        self._guard(x)
        features, logits = [], []
        with full_precision(self._device):
            for part in torch.split(x, self._block):
                f, k = self._net(part.to(self._device))
                features.append(f.float().cpu())
                logits += [] if k is None else [k.float().cpu()]
        return Features(torch.cat(features), torch.cat(logits) if logits else None)  # [B D], [B K]

    def _guard(self, x: Tensor) -> None:
        if x.dtype != torch.uint8:
            raise TypeError(
                f"extractor {self.name} takes uint8 images in 0..255, got {x.dtype}: "
                "convert [-1, 1] with gentrain.types.to_bytes"
            )
        wanted = ", ".join("any" if side is None else str(side) for side in self._shape)
        fits = x.ndim == 4 and all(
            want is None or want == side for want, side in zip(self._shape, x.shape[1:], strict=True)
        )
        if not fits or len(x) == 0:
            raise ValueError(f"extractor {self.name} takes images [B, {wanted}] with B > 0, got {list(x.shape)}")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """True float32 inside: no autocast, no TF32 in matrix products or convolutions."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
