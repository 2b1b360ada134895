"""The endless stream of batches. Same bytes for any number of workers and from any start.

Data in memory are indexed directly: at 8 to 64 pixels a worker process costs more than it brings.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, tee
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gentrain.data.dataset import Rows, Split, TensorRows
from gentrain.data.order import Order, hashed
from gentrain.errors import UserError
from gentrain.types import Images

_MULTIPLIER = 0xD6E8FEB86659FD93 - (1 << 64)  # odd 64-bit constant of the "rrmxmx" mixer, as int64
_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # keeps neighbouring indices apart before mixing


def stream(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    flip: bool = False,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[Images]:
    """Batches for ever; the first item is iteration ``start`` (0-based).

    ``batch_size`` is that of all ranks together: each gets its contiguous share. ``workers`` is used only where samples
    come from a disk. With ``device`` batches arrive there (``index`` stays on the CPU), and data in memory are kept
    there if they fit in a quarter of its free memory. ``flip`` mirrors about half of the images left to right.
    Raises UserError at the call for sizes that do not fit, and while iterating for a file that cannot be decoded.
    """
    order = Order(len(split), batch_size, seed, split.group)
    if batch_size % world:
        raise UserError(f"batch_size={batch_size} is not divisible by {world} ranks; use a multiple of {world}")
    if batch_size // world % split.group:
        raise UserError(
            f"train.batch_size={batch_size}: {world} ranks would share groups of {split.group} rows; use a multiple of "
            f"{world * split.group}"
        )
    if flip and split.x.take(torch.zeros(1, dtype=torch.int64)).ndim != 4:
        raise UserError("flip=true mirrors images, but these data are vectors; set flip=false")
    place = torch.device("cpu" if device is None else device)
    share = _Share(order, rank, world, start, flip)
    if isinstance(split.x, TensorRows):
        return _from_memory(split, split.x.tensor, share, place)
    return _from_disk(split, share, workers, place)


@dataclass(frozen=True)
class _Share:
    """One rank's part of the order."""

    order: Order
    rank: int
    world: int
    start: int
    flip: bool

    def span(self, iteration: int) -> tuple[int, int]:
        each = self.order.batch_size // self.world
        first = self.order.span(iteration)[0] + self.rank * each
        return first, first + each

    def mirrored(self, epoch: int, index: Tensor) -> Tensor:
        return mirrored(self.order.seed, epoch, index)


def mirrored(seed: int, epoch: int, index: Tensor) -> Tensor:
    """bool [B]: whether a sample is flipped, a hash of (seed, epoch, index) and of nothing else."""
    h = index * _GOLDEN + hashed("flip", seed, epoch)  # int64 wraps around, which is what a hash wants
    for _ in range(2):
        h = (h ^ ((h >> 32) & _LOW)) * _MULTIPLIER
    return h < 0


def _flipped(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None, None, None], x.flip(-1), x)  # [B C H W]


def _from_memory(split: Split, x: Tensor, share: _Share, device: torch.device) -> Iterator[Images]:
    resident = device.type == "cuda" and 4 * x.nbytes <= torch.cuda.mem_get_info(device)[0]
    home = device if resident else torch.device("cpu")
    x = x.to(home)
    y, varied = (None if some is None else some.to(home) for some in (split.y, split.varied))
    order, iteration = share.order, share.start
    epoch, where, mask = -1, torch.empty(0), None
    while True:
        if order.epoch(iteration) != epoch:  # what depends on the epoch alone is worked out once in it
            epoch = order.epoch(iteration)
            permutation = order.permutation(epoch)
            where = permutation.to(home)
            mask = share.mirrored(epoch, permutation).to(home) if share.flip else None
        first, last = share.span(iteration)
        rows = where[first:last]
        batch = x.index_select(0, rows)
        if mask is not None:
            batch = _flipped(batch, mask[first:last])
        labels, factor = (None if some is None else some.index_select(0, rows) for some in (y, varied))
        images = Images(batch, labels, permutation[first:last], factor, split.group)
        yield images if home == device else _sent(images, device)
        iteration += 1


def _from_disk(split: Split, share: _Share, workers: int, device: torch.device) -> Iterator[Images]:
    ours, theirs = tee(_places(share))
    batches = map(split.x.take, theirs) if workers == 0 else _by_workers(split.x, theirs, workers)
    for iteration, (index, x) in enumerate(zip(ours, batches, strict=True), share.start):
        if share.flip:
            x = _flipped(x, share.mirrored(share.order.epoch(iteration), index))
        images = split.batch(x, index)
        yield images if device.type == "cpu" else _sent(images, device)


def _sent(images: Images, device: torch.device) -> Images:
    # Pinned memory lets the copy run while the device still works on the batch before.
    return (replace(images, x=images.x.pin_memory()) if device.type == "cuda" else images).to(device)


def _places(share: _Share) -> Iterator[Tensor]:
    """The indices of one rank's batches, for ever."""
    for iteration in count(share.start):
        first, last = share.span(iteration)
        yield share.order.permutation(share.order.epoch(iteration))[first:last]


class _Batches(Dataset[Tensor | str]):
    """Whole batches by their indices. A user's error travels as text: torch would wrap it in a traceback."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __getitem__(self, index: list[int]) -> Tensor | str:
        try:
            return self.rows.take(torch.tensor(index))
        except UserError as error:
            return str(error)


def _by_workers(rows: Rows, places: Iterator[Tensor], workers: int) -> Iterator[Tensor]:
    loader: DataLoader[Tensor | str] = DataLoader(
        _Batches(rows),
        batch_size=None,
        sampler=(index.tolist() for index in places),  # as a tensor, the whole permutation would travel with each batch
        num_workers=workers,
        # The loader draws a seed for its workers, by default from the global generator: then the model's noise would
        # depend on the number of workers.
        generator=torch.Generator().manual_seed(0),
    )
    try:
        for batch in _started(loader):
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        # A worker that dies between batches is a RuntimeError of the loader; in the midst of handing one over, its
        # socket or pipe breaks. What a worker itself raised comes with its traceback in the text.
        if "in DataLoader worker process" in str(error) or (
            isinstance(error, RuntimeError) and "worker" not in str(error)
        ):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"a data worker died ({reason}); lower the number of workers, or use 0") from error


def _started(loader: DataLoader[Tensor | str]) -> Iterator[Any]:
    """The loader's iterator with its workers running, and without the handler that torch sets with the first of them.

    That handler raises RuntimeError wherever the main thread happens to be when a worker dies, in the midst of a save
    or of another error's handling too. The loader looks after its workers by itself whenever a batch is late.
    """
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return iterator
