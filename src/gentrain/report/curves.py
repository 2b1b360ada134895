"""The curves of a run, drawn from nothing but its ``metrics.csv``: a run that crashed has them too."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gentrain.errors import UserError
from gentrain.report.canvas import write_atomically

Floats = npt.NDArray[np.float64]

TOGETHER = ("loss", "score", "grad_norm")
"""Kinds of keys that share a panel. Of ``metric``, ``health`` and ``speed`` each key has its own: units differ."""

SMOOTH_FROM = 200
"""Points of a curve from which on its running mean is drawn over it."""


@dataclass(frozen=True)
class Metrics:
    """Columns of a ``metrics.csv``, one value per row: iterations, images seen, and NaN where a cell is empty."""

    iteration: Floats
    images: Floats
    values: dict[str, Floats]

    def curve(self, key: str) -> tuple[Floats, Floats]:
        """Iterations and values of the rows that hold a finite number under ``key``."""
        there = np.isfinite(self.values[key])
        return self.iteration[there], self.values[key][there]


def read_metrics(path: Path) -> Metrics:
    """UserError if the file is missing, is no ``metrics.csv`` or has no rows."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a run folder's metrics.csv") from error
    if header[:2] != ["iteration", "images"]:
        raise UserError(f"{path}: not a metrics.csv (its first columns are iteration, images)")
    whole = [row for row in rows if len(row) == len(header)]
    if not whole:
        raise UserError(f"{path}: has no rows yet; train for some iterations first")
    table = np.array([[_number(cell) for cell in row] for row in whole])  # [rows columns]
    table = table[np.isfinite(table[:, :2]).all(axis=1)]
    keys = {key: table[:, i] for i, key in enumerate(header) if i >= 2 and key != "seconds"}
    return Metrics(table[:, 0], table[:, 1], keys)


def curves(metrics_csv: Path, path: Path) -> Path:
    """Write losses, scores, gradient norms, metrics and speed over time into one PNG.

    Below each panel are iterations, above it images seen. One colour per player. An axis is logarithmic where all
    values are positive and span two powers of ten, and symmetrically so where a sign changes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(metrics_csv)
    panels = _panels(metrics)
    if not panels:
        raise UserError(f"{metrics_csv}: holds no finite number to draw")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(6.4 * columns, 3.4 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, keys) in enumerate(panels.items()):
        _draw(figure.add_subplot(rows, columns, i + 1), metrics, title, keys)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return write_atomically(path, data.getvalue())


def _panels(metrics: Metrics) -> dict[str, list[str]]:
    """Title of each panel and the keys in it: kinds in the order of ``TOGETHER``, then the rest."""
    panels: dict[str, list[str]] = {}
    for key in metrics.values:
        if metrics.curve(key)[0].size:
            kind = key.split("/")[0]
            panels.setdefault(kind if kind in TOGETHER else key, []).append(key)
    order = {kind: place for place, kind in enumerate((*TOGETHER, "metric"))}
    return dict(sorted(panels.items(), key=lambda panel: order.get(panel[0].split("/")[0], len(order))))


def _draw(axes: Any, metrics: Metrics, title: str, keys: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    colours = _colours(keys)
    seen: dict[str, int] = {}
    for key in keys:
        colour = colours[_player(key)]
        # Terms of one player share its colour and differ in their dashes.
        dash = ("-", "--", ":", "-.")[seen.setdefault(colour, 0) % 4]
        seen[colour] += 1
        x, y = metrics.curve(key)
        label = key.removeprefix(title).lstrip("/") or key
        if y.size >= SMOOTH_FROM:
            axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
            y = _running_mean(y)
        axes.plot(x, y, dash, color=colour, label=label, linewidth=1.4, marker="o" if y.size < 12 else None, ms=3)
    _scale(axes, np.concatenate([metrics.curve(key)[1] for key in keys]))
    axes.set_title(title if len(keys) > 1 else keys[0], fontsize="medium", loc="left")
    # The same range in every panel: scores come seldom, and still lie under the losses of their time.
    axes.set_xlim(*_range(metrics.iteration))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("iteration", fontsize="small")
    axes.grid(alpha=0.25)
    if len(keys) > 1:
        axes.legend(fontsize="x-small", loc="best")
    _images_above(axes, metrics)


def _range(iteration: Floats) -> tuple[float, float]:
    low, high = float(iteration.min()), float(iteration.max())
    margin = max(0.02 * (high - low), 0.5)
    return low - margin, high + margin


def _player(key: str) -> str:
    parts = key.split("/")
    return parts[1] if len(parts) > 1 else key


def _colours(keys: list[str]) -> Mapping[str, str]:
    return {player: f"C{i % 10}" for i, player in enumerate(dict.fromkeys(_player(key) for key in keys))}


def _scale(axes: Any, values: Floats) -> None:
    size = np.abs(values[values != 0])
    if not size.size or size.max() < 100 * np.median(size):
        return
    if (values > 0).all():
        axes.set_yscale("log")
    else:
        # Straight up to a typical value, logarithmic beyond: a few huge ones do not flatten the rest.
        axes.set_yscale("symlog", linthresh=float(np.median(size)))


def _images_above(axes: Any, metrics: Metrics) -> None:
    """A second axis of images seen. The batch size may change at a resume, so that it is read off the rows."""
    from matplotlib.ticker import EngFormatter

    iteration, first = np.unique(metrics.iteration, return_index=True)
    images = np.maximum.accumulate(metrics.images[first])
    if iteration.size < 2 or images[-1] <= images[0]:
        return
    rising = np.concatenate([[True], np.diff(images) > 0])
    iteration, images = iteration[rising], images[rising]
    above = axes.secondary_xaxis(
        "top", functions=(lambda x: _bent(x, iteration, images), lambda x: _bent(x, images, iteration))
    )
    above.xaxis.set_major_formatter(EngFormatter(sep=""))
    above.tick_params(labelsize="x-small")
    above.set_xlabel("images seen", fontsize="x-small")


def _bent(x: Any, knots: Floats, values: Floats) -> Floats:
    """Piecewise linear through the knots, straight on beyond both ends."""
    x = np.asarray(x, dtype=np.float64)
    first = (values[1] - values[0]) / (knots[1] - knots[0])
    last = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    below, above = values[0] + (x - knots[0]) * first, values[-1] + (x - knots[-1]) * last
    bent: Floats = np.where(x < knots[0], below, np.where(x > knots[-1], above, np.interp(x, knots, values)))
    return bent


def _running_mean(y: Floats) -> Floats:
    """Mean of the neighbours on both sides, 2 % of the curve wide; fewer of them at the ends."""
    half = max(y.size // 100, 1)
    total = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(y.size) - half, 0)
    high = np.minimum(np.arange(y.size) + half + 1, y.size)
    mean: Floats = (total[high] - total[low]) / (high - low)
    return mean


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
