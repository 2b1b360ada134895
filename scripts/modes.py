"""Which modes a GAN finds, and when: the experiments on Gaussians in a ring and in a grid, over time and over seeds.

    python scripts/modes.py [--experiments ring_collapse ...] [--seeds 0 1 2] [--work outputs/modes] [--out docs]

Trains each experiment as ``gentrain experiment=NAME seed=N`` does, scores its end by the metrics of the data, and
writes OUT/modes.json. OUT/pictures/modes.png has a row for each experiment: samples of seed 0 at several iterations,
of the averaged weights where there are any. What was trained before, in WORK and in the JSON, is kept: trainings can be
added one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import Node, build
from gentrain.data.dataset import DataSet
from gentrain.data.stream import stream
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.sampling import draw
from gentrain.engine.session import Scoring
from gentrain.engine.system import System
from gentrain.engine.validation import score_system
from gentrain.report.canvas import save_figure, write_atomically

EXPERIMENTS = ("ring_collapse", "ring_prediction", "ring_wgan_gp", "grid_prediction", "grid_wgan_gp")
SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the iterations of a run, at which its samples are kept for the picture."""
POINTS, NOISE = 1000, 0x5EED


def weights_of(system: System) -> str:
    return "raw" if system.average is None else "ema"


def trained(name: str, seed: int) -> tuple[Node, dict[str, Any], dict[int, Tensor]]:
    """Its config, its scores and seconds, and its samples [n 2] by iteration."""
    config = compose([f"experiment={name}", f"seed={seed}"]).config
    check_config(config)
    data: DataSet = build(config["data"])
    scoring = Scoring(**build(config["metrics"], where="metrics"))
    system = build_system(config, data, seed=seed)
    total = config["train"]["iterations"]
    system.prepare(total=total)
    marks = {round(share * total) for share in SHARES}
    seen = {0: draw(system, POINTS, seed=NOISE, weights=weights_of(system))}
    start = time.process_time()
    batches = stream(data.train, batch_size=config["train"]["batch_size"], seed=seed)
    for i, batch in enumerate(islice(batches, total), start=1):
        system.iterate(batch)
        if i in marks:
            seen[i] = draw(system, POINTS, seed=NOISE, weights=weights_of(system))
            system.report()
    seconds = time.process_time() - start
    report = score_system(system, data, scoring.scores, n=scoring.samples, seed=seed, weights=weights_of(system))
    return config, {**report.scores, "cpu_seconds": round(seconds, 1)}, seen


def picture(rows: dict[str, tuple[str, dict[int, Tensor]]], out: Path) -> None:
    """``rows``: by experiment, the name of its data and its samples by iteration."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * len(SHARES), 2.1 * len(rows)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(SHARES), squeeze=False)
    for line, (name, (data_name, seen)) in zip(panels, rows.items(), strict=True):
        data: DataSet = build(compose([f"data={data_name}", "model=gan"]).config["data"])
        assert data.density is not None
        assert data.density.modes is not None
        reach = 1.4 * float(data.density.modes.abs().max())
        for axes, (iteration, x) in zip(line, sorted(seen.items()), strict=True):
            axes.scatter(*data.density.modes.T.tolist(), s=40, facecolors="none", edgecolors="#9a9a9a", linewidths=0.8)
            axes.scatter(*x.T.tolist(), s=3, color="#b5402a", alpha=0.5, linewidths=0)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
            axes.set_title(f"{iteration:,}", fontsize=9)
        line[0].set_ylabel(name, fontsize=9)
    save_figure(figure, out)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("outputs/modes"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for folder in (given.work, given.out / "pictures"):
        folder.mkdir(parents=True, exist_ok=True)
    page = given.out / "modes.json"
    record = json.loads(page.read_text(encoding="utf-8")) if page.exists() else {"experiments": {}}
    for seed in given.seeds:
        for name in given.experiments:
            config, scores, seen = trained(name, seed)
            print(f"{name:<16} seed {seed}  " + "  ".join(f"{k} {v:.4g}" for k, v in scores.items()), flush=True)
            facts = {"data": config["choices"]["data"], "iterations": config["train"]["iterations"]}
            entry = record["experiments"].setdefault(name, {})
            if entry.get("iterations") != facts["iterations"]:
                entry["seeds"] = {}
            entry |= facts
            entry["seeds"][str(seed)] = scores
            write_atomically(page, (json.dumps(record, indent=1) + "\n").encode())
            if seed == 0:
                torch.save({"data": facts["data"], "seen": seen}, given.work / f"{name}.pt")
    kept = {name: given.work / f"{name}.pt" for name in EXPERIMENTS}
    loaded = {name: torch.load(path, weights_only=True) for name, path in kept.items() if path.exists()}
    picture({n: (some["data"], some["seen"]) for n, some in loaded.items()}, given.out / "pictures" / "modes.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
