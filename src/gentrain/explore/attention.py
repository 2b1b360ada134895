"""What a place of a feature map looks at: rows of the attention of generator and critic, laid over the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.explore.study import Found, Study
from gentrain.report.strips import stack, strip_block
from gentrain.types import to_bytes

PLACES = ((0.25, 0.25), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (0.75, 0.75))
"""Where the picture looks from: shares of the height from above and of the width from the left."""
HEAT, FROM = (255.0, 140.0, 0.0), (0.0, 255.0, 255.0)
"""Colours of what is looked at, and of the place that looks."""
LEAST = 128
"""Pixels of a side that images are enlarged to, at least, before maps are laid over them."""


@runtime_checkable
class Attends(Protocol):
    """A layer whose places look at each other."""

    def attention_rows(self, x: Tensor) -> Tensor:
        """[B Q K]: how much each of the Q = H W places of its input x [B C H W], row by row, takes from each of the K
        places of a square map; rows sum to 1."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """One layer's, for images [B]: ``name`` of its network; float32 ``rows`` [B Q K]."""

    name: str
    layer: nn.Module
    rows: Tensor


def attending(system: Any) -> list[tuple[str, Any]]:
    """Layers that attend, with the names of their networks."""
    layers: list[tuple[str, nn.Module]] = [
        (name, layer) for name, net in system.nets.items() for layer in net.modules()
    ]
    return [(name, layer) for name, layer in layers if isinstance(layer, Attends)]


def explore(study: Study, path: Path, *, show: int) -> Found:
    """``show``: samples to look at."""
    study.require_images("attention")
    x, found = watched(study, show)
    blocks, layers = [], []
    for place, one in enumerate(found):
        pictures = torch.stack([_picture(x, one.rows, at, study.data.spec.canvas) for at in (None, *PLACES)], dim=1)
        heads = ["sample", *(f"{int(100 * up)}, {int(100 * left)} %" for up, left in PLACES)]
        rows = [(f"{one.name} {i + 1}", row) for i, row in enumerate(pictures)]
        blocks.append(("", strip_block(rows, heads if place == 0 else None)))
        layers.append(_facts(one))
    stack(blocks, path)
    lines = [
        f"{show} samples, {len(found)} layers",
        *(
            f"  {of['network']:<10} {of['queries']} places look at {of['keys']}, entropy {of['entropy']:.3f} of "
            f"{of['entropy_of_uniform']:.3f} nats, gamma {of['gamma']:.4g}"
            for of in layers
        ),
    ]
    return Found({"protocol": {"samples": show, "places": PLACES}, "layers": layers}, lines)


def watched(study: Study, n: int) -> tuple[Tensor, list[Rows]]:
    """``n`` samples, uint8 [n C H W] on the CPU, and how each layer attended: a generator's while they were made, a
    critic's while it looked at them."""
    system = study.system
    generator = torch.Generator(study.device).manual_seed(study.seed)
    labels = system.draw_labels(n, generator) if getattr(system, "conditional", False) else None
    with _watching(attending(system)) as seen:
        x = system.sample(n, labels=labels, generator=generator).float()
        for net in system.nets.values():
            if hasattr(net, "judge"):
                net.judge(x, labels)
    return to_bytes(x).cpu(), seen


@contextmanager
def _watching(layers: list[tuple[str, Any]]) -> Iterator[list[Rows]]:
    seen: list[Rows] = []

    def note(name: str, layer: Any) -> Any:
        return lambda _, inputs: seen.append(Rows(name, layer, layer.attention_rows(inputs[0]).float().cpu()))

    hooks = [layer.register_forward_pre_hook(note(name, layer)) for name, layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _picture(x: Tensor, rows: Tensor, at: tuple[float, float] | None, canvas: int) -> Tensor:
    """uint8 [B 3 S S]: the images with the row of the place ``at`` over them, brightest where it looks most."""
    size = x.shape[-1]
    times = -(-LEAST // size)
    image = x.float().expand(-1, 3, -1, -1).repeat_interleave(times, 2).repeat_interleave(times, 3)
    if at is None:
        return image.to(torch.uint8)
    side = math.isqrt(rows.shape[1])
    up, left = (min(int(share * side), side - 1) for share in at)
    row = rows[:, up * side + left]  # [B K]
    heat = _on_image(row / row.amax(1, keepdim=True).clamp_min(1e-12), canvas, size, times)
    place = torch.zeros(len(x), side * side)
    place[:, up * side + left] = 1.0
    here = _on_image(place, canvas, size, times)
    mixed = 0.35 * image + 0.65 * heat * torch.tensor(HEAT).view(1, 3, 1, 1)
    return (mixed * (1.0 - 0.8 * here) + 0.8 * here * torch.tensor(FROM).view(1, 3, 1, 1)).clamp(0, 255).to(torch.uint8)


def _on_image(values: Tensor, canvas: int, size: int, times: int) -> Tensor:
    """Values of the places of a square map [B K] as they lie over the images: [B 1 S S]. The map is of the canvas, of
    which the image is the middle."""
    side = math.isqrt(values.shape[1])
    whole = F.interpolate(values.view(-1, 1, side, side), size=canvas, mode="nearest")
    before = (canvas - size) // 2
    middle = whole[:, :, before : before + size, before : before + size]
    return middle.repeat_interleave(times, 2).repeat_interleave(times, 3)


def _facts(one: Rows) -> dict[str, Any]:
    p = one.rows.double()
    gamma = getattr(one.layer, "gamma", None)
    return {
        "network": one.name,
        "queries": p.shape[1],
        "keys": p.shape[2],
        "entropy": float(torch.special.entr(p).sum(2).mean()),
        "entropy_of_uniform": math.log(p.shape[2]),
        "largest": float(p.amax(2).mean()),
        "gamma": float("nan") if gamma is None else float(gamma),
    }
