"""Half-given images, with what a model draws for the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.classes import asks_by_class
from gentrain.explore.judge import judge
from gentrain.explore.study import Found, Seen, Study
from gentrain.report.strips import Row, stack, strip_block
from gentrain.types import to_bytes

BATCH = 250
UNKNOWN = 128
"""Grey level of what is not given, in the picture."""


@runtime_checkable
class Completes(Protocol):
    """Can draw some pixels of an image given others."""

    def complete(
        self, x: Tensor, known: Tensor, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """[B C H W] in [-1, 1] for x uint8 [B C H W] and ``known`` bool, of a shape that broadcasts against it."""
        ...


Region = Callable[[int, int, float], tuple[slice, slice]]
REGIONS: dict[str, Region] = {
    "top": lambda h, w, share: (slice(0, round(h * share)), slice(None)),
    "bottom": lambda h, w, share: (slice(h - round(h * share), h), slice(None)),
    "left": lambda h, w, share: (slice(None), slice(0, round(w * share))),
    "right": lambda h, w, share: (slice(None), slice(w - round(w * share), w)),
    "centre": lambda h, w, share: (_middle(h, share**0.5), _middle(w, share**0.5)),
}
"""Which rows and columns are given, of a picture of height and width, so that they are a ``share`` of it."""


def _middle(side: int, share: float) -> slice:
    kept = round(side * share)
    return slice((side - kept) // 2, (side - kept) // 2 + kept)


def mask(height: int, width: int, known: str, share: float) -> Tensor:
    """bool [H W], true where a pixel is given. UserError where ``share`` leaves nothing or all."""
    given = torch.zeros(height, width, dtype=torch.bool)
    if 0.0 < share < 1.0:
        given[REGIONS[known](height, width, share)] = True
    if given.all() or not given.any():
        raise UserError(f"share={share:g}: of {height}x{width} pixels some are to be given, and some not (0.5: half)")
    return given


def explore(study: Study, path: Path, *, n: int, k: int, known: str, share: float, show: int) -> Found:
    """``n``: test images spread over the split, each completed ``k`` times. ``known``: what is given of them, a
    ``share`` of all pixels. ``show``: so many are in the picture."""
    study.require_images("complete")
    seen = study.look("test", n)
    _, height, width = study.data.spec.shape
    given = mask(height, width, known, share)
    labels = seen.y if asks_by_class(study.system, study.data) else None
    # As the model sees them: a likelihood of fewer levels has images of fewer levels.
    original = _completed(study, seen.x, torch.ones_like(given), labels, 1)[:, 0]
    made = _completed(study, seen.x, given, labels, k)  # [n k C H W]
    shown = original[:show].clone()
    shown[:, :, ~given] = UNKNOWN
    rows: list[Row] = [("given", shown)]
    rows += [(f"completed {i + 1}", made[:show, i]) for i in range(k)]
    stack([("", strip_block([*rows, ("image", original[:show])]))], path)
    errors = _errors(original, made, ~given)
    result: dict[str, Any] = {
        "protocol": {
            "images": len(seen), "split": "test", "completions_per_image": k, "known": known,
            "known_pixels": int(given.sum()), "pixels": given.numel(),
            "error": "mean squared error per pixel that is not given, images in [0, 1], both of 256 levels",
        },
        **errors,
        "class_kept": None,
        "class_of_image": None,
        "judge": None,
        "index": seen.index.tolist(),
    }  # fmt: skip
    lines = [
        f"{len(seen)} test images, {int(given.sum())} of {given.numel()} pixels given ({known}): mean squared error of "
        f"the others {errors['to_image']:.5f}, of another image's {errors['other_image_to_image']:.5f}, between "
        f"completions {'-' if errors['between_completions'] is None else format(errors['between_completions'], '.5f')}"
    ]
    kept = _classes(study, seen, original, made)
    if kept:
        result |= kept
        lines.append(
            f"a classifier takes {kept['class_kept']:.1%} of the completions for the image's class, and "
            f"{kept['class_of_image']:.1%} of the images"
        )
    return Found(result, lines)


def _completed(study: Study, x: Tensor, given: Tensor, labels: Tensor | None, k: int) -> Tensor:
    """uint8 [n k C H W] on the CPU, drawn by the study's seed."""
    generator = torch.Generator(study.device).manual_seed(study.seed)
    many = x.repeat_interleave(k, dim=0)
    told = None if labels is None else labels.repeat_interleave(k)
    made = []
    for start in range(0, len(many), BATCH):
        rows = slice(start, start + BATCH)
        some = None if told is None else told[rows].to(study.device)
        part = many[rows].to(study.device)
        drawn: Tensor = study.system.complete(part, given.to(study.device), labels=some, generator=generator)
        made.append(to_bytes(study.finite(drawn.float().cpu(), "completions")))
    return torch.unflatten(torch.cat(made), 0, (len(x), k))


def _errors(original: Tensor, made: Tensor, drawn: Tensor) -> dict[str, float | None]:
    """Mean squares over the pixels that were ``drawn`` [H W]: completions against their image and against each other,
    and images against the next image, which is what knowing nothing of an image leaves."""
    own = original[:, :, drawn].double() / 255.0  # [n C P]
    others = made[:, :, :, drawn].double() / 255.0  # [n k C P]
    between = (others[:, 1:] - others[:, :-1]).square().mean() if made.shape[1] > 1 else None
    return {
        "to_image": float((others - own[:, None]).square().mean()),
        "other_image_to_image": float((own.roll(1, 0) - own).square().mean()),
        "between_completions": None if between is None else float(between),
    }


def _classes(study: Study, seen: Seen, original: Tensor, made: Tensor) -> dict[str, Any]:
    """How often a classifier takes a completion for its image's class, and the image itself; nothing where there is
    none or the images have no classes."""
    judged = judge(study)
    if judged is None or seen.y is None or seen.y.ndim != 1:
        return {}

    def right(x: Tensor, y: Tensor) -> float:
        taken = torch.cat([judged(part).argmax(1) for part in torch.split(x, 2000)])
        return float((taken == y).double().mean())

    every = seen.y.repeat_interleave(made.shape[1])
    return {
        "class_kept": right(made.flatten(0, 1), every),
        "class_of_image": right(original, seen.y),
        "judge": judged.facts,
    }
