"""Early warnings that a training goes wrong, by the signs the field goes by.

Judges numbers that are there anyway; draws no random number and changes nothing, so that a run is the same with it and
without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentrain.engine.advice import ADVICE
from gentrain.engine.trends import Trends, critics, falling_and_worse, is_critic, level, maker, roughness
from gentrain.types import to_signed

PAIRS_OF = 64
"""Images whose distances are taken: 2016 pairs, enough for a mean and cheap on any device."""

WAIT = ("collapse", "unused_latent", "pinned")
"""Signs of every untrained model."""

UNSTEADY_SHARE = 0.2
"""Steps of a critic's loss that are smaller than this share of it are its usual noise, whatever they were before."""


@dataclass(frozen=True)
class HealthWarning:
    """One sign that has appeared. ``value``: the number it is judged by; ``detail``: what that number is."""

    sign: str
    player: str
    iteration: int
    value: float
    detail: str
    advice: str

    def __str__(self) -> str:
        return f"health: {self.sign} of {self.player} at iteration {self.iteration}: {self.detail}; {self.advice}"


@dataclass(frozen=True)
class _Finding:
    """A judgement of one observation: ``bad``, ``good``, or neither, which leaves a sign as it was."""

    sign: str
    player: str
    value: float
    detail: str
    bad: bool
    good: bool


class Health:
    """Each sign warns once, and again only after it has gone away and come back. None as a threshold turns it off.

    ``discriminator_wins``: a critic's loss on real and generated images together has stayed below this, where that
    loss cannot fall below 0 (cross-entropy, least squares, hinge). ``gradient_norm``: norm of a player's gradient
    before clipping (100 is the bound of the collection "How to train a GAN", Chintala et al. 2016, no. 10).
    ``collapse``: mean pairwise distance of samples as a share of that of as many real images, or the same of the
    distances to the nearest neighbour if that is smaller: two modes repeated 32 times each keep 63 % of the first and
    nothing of the second. Both are distances of pixels: they see samples that are alike, not a missing class.
    ``unused_latent``: share of latent dimensions whose KL to the prior exceeds ``active_nats`` (Burda et al. 2016,
    arXiv 1509.00519, section 5.2, count active units by a bound of 0.01 on the variance of the code's mean).

    ``pinned``: a bounded critic's terms on real and on generated images both stay this near, as a share, to the level
    of a critic that says the same of all (``trends.LEVELS``). ``unsteady``: the mean squared step of its loss over
    ``window`` observations is this many times that of the ``window`` before, and a fifth of the loss or more.
    ``misled``: so many times in a row the loss of a game's generator has fallen since the last score and the score that
    ``best`` follows has become worse.

    ``patience``: observations in a row for ``discriminator_wins`` and ``pinned``. ``warmup``: iterations before which
    ``collapse``, ``unused_latent`` and ``pinned`` wait, unless they have been healthy before: an untrained generator
    repeats itself too. ``misled`` waits for them in any case.
    ``hysteresis``: a sign is gone when its value is this many times better than the threshold.
    """

    def __init__(
        self,
        discriminator_wins: float | None = 0.05,
        gradient_norm: float | None = 100.0,
        collapse: float | None = 0.25,
        unused_latent: float | None = 0.1,
        active_nats: float = 0.01,
        nonfinite: bool = True,
        pinned: float | None = 0.005,
        unsteady: float | None = 10.0,
        window: int = 20,
        misled: int | None = 3,
        patience: int = 5,
        warmup: int = 1000,
        hysteresis: float = 1.5,
    ) -> None:
        self.discriminator_wins = discriminator_wins
        self.gradient_norm = gradient_norm
        self.collapse = collapse
        self.unused_latent = unused_latent
        self.active_nats = active_nats
        self.nonfinite = nonfinite
        self.pinned = pinned
        self.unsteady = unsteady
        self.misled = misled
        self.trends = Trends(2 * window)
        self.patience = patience
        self.warmup = warmup
        self.hysteresis = hysteresis
        self.values: dict[str, float] = {}
        self._present: set[tuple[str, str]] = set()
        self._healthy: set[tuple[str, str]] = set()
        self._streak: dict[str, int] = {}
        self._maker = "model"

    def observe(
        self,
        iteration: int,
        terms: Mapping[str, Mapping[str, float]],
        grad_norms: Mapping[str, float],
        samples: Tensor | None = None,
        reference: Tensor | None = None,
        latent_kl: Tensor | None = None,
        score: float | None = None,
    ) -> list[HealthWarning]:
        """Signs that have appeared since the last call; ``values`` then holds ``health/<sign>`` for the loggers.

        ``terms``: each player's terms by name. ``grad_norms``: by player, before clipping. ``samples``: from fixed
        noise, and ``reference``: real images, both [n C H W] or [n D], uint8 or in [-1, 1]. ``latent_kl``: nats,
        [Z] or [B Z]. ``score``: of samples of now, better when smaller.
        """
        self._maker = maker(terms) or self._maker
        findings = [
            *self._nonfinite(terms, grad_norms),
            *self._gradients(grad_norms),
            *self._critics(terms),
            *self._pinned(terms),
            *self._unsteady(terms),
            *self._misled(terms, score, self._maker),
            *self._samples(samples, reference, self._maker),
            *self._latent(latent_kl, self._maker),
        ]
        self.values = {}
        for finding in findings:
            key = f"health/{finding.sign}"
            worse = max if finding.sign in ("gradient_norm", "nonfinite", "unsteady", "misled") else min
            self.values[key] = worse(self.values.get(key, finding.value), finding.value)
        return [warning for finding in findings if (warning := self._judge(finding, iteration))]

    def state(self) -> dict[str, Any]:
        """What it has seen so far, as plain values."""
        return {
            "present": [list(place) for place in sorted(self._present)],
            "healthy": [list(place) for place in sorted(self._healthy)],
            "streak": dict(self._streak),
            "maker": self._maker,
            "trends": self.trends.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self._present = {(sign, player) for sign, player in state["present"]}
        self._healthy = {(sign, player) for sign, player in state["healthy"]}
        self._streak = dict(state["streak"])
        self._maker = state["maker"]
        if "trends" in state:  # of older checkpoints: no series
            self.trends.restore(state["trends"])

    def _judge(self, finding: _Finding, iteration: int) -> HealthWarning | None:
        place = (finding.sign, finding.player)
        if finding.good:
            self._present.discard(place)
            self._healthy.add(place)
        early = iteration < self.warmup
        unknown = place not in self._healthy
        waits = early and (finding.sign == "misled" or (finding.sign in WAIT and unknown))
        if not finding.bad or waits or place in self._present:
            return None
        self._present.add(place)
        advice = ADVICE[finding.sign].format(player=finding.player)
        return HealthWarning(finding.sign, finding.player, iteration, finding.value, finding.detail, advice)

    def _nonfinite(
        self, terms: Mapping[str, Mapping[str, float]], grad_norms: Mapping[str, float]
    ) -> Iterator[_Finding]:
        if not self.nonfinite:
            return
        for player in dict.fromkeys([*terms, *grad_norms]):
            named = {**terms.get(player, {}), **({"gradient": grad_norms[player]} if player in grad_norms else {})}
            broken = {name: value for name, value in named.items() if not math.isfinite(value)}
            detail = ", ".join(f"{name} is {value}" for name, value in broken.items())
            yield _Finding("nonfinite", player, len(broken), detail, bad=bool(broken), good=not broken)

    def _gradients(self, grad_norms: Mapping[str, float]) -> Iterator[_Finding]:
        limit = self.gradient_norm
        if limit is None:
            return
        for player, norm in grad_norms.items():
            if math.isfinite(norm):
                detail = f"norm of the gradient {norm:.4g}, over {limit:g}"
                yield _Finding(
                    "gradient_norm", player, norm, detail, bad=norm > limit, good=norm <= limit / self.hysteresis
                )

    def _critics(self, terms: Mapping[str, Mapping[str, float]]) -> Iterator[_Finding]:
        limit = self.discriminator_wins
        if limit is None:
            return
        for player, parts in critics(terms):
            loss = sum(parts)
            # A score without a bound (Wasserstein) crosses 0 on its way: one of its two terms is below 0 then.
            low = loss < limit and min(parts) >= 0
            self._streak[player] = self._streak.get(player, 0) + 1 if low else 0
            detail = f"its loss is {loss:.3g}, under {limit:g} for {self._streak[player]} observations"
            bad = self._streak[player] >= self.patience
            good = loss >= limit * self.hysteresis or min(parts) < 0
            yield _Finding("discriminator_wins", player, loss, detail, bad=bad, good=good)

    def _pinned(self, terms: Mapping[str, Mapping[str, float]]) -> Iterator[_Finding]:
        share = self.pinned
        if share is None:
            return
        for player, parts in critics(terms):
            found, key = level(*parts, share), f"pinned/{player}"
            self._streak[key] = self._streak.get(key, 0) + 1 if found else 0
            detail = f"its loss is {sum(parts):.4g} for {self._streak[key]} observations: {found}"
            good = level(*parts, share * self.hysteresis) is None
            yield _Finding("pinned", player, sum(parts), detail, bad=self._streak[key] >= self.patience, good=good)

    def _unsteady(self, terms: Mapping[str, Mapping[str, float]]) -> Iterator[_Finding]:
        limit = self.unsteady
        if limit is None:
            return
        for player, parts in critics(terms):
            if min(parts) < 0:
                continue
            series = self.trends.add_critic(player, sum(parts))
            found = roughness(series) if len(series) == self.trends.length else None
            if found is not None:
                ratio, share = found
                detail = (
                    f"steps of its loss are {math.sqrt(ratio):.3g} times as large as before, {share:.0%} of the loss"
                )
                bad = ratio > limit and share >= UNSTEADY_SHARE
                good = ratio <= limit / self.hysteresis
                yield _Finding("unsteady", player, ratio, detail, bad=bad, good=good)

    def _misled(self, terms: Mapping[str, Mapping[str, float]], score: float | None, player: str) -> Iterator[_Finding]:
        times = self.misled
        if times is None:
            return
        loss = sum(terms.get(player, {}).values())
        if player in terms and math.isfinite(loss) and any(is_critic(named) for named in terms.values()):
            self.trends.add_generator(loss)
        if score is not None and math.isfinite(score):
            history = self.trends.add_score(score, times + 1)
            count = falling_and_worse(history)
            detail = f"its loss fell and the samples' score became worse {count} times in a row"
            yield _Finding("misled", player, count, detail, bad=count >= times, good=count == 0)

    def _samples(self, samples: Tensor | None, reference: Tensor | None, player: str) -> Iterator[_Finding]:
        limit = self.collapse
        if limit is None or samples is None or reference is None or min(len(samples), len(reference)) < 2:
            return
        count = min(len(samples), len(reference), PAIRS_OF)
        made, real = distances(samples[:count]), distances(reference[:count])
        ratios = {what: made[what] / real[what] for what in made if real[what] > 0}
        if not ratios or not all(math.isfinite(ratio) for ratio in ratios.values()):
            return
        what, ratio = min(ratios.items(), key=lambda pair: pair[1])
        detail = f"samples lie {ratio:.3g} times as far from {what} as real images do, under {limit:g}"
        yield _Finding("collapse", player, ratio, detail, bad=ratio < limit, good=ratio >= limit * self.hysteresis)

    def _latent(self, latent_kl: Tensor | None, player: str) -> Iterator[_Finding]:
        limit = self.unused_latent
        if limit is None or latent_kl is None or latent_kl.numel() == 0:
            return
        nats = latent_kl.detach().float().reshape(-1, latent_kl.shape[-1]).mean(0)  # [Z]
        if not bool(torch.isfinite(nats).all()):
            return
        active = int((nats > self.active_nats).sum())
        share = active / nats.numel()
        detail = f"{active} of {nats.numel()} latent dimensions hold more than {self.active_nats:g} nats"
        yield _Finding(
            "unused_latent", player, share, detail, bad=share < limit, good=share >= min(limit * self.hysteresis, 1.0)
        )


def distances(x: Tensor) -> dict[str, float]:
    """Mean Euclidean distance over all pairs of x [n C H W] or [n D], images taken to [-1, 1], and to the nearest."""
    flat = to_signed(x.detach()).float().flatten(1)  # [n D]
    # The exact form: the one by a matrix product is off by 1e-3 where two samples are alike.
    table = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")  # [n n]
    count = len(flat)
    mean = table.sum() / (count * (count - 1))
    nearest = table.fill_diagonal_(math.inf).min(1).values.mean()
    return {"each other": float(mean), "their nearest neighbour": float(nearest)}
