"""What a data set is: two splits, a specification and a fingerprint. Sources (``data/sources.py``) build these.

Images are stored as uint8 0..255 and stay so until a family asks for its range; vectors are float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gentrain.data import pool
from gentrain.data.decode import Recipe
from gentrain.data.files import BadFileError, Files
from gentrain.errors import UserError
from gentrain.types import Factor, Images, Spec


class Rows(Protocol):
    """The x of a split, wherever it is kept."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """uint8 [B C H W] or float32 [B D] for int64 index [B] on the CPU."""
        ...


@dataclass(frozen=True, eq=False)
class TensorRows:
    """All samples in one tensor: uint8 [N C H W] or float32 [N D]."""

    tensor: Tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def take(self, index: Tensor) -> Tensor:
        return self.tensor.index_select(0, index)


@dataclass(frozen=True, eq=False)
class MemmapRows:
    """Samples in a memory-mapped array uint8 [N C H W] (``data/cache.py`` builds the file)."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def take(self, index: Tensor) -> Tensor:
        return torch.from_numpy(
            self.array[index.numpy()]
        )  # [B C H W]; fancy indexing copies, so the file stays as it is


@dataclass(frozen=True, eq=False)
class FileRows:
    """Image files decoded on demand, each time they are asked for."""

    files: Files
    recipe: Recipe

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: Tensor) -> Tensor:
        """Raises BadFileError with the path of a file that cannot be decoded."""
        return torch.from_numpy(pool.pixels(self.files, self.recipe, index.tolist()))  # [B C H W]

    def complaints(self) -> Iterator[str]:
        """Try every file: what is wrong with each bad one, one line each, in their order."""
        for found in pool.over(pool.complaints, self.files, self.recipe):
            yield from found


@dataclass(frozen=True, eq=False)
class BothRows:
    """One set of rows behind another."""

    first: Rows
    second: Rows

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def take(self, index: Tensor) -> Tensor:
        count = len(self.first)
        here = index < count
        found = torch.empty(0)
        for rows, places, wanted in ((self.first, here, index[here]), (self.second, ~here, index[~here] - count)):
            if len(wanted):
                part = rows.take(wanted)
                if not len(found):
                    found = part.new_empty(len(index), *part.shape[1:])
                found[places] = part
        return found


class Truth(Protocol):
    """What is known of made images beside their pixels."""

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The columns of ``values``."""
        ...

    def values(self, index: Tensor) -> Tensor:
        """float32 [B M F]: factors of each of at most M objects; NaN where there is none."""
        ...

    def masks(self, index: Tensor) -> Tensor:
        """uint8 [B H W]: class of each pixel, 0 for the background."""
        ...

    def captions(self, index: Tensor) -> list[str]: ...

    def clips(self, index: Tensor, frames: int) -> Tensor:
        """uint8 [B T C H W], beginning with the image itself."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """``y``: int64 class labels [N], uint8 attributes [N A], or None. ``truth``: of made images.

    ``group``: so many rows side by side belong together, and stay so in a batch. ``varied``: int64 [N], place in
    ``Spec.varied_names`` of the one factor that differs within the row's group; None where nothing is known of it.
    """

    x: Rows
    y: Tensor | None = None
    truth: Truth | None = None
    group: int = 1
    varied: Tensor | None = None

    def __post_init__(self) -> None:
        if self.y is not None and len(self.y) != len(self.x):
            raise UserError(f"{len(self.y)} labels for {len(self.x)} samples: the two files do not belong together")
        if self.group < 1 or len(self.x) % self.group:
            raise UserError(f"{len(self.x)} samples are no whole number of groups of {self.group}")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Images:
        """The samples at int64 ``index`` [B], in that order; ``Images.index`` is ``index`` itself."""
        return self.batch(self.x.take(index), index)

    def batch(self, x: Tensor, index: Tensor) -> Images:
        """``x``, which stands at ``index``, with all that is known of it."""
        y, varied = (None if some is None else some.index_select(0, index) for some in (self.y, self.varied))
        return Images(x, y, index, varied, self.group)

    def all(self, limit: int | None = None) -> Images:
        """Every sample in order, or ``limit`` of them spread evenly over the split."""
        return self.take(spread(len(self), limit))


def spread(size: int, limit: int | None = None) -> Tensor:
    """int64: all places of a split of ``size``, or ``limit`` of them evenly over it.

    Evenly, because a split that is sorted by class would otherwise give its first classes only.
    """
    if limit is None or limit >= size:
        return torch.arange(size)
    return torch.arange(limit) * size // limit


class Density(Protocol):
    """The true distribution of a made data set."""

    @property
    def modes(self) -> Tensor | None:
        """Centres of the modes [M D], or None where there are none."""
        ...

    @property
    def mode_std(self) -> float:
        """Standard deviation of one mode, in the units of the data."""
        ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """float32 [n D]."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """[B] nats for x [B D]."""
        ...


@dataclass(frozen=True, eq=False)
class DataSet:
    """``fingerprint``: sha256 in hex of what the splits hold, or of names, sizes and times where that is much to read.

    Raises UserError if a split is empty or a sample does not fit ``spec``.
    """

    name: str
    spec: Spec
    train: Split
    test: Split
    fingerprint: str
    density: Density | None = None

    def __post_init__(self) -> None:
        wanted = torch.uint8 if self.spec.is_image else torch.float32
        for role, split in (("train", self.train), ("test", self.test)):
            if len(split) == 0:
                sizes = f"train {len(self.train)}, test {len(self.test)}"
                raise UserError(f"data {self.name}: the {role} split is empty ({sizes}); give it more samples")
            try:
                first = split.x.take(torch.zeros(1, dtype=torch.int64))
            except BadFileError as error:
                error.rows = (self.train.x, self.test.x)
                raise
            if first.dtype != wanted or tuple(first.shape[1:]) != self.spec.shape:
                found = f"{tuple(first.shape[1:])} of {first.dtype}"
                raise UserError(f"data {self.name}: {role} samples are {found}, not {self.spec.shape} of {wanted}")


def few_labelled(data: DataSet, per_class: int, *, seed: int) -> Images:
    """``per_class`` training images of each class, in the order of the split: a function of the seed. UserError where
    there are not so many, or no class labels."""
    if per_class < 1:
        raise UserError(f"model.labels_per_class={per_class}: at least 1")
    y = data.train.y
    if y is None or y.ndim != 1 or data.spec.classes < 1:
        raise UserError(f"model.labels_per_class: data {data.name!r} have no class labels: choose other data")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, name in enumerate(data.spec.class_names):
        places = (y == label).nonzero()[:, 0]
        if len(places) < per_class:
            raise UserError(
                f"model.labels_per_class={per_class}: data {data.name!r} have {len(places)} training images of class "
                f"{name}: use at most so many"
            )
        chosen.append(places[torch.randperm(len(places), generator=generator)[:per_class]])
    return data.train.take(torch.cat(chosen).sort().values)


def class_counts(data: DataSet) -> Tensor:
    """Training images of each class, int64 [K]. UserError where there are no class labels."""
    y = data.train.y
    if y is None or y.ndim != 1 or data.spec.classes < 1:
        raise UserError(f"model.labels: data {data.name!r} have no class labels: choose other data")
    return y.bincount(minlength=data.spec.classes)


def content_hash(parts: Iterable[Tensor | str | None]) -> str:
    """sha256 in hex over the bytes, shapes and types of all parts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            digest.update(part.contiguous().numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def in_memory(
    name: str,
    spec: Spec,
    train: tuple[Tensor, Tensor | None],
    test: tuple[Tensor, Tensor | None],
    density: Density | None = None,
) -> DataSet:
    """A data set of tensors (x, y), with the fingerprint of its content."""
    fingerprint = content_hash((*train, *test))
    return DataSet(
        name, spec, Split(TensorRows(train[0]), train[1]), Split(TensorRows(test[0]), test[1]), fingerprint, density
    )
