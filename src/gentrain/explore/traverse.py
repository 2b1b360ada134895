"""One latent dimension at a time: what moves in the picture, and which dimensions carry anything."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.study import BATCH, Found, Seen, Study
from gentrain.report.strips import Row, stack, strip_block

SAMPLES = 5
"""Rows for each code of a system that says which of its numbers mean something."""
ACTIVE = 0.01
"""Variance over images of a code's mean above which a dimension is active (Burda et al. 2016, arXiv 1509.00519)."""
PRIOR_DRAWS = 10_000


def explore(study: Study, path: Path, *, image: str, dims: int, steps: int, reach: float, n: int, order: str) -> Found:
    """``image``: place in the test split to move around; ``none``: 0 where the codes have a prior, else
    their mean. ``dims``: the most active dimensions, so many; ``order``: by activity, or by index. ``reach``: from
    -reach to +reach spreads, in ``steps``; a spread is the prior's standard deviation, or that of the codes where there
    is no prior. ``n``: test images that the activity is measured on. Of a system that says itself which numbers mean
    something (capability ``vary``), those, all categories of one that is a choice; ``image``, ``order`` and ``n`` then
    have no meaning."""
    study.require_images("traverse")
    if study.can("vary"):
        return _explore_meant(study, path, dims=dims, steps=steps, reach=reach)
    seen = study.look("test", n)
    codes = study.encode(seen.x)
    variance = codes.double().var(0, unbiased=False)  # [Z]
    kl = latent_kl(study, seen, codes.shape[1])
    ranked = (variance if kl is None else kl).argsort(descending=True, stable=True)
    chosen = ranked[:dims]
    chosen = chosen.sort().values if order == "index" else chosen
    draws = study.prior_codes(PRIOR_DRAWS)
    spread = (codes if draws is None else draws).double().std(0).float()
    centre, around = _centre(study, image, codes, draws)
    offsets = torch.linspace(-reach, reach, steps)
    z = centre.repeat(len(chosen), steps, 1)  # [dims T Z]
    for row, dim in enumerate(chosen.tolist()):
        z[row, :, dim] += offsets * spread[dim]
    images = torch.unflatten(study.decode(z.flatten(0, 1)), 0, (len(chosen), steps))
    rows: list[Row] = [(_words(int(dim), variance, kl), images[row]) for row, dim in enumerate(chosen)]
    heads = [f"{float(offset):+.3g}" for offset in offsets]
    stack([(f"in spreads around {around}", strip_block(rows, heads))], path)
    active = int((variance > ACTIVE).sum())
    result = {
        "protocol": {
            "images": len(seen), "split": "test", "around": around, "offsets": offsets.tolist(),
            "spread": "prior" if draws is not None else "codes", "shown": chosen.tolist(),
            "ranked_by": "kl_nats" if kl is not None else "code_variance",
        },
        "code_variance": variance.tolist(),
        "kl_nats": None if kl is None else kl.tolist(),
        "spread": spread.tolist(),
        "active": active,
        "ranked": ranked.tolist(),
        "change": images.double().diff(dim=1).square().flatten(2).mean(2).sqrt().sum(1).div(255).tolist(),
    }  # fmt: skip
    lines = [f"{active} of {codes.shape[1]} dimensions are active (variance of the code above {ACTIVE})"]
    if kl is not None:
        lines.append(f"  KL {float(kl.sum()):.2f} nats in all, {float(kl[ranked[0]]):.2f} in z{int(ranked[0])}")
    return Found(result, lines)


def _explore_meant(study: Study, path: Path, *, dims: int, steps: int, reach: float) -> Found:
    """The first ``dims`` codes of a system without an encoder: a few random samples along each."""
    generator = torch.Generator(study.device).manual_seed(study.seed)
    codes = list(study.system.vary(SAMPLES, steps=steps, reach=reach, generator=generator))[:dims]
    labels = study.draw_classes(SAMPLES) if study.told_classes else None
    blocks, change = [], {}
    for code in codes:
        each = None if labels is None else labels.repeat_interleave(code.z.shape[1])
        images = torch.unflatten(study.decode(code.z.flatten(0, 1).cpu(), each), 0, code.z.shape[:2])  # [n T C H W]
        rows: list[Row] = [(f"sample {row}", images[row]) for row in range(len(images))]
        blocks.append((code.name, strip_block(rows, list(code.words))))
        steps_of = images.double().diff(dim=1).square().flatten(2).mean(2).sqrt()  # [n T-1]
        change[code.name] = float(steps_of.mean()) / 255
    stack(blocks, path)
    values = {code.name: list(code.words) for code in codes}
    result = {"protocol": {"samples": SAMPLES, "values": values, "reach": reach}, "change": change}
    lines = [
        f"  {name:<12} RMS change of a pixel from one value to the next {value:.3f}" for name, value in change.items()
    ]
    return Found(result, [f"{len(codes)} codes, each along {SAMPLES} samples", *lines])


def latent_kl(study: Study, seen: Seen, dimensions: int) -> Tensor | None:
    """float64 [Z]: KL of each dimension of the code from the prior, mean over the images, in nats; None where the
    system gives none, or not for each dimension."""
    if not hasattr(study.system, "latent_kl"):
        return None
    parts = []
    for x in torch.split(seen.x, BATCH):
        nats = study.system.latent_kl(x.to(study.device))
        if nats is None:
            return None
        parts.append(nats.double().cpu() * len(x))
    kl = torch.stack(parts).sum(0) / len(seen)
    return kl if kl.shape == (dimensions,) else None


def _centre(study: Study, image: str, codes: Tensor, draws: Tensor | None) -> tuple[Tensor, str]:
    """A code and its name; ``draws``: of the prior, where there is one."""
    if image == "none":
        if draws is None:
            return codes.mean(0), "the mean code"
        middle, error = draws.mean(0), draws.std(0) / len(draws) ** 0.5
        if bool((middle.abs() < 5.0 * error).all()):
            return torch.zeros(codes.shape[1]), "0"
        return middle, "the mean of the prior"
    if not image.isdecimal() or int(image) >= len(study.data.test):
        raise UserError(f"image={image}: a place in the test split, 0 to {len(study.data.test) - 1}, or none")
    return study.encode(study.at("test", torch.tensor([int(image)])).x)[0], f"test image {int(image)}"


def _words(dim: int, variance: Tensor, kl: Tensor | None) -> str:
    return f"z{dim}  {float(variance[dim]):.2g}" if kl is None else f"z{dim}  {float(kl[dim]):.2g} nats"
