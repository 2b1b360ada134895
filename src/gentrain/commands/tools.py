"""The tools of ``gentrain explore``: what each is for, what it needs, and its keys with their defaults and readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gentrain.commands.words import whole_number
from gentrain.config import nearest
from gentrain.errors import UserError

Reader = Callable[[str, str], Any]


def _count(least: int) -> Reader:
    return lambda text, key: whole_number(text, key, least=least)


def _text(text: str, key: str) -> str:
    return text


def _one_of(*names: str) -> Reader:
    def read(text: str, key: str) -> str:
        if text not in names:
            raise UserError(f"{key}={text}: {', '.join(names)}{nearest(text, names)}")
        return text

    return read


def _real(text: str, key: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{key}={text}: a number is needed") from None
    if not abs(number) < 1e6:
        raise UserError(f"{key}={text}: a finite number below a million is needed")
    return number


def _reals(text: str, key: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(_real(part, key) for part in text.strip("[]").split(",")))


def _above_zero(text: str, key: str) -> float:
    number = _real(text, key)
    if not number > 0:
        raise UserError(f"{key}={text}: above 0")
    return number


def _temperatures(text: str, key: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(_above_zero(part, key) for part in text.strip("[]").split(",")))


def _not_below_zero(text: str, key: str) -> float:
    number = _real(text, key)
    if number < 0:
        raise UserError(f"{key}={text}: 0 or more")
    return number


def _places_of(text: str, key: str) -> tuple[int, ...]:
    return tuple(whole_number(part, key, least=0) for part in text.strip("[]").split(",") if part)


def _edits(text: str, key: str) -> tuple[str, ...]:
    known = ("path", "class", "label", "strokes")
    names = tuple(part for part in text.strip("[]").split(",") if part != "none")
    for name in names:
        if name not in known:
            raise UserError(f"{key}={name}: none, or some of {', '.join(known)}{nearest(name, known)}")
    return names


def _channels(text: str, key: str) -> str:
    return _one_of("1", "3")(text, key) if text else text


@dataclass(frozen=True)
class Tool:
    """``line``: what it is for. ``needs``: sets of capabilities, one of which is enough. ``keys``: default and reader
    of its own keys; ``called``: the names under which those that Python or taste forbids are handed over."""

    line: str
    needs: tuple[frozenset[str], ...]
    keys: Mapping[str, tuple[str, Reader]]
    called: Mapping[str, str]

    def fits(self, can: frozenset[str]) -> bool:
        return any(needed <= can for needed in self.needs)

    def lacks(self, can: frozenset[str]) -> frozenset[str]:
        """What is missing of the set that is nearest to being there."""
        return min((needed - can for needed in self.needs), key=len)


def _tool(line: str, *needs: str, called: Mapping[str, str] | None = None, **keys: tuple[str, Reader]) -> Tool:
    return Tool(line, tuple(frozenset(some.split()) for some in needs), keys, called or {})


TRAIN, TEST = ("10000", _count(2)), ("10000", _count(2))
BOTH, DRAWN = "encode decode", "sample decode"
BY_CLASS = "sample_by_class"
"""What a run can besides ``CAPABILITIES``: its system is asked for samples of a class."""
TOOLS = {
    "probe": _tool(
        "few labels: classifiers on codes, pixels, PCA and an untrained network", "encode",
        per_class=("", _text), labels=("", _text), repeats=("5", _count(1)), k=("5", _count(1)), train=TRAIN, n=TEST,
    ),
    "cluster": _tool(
        "k-means on codes, pixels and PCA against the classes; a model's own clusters", "encode",
        k=("0", _count(0)), repeats=("3", _count(1)), n=TEST,
    ),
    "anomaly": _tool(
        "one class as the anomaly: reconstruction error and likelihood, AUROC", BOTH, "log_likelihood", "free_energy",
        called={"class": "anomaly"}, **{"class": ("", _text)}, n=("2000", _count(2)), train=TRAIN,
    ),
    "latent": _tool(
        "a 2-D map of the codes with their classes, and the decoded plane of 2-D codes", "encode",
        method=("auto", _one_of("auto", "pca", "tsne")), n=("2000", _count(1)), side=("15", _count(2)),
    ),
    "reconstruct": _tool(
        "test images and what comes back: usual ones, the worst, the best", BOTH, n=TEST, show=("8", _count(1)),
    ),
    "interpolate": _tool(
        "from image to image (draw to draw) through the codes, beside the cross-fade of pixels", BOTH, DRAWN,
        pairs=("100", _count(1)), steps=("9", _count(3)), show=("4", _count(1)),
    ),
    "arithmetic": _tool(
        "an attribute's vector added to codes: class to class, or a named attribute", BOTH,
        called={"from": "source", "to": "target"}, **{"from": ("", _text)}, to=("", _text), attribute=("", _text),
        strengths=("0,0.5,1,1.5,2", _reals), n=("500", _count(1)), train=TRAIN, show=("6", _count(1)),
    ),
    "traverse": _tool(
        "one latent dimension at a time, and how active each is; or each meaningful code", BOTH, "decode vary",
        image=("none", _text), dims=("10", _count(1)), order=("activity", _one_of("activity", "index")),
        steps=("9", _count(3)), reach=("3", _above_zero), n=("2000", _count(2)),
    ),
    "truncate": _tool(
        "fidelity against diversity as the latents are kept nearer to 0", "sample truncation",
        at=("0.1,0.3,0.5,0.7,1,1.5,2", _reals), n=("2000", _count(2)), passes=("16", _count(0)), show=("12", _count(1)),
    ),
    "temperature": _tool(
        "samples at several temperatures, of the same noise", "sample temperature",
        at=("0.3,0.5,0.7,0.8,0.9,1", _temperatures), n=("500", _count(2)), show=("10", _count(1)),
    ),
    "attention": _tool(
        "what a place of a feature map looks at, generator and critic", "sample attention", show=("4", _count(1)),
    ),
    "chain": _tool(
        "states along the Markov chains that samples are drawn by, and how soon they forget", "chain",
        n=("100", _count(2)), show=("8", _count(1)), length=("16", _count(2)), stride=("0", _count(0)),
        start=("noise", _one_of("noise", "test")),
    ),
    "classes": _tool(
        "samples of each class, and how many a classifier of the data takes for it", BY_CLASS,
        n=("100", _count(1)), show=("10", _count(1)),
    ),
    "project": _tool(
        "images as the generator makes them: codes by optimisation, by an encoder, by both; edits", BOTH, DRAWN,
        called={"from": "source", "to": "target", "class": "label", "range": "levels"},
        images=("", _places_of), n=("8", _count(1)),
        mode=("cnn_opt", _one_of("opt", "cnn", "cnn_opt")), starts=("4", _count(1)), steps=("100", _count(1)),
        optimizer=("lbfgs", _one_of("lbfgs", "adam")), encoder_steps=("500", _count(1)),
        features=("domain", _text), pixel_weight=("1", _not_below_zero), feature_weight=("1", _not_below_zero),
        pull=("0", _not_below_zero), edit=("none", _edits),
        **{"from": ("", _text)}, to=("", _text), attribute=("", _text), strengths=("0,0.5,1,1.5", _reals),
        train=("500", _count(2)), show=("8", _count(1)),
        pictures=("", _text), resize=("", _text), channels=("", _channels), range=("", _text), **{"class": ("", _text)},
        strokes=("", _text), mask=("", _text), stay=("0.1", _not_below_zero),
    ),
    "complete": _tool(
        "test images of which a part is given, and what the model draws for the rest", "sample complete",
        n=("24", _count(1)), k=("4", _count(1)), share=("0.5", _above_zero), show=("8", _count(1)),
        known=("top", _one_of("top", "bottom", "left", "right", "centre")),
    ),
    "neighbours": _tool(
        "samples beside their nearest training images, in pixels and in features", "sample",
        n=("1000", _count(1)), train=TRAIN, k=("3", _count(1)), show=("5", _count(1)), size=("32", _count(1)),
    ),
}  # fmt: skip
