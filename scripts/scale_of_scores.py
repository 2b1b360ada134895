"""What a number means: every score of sets whose quality is known, from real images to noise.

    python scripts/scale_of_scores.py [--data fashion_mnist] [--n 10000] [--out docs]

Writes OUT/scale_of_scores.json and OUT/pictures/scale_of_scores.png. All sets are made of training images and held
against the test split, as a model's samples are: ``train`` is what a perfect model would get.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.dataset import DataSet
from gentrain.engine.session import Scoring
from gentrain.evaluation.protocol import evaluate
from gentrain.evaluation.subject import FeatureCache, Subject


def blurred(x: Tensor, sigma: float) -> Tensor:
    """x uint8 [N C H W] under a Gaussian of ``sigma`` pixels."""
    reach = int(3 * sigma) + 1
    row = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).float() / sigma) ** 2)
    row = row / row.sum()
    y = x.float()
    for kernel in (row.view(1, 1, 1, -1), row.view(1, 1, -1, 1)):
        high, wide = kernel.shape[2] // 2, kernel.shape[3] // 2
        padded = F.pad(y, (wide, wide, high, high), mode="replicate")
        y = F.conv2d(padded, kernel.expand(x.shape[1], -1, -1, -1), groups=x.shape[1])
    return y.round().clamp(0, 255).to(torch.uint8)


def noisy(x: Tensor, sd: float) -> Tensor:
    """x with Gaussian noise of ``sd`` grey levels."""
    noise = sd * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return (x.float() + noise).round().clamp(0, 255).to(torch.uint8)


def of_classes(data: DataSet, classes: Sequence[int], n: int) -> Tensor:
    """``n`` training images of these classes alone, drawn with replacement."""
    labels = data.train.y
    assert labels is not None
    there = torch.isin(labels, torch.tensor(list(classes))).nonzero()[:, 0]
    chosen = torch.randint(len(there), (n,), generator=torch.Generator().manual_seed(2))
    return data.train.take(there[chosen]).x


def sets(data: DataSet, n: int) -> dict[str, Tensor]:
    """Name and uint8 images [n C H W], from the best to the worst of each kind."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:n]
    x = data.train.take(chosen).x
    few = chosen[torch.arange(len(x)) % max(len(x) // 20, 1)]
    uniform = torch.randint(256, x.shape, generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    everything = range(data.spec.classes)
    return {
        "train": x,
        "train, 5 % of it repeated": data.train.take(few).x,
        "noise of 8 levels": noisy(x, 8),
        "noise of 32 levels": noisy(x, 32),
        "blur of 0.5 pixels": blurred(x, 0.5),
        "blur of 1 pixel": blurred(x, 1.0),
        "blur of 2 pixels": blurred(x, 2.0),
        "1 class missing": of_classes(data, everything[1:], len(x)),
        "5 classes missing": of_classes(data, everything[5:], len(x)),
        "1 class only": of_classes(data, everything[:1], len(x)),
        "one image": x[:1].expand(len(x), -1, -1, -1).contiguous(),
        "uniform noise": uniform,
    }


def measure(data: DataSet, metrics: dict[str, Any], n: int) -> dict[str, dict[str, float]]:
    cache, found = FeatureCache(), {}
    for name, images in sets(data, n).items():
        subject = Subject(data, None, lambda count, images=images: images[:count], n=len(images), cache=cache)  # type: ignore[misc]
        found[name] = evaluate(metrics, subject, "given").scores
        print(f"{name:<28} " + "  ".join(f"{key} {value:.4g}" for key, value in found[name].items()), flush=True)
    return found


def draw(found: dict[str, dict[str, float]], keys: Sequence[str], title: str, path: Path) -> None:
    """One panel a score, one bar a set; the dashed line is the set of real images."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(found)
    rows = -(-len(keys) // 4)
    figure, panels = plt.subplots(rows, 4, figsize=(13, 2.9 * rows), sharey=True, layout="constrained")
    for panel in panels.flat[len(keys) :]:
        panel.set_visible(False)
    for panel, key in zip(panels.flat, keys, strict=False):
        values = [found[name].get(key, float("nan")) for name in names]
        panel.barh(names, values, color=["#2a7f3f"] + ["#4c72b0"] * (len(names) - 1))
        panel.axvline(values[0], color="#2a7f3f", linestyle="--", linewidth=1)
        for place, value in enumerate(values):
            panel.annotate(
                f"{value:.3g}", (max(value, 0), place), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
        panel.set_title(key, fontsize=10)
        panel.tick_params(labelsize=8)
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
    panels.flat[0].invert_yaxis()  # shared: the first set on top
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)


SHOWN = (
    *("fd_domain", "kid_domain", "is_domain", "classes_shown"),
    *("precision_domain", "recall_domain", "density_domain", "coverage_domain"),
    *("reverse_kl_nats", "swd_mean", "ms_ssim", "authenticity_domain"),
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--n", type=int, default=10000)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args(arguments)
    config = compose(["model=dcgan", f"data={given.data}", "metrics=domain", "size=small"]).config
    data = build(config["data"])
    scoring = Scoring(**build(config["metrics"]))
    found = measure(data, scoring.all, min(given.n, len(data.train)))
    picture = given.out / "pictures" / "scale_of_scores.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    title = f"{data.name}: {min(given.n, len(data.train))} images against the test split"
    draw(found, [key for key in SHOWN if key in found["train"]], title, picture)
    record = {"data": data.name, "fingerprint": data.fingerprint, "n": min(given.n, len(data.train)), "scores": found}
    (given.out / "scale_of_scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
