"""Rounded latents to bytes and back: integer frequency tables, a range coder, and a file of several pictures.

The coder is that of the ``constriction`` library (Bamler 2022, arXiv 2201.01741), an extra: gentrain[compress]. What it
is given are whole numbers, made once from the density in float64, so that writer and reader code by the same table; a
digest of the tables and of the weights stands in the file, and another machine's or another run's is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gentrain.errors import UserError

MAGIC, VERSION = b"GTC", 1
TOTAL = 1 << 20
"""What the frequencies of a table sum to."""
TAIL = 1e-6
"""Of the density's mass that a table leaves to its escape, on each side."""
WIDEST = 2048
"""Symbols on each side of the median, at most."""
FARTHEST = 1 << 20
"""Of any symbol from the median: what lies farther is brought here."""
GRAIN = 1024
"""Medians are whole multiples of 1 / GRAIN, so that a sum with a symbol has no rounding, and machines agree on them."""
WORD = 4
"""The coder writes words of so many bytes."""


@torch.no_grad()
def medians(logits: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> Tensor:
    """Where the cumulative of each channel is 1/2, float64 [M], by bisection to 1 / GRAIN. ``logits``: of the
    cumulative, rising, [M 1] for [M 1]."""
    low = torch.full((channels, 1), -1.0, dtype=torch.float64, device=device)
    high = -low
    for _ in range(20):  # a density may begin anywhere
        low = torch.where(logits(low) > 0, 2.0 * low, low)
        high = torch.where(logits(high) < 0, 2.0 * high, high)
    for _ in range(36):
        middle = 0.5 * (low + high)
        above = logits(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (0.5 * (low + high)[:, 0] * GRAIN).round() / GRAIN


@torch.no_grad()
def tables(bits: Callable[[Tensor], Tensor], centres: Tensor) -> Tables:
    """Frequencies of the symbols about ``centres`` float64 [M]. ``bits``: -log2 p of latents [1 M 1 N]."""
    reach = 8
    while True:
        steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
        p = torch.exp2(-bits((centres[:, None] + steps)[None, :, None]))[0, :, 0]  # [M N]
        outside = 1.0 - p.sum(1)
        if reach >= WIDEST or float(outside.max()) < TAIL:
            break
        reach *= 2
    lows, counts = [], []
    for row in p.numpy():
        kept = np.flatnonzero(row >= 1.0 / TOTAL)
        first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (reach, reach)
        inside = row[first : last + 1]
        lows.append(first - reach)
        counts.append(frequencies(np.append(inside, max(1.0 - float(inside.sum()), 0.0))))
    return Tables(tuple(lows), tuple(counts), centres)


def frequencies(p: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Whole numbers of at least 1 that sum to TOTAL, in proportion to ``p`` [N] as near as that allows."""
    counts: npt.NDArray[np.int64] = 1 + np.floor(p / p.sum() * (TOTAL - len(p))).astype(np.int64)
    counts[int(counts.argmax())] += TOTAL - int(counts.sum())
    return counts


@dataclass(frozen=True, eq=False)
class Tables:
    """``lows``: the first symbol of each channel's table. ``counts``: frequency of each symbol from there on, and of
    the escape, which stands for all others and is followed by them in full. ``centres``: medians [M]."""

    lows: tuple[int, ...]
    counts: tuple[npt.NDArray[np.int64], ...]
    centres: Tensor

    @property
    def digest(self) -> bytes:
        digest = hashlib.sha256(np.asarray(self.lows, dtype="<i8").tobytes())
        digest.update(self.centres.numpy().astype("<f8").tobytes())
        for some in self.counts:
            digest.update(some.astype("<i8").tobytes() + b"/")
        return digest.digest()

    @cached_property
    def _models(self) -> list[Any]:
        categorical = library().stream.model.Categorical
        return [categorical((some / TOTAL).astype(np.float32), perfect=False) for some in self.counts]  # exact: 20 bits

    def encode(self, symbols: npt.NDArray[np.int64]) -> bytes:
        """[M N] to bytes."""
        stream = library().stream
        coder, half = stream.queue.RangeEncoder(), stream.model.Uniform(1 << 16)
        for row, low, counts, model in zip(symbols, self.lows, self.counts, self._models, strict=True):
            escape = len(counts) - 1
            place = row - low
            outside = (place < 0) | (place >= escape)
            coder.encode(np.where(outside, escape, place).astype(np.int32), model)
            if outside.any():
                whole = row[outside] + (1 << 31)
                coder.encode(np.stack([whole >> 16, whole & 0xFFFF], 1).ravel().astype(np.int32), half)
        return bytes(coder.get_compressed().astype("<u4").tobytes())

    def decode(self, stream: bytes, n: int) -> npt.NDArray[np.int64]:
        """int64 [M n]. UserError for bytes that are no code of these tables, where it shows."""
        if len(stream) % WORD:
            raise UserError(f"compressed picture of {len(stream)} bytes: words of {WORD} are due; it is damaged")
        library_stream = library().stream
        coder = library_stream.queue.RangeDecoder(np.frombuffer(stream, dtype="<u4").astype(np.uint32))
        half = library_stream.model.Uniform(1 << 16)
        rows = []
        try:
            for low, counts, model in zip(self.lows, self.counts, self._models, strict=True):
                place = coder.decode(model, n).astype(np.int64)
                outside = place == len(counts) - 1
                row = place + low
                if outside.any():
                    pairs = coder.decode(half, 2 * int(outside.sum())).astype(np.int64).reshape(-1, 2)
                    row[outside] = (pairs[:, 0] << 16) + pairs[:, 1] - (1 << 31)
                rows.append(row)
        except (AssertionError, ValueError) as error:  # how the library says that the data fit no symbol
            raise UserError(f"compressed picture of {len(stream)} bytes: damaged, or of other weights") from error
        found = np.stack(rows)
        if np.abs(found).max() > FARTHEST:
            raise UserError(f"compressed picture of {len(stream)} bytes: damaged, or of other weights")
        return found


def library() -> Any:
    """``constriction``. UserError where it is not installed."""
    try:
        return importlib.import_module("constriction")
    except ModuleNotFoundError:
        raise UserError(
            "compress: the range coder is missing (estimated rates need none): pip install 'gentrain[compress]'"
        ) from None


def has_library() -> bool:
    return importlib.util.find_spec("constriction") is not None


# ---------------------------------------------------------------- a file of several pictures

HEAD = struct.Struct("<3sB8sBHHI")
"""Magic, version, fingerprint, C, H, W, number of pictures; then their lengths in words, their codes, and a CRC-32."""


def pack(streams: Sequence[bytes], shape: tuple[int, ...], fingerprint: bytes) -> bytes:
    """One file. ``shape``: [C H W] of each picture."""
    body = HEAD.pack(MAGIC, VERSION, fingerprint, *shape, len(streams))
    body += b"".join(_number(len(stream) // WORD) for stream in streams) + b"".join(streams)
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(blob: bytes, where: str, shape: tuple[int, ...], fingerprint: bytes) -> list[bytes]:
    """The codes in a file. UserError that begins with ``where`` for one that is foreign, damaged, or of other weights
    or another shape."""
    if not blob.startswith(MAGIC) or len(blob) < HEAD.size + 4:
        raise UserError(f"{where}: not a file that gentrain compress has written")
    _, version, theirs, *found, count = HEAD.unpack_from(blob)
    if version != VERSION:
        raise UserError(f"{where}: format {version}, and this gentrain reads {VERSION}")
    if zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise UserError(f"{where}: damaged (its checksum does not fit); copy it again from where it came from")
    if tuple(found) != tuple(shape) or theirs != fingerprint:
        raise UserError(
            f"{where}: written with other weights ({'x'.join(map(str, found))}, {theirs.hex()}; these are "
            f"{'x'.join(map(str, shape))}, {fingerprint.hex()}): name the run=, checkpoint= and weights= that wrote it"
        )
    place, lengths = HEAD.size, list[int]()
    while len(lengths) < count and place < len(blob) - 4:
        length, place = _read_number(blob, place)
        lengths.append(length * WORD)
    if len(lengths) < count or place + sum(lengths) != len(blob) - 4:
        raise UserError(f"{where}: damaged (its lengths do not add up); copy it again from where it came from")
    ends = np.cumsum([place, *lengths]).tolist()
    return [blob[start:end] for start, end in pairwise(ends)]


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F)
    return bytes([part | 0x80 for part in parts[:-1]] + parts[-1:])


def _read_number(blob: bytes, place: int) -> tuple[int, int]:
    """(number, place behind it)."""
    value = shift = 0
    while True:
        byte = blob[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or place >= len(blob):
            return value, place
        shift += 7
