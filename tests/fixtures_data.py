"""Makers of small files in the exact layouts of the published data sets."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gentrain.errors import UserError

Bytes = NDArray[np.uint8]

CIFAR_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
ATTRIBUTES = tuple(f"Attribute_{number}" for number in range(40))


def refused(call: Callable[[], object], *fragments: str) -> None:
    """The call ends in a one-line UserError that holds all fragments."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: Bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def idx_bytes(array: Bytes) -> bytes:
    return struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_set(folder: Path, train: int = 30, test: int = 10, *, packed: bool = True, side: int = 28) -> dict[str, Bytes]:
    """The four files of MNIST; returns their content by the part of the name before the dash."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for seed, (part, n) in enumerate((("train", train), ("t10k", test))):
        content[f"{part}-images-idx3-ubyte"] = noise(n, side, side, seed=seed)
        content[f"{part}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in content.items():
        blob = idx_bytes(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(blob) if packed else blob)
    return content


def cifar_batches(n: int = 4) -> dict[str, tuple[Bytes, Bytes]]:
    """Pixels [n 3072] (red plane, green, blue) and labels [n] by file name."""
    return {name: (noise(n, 3072, seed=seed), noise(n, seed=seed) % 10) for seed, name in enumerate(CIFAR_NAMES)}


def cifar_binary(batches: dict[str, tuple[Bytes, Bytes]]) -> dict[str, bytes]:
    return {
        f"cifar-10-batches-bin/{name}.bin": np.concatenate((y[:, None], x), axis=1).tobytes()
        for name, (x, y) in batches.items()
    }


def cifar_python(batches: dict[str, tuple[Bytes, Bytes]]) -> dict[str, bytes]:
    return {
        f"cifar-10-batches-py/{name}": pickle.dumps({"data": x, "labels": y.tolist()}, protocol=2)
        for name, (x, y) in batches.items()
    }


def unpack(files: dict[str, bytes], folder: Path) -> None:
    for name, blob in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blob)


def pack(files: dict[str, bytes], path: Path) -> str:
    """A .tar.gz; returns its md5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, blob in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def celeba_set(home: Path, parts: tuple[int, ...] = (0, 0, 0, 0, 1, 2, 2), *, zipped: bool = False) -> Bytes:
    """Images and lists; returns the attributes [N 40] as 0 and 1."""
    names = [f"{number:06d}.jpg" for number in range(1, len(parts) + 1)]
    attributes = noise(len(parts), 40) % 2
    for number, name in enumerate(names):
        save(home / "img_align_celeba" / name, noise(218, 178, 3, seed=number))
    rows = [
        f"{name} " + " ".join("1" if bit else "-1" for bit in row) for name, row in zip(names, attributes, strict=True)
    ]
    (home / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), " ".join(ATTRIBUTES), *rows]) + "\n")
    lines = [f"{name} {part}" for name, part in zip(names, parts, strict=True)]
    (home / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    if zipped:
        with zipfile.ZipFile(home / "img_align_celeba.zip", "w") as archive:
            for name in names:
                path = home / "img_align_celeba" / name
                archive.write(path, f"img_align_celeba/{name}")
                path.unlink()
        (home / "img_align_celeba").rmdir()
    return attributes


def deep_png(values: NDArray[np.uint16], colour_type: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of [H W C]; ``extra`` are chunks that stand before the pixels (see ``png_chunk``)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
