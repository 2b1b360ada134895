"""Charts of what was found in a run: curves with error bars, bars, histograms, maps of points. PNG, the same byte for
byte when their numbers are."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gentrain.report.canvas import write_atomically

Floats = npt.NDArray[np.float64]

CLASSES = 20
"""More classes than that are coloured along a scale, and not named."""


def errorbars(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x: Sequence[float],
    path: Path,
    *,
    across: str,
    up: str,
) -> Path:
    """One panel per title; in each a curve per name: means and standard deviations at ``x`` (a logarithmic axis)."""

    def draw(figure: Any) -> None:
        first = None
        for place, (title, curves) in enumerate(panels.items()):
            first = axes = figure.add_subplot(1, len(panels), place + 1, sharey=first)
            for name, (mean, spread) in curves.items():
                axes.errorbar(x, mean, yerr=spread, label=name, marker="o", ms=4, capsize=3, linewidth=1.4)
            axes.set_xscale("log")
            axes.set_xticks(list(x), [f"{value:g}" for value in x])
            axes.minorticks_off()
            axes.set_title(title, fontsize="medium", loc="left")
            axes.set(xlabel=across, ylabel=up if not place else "")
            axes.grid(alpha=0.25)
            axes.legend(fontsize="small", loc="lower right")

    return write_atomically(path, _png(draw, (5.2 * len(panels), 4.0)))


def curves(panels: Mapping[str, Mapping[str, Sequence[float]]], ticks: Sequence[str], *, across: str) -> Image.Image:
    """One panel per title; in each a curve per name over equally spaced ``ticks``. An RGB image."""

    def draw(figure: Any) -> None:
        for place, (title, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), place + 1)
            for name, values in lines.items():
                axes.plot(range(len(ticks)), list(values), label=name, marker="o", ms=4, linewidth=1.4)
            axes.set_xticks(range(len(ticks)), list(ticks))
            axes.set_title(title, fontsize="medium", loc="left")
            axes.set(xlabel=across, ylim=(0.0, 1.1 * max(max(values) for values in lines.values()) or 1.0))
            axes.grid(alpha=0.25)
            axes.legend(fontsize="small")

    return Image.open(io.BytesIO(_png(draw, (4.4 * len(panels), 3.6)))).convert("RGB")


def bars(groups: Mapping[str, Mapping[str, tuple[float, float]]], *, up: str) -> Image.Image:
    """For each group side by side one bar per name: mean and standard deviation, written above it. An RGB image."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(1, 1, 1)
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            there = [(place, group[name]) for place, group in enumerate(groups.values()) if name in group]
            at = [place + (i - (len(names) - 1) / 2) * width for place, _ in there]
            made = axes.bar(at, [v[0] for _, v in there], width, yerr=[v[1] for _, v in there], capsize=3, label=name)
            axes.bar_label(made, fmt="%.3f", fontsize="x-small", padding=2)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_ylabel(up)
        axes.margins(y=0.15)
        axes.grid(alpha=0.25, axis="y")
        axes.legend(fontsize="small", ncols=len(names), loc="upper right")

    return Image.open(io.BytesIO(_png(draw, (6.4, 3.6)))).convert("RGB")


def histograms(panels: Mapping[str, Mapping[str, Floats]], path: Path, *, up: str = "share of images") -> Path:
    """One panel per title (of the numbers across); in each a histogram per name, every one of sum 1."""

    def draw(figure: Any) -> None:
        for place, (title, parts) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), place + 1)
            both = np.concatenate(list(parts.values()))
            low, high = (float(q) for q in np.quantile(both, (0.0, 0.999)))
            edges = np.linspace(low, high, 50)
            for name, values in parts.items():
                kept = np.clip(values, low, high)  # the last bar holds what lies beyond
                axes.hist(kept, edges, weights=np.full(len(values), 1 / len(values)), alpha=0.6, label=name)
            axes.set(xlabel=title, ylabel=up if not place else "")
            axes.legend(fontsize="small")
            axes.grid(alpha=0.25)

    return write_atomically(path, _png(draw, (5.2 * len(panels), 3.8)))


def point_map(
    points: Floats, labels: npt.NDArray[np.int64] | None, names: Sequence[str], *, axes_names: tuple[str, str]
) -> Image.Image:
    """Points [n 2] coloured by their labels [n], with a legend of ``names``. An RGB image."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(1, 1, 1)
        if labels is None:
            axes.scatter(points[:, 0], points[:, 1], s=6, linewidths=0)
        elif len(names) > CLASSES:
            axes.scatter(points[:, 0], points[:, 1], s=6, linewidths=0, c=labels, cmap="turbo")
        else:
            palette = _palette(len(names))
            for i, name in enumerate(names):
                mine = points[labels == i]
                axes.scatter(mine[:, 0], mine[:, 1], s=6, linewidths=0, color=palette(i), label=name, alpha=0.8)
            axes.legend(fontsize="x-small", markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set(xlabel=axes_names[0], ylabel=axes_names[1])
        axes.grid(alpha=0.25)

    return Image.open(io.BytesIO(_png(draw, (7.0, 5.6)))).convert("RGB")


def _palette(count: int) -> Callable[[int], Any]:
    from matplotlib import colormaps

    colours: Callable[[int], Any] = colormaps["tab10" if count <= 10 else "tab20"]
    return colours


def _png(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
