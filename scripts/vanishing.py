"""How much of a gradient is left for a generator whose critic is trained far ahead of it, or to its optimum.

    python scripts/vanishing.py [--part steps|distance] [--steps 1000] [--seed 0] [--out docs]

``distance`` (seconds) writes OUT/distance.json and OUT/pictures/distance.png: the data are N(0, 1), a generator makes
N(d, 1), and for each d a critic is trained to its optimum, which for these two is a logit (or score) a x + b. Its
Jensen-Shannon divergence stops at ln 2 and the gradient of minimax goes out with it; the Wasserstein distance grows
with d and its gradient stays. Expectations are sums over a fine grid: there are no samples, and no noise.

``steps`` (minutes) writes OUT/vanishing.json and OUT/pictures/vanishing.png: the generator of data=ring stands still,
at its initialisation; its critic is trained against it, and the norm of the gradient that each loss would give the
generator is measured on the way. The three losses of a critic that is a probability share one critic; the others have
each their own, and Wasserstein's has its gradient penalty.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.dataset import DataSet
from gentrain.data.stream import stream
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.system import System
from gentrain.objectives import adversarial
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.report.canvas import save_figure, write_atomically

BATCH, SAMPLES, RATE = 256, 1024, 1e-3
MARKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000)
WORDS = ("data=ring", "size=small", "metrics=none", "model.latent=2", "model.net.hidden=[64,64]")
CRITICS: dict[tuple[str, ...], dict[str, tuple[AdversarialLoss, str]]] = {
    ("model=gan",): {
        "minimax": (adversarial.minimax(), "#b5402a"),
        "nonsaturating": (adversarial.nonsaturating(), "#2a5f8f"),
        "maximum_likelihood": (adversarial.maximum_likelihood(), "#3f8f4f"),
    },
    ("model=gan", "loss=least_squares"): {"least_squares": (adversarial.least_squares(), "#8a6fb0")},
    ("model=gan", "loss=hinge"): {"hinge": (adversarial.hinge(), "#8a8a8a")},
    ("model=wgan_gp",): {"wasserstein": (adversarial.wasserstein(), "#222222")},
}


DISTANCES = tuple(i / 2 for i in range(13))
REACH, POINTS = 10.0, 2001
"""Of the grid about a mean, in standard deviations."""


def gaussian(mean: float) -> tuple[Tensor, Tensor]:
    """Places [P] and what each weighs under N(mean, 1)."""
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    return mean + z, torch.softmax(-z.square() / 2, 0)


def best_logit(distance: float) -> Tensor:
    """(a, b) of the critic that tells N(0, 1) from N(distance, 1) best, by training."""
    (real, weight), (fake, _) = gaussian(0.0), gaussian(distance)
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [line], max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = weight @ (F.softplus(-line[0] * real - line[1]) + F.softplus(line[0] * fake + line[1]))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return line.detach()


def best_slope(distance: float) -> float:
    """Of the critic a x, a from -1 to 1, whose mean is most above that on generated samples, by clipped ascent."""
    (real, weight), (fake, _) = gaussian(0.0), gaussian(distance)
    slope = 0.0
    for _ in range(100):
        slope = min(1.0, max(-1.0, slope + 0.1 * float(weight @ (real - fake))))
    return slope


def apart(distance: float) -> dict[str, float]:
    """What the trained critics say of N(0, 1) and N(distance, 1), and the size of the gradient that each cost gives to
    the place of the generator."""
    (real, weight), (fake, _) = gaussian(0.0), gaussian(distance)
    line, slope = best_logit(distance), best_slope(distance)
    on_real, on_fake = (line[0] * x + line[1] for x in (real, fake))
    loss = weight @ (F.softplus(-on_real) + F.softplus(on_fake))
    found = {
        "jensen_shannon": math.log(2.0) - float(loss) / 2,
        "wasserstein": slope * float(weight @ (real - fake)),
    }
    for name, (cost, _) in CRITICS["model=gan",].items():
        place = torch.zeros((), dtype=torch.float64, requires_grad=True)
        scores = line[0] * (fake + place) + line[1]
        each = torch.vmap(lambda score, cost=cost: cost.generator(score.view(1, 1))["adversarial"])(scores)
        found[f"gradient_{name}"] = abs(float(torch.autograd.grad(weight @ each.double(), place)[0]))
    return found | {"gradient_wasserstein": abs(slope)}


def by_distance(out: Path) -> None:
    rows = [apart(distance) for distance in DISTANCES]
    found = {key: [row[key] for row in rows] for key in rows[0]}
    for name, values in found.items():
        print(f"{name:<27} " + "  ".join(f"{value:.3g}" for value in values))
    record = {"data": "N(0, 1)", "generator": "N(d, 1)", "d": list(DISTANCES), "ln_2": math.log(2.0), **found}
    write_atomically(out / "distance.json", (json.dumps(record, indent=1) + "\n").encode())
    picture_of_distances(found, out / "pictures" / "distance.png")


def picture_of_distances(found: dict[str, list[float]], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(DISTANCES, found["wasserstein"], "o-", markersize=3, color="#222222", label="Wasserstein")
    left.plot(DISTANCES, found["jensen_shannon"], "o-", markersize=3, color="#b5402a", label="Jensen-Shannon, nats")
    left.axhline(math.log(2.0), color="#8a8a8a", linewidth=0.8, linestyle="--", label="ln 2")
    left.set(ylabel="what the best critic says")
    colours = {name: colour for losses in CRITICS.values() for name, (_, colour) in losses.items()}
    for key, values in found.items():
        kind, _, name = key.partition("_")
        if kind == "gradient":
            right.plot(DISTANCES[1:], values[1:], "o-", markersize=3, color=colours[name], label=name)
    right.set(ylabel="size of the generator's gradient", yscale="log")
    for axes in (left, right):
        axes.set(xlabel="distance of the means, in standard deviations", xlim=(0, DISTANCES[-1]))
        axes.legend(fontsize="small")
        axes.grid(color="#eeeeee")
    save_figure(figure, out)


def norms(system: System, losses: dict[str, tuple[AdversarialLoss, str]], seed: int) -> dict[str, float]:
    """Norm of the generator's gradient under each loss, and ``score``, the mean output of the critic on its samples."""
    weights = [p.requires_grad_(True) for p in system.nets["generator"].parameters()]
    noise = torch.Generator().manual_seed(seed)
    score = system.nets["critic"](system.generate(SAMPLES, None, noise).x)  # type: ignore[operator]
    found = {"score": float(score.detach().mean())}
    for name, (loss, _) in losses.items():
        grads = torch.autograd.grad(loss.generator(score)["adversarial"], weights, retain_graph=True)
        found[name] = float(torch.nn.utils.get_total_norm(grads))
    for p in weights:
        p.requires_grad_(False)
    return found


def measured(
    words: Sequence[str], losses: dict[str, tuple[AdversarialLoss, str]], data: DataSet, steps: int, seed: int
) -> dict[str, list[float]]:
    """``norms`` at each of ``MARKS`` up to ``steps``."""
    still = f"++model.players.generator.every={steps + 1}"
    config = compose([*words, *WORDS, still, f"model.players.critic.optimizer.lr={RATE}", f"seed={seed}"]).config
    check_config(config)
    system = build_system(config, data, seed=seed)
    system.prepare(total=steps)
    rows = [norms(system, losses, seed)]
    for i, batch in enumerate(islice(stream(data.train, batch_size=BATCH, seed=seed), steps), start=1):
        system.iterate(batch)
        if i in MARKS:
            rows.append(norms(system, losses, seed))
    system.report()
    return {key: [row[key] for row in rows] for key in rows[0]}


def picture(marks: Sequence[int], found: dict[str, list[float]], colours: dict[str, str], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in found.items():
        axes.plot(marks, values, "o-", markersize=3, color=colours[name], label=name)
    axes.set(xlabel="steps of the critic, against a generator that stands still", xlim=(0, marks[-1]))
    axes.set(ylabel="norm of the generator's gradient", yscale="log")
    axes.set_xscale("symlog", linthresh=1)
    axes.legend(fontsize="small")
    axes.grid(color="#eeeeee")
    save_figure(figure, out)


def by_steps(steps: int, seed: int, out: Path) -> None:
    data = build(compose(["model=gan", *WORDS]).config["data"])
    marks = [mark for mark in MARKS if mark <= steps]
    found: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    for words, losses in CRITICS.items():
        rows = measured(words, losses, data, steps, seed)
        scores |= dict.fromkeys(losses, rows.pop("score"))
        found |= rows
        for name, values in rows.items():
            print(f"{name:<19} " + "  ".join(f"{value:.3g}" for value in values), flush=True)
    colours = {name: colour for losses in CRITICS.values() for name, (_, colour) in losses.items()}
    picture(marks, found, colours, out / "pictures" / "vanishing.png")
    record = {
        "data": data.fingerprint,
        "seed": seed,
        "batch": BATCH,
        "learning_rate": RATE,
        "critic_steps": marks,
        "losses": {name: {"gradient_norm": found[name], "critics_output": scores[name]} for name in found},
    }
    write_atomically(out / "vanishing.json", (json.dumps(record, indent=1) + "\n").encode())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("steps", "distance"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    (given.out / "pictures").mkdir(parents=True, exist_ok=True)
    if given.part != "steps":
        by_distance(given.out)
    if given.part != "distance":
        by_steps(given.steps, given.seed, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
