"""Train a domain extractor: a small classifier whose features stand in for Inception's (see evaluation/domain.py).

    python scripts/train_extractor.py --data fashion_mnist        9 minutes on one CPU core, 93 % test accuracy
    python scripts/train_extractor.py --data digits               10 seconds, 98.6 %
    python scripts/train_extractor.py --data folder --keys root=pictures size=32 --out extractors

Writes NAME.safetensors and NAME.json into ``--out`` (default: the package's own weights folder). The result is a
function of the arguments, the machine's float arithmetic and the number of threads, which is therefore one.
The test split is looked at once, after training: it chooses nothing.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.data import sources
from gentrain.data.dataset import DataSet
from gentrain.errors import UserError
from gentrain.evaluation.domain import SHIPPED, Card, DomainNet, load_extractor, write_extractor
from gentrain.evaluation.extractors import Extractor
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.metrics import kernel_distance


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. ``shift``: pixels; ``flip``: mirroring leaves the class what it was."""

    widths: tuple[int, ...] = (16, 32, 64)
    features: int = 64
    epochs: int = 24
    batch: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    shift: int = 2
    flip: bool = True


RECIPES = {
    "digits": Recipe(widths=(16, 32), features=32, epochs=60, batch=32, shift=1, flip=False),
    "fashion_mnist": Recipe(),
}


def augment(x: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Shift (edges filled with black) and mirror each image on its own. x: uint8 [B C H W]."""
    count, _, height, width = x.shape
    s = recipe.shift
    padded = F.pad(x, (s, s, s, s))
    offsets = torch.randint(0, 2 * s + 1, (2, count, 1), generator=random)
    rows = offsets[0] + torch.arange(height)  # [B H]
    columns = offsets[1] + torch.arange(width)  # [B W]
    if recipe.flip:
        mirrored = torch.rand(count, 1, generator=random) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [B C H W]


def train(data: DataSet, recipe: Recipe, seed: int) -> DomainNet:
    """Cross-entropy, AdamW, one cosine with a short linear start."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    images = data.train.all()
    x, y = images.x, images.y
    if y is None or y.ndim != 1:
        raise UserError(f"data {data.name!r} has no class labels to train a classifier on")
    net = DomainNet(
        channels=data.spec.channels,
        widths=recipe.widths,
        features=recipe.features,
        classes=data.spec.classes,
        dropout=recipe.dropout,
    ).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    per_epoch = len(x) // recipe.batch
    total = per_epoch * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / per_epoch) * 0.5 * (1 + math.cos(math.pi * step / total))
    )
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(x), generator=random)
        correct = 0
        for index in torch.split(order[: per_epoch * recipe.batch], recipe.batch):
            _, logits = net(augment(x[index], recipe, random))
            loss = F.cross_entropy(logits, y[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == y[index]).sum())
        share = correct / (per_epoch * recipe.batch)
        print(f"epoch {epoch + 1}/{recipe.epochs}  train {share:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    return net


def accuracy(extractor: Extractor, data: DataSet) -> float:
    images = data.test.all()
    logits = extractor(images.x).logits
    assert logits is not None
    assert images.y is not None  # train() has seen to it
    return float((logits.argmax(1) == images.y).double().mean())


def floor(extractor: Extractor, data: DataSet, seed: int) -> tuple[dict[str, float], ...]:
    """fd and kid of n random training images against the whole test split, at the sample counts of the sizes."""
    random = torch.Generator().manual_seed(seed)
    real = extractor(data.test.all().x).features
    rows = []
    for n in sorted({min(n, len(data.train)) for n in (128, 1000, 10000)}):
        chosen = torch.randperm(len(data.train), generator=random)[:n]
        fake = extractor(data.train.take(chosen).x).features
        rows.append(
            {
                "n": n,
                "fd_domain": frechet_distance(real, fake),
                "kid_domain": kernel_distance(real, fake, subsets=100, subset_size=1000, seed=seed)[0],
            }
        )
    return tuple(rows)


def make(data: DataSet, recipe: Recipe, seed: int, out: Path, command: str) -> Card:
    """Train, write, read back, measure, and write again with the measurements on the card."""
    net = train(data, recipe, seed)
    card = Card(
        name=re.sub(r"[^\w.-]+", "-", data.name),  # it becomes a file's name
        data=data.name,
        shape=(data.spec.shape[0], data.spec.shape[1], data.spec.shape[2]),
        classes=data.spec.class_names,
        widths=recipe.widths,
        features=recipe.features,
        accuracy=0.0,
        test_images=len(data.test),
        floor=(),
        sha256="",
        fingerprint=data.fingerprint,
        script="scripts/train_extractor.py",
        command=command,
        versions={"torch": torch.__version__},
    )
    extractor = load_extractor(write_extractor(net, card, out))
    measured = replace(card, accuracy=accuracy(extractor, data), floor=floor(extractor, data, seed))
    write_extractor(net, measured, out)
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a function of gentrain.data.sources, such as digits")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the source")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    source = getattr(sources, args.data)
    keys = {"root": "data"} if "root" in signature(source).parameters else {}
    keys |= dict(pair.split("=", 1) for pair in args.keys)
    data = source(**{key: int(value) if value.isdigit() else value for key, value in keys.items()})
    recipe = RECIPES.get(args.data, Recipe())
    if args.epochs:
        recipe = replace(recipe, epochs=args.epochs)
    command = " ".join(["python", "scripts/train_extractor.py", *sys.argv[1:]])
    card = make(data, recipe, args.seed, args.out, command)
    print(f"{card.name}: accuracy {card.accuracy:.4f} on {card.test_images} test images; floor {list(card.floor)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
