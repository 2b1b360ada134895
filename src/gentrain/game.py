"""An adversarial game: what a critic says of samples, what a player sees, and what a paper may add to the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gentrain.types import Spec, Terms


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a critic says. ``score``: [B] or [B 1]. ``features``: what its last layer saw, or its code [B F].
    ``more``: outputs of its further heads by name, each [B ...]."""

    score: Tensor
    features: Tensor
    more: dict[str, Tensor]

    def parted(self, first: int) -> tuple[Verdict, Verdict]:
        """The verdict on the first so many samples, and that on the rest."""
        return self._rows(slice(None, first)), self._rows(slice(first, None))

    def _rows(self, rows: slice) -> Verdict:
        return Verdict(self.score[rows], self.features[rows], {name: x[rows] for name, x in self.more.items()})


class Judge(Protocol):
    """How a critic is asked: float samples [B ...] and labels int64 [B] or None."""

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> Verdict: ...


@dataclass(frozen=True, eq=False)
class Round:
    """What the player whose turn it is sees.

    ``real``, ``fake``: samples in [-1, 1] [B C H W], or vectors [B D]; as many of each. In the critic's turn ``fake``
    carries no gradient; in the generator's it does, and the critic's weights stand still. ``labels``: int64 [B] of both
    (samples are made for the labels of the batch, so that theirs are as frequent as the data's), or None. ``codes``:
    what of the noise of ``fake`` is to be told from it [B A], or None. ``on_real`` is None in the generator's turn
    unless somebody asked for it (``needs_real``). ``judge`` asks the critic again (about changed samples).
    ``critic``, ``generator``: the networks, for terms of their weights. ``index``: place of ``real`` in the training
    split [B], or None. ``iteration``: 1 is the first.
    """

    real: Tensor
    fake: Tensor
    labels: Tensor | None
    codes: Tensor | None
    on_real: Verdict | None
    on_fake: Verdict
    judge: Judge
    critic: nn.Module
    generator: nn.Module
    index: Tensor | None
    iteration: int

    @property
    def real_verdict(self) -> Verdict:
        """``on_real`` of one who needs it. Raises ValueError where nobody asked the critic about real samples."""
        if self.on_real is None:
            raise ValueError("the critic was not asked about real samples: needs_real is false")
        return self.on_real


MakeHead = Callable[[int, int], nn.Module]
"""(inputs, outputs) to a last layer [B inputs] -> [B outputs], initialised as the network's own."""

CLASS_HEAD, CODE_HEAD = "class", "codes"
"""Heads that more than their aim read: logits of the classes [B K], and what is read of the codes [B A]."""


class Aim(Protocol):
    """What a paper adds to the objectives of a game (``model.aims``): a class to tell, a code to find again, features
    to match. One that is an ``nn.Module`` has state of its own that travels in the checkpoint; its floating-point
    buffers are averaged over ranks."""

    @property
    def needs_real(self) -> bool:
        """Whether the generator's turn needs ``Round.on_real``."""
        ...

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        """Heads that it wants on the critic's features, by name, with their widths; they are trained with the critic.
        ``codes``: numbers of a code, 0 for none. UserError where the data or the game cannot serve it."""
        ...

    def critic(self, seen: Round) -> Terms:
        """Weighted terms that the critic minimises besides the loss; may be empty."""
        ...

    def generator(self, seen: Round) -> Terms:
        """Weighted terms that the generator minimises besides the loss; may be empty."""
        ...


@runtime_checkable
class Watching(Protocol):
    """An aim or a loss with figures of its own that nobody minimises."""

    def watch(self, seen: Round) -> Terms:
        """Scalars by the logger's key, to be logged in each of the critic's turns; asked without gradients."""
        ...


class View(Protocol):
    """What is done to all samples, real and generated, before a critic sees them (``model.views``): noise,
    differentiable changes. State as with an ``Aim``. One whose ``reads_sign`` is true learns from the sign of scores,
    and needs a loss under which that says "real" or "generated"."""

    def require(self, spec: Spec) -> None:
        """UserError for data that it cannot change."""
        ...

    def __call__(self, x: Tensor, iteration: int, total: int) -> Tensor:
        """Samples of the same shape, in [-1, 1] or near it; gradients pass. ``total``: iterations of the run."""
        ...

    def learn(self, on_real: Verdict) -> Mapping[str, Tensor]:
        """Told in each of the critic's turns what it said of real samples. Scalars to log, as ``view/<name>``."""
        ...


class Replay(Protocol):
    """Generated samples of the past, mixed into what the critic sees (``model.replay``). An ``nn.Module``."""

    def __call__(self, fake: Tensor) -> Tensor:
        """As many samples, some of them older ones; no gradient."""
        ...


class Codes(Protocol):
    """Numbers of the noise that have a meaning (``model.codes``): they stand behind z in what the generator sees."""

    @property
    def width(self) -> int: ...

    def draw(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """[n width]."""
        ...


@dataclass(frozen=True, eq=False)
class Walk:
    """One code from end to end: its ``start`` among the codes, its ``values`` [T width] and their ``words``."""

    name: str
    start: int
    values: Tensor
    words: tuple[str, ...]


class ReadableCodes(Codes, Protocol):
    """Codes that a critic reads off samples: as many numbers [B width] as there are codes."""

    def probabilities(self, read: Tensor) -> Tensor:
        """[B K] of the categories of the first categorical code."""
        ...

    def walks(self, steps: int, reach: float) -> Sequence[Walk]:
        """Each code over all its categories, or from -reach to +reach standard deviations in ``steps``."""
        ...
