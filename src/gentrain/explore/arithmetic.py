"""Attribute vectors: the mean code of images with something minus that of images without it, added to codes.

As Larsen et al. 2016 (arXiv 1512.09300) do with the attributes of faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.config import nearest
from gentrain.data.dataset import Split, spread
from gentrain.data.leave_out import class_number
from gentrain.errors import UserError
from gentrain.explore.judge import judge
from gentrain.explore.study import Found, Study
from gentrain.report.strips import Row, stack, strip_block


@dataclass(frozen=True)
class Change:
    """From samples without to samples with: for each split which they are, and the classes' numbers if they are."""

    title: str
    without: tuple[Tensor, Tensor]
    having: tuple[Tensor, Tensor]
    source: int | None = None
    target: int | None = None


def explore(
    study: Study,
    path: Path,
    *,
    source: str,
    target: str,
    attribute: str,
    strengths: tuple[float, ...],
    n: int,
    train: int,
    show: int,
) -> Found:
    """``source`` and ``target``: classes; or ``attribute``: of data that have some. The vector comes of ``train``
    training images of each side at most, and is added to ``n`` test images without it at each strength. A random
    vector of the same length is the control. ``show``: so many images are in the picture."""
    study.require_images("arithmetic")
    change = change_of(study, source, target, attribute)
    means, counts = {}, {}
    for name, which in (("without", change.without[0]), ("with", change.having[0])):
        codes = study.encode(study.at("train", some_of(which, train, f"{name} it, to train on")).x)
        means[name], counts[name] = codes.double().mean(0), len(codes)
    vector = (means["with"] - means["without"]).float()
    generator = torch.Generator().manual_seed(study.seed)
    control = torch.randn(len(vector), generator=generator)
    control *= vector.norm() / control.norm()
    seen = study.at("test", some_of(change.without[1], n, "without it, to change"))
    codes = study.encode(seen.x)
    edited = {strength: study.decode(codes + strength * vector) for strength in strengths}
    rows: list[Row] = [
        (
            f"image {int(seen.index[i])}",
            torch.cat([seen.x[i, None], *(edited[strength][i, None] for strength in strengths)]),
        )
        for i in range(min(show, len(seen)))
    ]
    stack([(change.title, strip_block(rows, ["image", *(f"{s:+g}" for s in strengths)]))], path)
    judged = judge(study) if change.target is not None else None
    shares: dict[str, Any] = {}
    if judged is not None and change.target is not None and change.source is not None:
        for strength in strengths:
            seen_as = judged(edited[strength]).argmax(1)
            random = judged(study.decode(codes + strength * control)).argmax(1)
            shares[f"{strength:g}"] = {
                "target": _share(seen_as, change.target), "source": _share(seen_as, change.source),
                "target_by_random_vector": _share(random, change.target),
            }  # fmt: skip
    norms = {"vector": float(vector.norm()), **{f"mean_{name}": float(mean.norm()) for name, mean in means.items()}}
    norms["spread_of_codes"] = float(codes.double().std(0).norm())
    result = {
        "protocol": {
            "change": change.title, "training_images": counts, "changed_images": len(seen), "split": "test",
            "strengths": list(strengths), "judge": judged.facts if judged else None,
        },
        "norms": norms,
        "vector": vector.tolist(),
        "classified_as": shares,
        "index": seen.index.tolist(),
    }  # fmt: skip
    lines = [f"{change.title}: a vector of length {norms['vector']:.3f}, added to {len(seen)} test images"]
    lines += [
        f"  strength {strength}: classified as the target {of['target']:.3f} (random vector "
        f"{of['target_by_random_vector']:.3f}), as before {of['source']:.3f}"
        for strength, of in shares.items()
    ]
    return Found(result, lines)


def _share(seen_as: Tensor, number: int) -> float:
    return float((seen_as == number).double().mean())


def some_of(which: Tensor, limit: int, what: str) -> Tensor:
    """int64 places of at most ``limit`` of those samples, spread over them."""
    places = which.nonzero().flatten()
    if not len(places):
        raise UserError(f"explore: there are no images {what}")
    return places[spread(len(places), limit)]


def change_of(study: Study, source: str, target: str, attribute: str) -> Change:
    """UserError where the data have no such classes or attribute."""
    spec, sets = study.data.spec, (study.data.train, study.data.test)
    if attribute:
        if not spec.attribute_names:
            raise UserError(f"attribute={attribute}: data {study.data.name!r} have none; give from= and to=, classes")
        if attribute not in spec.attribute_names:
            raise UserError(f"attribute={attribute}: no such attribute{nearest(attribute, spec.attribute_names)}")
        column = spec.attribute_names.index(attribute)
        has = [_labels(split)[:, column] == 1 for split in sets]
        return Change(f"with {attribute}", (~has[0], ~has[1]), (has[0], has[1]))
    if spec.attribute_names:
        raise UserError(f"explore: attribute= is missing, e.g. attribute={spec.attribute_names[0]}")
    if not spec.classes or study.data.train.y is None:
        raise UserError(f"explore: data {study.data.name!r} have neither classes nor attributes")
    for key, name in (("from", source), ("to", target)):
        if not name:
            raise UserError(f"explore: {key}= is missing, a class: one of {', '.join(spec.class_names)}")
    a, b = class_number(source, spec.class_names, "from"), class_number(target, spec.class_names, "to")
    if a == b:
        raise UserError(f"from={source} to={target}: two different classes are needed")
    (without, without_test), (having, having_test) = ([_labels(split) == c for split in sets] for c in (a, b))
    title = f"{spec.class_names[a]} to {spec.class_names[b]}"
    return Change(title, (without, without_test), (having, having_test), a, b)


def _labels(split: Split) -> Tensor:
    if split.y is None:
        raise UserError("explore: a split has no labels")
    return split.y
