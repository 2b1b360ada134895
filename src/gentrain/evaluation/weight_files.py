"""Weight files that do not ship: what is known of each, and the one way in which they are found.

A file is looked for at the place a config names, then at $GENTRAIN_WEIGHTS, in gentrain's cache, in torch's, and is
downloaded at last. Its bytes are compared with the SHA-256 before anything opens it, because a score by other weights
is another score. Nothing heavy is imported at the top: ``gentrain weights`` answers in a moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrain.data.files import Bar, checksum, locked, page_hint, reason, shown
from gentrain.disk import cache_folder
from gentrain.errors import UserError

if TYPE_CHECKING:
    from torch import nn

VARIABLE = "GENTRAIN_WEIGHTS"
SLOWEST = 250_000
"""Bytes a second below which a download is given up."""


@dataclass(frozen=True)
class WeightFile:
    """What the public record says of one file.

    ``also``: other names that the same bytes go by. ``sha256``: of the whole file, or its first digits where only those
    are published (in the name), or None. ``size``: in bytes. ``choice``: the metrics that need the file. ``extra``: of
    pip, beside the core. ``stand_in``: the metrics that need no download.
    """

    name: str
    extractor: str
    choice: str
    url: str
    licence: str
    sha256: str | None
    size: int | None
    also: tuple[str, ...] = ()
    extra: str | None = None
    stand_in: str = "metrics=domain"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.also)

    @property
    def described(self) -> str:
        """Name, size and SHA-256, for a message."""
        size = f"{self.size / 1e6:.0f} MB, " if self.size else ""
        return f"{self.name} ({size}{self.hash_text})"

    @property
    def hash_text(self) -> str:
        if self.sha256 is None:
            return "SHA-256 not published"
        return f"SHA-256 {self.sha256}{'' if len(self.sha256) == 64 else '...'}"


# The network of Heusel et al. 2017 (arXiv 1706.08500), converted from TensorFlow; pytorch-fid and torch-fidelity
# publish the same bytes under two names.
INCEPTION = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    also=("weights-inception-2015-12-05-6726825d.pth",),
    extractor="Inception-v3",
    choice="metrics=inception",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    licence="Apache-2.0",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
    extra="vision",
)
# torchvision's first MobileNetV2 (IMAGENET1K_V1, the recipe of the paper). The project publishes the first eight digits
# of the hash, in the name; the others are those of a file that has them.
MOBILENETV2 = WeightFile(
    name="mobilenet_v2-b0353104.pth",
    extractor="MobileNetV2",
    choice="metrics=mobilenetv2",
    url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    licence="BSD-3-Clause",
    sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    size=14_212_972,
)


def _dinov2(size: str, sha256: str, count: int) -> WeightFile:
    return WeightFile(
        name=f"dinov2_{size}_pretrain.pth",
        extractor=f"DINOv2 {size}",
        choice="metrics=dinov2"
        if size == "vitl14"
        else f"metrics=dinov2 metrics.scores.distances.extractor.size={size}",
        url=f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{size}/dinov2_{size}_pretrain.pth",
        licence="Apache-2.0",
        sha256=sha256,
        size=count,
    )


# Their authors publish no hash: these are what independent projects that pin the files state, all of them the same.
DINOV2 = {
    "vits14": _dinov2("vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9", 88_283_115),
    "vitb14": _dinov2("vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73", 346_378_731),
    "vitl14": _dinov2("vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428", 1_217_586_395),
}
# torchvision's VGG-19 without normalisation (IMAGENET1K_V1). The project publishes the first eight digits of the hash,
# in the name; the others and the size are what independent projects that pin the file state, all of them the same.
VGG19 = WeightFile(
    name="vgg19-dcbb9e9d.pth",
    extractor="VGG-19",
    choice="model=dfc_vae",
    url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    licence="BSD-3-Clause",
    sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    size=574_673_361,
    stand_in="the shipped domain extractor (loss.features.otherwise)",
)
FILES: tuple[WeightFile, ...] = (INCEPTION, MOBILENETV2, *DINOV2.values(), VGG19)


@dataclass(frozen=True)
class Found:
    """A file whose bytes are those of the record. ``sha256``: of the whole file, found by reading it."""

    path: Path
    sha256: str


def fetch(file: WeightFile, explicit: str | None = None) -> Found:
    """The file from wherever it is, downloaded if need be.

    ``explicit``: a file or folder that the config names. Raises UserError if it is not there, if its bytes are not the
    published ones, or if the download fails; nothing is downloaded where $GENTRAIN_WEIGHTS says that files are looked
    after by hand.
    """
    path = locate(file, explicit)
    if path is None and os.environ.get(VARIABLE):
        raise UserError(_missing(file, f"${VARIABLE}={os.environ[VARIABLE]} does not hold it", store()))
    path = path or _download(file, store() / file.name)
    return Found(path, verify(file, path))  # once more after a download, for nothing: what was read is remembered


def locate(file: WeightFile, explicit: str | None = None) -> Path | None:
    """Where the file lies, without a look into it; None if nowhere. UserError where a place that was named lacks it."""
    if explicit is not None:
        return _expect(file, "weights_path", explicit)
    hand = os.environ.get(VARIABLE)
    if hand:
        place = Path(hand).expanduser()
        if not place.exists():
            _expect(file, f"${VARIABLE}", hand)
        others = {name for other in FILES if other is not file for name in other.names}
        found = None if place.is_file() and place.name in others else _within(file, place)
        if found:
            return found
    return next((found for folder in (store(), torch_store()) if (found := _within(file, folder))), None)


def store() -> Path:
    """The folder of gentrain's cache that downloads go to."""
    return cache_folder() / "weights"


def torch_store() -> Path:
    """The folder that ``torch.hub`` downloads to, after torch's rule for $TORCH_HOME."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub" / "checkpoints"


def verify(file: WeightFile, path: Path) -> str:
    """SHA-256 of a file, which is read once per process. Raises UserError if it is not the published one."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"metrics: {shown(path)} cannot be read ({reason(error)})") from error
    found = _digest(path, state.st_size, state.st_mtime_ns)
    if not found.startswith(file.sha256 or "") or file.size not in (None, state.st_size):
        raise UserError(
            f"metrics: {shown(path)} has SHA-256 {found[:12]}... ({state.st_size:,} bytes{page_hint(path)}), the "
            f"published {file.described} it is not: delete it and fetch {file.url}; {_stand_in(file)}"
        )
    return found


def load_into(net: nn.Module, found: Found, file: WeightFile, *, part: bool = False) -> None:
    """Fill a network with the file's tensors. No object is made of it but tensors, whatever its hash.

    ``part``: the network is a part of the file's, whose other tensors are passed over.

    Raises UserError if names or shapes are not those of the network.
    """
    import pickle

    import torch

    try:
        state: Any = torch.load(found.path, map_location="cpu", weights_only=True)
        net.load_state_dict({key: state[key] for key in net.state_dict()} if part else state)
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"metrics: {shown(found.path)} holds no weights of {file.extractor} ({why:.200}): {file.url} does"
        ) from error


@lru_cache(maxsize=64)
def _digest(path: Path, _size: int, _changed: int) -> str:
    return checksum(path, "sha256")


def _within(file: WeightFile, place: Path) -> Path | None:
    candidates: Iterator[Path] = iter([place]) if place.is_file() else (place / name for name in file.names)
    return next((path for path in candidates if path.is_file()), None)


def _expect(file: WeightFile, said: str, place: str) -> Path:
    found = _within(file, Path(place).expanduser())
    if found is None:
        raise UserError(_missing(file, f"{said}={place} does not hold it", None))
    return found


def _missing(file: WeightFile, why: str, folder: Path | None) -> str:
    where = f"into {shown(folder)}, or name its folder in ${VARIABLE}" if folder else "there"
    return (
        f"metrics: no weights of {file.extractor}: {why}: put {file.described} from {file.url} {where}; "
        f"{_stand_in(file)}"
    )


def _stand_in(file: WeightFile) -> str:
    return f"{file.stand_in} is the stand-in that needs no download"


def _download(file: WeightFile, target: Path) -> Path:
    """Fetch a file; only bytes with the published hash are kept. Raises UserError with the reason in one line."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    bar = Bar(file.name, file.size or (4 << 30), 60 + (file.size or 0) / SLOWEST)
    whole = file.sha256 if file.sha256 and len(file.sha256) == 64 else None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):  # the ranks of one job must not all download
            fetcher = pooch.HTTPDownloader(progressbar=bar, timeout=20)
            pooch.retrieve(file.url, whole and f"sha256:{whole}", target.name, target.parent, downloader=fetcher)
            verify(file, target)
        return target
    except UserError:  # where no whole hash is published, pooch kept whatever came
        target.unlink(missing_ok=True)
        raise
    except ValueError:
        why = "not the published SHA-256"
    except OSError as error:  # those of requests too, whose texts run over many lines
        why = error.strerror or (
            reason(error) if type(error).__module__.startswith("gentrain") else type(error).__name__
        )
    finally:
        with suppress(OSError):
            target.with_name(f".{target.name}.lock").unlink()
            target.parent.rmdir()  # only if nothing came
    raise UserError(_missing(file, f"the download failed ({why})", target.parent))
