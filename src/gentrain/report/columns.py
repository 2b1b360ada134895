"""What a table of runs may show: its columns, and the cell of a row in one of them.

A column is a key: a score (``fd_domain``), the same of the best checkpoint (``best.fd_domain``), its distance from a
published figure (``published.fd_domain``), or a fact (``images``). A cell has a mean over seeds, or says why it has
none: what a system cannot have and what nobody measured are two things.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gentrain.config import nearest
from gentrain.errors import UserError
from gentrain.report import names
from gentrain.report.rows import Row
from gentrain.report.runs import Run

BEST, PUBLISHED = "best.", "published."
FACTS = ("parameters", "iteration", "images", "seconds", "minutes", "images_per_second", "samples_per_second")
NOT_MEASURED = "not measured"

EXTRACTOR = r"(?:_(?!(?:sd|real)$)[a-z0-9]+)?"
DISTANCE = r"(?:fid|fd_[a-z0-9]+)"
WITH_EXTRACTOR = ("kid", "is", "precision", "recall", "density", "coverage", "copy_rate", "authenticity")
BASES = {
    "fd": DISTANCE,
    "floor": rf"{DISTANCE}_floor",
    **{name: rf"{name}{EXTRACTOR}" for name in WITH_EXTRACTOR},
    "bits/dim": "bits_per_dim",
    "nats": "nll_nats(?:_ais)?",
    "modes": "modes_covered",
    "swd": "swd",
    "images/s": "images_per_second",
    "samples/s": "samples_per_second",
    "best": r"best\..*",
    "published": r"published\..*",
}
"""Short names of columns, and which keys they stand for."""

DEFAULT = (
    *("fd", "floor", "kid", "is", "precision", "recall", "bits/dim", "nats", "modes", "swd"),
    *("parzen_nats_unreliable", "reconstruction_mse", "fd_domain_reconstructed", "cluster_accuracy"),
    *("classification_error", "rate_bpp"),
    *("parameters", "images", "seconds", "images/s", "samples/s"),
)

SAMPLED = (*names.OF_IMAGES, *names.BY_CLASS, *names.OF_VECTORS, *names.OF_EITHER, "floor", "samples_per_second")
ASKED_OF = (
    (names.LIKELIHOODS, {"log_likelihood"}, "no likelihood"),
    (names.OF_RBMS, {"rbm"}, "no Boltzmann machine"),
    (names.RECONSTRUCTIONS, {"encode", "decode"}, "no reconstructions"),
    (names.OF_CODES, {"encode"}, "no codes"),
    (names.OF_CLUSTERS, {"cluster"}, "no clusters of its own"),
    (names.CLASSIFIED, {"classify"}, "no classifier"),
    (names.COMPRESSED, {"compress"}, "no compressor"),
    (SAMPLED, {"sample"}, "no samples"),
)
"""(scores, the capabilities that they ask of a system, what is said of one that lacks them)."""

PER_PIXEL = ("floor", "bits_per_dim", "bits_per_dim_{N}bit", "reconstruction_psnr")
ABOVE, BELOW = re.compile(r"nll_nats$|bits_per_dim"), re.compile(r"elbo_nats|iw_bound_nats")


@dataclass(frozen=True)
class Cell:
    """``values``: of each seed that has one; ``mean``, ``sd`` over them, sd None for one. ``bound``: ``<=`` where the
    true figure is at most this, ``>=`` where it is at least this. ``gap``: why there is no value; ``undefined``:
    whether the system cannot have one. ``note``: what must be said beside the value."""

    values: tuple[float, ...] = ()
    mean: float | None = None
    sd: float | None = None
    bound: str = ""
    gap: str = ""
    undefined: bool = False
    note: str = ""
    is_fact: bool = False
    in_minutes: bool = False


def score_of(key: str) -> str:
    """The score that a column is about."""
    return key.removeprefix(BEST).removeprefix(PUBLISHED)


def values_of(run: Run, key: str) -> float | None:
    if key.startswith(BEST):
        return run.best.get(key.removeprefix(BEST))
    if key.startswith(PUBLISHED):
        measured, stated = (scores.get(key.removeprefix(PUBLISHED)) for scores in (run.final, run.published))
        return None if measured is None or stated is None else measured - stated
    return run.facts.get(key) if key in FACTS else run.final.get(key)


def cell(row: Row, key: str) -> Cell:
    """What a row shows in a column."""
    found = [value for value in (values_of(run, key) for run in row.runs) if value is not None]
    bad = sum(not math.isfinite(value) for value in found)
    values = tuple(value for value in found if math.isfinite(value))
    total = len(row.runs)
    if key.startswith(PUBLISHED) and len({run.published.get(score_of(key)) for run in row.runs}) > 1:
        return Cell(gap="its runs state several published figures")
    if not values:
        gap, undefined = ("not finite", False) if bad else _gap(row.runs[0], key)
        return Cell(gap=gap, undefined=undefined)
    notes = []
    if bad:
        notes.append(f"not finite in {bad} of {total} runs, which are left out")
    if len(found) < total:
        notes.append(f"measured in {len(found)} of {total} runs")
    if key.startswith(BEST) and any(run.best_in_training for run in row.runs):
        notes.append("as scored in training, perhaps on fewer samples than the final score")
    return Cell(
        values=values,
        mean=statistics.fmean(values),
        sd=statistics.stdev(values) if len(values) > 1 else None,
        bound=_bound(row.runs[0], score_of(key)),
        note="; ".join(notes),
        is_fact=key in FACTS,
        in_minutes=key == "minutes",
    )


def _bound(run: Run, score: str) -> str:
    """A system that reports a bound on its likelihood has no exact one (evaluation/likelihood.py)."""
    if BELOW.match(score):
        return ">="
    return "<=" if ABOVE.match(score) and any(BELOW.match(key) for key in run.final) else ""


def _gap(run: Run, key: str) -> tuple[str, bool]:
    """Why a run has no value, and whether that is because it cannot have one."""
    score = score_of(key)
    if key.startswith(PUBLISHED) and score not in run.published:
        return "no published figure stated", True
    if run.can is not None:
        for kinds, capabilities, reason in ASKED_OF:
            if names.is_one_of(score, kinds) and not capabilities <= run.can:
                return reason, True
    if run.is_image is False and names.is_one_of(score, (*names.OF_IMAGES, *names.BY_CLASS, *PER_PIXEL)):
        return "not for vectors", True
    if run.is_image and names.is_one_of(score, names.OF_VECTORS):
        return "not for images", True
    if run.conditional is False and names.is_one_of(score, names.BY_CLASS):
        return "not asked by class", True
    if "nll_nats" in run.final and not key.startswith(BEST):
        if score.startswith("bits_per_dim"):
            return "no likelihood of 8-bit images", True
        if score == "elbo_nats":
            return "likelihood is no bound", True
    return NOT_MEASURED, False


def existing(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has a value in: final scores, best, published, facts."""
    runs = [run for row in rows for run in row.runs]
    final = dict.fromkeys(key for run in runs for key in run.final)
    best = dict.fromkeys(f"{BEST}{key}" for run in runs for key in run.best)
    published = dict.fromkeys(f"{PUBLISHED}{key}" for run in runs for key in run.published)
    return [*final, *best, *published, *(fact for fact in FACTS if any(fact in run.facts for run in runs))]


def default(rows: Sequence[Row]) -> list[str]:
    """A readable choice: what each run followed, then scores people know. Beside a score, that of the best checkpoint
    if it was chosen by it, and the distance from a published one."""
    there = existing(rows)
    monitors = {run.monitor for row in rows for run in row.runs} & set(there)
    known = [key for name in DEFAULT for key in there if re.fullmatch(BASES.get(name, re.escape(name)), key)]
    keys = []
    for key in dict.fromkeys([*sorted(str(monitor) for monitor in monitors if monitor not in known), *known]):
        beside = [f"{BEST}{key}"] if key in monitors else []
        keys += [key, *(each for each in [*beside, f"{PUBLISHED}{key}"] if each in there)]
    return [*keys, *(key for key in there if key.startswith(PUBLISHED) and key not in keys)]


def chosen(asked: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The columns of ``columns=a,b,c``: keys, or short names for all keys of a kind. UserError for an unknown one."""
    there = existing(rows)
    keys = []
    for name in asked:
        pattern = BASES.get(name, re.escape(name))
        wanted = [name] if name in there else [key for key in there if re.fullmatch(pattern, key)]
        if not wanted:
            if not _is_known(name):
                known = dict.fromkeys([*there, *BASES, *FACTS, *names.spelt()])
                raise UserError(f"columns: {name}: no such column{nearest(name, known)}")
            # A score that nobody measured is a column all the same: it says so.
            wanted = [pattern if re.fullmatch("[a-z_]+", pattern) else name]
        keys += wanted
    return list(dict.fromkeys(keys))


def _is_known(name: str) -> bool:
    """Whether it is the key of a score or fact that gentrain knows, though no run here has it."""
    score = score_of(name)
    return score in FACTS or score in BASES or names.is_known(score)


def heading(key: str) -> str:
    if key.startswith(BEST):
        return f"{heading(score_of(key))} best"
    if key.startswith(PUBLISHED):
        return f"{heading(score_of(key))} above published"
    short = {BASES[name]: name for name in ("bits/dim", "nats", "modes", "images/s", "samples/s")}
    return short.get(key, re.sub(r"_(floor|train|inf|sd)$", r" \1", key))
