"""The records that pass between the parts.

Shapes are written at the end of the line where they are born, with one legend everywhere:

    B batch    C channels    H W pixels    Z latent    K classes    D numbers of a vector    A attributes

Images travel as they are stored, uint8 in 0..255; a family asks the batch for the range its paper uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from gentrain.errors import UserError

PathText = Annotated[str, "path"]
"""A path in a config. A run's frozen config holds it absolute, so that it means the same from any folder."""

Terms = dict[str, Tensor]
"""Named scalars of one objective. The player that owns them minimises their sum."""


@dataclass(frozen=True)
class Factor:
    """One thing that made images differ in: a class where there are ``names``, else a number from ``low`` to ``high``,
    which on a circle are one."""

    name: str
    low: float = 0.0
    high: float = 0.0
    names: tuple[str, ...] = ()
    circular: bool = False


@dataclass(frozen=True)
class Spec:
    """What one sample looks like: all that a network needs to fit itself to the data.

    ``shape`` is ``(C, H, W)`` for images and ``(D,)`` for vectors. ``varied_names``: what alone differs within one or
    another group of training rows (``Images.varied``); empty where they do not come in groups.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    varied_names: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Height and width of the (square) images in pixels."""
        return self.shape[-1]

    @property
    def canvas(self) -> int:
        """The power of two that convolutional networks work at: 28 pixels are padded to 32 inside the network."""
        return 1 << (self.size - 1).bit_length()

    @property
    def classes(self) -> int:
        """Number of classes K; 0 where the data have no class labels."""
        return len(self.class_names)

    @property
    def numel(self) -> int:
        """Numbers in one sample: C*H*W or D."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class Images:
    """One batch. ``x``: uint8 [B C H W] in 0..255, or float32 [B D] for vectors.

    ``y``: int64 class labels [B], or uint8 attributes [B A], or None. ``index``: int64 place of each sample in its
    split [B], or None for samples that come from nowhere. ``varied``: int64 [B], place in ``Spec.varied_names`` of what
    alone differs within the row's group, or None; ``group``: so many rows side by side are one.
    """

    x: Tensor
    y: Tensor | None = None
    index: Tensor | None = None
    varied: Tensor | None = None
    group: int = 1

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def signed(self) -> Tensor:
        """float32 in [-1, 1]; vectors as they are."""
        return to_signed(self.x)

    def to(self, device: torch.device | str, *, channels_last: bool = False) -> Images:
        x = self.x.to(device, non_blocking=True)
        if channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        y, varied = (None if some is None else some.to(device, non_blocking=True) for some in (self.y, self.varied))
        return replace(self, x=x, y=y, varied=varied)

    def chunks(self, count: int) -> Iterator[Images]:
        """Cut the batch into ``count`` nearly equal parts (gradient accumulation); one part is the batch itself."""
        if count == 1:
            yield self
            return
        nothing = [None] * count
        rest = (self.y, self.index, self.varied)
        parts = (nothing if some is None else some.tensor_split(count) for some in rest)
        for x, y, index, varied in zip(self.x.tensor_split(count), *parts, strict=True):
            yield Images(x, y, index, varied, self.group)


def to_signed(x: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]; float tensors pass unchanged."""
    return x.float().div_(127.5).sub_(1.0) if x.dtype == torch.uint8 else x


def to_bytes(x: Tensor) -> Tensor:
    """float in [-1, 1] to uint8 0..255, rounded to the nearest level; values outside are clipped first."""
    return x.float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class LikelihoodOn:
    """What a likelihood is the likelihood of: nats of other things never stand side by side.

    ``bits``: it gives the probability of levels 0 .. 2^bits - 1; None where it is a density, or no probability at all.
    ``binarisation``: pixels made 0 or 1, ``threshold`` at half brightness; by draws with their brightness as
    probability, ``static`` once for all, ``dynamic`` anew each time. ``dequantisation``: noise that was added to levels
    so that a density could be asked for them; its mean is then a lower bound (Theis et al. 2016, arXiv 1511.01844).
    ``exact``: the likelihood itself, not a bound on it or an estimate. Raises UserError for what contradicts itself.
    """

    bits: int | None = 8
    binarisation: Literal["none", "threshold", "static", "dynamic"] = "none"
    dequantisation: Literal["none", "uniform", "variational"] = "none"
    exact: bool = True

    def __post_init__(self) -> None:
        for name, known in (
            ("binarisation", ("none", "threshold", "static", "dynamic")),
            ("dequantisation", ("none", "uniform", "variational")),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"likelihood_on: {name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.bits is not None and not 1 <= self.bits <= 8:
            raise UserError(f"likelihood_on: bits={self.bits}: images are stored with 8, so 1 .. 8, or None for none")
        if self.binarisation != "none" and self.bits != 1:
            raise UserError(f"likelihood_on: binarisation={self.binarisation} leaves bits=1, not {self.bits}")
        if self.dequantisation != "none" and (self.exact or self.bits is None):
            raise UserError(
                "likelihood_on: dequantisation of levels bounds their likelihood: exact=False and bits are due"
            )

    @property
    def bits_key(self) -> str | None:
        """The score's name of nats / (C H W ln 2): ``bits_per_dim`` for 8-bit images alone, with the depth for others,
        None for pixels that were binarised or have no levels."""
        if self.bits is None or self.binarisation != "none":
            return None
        return "bits_per_dim" if self.bits == 8 else f"bits_per_dim_{self.bits}bit"
