"""How much of a gradient is left for a generator whose critic is trained far ahead of it.

    python scripts/vanishing.py [--steps 1000] [--seed 0] [--out docs]

Writes OUT/vanishing.json and OUT/pictures/vanishing.png. The generator of data=ring stands still, at its
initialisation; its critic is trained against it, and the norm of the gradient that each loss would give the generator
is measured on the way. The three losses of a critic that is a probability share one critic; the others have each
their own, and Wasserstein's has its gradient penalty.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

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


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    data = build(compose(["model=gan", *WORDS]).config["data"])
    marks = [mark for mark in MARKS if mark <= given.steps]
    found: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    for words, losses in CRITICS.items():
        rows = measured(words, losses, data, given.steps, given.seed)
        scores |= dict.fromkeys(losses, rows.pop("score"))
        found |= rows
        for name, values in rows.items():
            print(f"{name:<19} " + "  ".join(f"{value:.3g}" for value in values), flush=True)
    (given.out / "pictures").mkdir(parents=True, exist_ok=True)
    colours = {name: colour for losses in CRITICS.values() for name, (_, colour) in losses.items()}
    picture(marks, found, colours, given.out / "pictures" / "vanishing.png")
    record = {
        "data": data.fingerprint,
        "seed": given.seed,
        "batch": BATCH,
        "learning_rate": RATE,
        "critic_steps": marks,
        "losses": {name: {"gradient_norm": found[name], "critics_output": scores[name]} for name in found},
    }
    write_atomically(given.out / "vanishing.json", (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
