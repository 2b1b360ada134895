"""How well a system gives back what it was shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.extractors import ExtractorSource
from gentrain.evaluation.gaussian import Gaussian, frechet
from gentrain.evaluation.metric import EIGEN, Work, check_enough, check_images
from gentrain.evaluation.subject import Subject, counted, split_of
from gentrain.types import to_bytes

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


@dataclass(frozen=True)
class ReconstructionError:
    """Held-out samples through encoder and decoder (config target).

    ``reconstruction_mse``: mean squared error per pixel of images in [0, 1], rounded to the 256 levels as a stored
    image is; of vectors as they are, per number. ``reconstruction_psnr``: of images, -10 log10 of it, in dB, at most
    100. Smaller errors say nothing of the samples.

    ``split``; ``limit``: so many samples spread over it, None for all; ``batch``: per call.
    """

    split: str = "test"
    limit: int | None = None
    batch: int = 250

    needs: ClassVar[frozenset[str]] = frozenset({"encode", "decode"})

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"metrics.scores.reconstruction.batch={self.batch}: at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"metrics.scores.reconstruction.limit={self.limit}: at least 1, or null for all")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return ("reconstruction_mse", "reconstruction_psnr") if data.spec.is_image else ("reconstruction_mse",)

    def check(self, data: DataSet, n: int | None = None) -> None:
        split_of(data, self.split)

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return counted(data, self.split, self.limit, limit)

    def probe(self, system: object, x: Tensor) -> None:
        _back(system, x.to(getattr(system, "device", "cpu")))

    def measure(self, subject: Subject) -> dict[str, float]:
        errors = [
            _unit(x).sub(_unit(back)).square().flatten(1).mean(1)
            for x, back in reconstructions(subject, self.split, self.looks_at(subject.data, subject.limit), self.batch)
        ]
        mse = float(torch.cat(errors).mean())
        found = {"reconstruction_mse": mse}
        if subject.data.spec.is_image:
            found["reconstruction_psnr"] = -10.0 * math.log10(max(mse, 1e-10))
        return found


@dataclass(frozen=True)
class ReconstructionDistance:
    """Fréchet distance between held-out images and what comes back of the very same ones (config target):
    ``<fd>_reconstructed``. What the code loses in the eyes of an extractor; it says nothing of samples, whose distance
    is another.

    ``split``: of the images, test by default; ``limit``: so many spread over it, None for all; ``batch``: per call.
    ``allow_few``: as in ``metrics.Distances``.
    """

    extractor: ExtractorSource
    split: str = "test"
    limit: int | None = None
    batch: int = 250
    allow_few: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"encode", "decode"})

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"metrics.scores.reconstructed.batch={self.batch}: at least 1")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"metrics.scores.reconstructed.limit={self.limit}: at least 1, or null for all")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        return (f"{self.extractor.keys.distance}_reconstructed",)

    def check(self, data: DataSet, n: int | None = None) -> None:
        check_images(data)
        self.extractor.check(data)
        count = self._count(data)
        check_enough(self.extractor, data, self.split, count, count, allow_few=self.allow_few, name="reconstructed")

    def work(self, data: DataSet, n: int) -> Work:
        dim, count = self.extractor.num_features(data), self._count(data)
        return Work({self.split: count}, (count + EIGEN * dim) * dim**2)

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return self._count(data)

    def probe(self, system: object, x: Tensor) -> None:
        _back(system, x.to(getattr(system, "device", "cpu")))

    def measure(self, subject: Subject) -> dict[str, float]:
        self.check(subject.data)
        count = self._count(subject.data)
        backs = torch.cat([back for _, back in reconstructions(subject, self.split, count, self.batch)])
        features = subject.extractor(self.extractor)(backs).features
        real = subject.reference_gaussian(self.extractor, self.split, count)
        (key,) = self.scores(subject.system, subject.data)
        return {key: frechet(real, Gaussian.of(features, "reconstructions"))}

    def _count(self, data: DataSet) -> int:
        return counted(data, self.split, self.limit)


def reconstructions(subject: Subject, split: str, limit: int | None, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, what came back) of a split, or of ``limit`` spread over it, in batches: uint8 [B C H W] each, or vectors
    [B D]. UserError where something is not finite."""
    rows = split_of(subject.data, split)
    for index in torch.split(subject.reference_index(split, limit), batch):
        x = rows.take(index).x
        back = _back(subject.system, x.to(subject.device)).float().cpu()
        if not bool(back.isfinite().all()):
            raise UserError(f"metrics: reconstructions of split={split} are not finite: the model has diverged")
        yield x, (to_bytes(back) if subject.data.spec.is_image else back)


def _back(system: object, x: Tensor) -> Tensor:
    back: Tensor = system.decode(system.encode(x))  # type: ignore[attr-defined]
    return back


def _unit(x: Tensor) -> Tensor:
    """float64; images in [0, 1]."""
    return x.double() / 255.0 if x.dtype == torch.uint8 else x.double()
