"""What autoencoders do off the data: plain, denoising, contractive and variational on points around a circle.

    python scripts/manifold.py [--iterations 4000] [--points 1000] [--seed 0] [--out docs]

Writes OUT/manifold.json and OUT/pictures/manifold.png. All four have the same networks and a code of two numbers, as
many as the data: nothing but corruption, penalty or prior keeps them from copying every point of the plane.
The data are data=ring with so many modes that they run together, so the distance to the circle is known.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.dataset import DataSet
from gentrain.data.stream import stream
from gentrain.data.toys import Mixture
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.sampling import at_rest, draw
from gentrain.engine.system import System
from gentrain.models.dae import score
from gentrain.report.canvas import save_figure, write_atomically

RADIUS, NOISE, REACH, SIGMA = 1.0, 0.05, 0.4, 0.2
"""Of the circle; of the data across it; of the points that stand off it; of the denoiser's corruption."""

DATA = ("data=ring", "data.modes=128", f"data.radius={RADIUS}", f"data.std={NOISE}", "data.scale=1.0")
NETS = ("size=small", "metrics=none", "model.latent=2", "model.net.hidden=[64,64]", "model.net.activation=silu")
MODELS = {
    "autoencoder": ("model=ae",),
    "denoising": ("model=dae", f"model.corruption.sigma={SIGMA}"),
    "contractive": ("model=cae", "loss=squared", "model.regularisers.contraction.weight=0.5"),
    "variational": ("model=vae", "loss=density", f"loss.scale={NOISE}"),
}


def trained(words: Sequence[str], data: DataSet, iterations: int, seed: int) -> System:
    config = compose([*words, *DATA, *NETS, "train.batch_size=256", f"seed={seed}"]).config
    check_config(config)
    system = build_system(config, data, seed=seed)
    system.prepare(total=iterations)
    for batch in islice(stream(data.train, batch_size=256, seed=seed), iterations):
        system.iterate(batch)
    return system


def distance(x: Tensor) -> Tensor:
    """[B] of points [B 2] to the circle."""
    return (x.norm(dim=1) - RADIUS).abs()


def around(n: int, offset: float) -> Tensor:
    """[n 2] points evenly spread on the circle of radius ``RADIUS + offset``."""
    angle = torch.arange(n) * (2 * math.pi / n)
    return (RADIUS + offset) * torch.stack((angle.cos(), angle.sin()), dim=1)


def measure(name: str, system: System, data: DataSet, n: int) -> dict[str, float]:
    """Distances in units of the data. ``towards``: cosine between r(x) - x and the way to the circle, 1 is straight;
    ``score_error``: of the denoiser against the score of the blurred density, relative, root mean square."""
    test, off = data.test.all(n).x, torch.cat([around(n, -REACH), around(n, REACH)])
    home = RADIUS * off / off.norm(dim=1, keepdim=True) - off
    with at_rest(system):
        back, moved = system.reconstruct(test), system.reconstruct(off) - off  # type: ignore[operator]
        found = {
            "error_on_data": float((back - test).norm(dim=1).mean()),
            "distance_of_data": float(distance(test).mean()),
            "distance_of_reconstructions": float(distance(back).mean()),
            "distance_off_data": float(distance(off).mean()),
            "distance_off_data_reconstructed": float(distance(off + moved).mean()),
            "towards": float(torch.cosine_similarity(moved, home).mean()),
        }
        if name == "denoising":
            assert isinstance(data.density, Mixture)
            noise = SIGMA * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
            x = (test + noise).requires_grad_()
            with torch.enable_grad():
                blurred = Mixture(data.density.modes, math.hypot(data.density.mode_std, SIGMA))
                (truth,) = torch.autograd.grad(blurred.log_prob(x).sum(), x)
            wrong = score(system.reconstruct, x.detach(), SIGMA) - truth  # type: ignore[arg-type]
            found["score_error"] = float((wrong.square().mean() / truth.square().mean()).sqrt())
    if hasattr(system, "sample"):
        found["distance_of_samples"] = float(distance(draw(system, n, seed=0)).mean())
    return found


def framed(axes: Any, title: str) -> None:
    axes.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def panel(axes: Any, title: str, *clouds: tuple[Tensor, str]) -> None:
    for points, colour in clouds:
        axes.scatter(*points.T.tolist(), s=3, color=colour, linewidths=0)
    framed(axes, title)


def field(axes: Any, title: str, system: System) -> None:
    """Arrows r(x) - x in their true length, over a grid."""
    line = torch.linspace(-1.5, 1.5, 17)
    x = torch.cartesian_prod(line, line)
    with at_rest(system):
        v = system.reconstruct(x) - x  # type: ignore[operator]
    circle = around(256, 0.0)
    axes.plot(*circle.T.tolist(), color="#c9c9c9", linewidth=2, zorder=0)
    axes.quiver(*x.T.tolist(), *v.T.tolist(), color="#b5402a", angles="xy", scale_units="xy", scale=1, width=0.006)
    framed(axes, title)


def picture(systems: dict[str, System], data: DataSet, n: int, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    test, grey, blue = data.test.all(n).x, "#c9c9c9", "#2a5f8f"
    figure = Figure(figsize=(12.5, 5.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(systems) + 1)
    panel(panels[0, 0], "data", (test, grey))
    for column, (name, system) in enumerate(systems.items(), start=1):
        with at_rest(system):
            back = system.reconstruct(test)  # type: ignore[operator]
        panel(panels[0, column], f"{name}: reconstructions", (test, grey), (back, blue))
        field(panels[1, column], "r(x) - x", system)
        if hasattr(system, "sample"):
            panel(panels[1, 0], f"{name}: samples", (test, grey), (draw(system, n, seed=0), blue))
    save_figure(figure, path)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    data = build(compose(["model=ae", *DATA]).config["data"])
    systems, found = {}, {}
    for name, words in MODELS.items():
        systems[name] = trained(words, data, given.iterations, given.seed)
        found[name] = measure(name, systems[name], data, given.points)
        print(f"{name:<12} " + "  ".join(f"{key} {value:.3f}" for key, value in found[name].items()), flush=True)
    (given.out / "pictures").mkdir(parents=True, exist_ok=True)
    picture(systems, data, given.points, given.out / "pictures" / "manifold.png")
    record = {
        "data": {"fingerprint": data.fingerprint, "radius": RADIUS, "noise": NOISE, "off_data_by": REACH},
        **{key: getattr(given, key) for key in ("iterations", "points", "seed")},
        "models": {name: {"config": list(words), **found[name]} for name, words in MODELS.items()},
    }
    write_atomically(given.out / "manifold.json", (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
