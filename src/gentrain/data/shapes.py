"""Made images whose factors are all known: shape, colour, size, position and angle of flat objects on black.

Every byte follows from the parameters by whole-number arithmetic (``data/raster.py``) and by a hash of (seed, split,
row): the same on any machine, in any order of reading. Images are drawn when they are first asked for and kept, up to
a bound. The split carries what is known beside the pixels as ``Split.truth`` (``data/scenes.py``): factors, masks,
captions and clips of moving objects.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gentrain.data.dataset import DataSet, Split, content_hash
from gentrain.data.decode import one_of
from gentrain.data.order import hashed
from gentrain.data.raster import SHAPES, UNIT
from gentrain.data.scenes import FACTORS, PALETTES, Look, Scenes, below, random_bits
from gentrain.errors import UserError
from gentrain.types import Spec

VERSION = 1
"""Of the rules that make the bytes: raise it with any change of them."""

INTRINSIC = "intrinsic"
"""Stands for all factors that ``vary`` does not name, together (Kulkarni et al. 2015, arXiv 1503.03167, section 3)."""

SIDES, SIZES, ROWS = (8, 512), (0.05, 0.4), (1, 1 << 31)
"""What ``size``, ``smallest`` and ``largest``, and the number of rows may be."""


def shapes(
    size: int = 32,
    channels: int = 3,
    objects: int = 1,
    smallest: float = 0.15,
    largest: float = 0.3,
    vary: Mapping[str, int] | None = None,
    group: int = 16,
    train_size: int = 50_000,
    test_size: int = 10_000,
    in_memory_bytes: int = 1 << 30,
    seed: int = 0,
) -> DataSet:
    """Images [C S S] of 1 to ``objects`` shapes, no two factors of which depend on each other.

    Labels are the shape, or with several objects which shapes there are (attributes). ``smallest``, ``largest``: range
    of sizes in parts of the image's side. ``vary``: the training split comes in groups of ``group`` rows, in each of
    which one factor varies and all others stand still; so many groups in each round have this factor
    (``{size: 1, x: 1, intrinsic: 3}``); ``intrinsic`` is all factors that are not named. Rows of the test split always
    stand alone. Raises UserError for values that are not on offer.
    """
    one_of("data.channels", channels, tuple(PALETTES))
    for key, value, low, high in (
        ("size", size, *SIDES), ("objects", objects, 1, 8), ("group", group, 2, 4096),
        ("smallest", smallest, *SIZES), ("largest", largest, *SIZES),
        ("train_size", train_size, *ROWS), ("test_size", test_size, *ROWS),
    ):  # fmt: skip
        if not low <= value <= high:
            raise UserError(f"data.{key}={value}: {low} to {high}")
    if smallest >= largest:
        raise UserError(f"data.smallest={smallest}: less than data.largest={largest} is needed")
    if in_memory_bytes < 0:
        raise UserError(f"data.in_memory_bytes={in_memory_bytes}: 0 (draw an image each time) or more")
    look = Look(size, channels, objects, round(smallest * UNIT), round(largest * UNIT))
    names = () if vary is None else _rounds(vary, objects)
    width = group if names else 1
    if train_size % width:
        raise UserError(f"data.train_size={train_size}: with data.vary a multiple of data.group={group} is needed")
    varying = tuple(_columns(name, names) for name in names)
    train = _scenes(look, hashed("shapes", "train", seed), train_size, in_memory_bytes, varying, width)
    test = _scenes(look, hashed("shapes", "test", seed), test_size, in_memory_bytes, (), 1)
    known = tuple(dict.fromkeys(names))
    spec = Spec(
        (channels, size, size),
        class_names=SHAPES if objects == 1 else (),
        attribute_names=() if objects == 1 else SHAPES,
        varied_names=known,
    )
    varied = None
    if names:
        varied = torch.tensor([known.index(name) for name in names])[torch.arange(train_size) // width % len(names)]
    of_train = Split(train, _labels(train), truth=train, group=width, varied=varied)
    of_test = Split(test, _labels(test), truth=test)
    return DataSet("shapes", spec, of_train, of_test, _fingerprint(look, train, test, varied, width))


def _rounds(vary: Mapping[str, int], objects: int) -> tuple[str, ...]:
    """What varies in each group of a round: a a b c for {a: 2, b: 1, c: 1}."""
    if objects > 1:
        raise UserError(f"data.vary: factors of one object vary, and data.objects={objects}: use data.objects=1")
    if not vary:
        raise UserError(f"data.vary: name a factor ({', '.join(FACTORS)}, {INTRINSIC}), or null for none")
    for name, count in vary.items():
        one_of("data.vary: the factor", name, (*FACTORS, INTRINSIC))
        if not 1 <= count <= 1000:
            raise UserError(f"data.vary.{name}={count}: groups in each round, 1 to 1000")
    if INTRINSIC in vary and len(vary) > len(FACTORS):
        raise UserError(f"data.vary: all factors are named, {INTRINSIC} stands for none: leave it out")
    return tuple(name for name, count in vary.items() for _ in range(count))


def _columns(name: str, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(c for c, factor in enumerate(FACTORS) if factor == name or (name == INTRINSIC and factor not in names))


def _scenes(
    look: Look, key: int, rows: int, kept_bytes: int, varying: tuple[tuple[int, ...], ...], group: int
) -> Scenes:
    """``varying``: the columns that vary in each group of a round; the others are drawn once for each group."""
    row, thing = np.arange(rows, dtype=np.uint64), np.arange(look.objects, dtype=np.uint64)
    first = row - row % np.uint64(group)
    table = np.empty((rows, look.objects, len(FACTORS)), dtype=np.int32)
    for column, (count, low) in enumerate(zip(look.counts, look.lowest, strict=True)):
        free = np.array([column in columns for columns in varying] or [False])
        source = np.where(free[(row // np.uint64(group)).astype(np.int64) % len(free)], row, first)
        table[..., column] = low + below(count, random_bits(key, source[:, None], thing, column))
    present = 1 + below(look.objects, random_bits(key, row, 50))
    return Scenes(look, key, table, present, kept_bytes)


def _labels(scenes: Scenes) -> Tensor:
    """int64 [N] of one object; uint8 [N K] of several, 1 for the shapes that are there."""
    kinds = scenes.table[..., 0]
    if scenes.look.objects == 1:
        return torch.from_numpy(kinds[:, 0].astype(np.int64))
    there = np.arange(scenes.look.objects) < scenes.present[:, None]
    return torch.from_numpy(((kinds[..., None] == np.arange(len(SHAPES))) & there[..., None]).any(1).astype(np.uint8))


def _fingerprint(look: Look, train: Scenes, test: Scenes, varied: Tensor | None, group: int) -> str:
    """Of all factors and of the first images: what was drawn with them differs where either does."""
    parts: list[Tensor | str | None] = [repr((VERSION, look, group)), varied]
    for scenes in (train, test):
        some = torch.arange(min(len(scenes), 16))
        parts += [torch.from_numpy(scenes.table), torch.from_numpy(scenes.present), str(scenes.key), scenes.take(some)]
    return content_hash(parts)
