"""From one image to another: through the codes, straight and along a sphere, beside the cross-fade of their pixels.

Between two images by their codes; between two draws from the prior for a system that has no encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.judge import judge
from gentrain.explore.study import Found, Seen, Study, generator_of
from gentrain.report.strips import Row, stack, strip_block


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """[B T *]: straight from a [B *] at t=0 to b at t=1, t [T]. Both ends exactly."""
    share = t.view(1, -1, *[1] * (a.ndim - 1))
    return (1 - share) * a[:, None] + share * b[:, None]


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """float32 [B T Z] from a [B Z] at t=0 to b at t=1 along the arc between them (White 2016, arXiv 1609.04468): for
    codes of one length all stay at that length. Straight where the two point the same or the opposite way, or where
    one is 0."""
    x, y, share = a.double()[:, None], b.double()[:, None], t.double().view(1, -1, 1)
    lengths = x.norm(dim=2, keepdim=True) * y.norm(dim=2, keepdim=True)
    cosine = ((x * y).sum(2, keepdim=True) / lengths.clamp_min(1e-30)).clamp(-1, 1)
    angle = cosine.acos()
    arc = (((1 - share) * angle).sin() * x + (share * angle).sin() * y) / angle.sin().clamp_min(1e-12)
    flat = (angle.sin() < 1e-6) | (lengths == 0)
    return torch.where(flat, linear(x[:, 0], y[:, 0], share.flatten()), arc).float()


def cross_fade(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """uint8 [B T C H W]: levels of a and b (uint8 [B C H W]) mixed, rounded to the nearest."""
    return linear(a.double(), b.double(), t.double()).round().to(torch.uint8)


def along(a: Tensor, b: Tensor, t: Tensor, around: int) -> dict[str, Tensor]:
    """Paths between draws from a prior, by name: straight, and where the first ``around`` numbers are N(0, I) along the
    arc in those (the rest, which may be classes, straight)."""
    paths = {"linear": linear(a, b, t)}
    if around:
        arc = spherical(a[:, :around], b[:, :around], t)
        paths["spherical"] = torch.cat([arc, linear(a[:, around:], b[:, around:], t)], dim=2)
    return paths


@dataclass(frozen=True, eq=False)
class Ends:
    """The pairs. ``x``: images uint8 [N C H W] of the first and the second end. ``y``: their classes int64 [N], or
    None. ``paths``: codes [N T Z] by name. ``labels``: of the class that a pair is decoded for, or None."""

    x: tuple[Tensor, Tensor]
    y: tuple[Tensor | None, Tensor | None]
    codes: tuple[Tensor, Tensor]
    paths: dict[str, Tensor]
    labels: Tensor | None
    facts: dict[str, Any]
    index: list[tuple[int, int]] | None
    real: bool


def explore(study: Study, path: Path, *, pairs: int, steps: int, show: int) -> Found:
    """``pairs`` of test images, of different classes where they have one; for a system without an encoder of draws from
    its prior, of one class where it is asked by class. ``steps`` pictures from end to end; ``show`` pairs are in the
    picture. Where a domain extractor serves the data it judges the middles of all pairs."""
    study.require_images("interpolate")
    t = torch.linspace(0.0, 1.0, steps)
    ends = (_of_images if study.can("encode") else _of_prior)(study, pairs, t)
    frames = {name: _decoded(study, z, ends.labels) for name, z in ends.paths.items()}
    frames["pixels"] = cross_fade(*ends.x, t)
    _draw(ends, frames, t, show, path)
    measured: dict[str, Any] = {name: {"evenness": _evenness(x)} for name, x in frames.items()}
    judged = judge(study)
    if judged is not None:
        for name, x in frames.items():
            measured[name] |= _of_middle(judged(x[:, steps // 2]), *ends.y)
    named = all(y is not None and y.ndim == 1 for y in ends.y) and study.data.spec.classes
    result = {
        "protocol": {
            "pairs": pairs, "steps": steps, **ends.facts, "middle": float(t[steps // 2]),
            "judge": judged.facts if judged else None,
            "cosine_of_codes": float(torch.cosine_similarity(*ends.codes).mean()),
        },
        "measured": measured,
        "index": ends.index,
        "classes": list(zip(*(study.names(y) for y in ends.y if y is not None), strict=True)) if named else None,
    }  # fmt: skip
    return Found(result, _lines(measured, f"{pairs} pairs of {'test images' if ends.real else 'draws from the prior'}"))


def _draw(ends: Ends, frames: dict[str, Tensor], t: Tensor, show: int, path: Path) -> None:
    """Images of the data stand beside the ends of the paths, which only come near them."""
    heads, blocks = [f"{float(share):.3g}" for share in t], []
    heads = ["image", *heads, "image"] if ends.real else heads
    for pair in range(min(show, len(ends.x[0]))):
        first, second = (x[pair, None][: int(ends.real)] for x in ends.x)
        rows: list[Row] = [(name, torch.cat([first, x[pair], second])) for name, x in frames.items()]
        blocks.append(("", strip_block(rows, heads if pair == 0 else None)))
    stack(blocks, path)


def _of_images(study: Study, pairs: int, t: Tensor) -> Ends:
    first, second = _pairs(study, pairs)
    codes = study.encode(first.x), study.encode(second.x)
    paths = {"linear": linear(*codes, t), "spherical": spherical(*codes, t)}
    index = list(zip(first.index.tolist(), second.index.tolist(), strict=True))
    return Ends((first.x, second.x), (first.y, second.y), codes, paths, None, {"split": "test"}, index, real=True)


def _of_prior(study: Study, pairs: int, t: Tensor) -> Ends:
    drawn = study.prior_codes(2 * pairs)
    if drawn is None:
        raise UserError("explore interpolate: the system has neither an encoder nor a prior to draw codes from")
    a, b = drawn[:pairs], drawn[pairs:]
    labels = study.draw_classes(pairs)
    x = study.decode(a, labels), study.decode(b, labels)
    facts = {"codes": "draws from the prior", "round_codes": study.round_codes}
    return Ends(x, (labels, labels), (a, b), along(a, b, t, study.round_codes), labels, facts, None, real=False)


def _pairs(study: Study, count: int) -> tuple[Seen, Seen]:
    """Different images, drawn by the seed; of different classes where the split has more than one."""
    rng, total, y = generator_of(study.seed), len(study.data.test), study.data.test.y
    if total < 2:
        raise UserError(f"explore interpolate: split=test has {total} image, and a pair is due")
    apart = y is not None and y.ndim == 1 and len(torch.unique(y)) > 1
    first, second = [], []
    for a in rng.choice(total, count, replace=count > total).tolist():
        b = a
        while b == a or (apart and y is not None and y[a] == y[b]):
            b = int(rng.integers(total))
        first.append(a)
        second.append(b)
    return study.at("test", torch.tensor(first)), study.at("test", torch.tensor(second))


def _decoded(study: Study, z: Tensor, labels: Tensor | None) -> Tensor:
    """[N T C H W] of codes [N T Z]; ``labels``: int64 [N] or None."""
    each = None if labels is None else labels.repeat_interleave(z.shape[1])
    return torch.unflatten(study.decode(z.flatten(0, 1), each), 0, tuple(z.shape[:2]))


def _evenness(x: Tensor) -> float:
    """Mean over pairs of the mean step over the largest: 1 where every step changes the picture as much, near 0 for a
    jump. Steps are root mean squares of pixel differences."""
    step = x.double().diff(dim=1).square().flatten(2).mean(2).sqrt()  # [B T-1]
    return float((step.mean(1) / step.amax(1).clamp_min(1e-12)).mean())


def _of_middle(probabilities: Tensor, first: Tensor | None, second: Tensor | None) -> dict[str, float]:
    found = {"middle_confidence": float(probabilities.amax(1).mean())}
    if first is not None and second is not None and first.ndim == 1:
        seen = probabilities.argmax(1)
        found["middle_of_either_class"] = float(((seen == first) | (seen == second)).double().mean())
    return found


def _lines(measured: dict[str, dict[str, float]], title: str) -> list[str]:
    lines = [title]
    for name, of in measured.items():
        judged = f", classifier's confidence in the middle {of['middle_confidence']:.3f}" if len(of) > 1 else ""
        lines.append(f"  {name:<10} evenness {of['evenness']:.3f}{judged}")
    return lines
