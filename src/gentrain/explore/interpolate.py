"""From one image to another: through the codes, straight and along a sphere, beside the cross-fade of their pixels."""

from __future__ import annotations

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


def explore(study: Study, path: Path, *, pairs: int, steps: int, show: int) -> Found:
    """``pairs`` of test images, of different classes where they have one; ``steps`` pictures from end to end; ``show``
    pairs are in the picture. Where a domain extractor serves the data it judges the middles of all pairs."""
    study.require_images("interpolate")
    first, second = _pairs(study, pairs)
    t = torch.linspace(0.0, 1.0, steps)
    ends = study.encode(first.x), study.encode(second.x)
    codes = {"linear": linear(*ends, t), "spherical": spherical(*ends, t)}
    frames = {name: _decoded(study, z) for name, z in codes.items()}
    frames["pixels"] = cross_fade(first.x, second.x, t)
    blocks = []
    heads = ["image", *(f"{float(share):.3g}" for share in t), "image"]
    for pair in range(min(show, len(first))):
        rows: list[Row] = [
            (name, torch.cat([first.x[pair, None], x[pair], second.x[pair, None]])) for name, x in frames.items()
        ]
        blocks.append(("", strip_block(rows, heads if pair == 0 else None)))
    stack(blocks, path)
    measured: dict[str, Any] = {name: {"evenness": _evenness(x)} for name, x in frames.items()}
    judged = judge(study)
    if judged is not None:
        for name, x in frames.items():
            measured[name] |= _of_middle(judged(x[:, steps // 2]), first.y, second.y)
    named = first.y is not None and first.y.ndim == 1 and study.data.spec.classes
    result = {
        "protocol": {
            "pairs": len(first), "steps": steps, "split": "test", "middle": float(t[steps // 2]),
            "judge": judged.facts if judged else None,
            "cosine_of_codes": float(torch.cosine_similarity(*ends).mean()),
        },
        "measured": measured,
        "index": list(zip(first.index.tolist(), second.index.tolist(), strict=True)),
        "classes": list(zip(study.names(first.y), study.names(second.y), strict=True))
        if named and first.y is not None and second.y is not None
        else None,
    }  # fmt: skip
    return Found(result, _lines(measured, len(first)))


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


def _decoded(study: Study, z: Tensor) -> Tensor:
    return torch.unflatten(study.decode(z.flatten(0, 1)), 0, tuple(z.shape[:2]))


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


def _lines(measured: dict[str, dict[str, float]], pairs: int) -> list[str]:
    lines = [f"{pairs} pairs of test images"]
    for name, of in measured.items():
        judged = f", classifier's confidence in the middle {of['middle_confidence']:.3f}" if len(of) > 1 else ""
        lines.append(f"  {name:<10} evenness {of['evenness']:.3f}{judged}")
    return lines
