"""How players of two numbers move about a saddle: simultaneous and alternating steps, the prediction method, the
extragradient method, and optimistic gradients.

    python scripts/saddle.py [--rate 0.1] [--rounds 2000] [--out docs]

Writes OUT/saddle.json and OUT/pictures/saddle.png. The first player moves u down, the second v up, on u v, where there
is nothing but rotation, and on u v + 0.1 (u^2 - v^2), which has some slope towards the saddle of its own. The rounds
are those of the engine: the same turns that train a GAN.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentrain.engine.optimistic import OptimisticSGD
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Alternating, Extragradient, Prediction, Simultaneous, Turns
from gentrain.report.canvas import save_figure, write_atomically
from gentrain.types import Images, Spec, Terms

START, SHOWN, REACH = (1.0, 1.0), 300, 2.2
"""Of u and v; rounds that are drawn; edge of the picture."""

Value = Callable[[Tensor, Tensor], Tensor]

SADDLES: dict[str, Value] = {
    "uv": lambda u, v: u * v,
    "uv + 0.1 (u^2 - v^2)": lambda u, v: u * v + 0.1 * (u.square() - v.square()),
}
WAYS: dict[str, tuple[Callable[[], Turns], Callable[..., torch.optim.Optimizer]]] = {
    "simultaneous": (Simultaneous, torch.optim.SGD),
    "alternating": (Alternating, torch.optim.SGD),
    "prediction": (partial(Prediction, ahead="down"), torch.optim.SGD),
    "extragradient": (Extragradient, torch.optim.SGD),
    "optimistic": (Simultaneous, OptimisticSGD),
}
"""Turns and optimiser."""
COLOURS = {
    "simultaneous": "#b5402a",
    "alternating": "#8a8a8a",
    "prediction": "#2a5f8f",
    "extragradient": "#3f8f4f",
    "optimistic": "#8a6fb0",
}


class Point(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class Saddle(System):
    """Two players of one number each, by gradient steps of one of ``WAYS``."""

    def __init__(self, value: Value, way: str, rate: float) -> None:
        turns, optimizer = WAYS[way]

        def descent(parameters: Iterable[nn.Parameter], **more: Any) -> torch.optim.Optimizer:
            return optimizer(parameters, lr=rate, **more)

        super().__init__(Spec((2,)), {"down": Moves(descent), "up": Moves(descent)}, turns())
        self.value = value
        self.nets.update({"down": Point(START[0]), "up": Point(START[1])})

    def _f(self) -> Tensor:
        return self.value(self.nets["down"].value, self.nets["up"].value)  # type: ignore[arg-type]

    def players(self) -> Sequence[Player]:
        def down(batch: Images) -> Terms:
            return {"value": self._f()}

        def up(batch: Images) -> Terms:
            return {"value": -self._f()}

        return Player("down", ("down",), down), Player("up", ("up",), up)

    @property
    def place(self) -> tuple[float, float]:
        u, v = (float(p.detach()) for p in self.nets.parameters())
        return u, v


def path(value: Value, way: str, rate: float, rounds: int) -> list[tuple[float, float]]:
    """(u, v) before the first round and behind each one; it ends early beyond a distance of a million."""
    system = Saddle(value, way, rate)
    system.prepare(total=rounds)
    places = [system.place]
    nothing = Images(torch.zeros(1, 2))
    while len(places) <= rounds and math.hypot(*places[-1]) < 1e6:
        system.iterate(nothing)
        places.append(system.place)
    system.report()
    return places


def summary(places: Sequence[tuple[float, float]]) -> dict[str, float]:
    distances = [math.hypot(*place) for place in places]
    late = distances[len(distances) // 2 :]
    return {
        "rounds": len(places) - 1,
        "distance_at_end": distances[-1],
        "least_in_second_half": min(late),
        "most_in_second_half": max(late),
    }


def picture(paths: dict[str, dict[str, list[tuple[float, float]]]], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 6.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(paths), len(WAYS))
    line = torch.linspace(-REACH, REACH, 101)
    u, v = torch.meshgrid(line, line, indexing="xy")
    for row, (name, by_way) in zip(rows, paths.items(), strict=True):
        for axes, (way, places) in zip(row, by_way.items(), strict=True):
            axes.contour(line, line, SADDLES[name](u, v), levels=15, colors="#dddddd", linewidths=0.7)
            shown = places[:SHOWN]
            axes.plot(*zip(*shown, strict=True), color=COLOURS[way], linewidth=0.9)
            axes.plot(*START, "o", color="black", markersize=4)
            axes.plot(0, 0, "+", color="black", markersize=9)
            axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
            axes.set(xlabel="u, goes down", ylabel="v, goes up")
            axes.set_title(f"{way}: f = {name.replace('^2', '²')}", fontsize=10)
    save_figure(figure, out)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    paths = {name: {way: path(value, way, given.rate, given.rounds) for way in WAYS} for name, value in SADDLES.items()}
    (given.out / "pictures").mkdir(parents=True, exist_ok=True)
    picture(paths, given.out / "pictures" / "saddle.png")
    found = {name: {way: summary(places) for way, places in some.items()} for name, some in paths.items()}
    for name, some in found.items():
        for way, numbers in some.items():
            print(f"{name:<22} {way:<13} " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    record = {"rate": given.rate, "start": list(START), "saddles": found}
    write_atomically(given.out / "saddle.json", (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
