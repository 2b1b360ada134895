"""Real images as the generator makes them: which codes give the images that are nearest to them?

Zhu et al. 2016 (iGAN), "Generative Visual Manipulation on the Natural Image Manifold", arXiv 1609.03552, section 3.1;
with the features of an embedding in the pixels' place (``pixel_weight=0``) and the class changed (``edit=label``) it is
the face ageing of Antipov et al. 2017, arXiv 1702.01983. The mathematics is in ``inversion``, the edits are in
``edits``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentrain.data.dataset import spread
from gentrain.errors import UserError
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.perceptual import VGG19, DomainFeatures
from gentrain.explore import edits
from gentrain.explore.arithmetic import change_of, some_of
from gentrain.explore.inversion import Code, Inversion, Likeness, trained_inverse
from gentrain.explore.own import Own
from gentrain.explore.strokes import Strokes
from gentrain.explore.study import Found, Seen, Study, mean_square
from gentrain.report.strips import Row, stack, strip_block
from gentrain.types import to_signed

DRAWS, REFERENCE = 2000, 500
"""Draws of the prior that its spread is measured on, and training images that errors are scaled by."""


@dataclass(frozen=True, eq=False)
class Projected:
    """Codes [N Z] and images uint8 [N C H W] of one way, and how long it took."""

    codes: Tensor
    images: Tensor
    seconds: float


def explore(
    study: Study, path: Path, *,
    images: tuple[int, ...], n: int, mode: str, starts: int, steps: int, optimizer: str, encoder_steps: int,
    features: str, pixel_weight: float, feature_weight: float, pull: float,
    edit: tuple[str, ...], source: str, target: str, attribute: str, strengths: tuple[float, ...], train: int,
    show: int, pictures: str = "", resize: str = "", channels: str = "", levels: str = "", label: str = "",
    strokes: str = "", mask: str = "", stay: float = 0.1,
) -> Found:  # fmt: skip
    """``images``: places in the test split; without any ``n`` spread over it (with ``edit=class`` over those that lack
    what is added). ``pictures``: a file or folder in their place, ``resize`` to ``label`` as ``Own`` has them. All
    three ways are gone; ``mode``: the one whose codes are edited. ``starts``: draws of the prior
    that the optimisation sets out from, ``steps`` from each, ``encoder_steps``: of the encoder's training, for a system
    that has none. ``features``: ``domain``, ``vgg19``, a domain extractor's file, or ``none``. ``pull``: see
    ``Inversion``. ``edit``: ``path`` between neighbours, ``class`` by the vector from ``source`` to ``target`` (or of
    ``attribute``) from ``train`` images of each, ``label`` asks for every class, ``strokes`` changes what is under
    a brush, see ``Strokes``. ``show``: images in the picture."""
    study.require_images("project")
    if pixel_weight == 0 and (feature_weight == 0 or features == "none"):
        raise UserError("explore project: pixel_weight=0 and no features leave nothing to compare images by")
    if (strokes or mask) and "strokes" not in edit:
        raise UserError("explore project: strokes= and mask= are of edit=strokes, which is missing")
    brush = Strokes.read(study, strokes, mask, resize, stay) if "strokes" in edit else None
    wants = edits.Wanted(edit, source, target, attribute, strengths, train, brush)
    edits.refuse(study, wants)
    own = Own(pictures, resize, channels, levels, label)
    seen, read = _chosen(study, images, n, wants, own)
    labels = seen.y if study.told_classes else None
    net, extractor = _features(study, features)
    centre, sd, drawn = _codes_of(study, starts)
    reference = to_device(study, study.look("train", REFERENCE).x)
    likeness = Likeness.fit(net, reference, pixel_weight, feature_weight)
    inversion = Inversion(study, likeness, centre, sd, steps, pull, optimizer)
    began = time.perf_counter()
    encoder: Code = study.encode if study.can("encode") else trained_inverse(inversion, encoder_steps)
    taught = time.perf_counter() - began
    ways = _ways(inversion, encoder, seen, labels, drawn)
    measured = {name: _measured(inversion, seen, way) for name, way in ways.items()}
    rows: list[Row] = [("image", seen.x[:show])]
    rows += [(f"{name} {measured[name]['error']:.4f}", way.images[:show]) for name, way in ways.items()]
    blocks = [("", strip_block(rows, [f"{int(i)}" for i in seen.index[:show]]))]
    edited, more = edits.made(inversion, wants, seen, labels, ways[mode].codes, encoder, show)
    stack([*blocks, *more], path)
    result = {
        "protocol": {
            "images": len(seen), **read, "starts": starts, "steps": steps, "optimizer": optimizer,
            "encoder": "the system's own" if study.can("encode") else f"trained for {encoder_steps} steps",
            "features": extractor, "pixel_weight": pixel_weight, "feature_weight": feature_weight, "pull": pull,
            "error": "mean squared error per pixel, images in [0, 1], both of 256 levels",
            "feature_error": "mean squared difference of feature maps over that of two training images",
        },
        "measured": measured,
        "seconds": {"encoder": taught, **{name: way.seconds for name, way in ways.items()}},
        "edits": edited,
        "index": seen.index.tolist(),
        "classes": study.names(seen.y) if seen.y is not None and seen.y.ndim == 1 and study.data.spec.classes else None,
    }  # fmt: skip
    return Found(result, _lines(measured, ways, taught, f"{len(seen)} {'pictures' if pictures else 'test images'}"))


def to_device(study: Study, x: Tensor) -> Tensor:
    return x.to(study.device)


def _chosen(
    study: Study, images: tuple[int, ...], n: int, wants: edits.Wanted, own: Own
) -> tuple[Seen, dict[str, Any]]:
    """What is projected, and where it comes from."""
    if not own.place:
        said = {"resize": own.resize and not wants.strokes, "channels": own.channels, "range": own.levels,
                "class": own.label}  # fmt: skip
        for key in [key for key, value in said.items() if value][:1]:
            raise UserError(f"explore project: {key}= is about pictures=FOLDER, which is missing")
        return study.at("test", _places(study, images, n, wants)), {"split": "test"}
    if images:
        raise UserError(f"explore project: images= and pictures={own.place}: one of the two")
    seen, facts = own.seen(study, n)
    return seen, {"pictures": facts}


def _places(study: Study, images: tuple[int, ...], n: int, wants: edits.Wanted) -> Tensor:
    """int64 [N] in the test split."""
    total = len(study.data.test)
    for place in images:
        if place >= total:
            raise UserError(f"images={place}: a place in the test split, 0 to {total - 1}")
    if images:
        return torch.tensor(images)
    if "class" in wants.edit:
        change = change_of(study, wants.source, wants.target, wants.attribute)
        return some_of(change.without[1], n, "without it, to change")
    return spread(total, n)


def _features(study: Study, name: str) -> tuple[nn.Module | None, dict[str, str] | None]:
    """The network that images are compared by besides their pixels, and which it is."""
    if name == "none":
        return None, None
    if name == "vgg19":
        frozen = VGG19(layers=("relu1_1", "relu2_1")).build(study.data.spec)
    elif name == "domain":
        try:
            found: str | None = str(Domain().path(study.data))
        except UserError:
            found = None  # that of other data, nearest in size
        frozen = DomainFeatures(found).build(study.data.spec)
    else:
        if not Path(name).expanduser().is_file():
            raise UserError(f"features={name}: domain, vgg19, none, or the .safetensors file of a domain extractor")
        frozen = DomainFeatures(name).build(study.data.spec)
    return frozen.to(study.device), {"name": frozen.name, "sha256": frozen.sha256}


def _codes_of(study: Study, starts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and spread of codes [Z], and ``starts`` of them [S Z]: of the prior, or of training images without one."""
    codes = study.prior_codes(DRAWS)
    if codes is None:
        if not study.can("encode"):
            raise UserError("explore project: the system has neither an encoder nor a prior to draw codes from")
        codes = study.encode(study.look("train", DRAWS).x)
    return codes.mean(0), codes.std(0).clamp_min(1e-6), codes[spread(len(codes), starts)]


def _ways(
    inversion: Inversion, encoder: Code, seen: Seen, labels: Tensor | None, drawn: Tensor
) -> dict[str, Projected]:
    said = encoder(seen.x)

    def timed(how: Any) -> Projected:
        began = time.perf_counter()
        codes = how()
        seconds = time.perf_counter() - began
        return Projected(codes, inversion.study.decode(codes, labels), seconds)

    return {
        "opt": timed(lambda: inversion.opt(seen.x, labels, drawn)),
        "cnn": timed(lambda: encoder(seen.x)),
        "cnn_opt": timed(lambda: inversion.refined(seen.x, labels, said)),
    }


def _measured(inversion: Inversion, seen: Seen, way: Projected) -> dict[str, Any]:
    errors = mean_square(seen.x, way.images)
    standard = (way.codes - inversion.centre) / inversion.spread
    found: dict[str, Any] = {
        "error": float(errors.mean()),
        "errors": errors.tolist(),
        "code_in_spreads": float(standard.square().mean().sqrt()),
    }
    likeness = inversion.likeness
    if likeness.net is None:
        return found
    with torch.no_grad():
        back, x = (
            [part.cpu() for part in likeness.maps(to_signed(to_device(inversion.study, images)))]
            for images in (way.images, seen.x)
        )
    table = torch.stack(
        [
            torch.cdist(a.flatten(1).double(), b.flatten(1).double()).square() / a[0].numel() / scale
            for a, b, scale in zip(back[1:], x[1:], likeness.scales[1:], strict=True)
        ]
    ).mean(0)  # [N N]: of reconstructions (rows) and images
    found["feature_error"] = float(table.diagonal().mean())
    # The features take the reconstruction for its own image rather than for one of the others.
    found["found_again"] = float((table.argmin(1) == torch.arange(len(table))).double().mean())
    return found


def _lines(measured: dict[str, Any], ways: dict[str, Projected], taught: float, what: str) -> list[str]:
    lines = [f"{what}; {taught:.1f} s for the encoder"]
    for name, of in measured.items():
        features = f", features {of['feature_error']:.4f}" if "feature_error" in of else ""
        lines.append(f"  {name:<8} mean squared error {of['error']:.5f}{features}, {ways[name].seconds:.1f} s")
    return lines
