"""How a system's Markov chains mix: states along some of them, and how soon a state is as far from where the chain was
as from another chain."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.study import Found, Study
from gentrain.report.charts import curves
from gentrain.report.strips import stack, strip_block
from gentrain.types import to_bytes

TICKS = 8
"""Lags that are written on the axis, at most."""


def explore(study: Study, path: Path, *, n: int, show: int, length: int, stride: int, start: str) -> Found:
    """``n`` chains of ``length`` states, ``stride`` steps apart; 0: so that the last is a sample's. ``start``: from
    ``noise``, as samples are, or from ``test`` images. ``show``: chains in the picture, a row each."""
    study.require_images("chain")
    stride = stride or max(study.system.steps // length, 1)
    seen = study.look("test", n) if start == "test" else None
    if seen is not None and len(seen) < n:
        raise UserError(f"explore chain: n={n}: the test split has {len(seen)} images")
    generator = torch.Generator(study.device).manual_seed(study.seed)
    first = None if seen is None else seen.x.to(study.device)
    film = study.system.chain(n, length=length, stride=stride, start=first, generator=generator).float().cpu()
    if not bool(film.isfinite().all()):
        raise UserError("explore: samples are nan or inf: the model has diverged; take an earlier checkpoint=")
    frames = to_bytes(film)
    heads = [str(stride * (place + 1)) for place in range(length)]
    if seen is not None:
        frames, heads = torch.cat([seen.x[:, None], frames], dim=1), ["data", *heads]
    far = distances(film)
    lags = [stride * (place + 1) for place in range(length - 1)]
    every = -(-len(lags) // TICKS)
    ticks = [str(lag) if place % every == 0 else "" for place, lag in enumerate(lags)]
    rows = [(f"chain {place + 1}", frames[place]) for place in range(min(show, n))]
    stack(
        [
            (f"states of chains from {start}, after so many steps", strip_block(rows, heads)),
            (
                "",
                curves(
                    {"distance, of that of two chains": {"states of one chain": far}},
                    ticks,
                    across="steps between two states",
                ),
            ),
        ],
        path,
    )
    mixed = next((lag for lag, value in zip(lags, far, strict=True) if value >= 0.9), None)
    result = {
        "protocol": {
            "chains": n, "states": length, "stride": stride, "start": start,
            "relative_distance": "mean square between states of a chain, over that between two chains at one time",
        },
        "lag_steps": lags,
        "relative_distance": far,
        "steps_to_0.9": mixed,
    }  # fmt: skip
    said = "not within them" if mixed is None else f"after {mixed} steps"
    line = f"{n} chains of {stride * length} steps: 0.9 of the distance of two chains is reached {said}"
    return Found(result, [line, f"  {lags[0]} steps: {far[0]:.3f}   {lags[-1]} steps: {far[-1]:.3f}"])


def distances(film: Tensor) -> list[float]:
    """For chains [n T *]: mean square between states 1, 2, ... T-1 places apart, over that between states of two
    different chains at the same place. 1 where a chain has forgotten its past, and all chains see the same states."""
    x = film.double().flatten(2)  # [n T D]
    n = len(x)
    # Mean over pairs of different chains: twice the variance with n - 1 in the denominator.
    apart = float(2.0 * x.var(dim=0, correction=1).mean()) if n > 1 else 0.0
    own = [float((x[:, lag:] - x[:, :-lag]).square().mean()) for lag in range(1, x.shape[1])]
    return [value / apart if apart > 0 else 0.0 for value in own]
