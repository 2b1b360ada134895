"""What can be done to projected images: a path to the next, an attribute's vector, another class, a brush's strokes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.arithmetic import change_of, some_of
from gentrain.explore.interpolate import along
from gentrain.explore.inversion import Code, Inversion
from gentrain.explore.judge import judge
from gentrain.explore.strokes import Strokes, edited
from gentrain.explore.study import Seen, Study
from gentrain.report.strips import Row, strip_block

STEPS = 7
"""Pictures of a path."""

Blocks = list[tuple[str, Image.Image]]


@dataclass(frozen=True)
class Wanted:
    """``edit``: some of path, class, label and strokes. The rest but the last is of ``class``: see ``project``."""

    edit: tuple[str, ...]
    source: str
    target: str
    attribute: str
    strengths: tuple[float, ...]
    train: int
    strokes: Strokes | None = None


def refuse(study: Study, wants: Wanted) -> None:
    """UserError for an edit that the system or the data cannot serve."""
    if "label" in wants.edit and not study.told_classes:
        raise UserError(
            "edit=label: the system's images are not made for a class; edit=class from=... to=... moves codes"
        )
    if "class" in wants.edit:
        change_of(study, wants.source, wants.target, wants.attribute)


def made(
    inversion: Inversion, wants: Wanted, seen: Seen, labels: Tensor | None, codes: Tensor, encoder: Code, show: int
) -> tuple[dict[str, Any], Blocks]:
    """Numbers by edit, and blocks for the picture. ``codes``: of the projected images ``seen`` [N Z]."""
    study = inversion.study
    facts: dict[str, Any] = {}
    blocks: Blocks = []
    for name in wants.edit:
        if name == "path":
            blocks.append(_path(study, seen, labels, codes, show))
            facts[name] = {"steps": STEPS, "class": "of the first image" if labels is not None else None}
        elif name == "label":
            facts[name], block = _label(study, seen, codes, show)
            blocks.append(block)
        elif name == "strokes" and wants.strokes is not None:
            facts[name], block = edited(inversion, wants.strokes, seen, labels, codes, show)
            blocks.append(block)
        else:
            facts[name], block = _class(study, wants, seen, labels, codes, encoder, show)
            blocks.append(block)
    return facts, blocks


def _path(study: Study, seen: Seen, labels: Tensor | None, codes: Tensor, show: int) -> tuple[str, Image.Image]:
    """From each second image to the one behind it, the last to the first where they are odd."""
    first = torch.arange(0, min(show, len(codes)), 2)
    second = (first + 1) % len(codes)
    paths = along(codes[first], codes[second], torch.linspace(0.0, 1.0, STEPS), study.round_codes)
    z = paths.get("spherical", paths["linear"])
    y = None if labels is None else labels[first].repeat_interleave(STEPS)
    frames = torch.unflatten(study.decode(z.flatten(0, 1), y), 0, (len(first), STEPS))
    rows: list[Row] = [
        (f"{int(seen.index[a])} to {int(seen.index[b])}", torch.cat([seen.x[a, None], frames[i], seen.x[b, None]]))
        for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    ]
    words = "from one projected image to another, between the images"
    return words if labels is None else f"{words}, as the first one's class", strip_block(rows)


def _class(
    study: Study, wants: Wanted, seen: Seen, labels: Tensor | None, codes: Tensor, encoder: Code, show: int
) -> tuple[dict[str, Any], tuple[str, Image.Image]]:
    """The mean code of training images with something minus that of images without it, codes by the encoder alone."""
    change = change_of(study, wants.source, wants.target, wants.attribute)
    means = [
        encoder(study.at("train", some_of(which, wants.train, "to learn the change from")).x).double().mean(0)
        for which in (change.without[0], change.having[0])
    ]
    vector = (means[1] - means[0]).float()
    moved = {strength: study.decode(codes + strength * vector, labels) for strength in wants.strengths}
    rows: list[Row] = [
        (f"image {int(seen.index[i])}", torch.cat([seen.x[i, None], *(x[i, None] for x in moved.values())]))
        for i in range(min(show, len(seen)))
    ]
    judged, target = judge(study), change.target
    shares = {}
    if judged is not None and target is not None:
        shares = {f"{s:g}": float(judged(x).argmax(1).eq(target).double().mean()) for s, x in moved.items()}
    facts = {
        "change": change.title,
        "norm": float(vector.norm()),
        "vector": vector.tolist(),
        "taken_for_target": shares,
    }
    return facts, (change.title, strip_block(rows, ["image", *(f"{s:+g}" for s in wants.strengths)]))


def _label(study: Study, seen: Seen, codes: Tensor, show: int) -> tuple[dict[str, Any], tuple[str, Image.Image]]:
    """Each projected image with every class in the place of its own."""
    names = study.data.spec.class_names
    frames = torch.stack([study.decode(codes, torch.full((len(codes),), k)) for k in range(len(names))], 1)  # [N K ...]
    rows: list[Row] = [
        (f"{int(seen.index[i])} {study.names(seen.y[i, None])[0] if seen.y is not None else ''}",
         torch.cat([seen.x[i, None], frames[i]]))
        for i in range(min(show, len(seen)))
    ]  # fmt: skip
    judged = judge(study)
    shares = {}
    if judged is not None:
        shares = {name: float((judged(frames[:, k]).argmax(1) == k).double().mean()) for k, name in enumerate(names)}
    return {"taken_for_the_class": shares}, ("every class", strip_block(rows, ["image", *names]))
