"""Samples beside the training images that they are nearest to: has the model learned the data by heart?

A sample is near to some training image because it looks like the data; it is near to the training images and not to
those that were held out, equally many, only if it was copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.data.dataset import spread
from gentrain.evaluation.neighbours import averaged, neighbours
from gentrain.explore.judge import judge
from gentrain.explore.study import Found, Seen, Study
from gentrain.report.strips import Row, stack, strip_block

Spaces = dict[str, tuple[Tensor, Tensor, Tensor]]
"""By name: samples, training and test images as float points [N D]."""


def explore(study: Study, path: Path, *, n: int, train: int, k: int, show: int, size: int) -> Found:
    """``n`` samples; ``train`` training images at most, spread over the split, and all test images up to as many.
    ``k``: neighbours in the picture. ``show``: samples in each half of the picture, drawn ones and those nearest to a
    training image. ``size``: pixels are compared at so many a side at most. Where a domain extractor serves the data
    its features are compared too."""
    study.require_images("neighbours")
    x = study.sample(n, study.draw_classes(n))
    known, held = study.look("train", train), study.look("test", train)
    spaces, judged = _spaces(study, x, known, held, size)
    near = {name: neighbours(samples, points, k) for name, (samples, points, _) in spaces.items()}
    measured = {name: _measured(*points) for name, points in spaces.items()}
    last = list(near)[-1]  # features, where there are some
    order = near[last][1][:, 0].argsort(stable=True)
    halves = {"drawn": torch.arange(min(show, n)), f"nearest to a training image in {last}": order[:show]}
    heads = ["sample", *(f"{name} {i + 1}" for name in near for i in range(k))]
    stack([(title, _block(x, known.x, near, which, heads)) for title, which in halves.items()], path)
    result = {
        "protocol": {
            "samples": n, "training_images": len(known), "test_images": len(held), "pixels_a_side": size,
            "equal_counts": min(len(known), len(held)),
            "distance": "Euclidean; of pixels root mean squares in [0, 1]", "extractor": judged,
        },
        "measured": measured,
        "neighbours": {
            name: {"train_index": known.index[place].tolist(), "distance": distance.tolist()}
            for name, (place, distance) in near.items()
        },
    }  # fmt: skip
    lines = [f"{n} samples among {len(known)} training and {len(held)} test images"]
    lines += [
        f"  {name:<9} nearest training image {of['to_train']:.4g} away (median), test image {of['to_test']:.4g};"
        f" {of['nearer_to_train']:.1%} are nearer to training images (50% where none is copied)"
        for name, of in measured.items()
    ]
    return Found(result, lines)


def _spaces(study: Study, x: Tensor, known: Seen, held: Seen, size: int) -> tuple[Spaces, dict[str, str] | None]:
    def flat(images: Tensor) -> Tensor:
        small = averaged(images, size).flatten(1).float()
        points: Tensor = small / (255.0 * small.shape[1] ** 0.5)
        return points

    spaces: Spaces = {"pixels": (flat(x), flat(known.x), flat(held.x))}
    judged = judge(study)
    if judged is None:
        return spaces, None
    features = [judged.extractor(images).features for images in (x, known.x, held.x)]
    return spaces | {"features": (features[0], features[1], features[2])}, judged.facts


def _measured(samples: Tensor, known: Tensor, held: Tensor) -> dict[str, Any]:
    """Medians of distances to the nearest of equally many training and test images, and the share of samples to which a
    training image is nearer (of equal distances a half)."""
    count = min(len(known), len(held))
    to_train = neighbours(samples, known[spread(len(known), count)])[1][:, 0]
    to_test = neighbours(samples, held[spread(len(held), count)])[1][:, 0]
    nearer = (to_train < to_test).double() + 0.5 * (to_train == to_test).double()
    return {
        "to_train": float(to_train.median()),
        "to_test": float(to_test.median()),
        "nearer_to_train": float(nearer.mean()),
        "to_all_train": float(neighbours(samples, known)[1].median()),
        "test_to_all_train": float(neighbours(held, known)[1].median()),
    }


def _block(x: Tensor, known: Tensor, near: dict[str, tuple[Tensor, Tensor]], which: Tensor, heads: list[str]) -> Any:
    rows: list[Row] = []
    for i in which.tolist():
        words = " ".join(f"{float(distance[i, 0]):.3g}" for _, distance in near.values())
        rows.append((words, torch.cat([x[i, None], *(known[place[i]] for place, _ in near.values())])))
    return strip_block(rows, heads)
