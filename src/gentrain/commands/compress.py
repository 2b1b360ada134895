"""``gentrain compress run=DIR image=FILE|FOLDER out=FILE``: pictures to one small file, by a trained compressor.

The pictures must have the size and channels that the run was trained on; ``resize=crop`` (or ``stretch``) and
``channels=1`` (or 3) convert them. A folder's pictures go into one file in their reading order, without their names.
Bits per pixel are printed as the density estimates them, as coded, and of the whole file with its head of 25 bytes and
a byte or two for each picture; PSNR is that of the pixels that ``gentrain decompress`` gives back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gentrain.commands.words import options, yes
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from gentrain.engine.system import System

OF_RUN = {"checkpoint": "last", "weights": "ema", "device": "auto", "trust": "false"}
KEYS = {"run": None, "image": None, "out": None, "resize": "", "channels": ""} | OF_RUN
BATCH = 250


def run(arguments: Sequence[str]) -> int:
    given = options(arguments, KEYS, "compress")
    folder, out = RunFolder.open(Path(given["run"])), Path(given["out"])
    if out.is_dir():
        raise UserError(f"out={out}: a folder; name the file to write")
    import torch

    from gentrain.coding import pack
    from gentrain.engine.sampling import at_rest
    from gentrain.evaluation.rate_distortion import psnr
    from gentrain.report.canvas import write_atomically
    from gentrain.types import to_bytes

    system = compressor(folder, given)
    x = pictures(Path(given["image"]), given["resize"], given["channels"], system.spec.shape)
    streams, bits, quality = list[bytes](), 0.0, list["Tensor"]()
    with at_rest(system, given["weights"]):
        for some in torch.split(x, BATCH):
            moved = some.to(system.device)
            streams += system.compress(moved)  # type: ignore[operator]
            bits += float(system.code_bits(moved).sum())  # type: ignore[operator]
            back = to_bytes(system.reconstruct(moved)).cpu()  # type: ignore[operator]
            quality.append(psnr(some, back))
        blob = pack(streams, system.spec.shape, system.fingerprint())  # type: ignore[operator]
    write_atomically(out, blob)
    pixels = len(x) * x.shape[2] * x.shape[3]
    coded = 8 * sum(map(len, streams))
    print(
        f"{len(x)} pictures, {len(blob)} bytes: {out}\n"
        f"bits/pixel: {bits / pixels:.4f} estimated, {coded / pixels:.4f} coded, "
        f"{8 * len(blob) / pixels:.4f} of the file\n"
        f"psnr: {float(torch.cat(quality).mean()):.2f} dB"
    )
    return OK


def compressor(folder: RunFolder, given: dict[str, str]) -> System:
    """The system of a run. UserError where it cannot compress."""
    if given["weights"] not in ("ema", "raw"):
        raise UserError(f"weights={given['weights']}: ema or raw")
    from gentrain.coding import library
    from gentrain.engine.fit import check_config
    from gentrain.engine.restore import load_system
    from gentrain.engine.validation import can

    library()
    trusted = yes(given["trust"], "trust")
    check_config(folder.config(), trusted=trusted)
    system = load_system(folder, given["checkpoint"], device=given["device"], trusted=trusted)
    if not can(system, "compress"):
        raise UserError(f"run={folder.path}: {type(system).__name__} does not compress; train one with model=compress")
    return system


def pictures(place: Path, resize: str, channels: str, shape: tuple[int, ...]) -> Tensor:
    """uint8 [N C H W] of one image file, or of all in a folder. UserError for what does not fit ``shape``."""
    import torch

    from gentrain.data.decode import SUFFIXES, decode, look
    from gentrain.data.files import read_bytes
    from gentrain.data.fit import Said, fit
    from gentrain.data.given import read

    if channels not in ("", "1", "3"):
        raise UserError(f"channels={channels}: 1 or 3")
    said = Said(resize=resize or None, channels=int(channels) if channels else None)
    if place.suffix.lower() not in SUFFIXES:
        return read(place, said, "image", shape).x
    blob, where = read_bytes(place.expanduser()), f"image={place}"
    seen = look(blob, where)
    done = fit(seen.size, {seen.grey}, said, shape, "image")
    return torch.from_numpy(done.kept(decode(blob, where, done.recipe)[None], where).copy())
