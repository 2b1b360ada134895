"""Signs that show in a series and not in a single observation: what a critic's losses and a run's scores tell in time.

The signs are those of the collection "How to train a GAN" (Chintala et al. 2016, no. 10): the critic's loss must not
grow unsteady, and a generator whose loss falls steadily may be fooling the critic with garbage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

LEVELS = {
    "2 ln 2, an output of 0 for every sample": math.log(2.0),
    "2, an output of 0 for every sample": 1.0,
    "1/4, an output of 1/2 for every sample": 0.125,
}
"""What cross-entropy, hinge and least squares each come to, on real and on generated samples, when a critic tells
nothing apart."""


def level(real: float, fake: float, tolerance: float) -> str | None:
    """The level of ``LEVELS`` that both terms of a critic lie at, within a share of it, or None."""
    near = (name for name, value in LEVELS.items() if max(abs(real - value), abs(fake - value)) <= tolerance * value)
    return next(near, None)


def roughness(series: Sequence[float]) -> tuple[float, float] | None:
    """Of a series' second half: its mean squared step as a multiple of the first half's, and the root of it as a share
    of the mean. Steps between neighbours: a trend, however steep, hardly counts. None where the first half stands
    still."""
    half = len(series) // 2
    before, now = series[:half], series[half:]
    squares = [_mean([(b - a) ** 2 for a, b in pairwise(part)]) for part in (before, now)]
    if squares[0] <= 0 or _mean(now) <= 0:
        return None
    return squares[1] / squares[0], math.sqrt(squares[1]) / _mean(now)


def falling_and_worse(history: Sequence[tuple[float, float]]) -> int:
    """How many of the latest steps in a row lowered the loss and raised the score, of (loss, score), the score being
    better when smaller."""
    count = 0
    for (loss, score), (next_loss, next_score) in zip(reversed(history[:-1]), reversed(history[1:]), strict=True):
        if not (next_loss < loss and next_score > score):
            break
        count += 1
    return count


class Trends:
    """The series so far: of each critic's loss the last ``length``, and of the generator's the mean since the last
    score, with that score."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.critics: dict[str, list[float]] = {}
        self.scored: list[tuple[float, float]] = []
        self._since: tuple[float, int] = (0.0, 0)

    def add_critic(self, player: str, loss: float) -> list[float]:
        """Its series, now with this loss at the end."""
        series = [*self.critics.get(player, []), loss][-self.length :]
        self.critics[player] = series
        return series

    def add_generator(self, loss: float) -> None:
        self._since = (self._since[0] + loss, self._since[1] + 1)

    def add_score(self, score: float, keep: int) -> list[tuple[float, float]]:
        """(loss, score) of the last ``keep`` scores, with this one; nothing is added where no loss was seen since."""
        total, count = self._since
        if count:
            self.scored = [*self.scored, (total / count, score)][-keep:]
            self._since = (0.0, 0)
        return self.scored

    def state(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "critics": {player: list(series) for player, series in self.critics.items()},
            "scored": [list(pair) for pair in self.scored],
            "since": list(self._since),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.critics = {player: list(series) for player, series in state["critics"].items()}
        self.scored = [(loss, score) for loss, score in state["scored"]]
        self._since = (state["since"][0], state["since"][1])


def critics(terms: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each critic and its terms on real and on generated images, where both are finite."""
    for player, named in terms.items():
        if is_critic(named) and math.isfinite(named["real"] + named["fake"]):
            yield player, (named["real"], named["fake"])


def is_critic(named: Mapping[str, float]) -> bool:
    """A player that minimises a term on real and one on generated images."""
    return "real" in named and "fake" in named


def maker(terms: Mapping[str, Mapping[str, float]]) -> str:
    """The player whose networks make the samples: the last one that is not a critic; empty if nobody moved."""
    others = [player for player, named in terms.items() if not is_critic(named)]
    return others[-1] if others else next(iter(terms), "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
