"""What a generator is paid and pushed by: each adversarial loss over the critic's verdict, and its slope.

    python scripts/gan_losses.py [--out docs]

Writes OUT/gan_losses.json and OUT/pictures/gan_losses.png, from the losses themselves. Left: the three costs of a
generator whose critic is a probability D, halved as in Goodfellow 2016 (arXiv 1701.00160, section 3.2). Right: the
size of each loss's gradient with respect to the critic's output, whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gentrain.objectives import adversarial
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.report.canvas import save_figure, write_atomically

LOSSES: dict[str, tuple[AdversarialLoss, str]] = {
    "minimax": (adversarial.minimax(), "#b5402a"),
    "nonsaturating": (adversarial.nonsaturating(), "#2a5f8f"),
    "maximum_likelihood": (adversarial.maximum_likelihood(), "#3f8f4f"),
    "least_squares": (adversarial.least_squares(), "#8a6fb0"),
    "hinge": (adversarial.hinge(), "#8a8a8a"),
    "wasserstein": (adversarial.wasserstein(), "#222222"),
}
MEASURED = (-10.0, -5.0, 0.0, 5.0)
"""Outputs of the critic at which the slopes are written down; the lower, the surer it is that a sample is false."""


def costs(loss: AdversarialLoss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's cost of each output [N] alone, and its gradient with respect to that output."""
    x = logits.clone().requires_grad_()
    each = torch.stack([loss.generator(one[None])["adversarial"] for one in x])
    (slope,) = torch.autograd.grad(each.sum(), x)
    return each.detach(), slope


def picture(out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    d, logits = torch.linspace(0.002, 0.998, 250), torch.linspace(-10, 10, 201)
    for name, (loss, colour) in LOSSES.items():
        if loss.probabilistic:
            left.plot(d, 0.5 * costs(loss, d.logit())[0], color=colour, label=name)
        dashed = "--" if name == "wasserstein" else "-"  # it lies upon the hinge's
        right.plot(logits, costs(loss, logits)[1].abs(), dashed, color=colour, label=name)
    left.set(xlabel="D(G(z))", ylabel="cost of the generator, halved", xlim=(0, 1), ylim=(-20, 5))
    right.set(xlabel="critic's output on a sample", ylabel="size of the gradient with respect to it")
    right.set(yscale="log", xlim=(-10, 10), ylim=(1e-5, 1e2))
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(color="#eeeeee")
    save_figure(figure, out)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    (given.out / "pictures").mkdir(parents=True, exist_ok=True)
    picture(given.out / "pictures" / "gan_losses.png")
    at = torch.tensor(MEASURED)
    slopes = {name: costs(loss, at)[1].tolist() for name, (loss, _) in LOSSES.items()}
    for name, values in slopes.items():
        print(f"{name:<19} " + "  ".join(f"{value:10.3g}" for value in values))
    record = {"outputs": list(MEASURED), "gradient_of_the_generators_cost": slopes}
    write_atomically(given.out / "gan_losses.json", (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
