"""Training a domain extractor: a small classifier whose features stand in for Inception's (see domain.py).

The result is a function of the data, the recipe, the seed and the machine's float arithmetic, on one thread. The test
split is looked at once, after training: it chooses nothing.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gentrain.data.files import reason, shown
from gentrain.errors import UserError
from gentrain.evaluation.domain import Card, DomainNet, load_extractor, times, write_extractor
from gentrain.evaluation.extractors import Extractor
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.metrics import kernel_distance
from gentrain.evaluation.reference import BLOCK
from gentrain.types import Images

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet, Split

COUNTS = (128, 1000, 10000)
"""Samples at which the floor is measured: those of the sizes tiny, small and paper."""


NAMED = 8
"""Classes that are named in a line."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained. ``widths``: channels of its stages. ``features``: D. ``shift``: pixels that an image
    is moved by at most; ``flip``: mirroring leaves the class what it was."""

    widths: tuple[int, ...] = (16, 32, 64)
    features: int = 64
    epochs: int = 24
    batch: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    shift: int = 2
    flip: bool = False

    def __post_init__(self) -> None:
        for name, value in (("widths", min(self.widths, default=0)), ("features", self.features)):
            if value < 1:
                raise UserError(f"extractor: {name}={value}: at least 1")
        for name, least in (("epochs", 1), ("batch", 2), ("shift", 0)):
            if getattr(self, name) < least:
                raise UserError(f"extractor: {name}={getattr(self, name)}: at least {least}")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.dropout < 1):
            raise UserError(
                f"extractor: lr={self.lr} weight_decay={self.weight_decay} dropout={self.dropout}: lr above 0, "
                "weight_decay 0 or more, dropout from 0 to below 1"
            )


def recipe_for(data: DataSet) -> Recipe:
    """A recipe that suits size and number of the images: the last map is at least 4 pixels wide, an image moves by a
    fourteenth of its width, and few images are seen more often. No mirroring: a mirrored digit is another sign."""
    side = min(data.spec.shape[1:])
    stages = min(max(int(math.log2(max(side, 4) / 4)) + 1, 1), 4)
    widths = tuple(16 << stage for stage in range(stages))
    few = len(data.train) < 10_000
    return Recipe(
        widths, features=widths[-1], epochs=60 if few else 24, batch=32 if few else 128, shift=max(round(side / 14), 1)
    )


def check_trainable(data: DataSet) -> None:
    """Raise UserError if no classifier can be trained on these data."""
    if not data.spec.is_image:
        raise UserError(f"extractor: data {data.name!r} are vectors: an extractor is of images")
    for role, split in (("train", data.train), ("test", data.test)):
        if split.y is None or split.y.ndim != 1 or data.spec.classes < 2:
            raise UserError(
                f"extractor: data {data.name!r} have no two classes of labels to train a classifier on (of data=folder "
                "each sub-folder is a class): metrics=mobilenetv2 needs no labels"
            )
        if int(split.y.min()) < 0 or int(split.y.max()) >= data.spec.classes:
            raise UserError(f"extractor: data {data.name!r}: a {role} label is not one of {data.spec.classes} classes")
        if len(split) < 2:
            raise UserError(f"extractor: data {data.name!r}: the {role} split has one image, at least two are needed")
    counts = [split.y.bincount(minlength=data.spec.classes) for split in (data.train, data.test) if split.y is not None]
    for role, there, other in (("test", counts[1], counts[0]), ("train", counts[0], counts[1])):
        lacking = [
            name for name, has, wanted in zip(data.spec.class_names, there, other, strict=True) if wanted > has == 0
        ]
        if lacking:
            named = ", ".join(lacking[:NAMED]) + (f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else "")
            raise UserError(
                f"extractor: data {data.name!r}: the {role} split lacks the classes {named}, which the other has: the "
                "accuracy would say nothing; put images of them there, or leave them out of both"
            )


def make(data: DataSet, recipe: Recipe, seed: int, out: Path, command: str, say: Callable[[str], None] = print) -> Path:
    """Train, measure, and write weights and card into ``out``; returns the weights file.

    Nothing lies in ``out`` before all of it is known. Raises UserError for data without class labels, for a file that
    is there already, and where ``out`` cannot be written. ``say`` hears of each epoch.
    """
    check_trainable(data)
    halvings = len(recipe.widths) - 1
    if min(data.spec.shape[1:]) < 1 << halvings:
        raise UserError(f"extractor: widths= of {halvings + 1} stages are too many for images {times(data.spec.shape)}")
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', data.name)}-{times(data.spec.shape)}"  # it becomes a file's name
    target = out / f"{name}.safetensors"
    if target.exists() or target.with_suffix(".json").exists():
        raise UserError(f"extractor: {shown(target)} is there already: remove it with its card, or choose another out=")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".extractor-") as place, one_thread():
            net = train(data, recipe, seed, say)
            card = Card(
                name=name,
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
                script="gentrain extractor",
                command=command,
                versions={"torch": str(torch.__version__), "gentrain": version("gentrain")},
            )
            extractor = load_extractor(write_extractor(net, card, Path(place)))
            right, real = _read(extractor, data.test)
            measured = replace(card, accuracy=right, floor=floor(extractor, data, real, seed))
            written = write_extractor(net, measured, Path(place))
            for part in (written, written.with_suffix(".json")):  # the card last: without it there is no extractor
                part.replace(out / part.name)
    except OSError as error:
        raise UserError(f"extractor: out={shown(out)} cannot be written ({reason(error)})") from error
    return target


def train(data: DataSet, recipe: Recipe, seed: int, say: Callable[[str], None]) -> DomainNet:
    """Cross-entropy, AdamW, one cosine with a short linear start."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    net = DomainNet(
        channels=data.spec.channels,
        widths=recipe.widths,
        features=recipe.features,
        classes=data.spec.classes,
        dropout=recipe.dropout,
    ).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    batch = min(recipe.batch, len(data.train))
    per_epoch = len(data.train) // batch
    total = per_epoch * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / per_epoch) * 0.5 * (1 + math.cos(math.pi * step / total))
    )
    for epoch in range(recipe.epochs):
        correct = 0
        order = torch.randperm(len(data.train), generator=random)[: per_epoch * batch]
        for index in torch.split(order, batch):
            x, y = _labelled(data.train.take(index))
            _, logits = net(augment(x, recipe, random))
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(1) == y).sum())
        if not loss.isfinite():
            raise UserError(f"extractor: the loss is {loss.item()} after epoch {epoch + 1}: give a lower lr=")
        say(f"epoch {epoch + 1}/{recipe.epochs}  train {correct / (per_epoch * batch):.4f}")
    return net


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


def floor(extractor: Extractor, data: DataSet, real: Tensor, seed: int) -> tuple[dict[str, float], ...]:
    """fd and kid of n random training images against the whole test split, whose features are ``real`` [N D], at the
    sample counts of the sizes."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for n in sorted({min(n, len(data.train)) for n in COUNTS}):
        chosen = torch.randperm(len(data.train), generator=random)[:n]
        fake = torch.cat([extractor(data.train.take(index).x).features for index in torch.split(chosen, BLOCK)])
        rows.append(
            {
                "n": n,
                "fd_domain": frechet_distance(real, fake),
                "kid_domain": kernel_distance(real, fake, subsets=100, subset_size=1000, seed=seed)[0],
            }
        )
    return tuple(rows)


def _read(extractor: Extractor, split: Split) -> tuple[float, Tensor]:
    """The classifier's accuracy on a split, and the features of all its images [N D]."""
    correct, features = 0, []
    for index in torch.split(torch.arange(len(split)), BLOCK):
        x, y = _labelled(split.take(index))
        found = extractor(x)
        assert found.logits is not None  # a domain extractor is a classifier
        correct += int((found.logits.argmax(1) == y).sum())
        features.append(found.features)
    return correct / len(split), torch.cat(features)


def _labelled(images: Images) -> tuple[Tensor, Tensor]:
    assert images.y is not None  # check_trainable has seen to it
    return images.x, images.y


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, deterministic kernels, the global generators afterwards as they were."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
