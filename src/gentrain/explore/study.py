"""What a tool looks at: a trained system at rest, its data, and the few questions that all tools ask of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.capabilities import CAPABILITIES
from gentrain.data.dataset import spread
from gentrain.errors import UserError
from gentrain.evaluation.classes import asks_by_class
from gentrain.evaluation.reference import split_of
from gentrain.types import to_bytes

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

BATCH = 250


@runtime_checkable
class CodePrior(Protocol):
    """Knows the distribution that its codes are held against."""

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """[n Z] on the system's device."""
        ...


@dataclass(frozen=True)
class Found:
    """``result``: numbers for the JSON file. ``lines``: the few of them that are worth a line on the screen."""

    result: dict[str, Any]
    lines: list[str]


@dataclass(frozen=True, eq=False)
class Seen:
    """Samples of a split at int64 ``index`` [N]: ``x`` uint8 [N C H W] or float32 [N D], ``y`` class labels int64 [N],
    attributes uint8 [N A] or None. All on the CPU."""

    index: Tensor
    x: Tensor
    y: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def flat(self) -> Tensor:
        """float32 [N C*H*W] in [0, 1]; vectors as they are."""
        return self.x.flatten(1).float() / 255.0 if self.x.dtype == torch.uint8 else self.x


@dataclass(frozen=True, eq=False)
class Study:
    """``system``: in eval mode, without gradients (``engine.sampling.at_rest``). ``untrained``: makes the same system
    with the weights that its training began from."""

    system: Any
    data: DataSet
    seed: int
    device: torch.device
    untrained: Callable[[], Any]

    def can(self, capability: str) -> bool:
        return capability in CAPABILITIES and isinstance(self.system, CAPABILITIES[capability])

    def look(self, split: str, limit: int | None) -> Seen:
        """``limit`` samples spread over a split, None for all."""
        rows = split_of(self.data, split)
        return self.at(split, spread(len(rows), limit))

    def at(self, split: str, index: Tensor) -> Seen:
        taken = split_of(self.data, split).take(index)
        return Seen(index, taken.x, taken.y)

    def encode(self, x: Tensor, system: Any = None) -> Tensor:
        """Codes float32 [N Z] on the CPU. UserError where one is not finite."""
        whose = self.system if system is None else system
        z = torch.cat([whose.encode(part.to(self.device)).float().cpu() for part in torch.split(x, BATCH)])
        return self.finite(z, "codes")

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """uint8 [N C H W], or float32 [N D] for vectors, on the CPU, of codes [N Z]; ``labels``: int64 [N] for a system
        that is ``told_classes``, else None."""
        parts = [
            self.system.decode(z[rows].float().to(self.device), *self.classes_at(labels, rows)).float().cpu()
            for rows in (slice(start, start + BATCH) for start in range(0, len(z), BATCH))
        ]
        back = self.finite(torch.cat(parts), "decoded samples")
        return to_bytes(back) if self.data.spec.is_image else back

    def sample(self, n: int, labels: Tensor | None = None) -> Tensor:
        """uint8 [n C H W], or float32 [n D] for vectors, on the CPU, drawn by the seed; ``labels``: int64 [n]."""
        generator, made = torch.Generator(self.device).manual_seed(self.seed), []
        for start in range(0, n, BATCH):
            some = None if labels is None else labels[start : start + BATCH].to(self.device)
            made.append(self.system.sample(min(BATCH, n - start), labels=some, generator=generator).float().cpu())
        x = self.finite(torch.cat(made), "samples")
        return to_bytes(x) if self.data.spec.is_image else x

    @property
    def told_classes(self) -> bool:
        """Whether ``decode`` needs the classes: the system is asked by class, and its codes do not hold them."""
        return asks_by_class(self.system, self.data) and not self.can("encode")

    def draw_classes(self, n: int) -> Tensor | None:
        """int64 [n], as frequent as in training; None where the system is not asked by class."""
        labels = self.data.train.y
        if labels is None or not asks_by_class(self.system, self.data):
            return None
        return labels[torch.randint(len(labels), (n,), generator=torch.Generator().manual_seed(self.seed))]

    def classes_at(self, labels: Tensor | None, rows: slice | Tensor) -> tuple[Tensor, ...]:
        """Those of some rows, on the device, as arguments of ``decode``: none for None."""
        return () if labels is None else (labels[rows].to(self.device),)

    @property
    def round_codes(self) -> int:
        """So many first numbers of the prior's codes are N(0, I); a path between them keeps to the sphere."""
        return int(getattr(self.system, "round_codes", 0))

    def log_likelihood(self, x: Tensor) -> Tensor:
        """float64 [N] nats on the CPU."""
        return self._nats(self.system.log_likelihood, x, "likelihoods")

    def free_energy(self, x: Tensor) -> Tensor:
        """float64 [N] nats on the CPU."""
        return self._nats(self.system.free_energy, x, "free energies")

    def _nats(self, of: Callable[[Tensor], Tensor], x: Tensor, what: str) -> Tensor:
        return self.finite(torch.cat([of(part.to(self.device)).double().cpu() for part in torch.split(x, BATCH)]), what)

    def prior_codes(self, n: int) -> Tensor | None:
        """float32 [n Z] on the CPU from the prior of the codes; None where the system has none."""
        if not isinstance(self.system, CodePrior):
            return None
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return self.system.prior_codes(n, generator).float().cpu()

    def classes(self, seen: Seen, tool: str) -> Tensor:
        """int64 [N]. UserError for data without one class a sample."""
        if seen.y is None or seen.y.ndim != 1 or not self.data.spec.classes:
            what = "attributes, not classes" if self.data.spec.attribute_names else "no class labels"
            raise UserError(f"explore {tool}: data {self.data.name!r} have {what}; it needs one class for each sample")
        return seen.y

    def require_images(self, tool: str) -> None:
        if not self.data.spec.is_image:
            raise UserError(f"explore {tool}: data {self.data.name!r} are vectors: there is no image to show")

    def names(self, y: Tensor) -> list[str]:
        return [self.data.spec.class_names[int(label)] for label in y]

    def finite(self, values: Tensor, what: str) -> Tensor:
        """The values. UserError where one is not finite."""
        if not bool(values.isfinite().all()):
            raise UserError(f"explore: {what} are nan or inf: the model has diverged; take an earlier checkpoint=")
        return values


def mean_square(x: Tensor, back: Tensor) -> Tensor:
    """float64 [N]: mean squared error per number, of images in [0, 1]."""
    scale = 255.0 if x.dtype == torch.uint8 else 1.0
    return ((x.double() - back.double()) / scale).square().flatten(1).mean(1)


def spread_of(values: list[float]) -> float:
    """Standard deviation over repetitions, 0 for a single one."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else 0.0


def generator_of(seed: int, *more: int) -> Any:
    """A NumPy generator of its own for one purpose."""
    import numpy as np

    return np.random.default_rng([seed, *more])
