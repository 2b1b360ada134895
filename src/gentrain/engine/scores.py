"""The scores of a run: few samples on a schedule while it trains, the whole protocol at its end, and which was best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gentrain.engine.clock import Clock
from gentrain.engine.restore import load_system
from gentrain.engine.session import Session
from gentrain.engine.system import System
from gentrain.engine.validation import Validation
from gentrain.evaluation.protocol import Report
from gentrain.evaluation.randomness import isolated_rng


@dataclass(frozen=True)
class Found:
    """Reports of one moment; None where nothing of the kind was due."""

    in_training: Report | None = None
    at_end: Report | None = None
    best_at_end: Report | None = None


class Scores:
    """What was scored so far. ``best`` is chosen by scores in training alone, all of one count; the score that is
    published for it is measured anew, under the whole protocol. It is optimistic all the same: the best of a run is
    chosen by looking, and only the final one was fixed beforehand."""

    def __init__(self, session: Session, validation: Validation) -> None:
        self.session, self.validation = session, validation
        self.every = 0
        """Iterations between scores in training; 0: none."""
        self.best: dict[str, Any] | None = None
        self.in_training: dict[str, Any] | None = None
        self.at_end: dict[str, Any] | None = None
        self.idle = 0
        """Scores in training in a row that were not better than the best before them."""
        self.samples_per_second: float | None = None
        """At the last scores. Not of ``state``, which a resumed run has in common with a straight one."""

    def plan(self, system: System) -> int:
        """The interval that fits what scores in training may cost. Says what they and those of the end may take."""
        session, scoring, budget = self.session, self.session.scoring, self.session.budget
        every = budget.scoring_interval(scoring)
        if not scoring.all:
            return 0
        once, at_end = self.validation.costs(system)
        times = budget.iterations // every if every else 0
        bound, thinned = scoring.during_seconds, ""
        if bound is not None and once.sum(times) > bound:
            allowed = max(int((bound - once.sum(1) + once.each) / once.each), 0)
            every = every * math.ceil(times / allowed) if allowed else 0
            times = budget.iterations // every if every else 0
            thinned = f" (as metrics.during_seconds={bound:g} allows)"
        first = {**at_end.first, **(once.first if times else {})}  # real images pass once, whoever asks first
        ends = 2 if times > 1 and scoring.smaller else 1
        whole = times * once.each + ends * at_end.each + sum(first.values())
        before = f" after {_about(sum(once.first.values()))} for the real images" if times and once.first else ""
        session.progress.line(
            f"scores: {_about(once.each)} each{before}, {times} times in training{thinned}; "
            f"with those of the end {_about(whole)}"
        )
        facts = {"seconds": round(once.each, 3), "times": times, "seconds_at_end": round(at_end.each, 3)}
        facts |= {"seconds_first": round(sum(first.values()), 3), "seconds_in_all": round(whole, 3), "every": every}
        session.folder.update_card(scoring=facts)
        return every

    def due(self, clock: Clock) -> bool:
        """On the schedule, and at the end of the run whatever the schedule."""
        return bool(self.session.scoring.all) and (clock.due(self.every) or clock.finished)

    def measure(self, system: System) -> Found:
        """All that is due now. Changes neither the system nor what is kept here."""
        clock = system.clock
        if not self.due(clock):
            return Found()
        now = self.validation.score(system)
        if not clock.finished and not self._is_the_last(now):
            return Found(now)
        scoring = self.session.scoring
        if not scoring.smaller:
            return Found(now, now)
        at_end = self.validation.score_at_end(system)
        if self.best is None or self._is_best(now):
            return Found(now, at_end, at_end)
        with isolated_rng():  # networks are born with random weights
            other = load_system(self.session.folder, "best", device=system.device.type, trusted=True)
        return Found(now, at_end, self.validation.score_at_end(other))

    def keep(self, found: Found, clock: Clock) -> None:
        """Remember, log and show."""
        scoring = self.session.scoring
        now, at_end = found.in_training, found.at_end
        if now is not None:
            count = scoring.during_samples or scoring.samples
            self._tell(now, f"@{count}" if scoring.smaller else "", clock)
            self.in_training = _kept(now, clock.iteration)
            self.samples_per_second = now.samples_per_second
            better = self._is_best(now)
            self.idle = 0 if better else self.idle + 1
            if better:
                value = now.scores[str(scoring.monitor)]
                self.best = {"monitor": scoring.monitor, "value": value, "iteration": clock.iteration}
                self.best["scores"] = now.scores
        if at_end is not None:
            if at_end is not now:
                self._tell(at_end, "", clock)
            self.at_end = _kept(at_end, clock.iteration)
            self.samples_per_second = at_end.samples_per_second
        if found.best_at_end is not None and self.best is not None:
            self.best["at_end"] = found.best_at_end.scores

    @property
    def gives_up(self) -> bool:
        """Whether the scores in training have been no better for as long as the run is to wait."""
        patience = self.session.budget.patience
        return patience is not None and self.best is not None and self.idle >= patience

    def why(self, clock: Clock) -> str | None:
        """One line about a run that ended before its budget; None for one that did not."""
        if not self.gives_up or self.best is None or clock.iteration >= self.session.budget.iterations:
            return None
        return (
            f"iteration {clock.iteration}: {self.best['monitor']} was not better than {self.best['value']:.4g} of "
            f"iteration {self.best['iteration']} in {self.idle} scores in a row (train.patience)"
        )

    def _is_the_last(self, report: Report | None) -> bool:
        patience = self.session.budget.patience
        return (
            patience is not None and self.best is not None and self.idle + 1 >= patience and not self._is_best(report)
        )

    @property
    def best_at(self) -> int | None:
        """The iteration of the best."""
        return None if self.best is None else int(self.best["iteration"])

    def _is_best(self, report: Report | None) -> bool:
        scoring = self.session.scoring
        if report is None or scoring.monitor is None or scoring.monitor not in report.scores:
            return False
        return scoring.better(report.scores[scoring.monitor], None if self.best is None else self.best["value"])

    def _tell(self, report: Report, label: str, clock: Clock) -> None:
        """``label``: the count of scores in training; those of another count are another curve."""
        session, monitor = self.session, self.session.scoring.monitor
        values = {f"metric/{name}{label}": value for name, value in report.scores.items()}
        for logger in session.loggers:
            logger.scalars(values, clock.iteration, clock.images)
        if monitor is not None and monitor in report.scores:
            session.progress.score(f"{monitor}{label}", report.scores[monitor])

    def results(self) -> dict[str, Any]:
        """For the run card. ``final``: scores of the weights of iteration ``scored_at``, under the whole protocol where
        the run came to its end, else the last ones in training. ``best``: its scores in training (``scores``), and
        under the whole protocol (``at_end``)."""
        final = self.at_end or self.in_training or {}
        return {
            "final": final.get("scores"),
            "scored_at": final.get("iteration"),
            "in_training": self.in_training,
            "best": self.best,
            "protocol": final.get("protocol"),
            "samples_per_second": None if self.samples_per_second is None else round(self.samples_per_second, 1),
        }

    def state(self) -> dict[str, Any]:
        kept = {"every": self.every, "best": self.best, "in_training": self.in_training, "at_end": self.at_end}
        return kept | {"idle": self.idle}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.every, self.best = state["every"], state["best"]
        self.in_training, self.at_end = state["in_training"], state["at_end"]
        self.idle = state.get("idle", 0)  # absent: a run of before there was such a thing


def _kept(report: Report, iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "scores": report.scores, "protocol": report.protocol}


def _about(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.1f} min"
