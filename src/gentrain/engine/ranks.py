"""What the ranks of one job say to each other: means of gradients and buffers, flags, states, and patience."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PULSE_SECONDS = 1.0
"""How often the first rank says that it is still at work while the others wait."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Sequence[nn.Parameter], loss: Tensor | None = None) -> None:
    """Mean of the gradients, and of a scalar loss, over all ranks, as one flat message per player.

    torch's DDP wrapper expects one forward and one backward pass per step; a game has several, through different
    networks, with penalties that differentiate twice. One explicit mean per player is right for all of them. The loss
    travels with it so that all ranks learn in the same step that one of them has lost its numbers.
    """
    _average([p.grad for p in parameters if p.grad is not None] + ([] if loss is None else [loss]))


def average_buffers(*nets: nn.Module) -> None:
    """Mean of the floating-point buffers (batch-norm statistics): all ranks hold one model at every iteration."""
    _average([b for net in nets for b in net.buffers() if b.is_floating_point()])


def share_first(net: nn.Module) -> None:
    """Parameters and floating-point buffers of the first rank, for all ranks: where they were taken from the data, of
    which each has its own part."""
    tensors = [t.detach() for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()]
    if not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.broadcast(flat, src=0)
    _spread(flat, tensors)


def _average(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    _spread(flat, tensors)


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any rank: all must save and stop at the same iteration."""
    if world_size() == 1:
        return flag
    raised = torch.tensor([float(flag)], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of every rank, in their order."""
    if world_size() == 1:
        return [state]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    packed: list[Any] = [None] * world_size()
    dist.all_gather_object(packed, buffer.getvalue())  # bytes: gathering tensors as objects fails over gloo
    return [torch.load(io.BytesIO(data), weights_only=True) for data in packed]


def leave() -> None:
    """Take leave of the others, whose work is done too: a process that ends with its connections open may abort."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error says that the others can no longer be heard; gloo's are RuntimeErrors that name its files."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Patience:
    """Lets the other ranks wait while the first one scores or writes, however long that takes.

    A barrier would end the run when an evaluation outlasts ``trainer.timeout``, and without a limit a first rank that
    hangs would keep the others for ever. So a thread of the first rank says every second that its process lives; the
    others give up when they have heard nothing for ``timeout`` seconds. To be made on all ranks at the same time.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._group: Any = None
        if world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    @contextlib.contextmanager
    def while_first_works(self, is_first: bool) -> Iterator[None]:
        """The body is the first rank's work; the others go through it at once and wait behind it."""
        if self._group is None:
            yield
            return
        if not is_first:
            yield
            while not self._tell(0.0):
                pass
            return
        ended = threading.Event()
        pulse = threading.Thread(target=self._pulse, args=(ended,), daemon=True)
        pulse.start()
        try:
            yield
        finally:
            ended.set()
            pulse.join()
        self._tell(1.0)  # not after an exception: this process ends then, and the others hear that

    def _pulse(self, ended: threading.Event) -> None:
        with contextlib.suppress(RuntimeError):  # another rank has gone: the first one hears it when it next speaks
            while not ended.wait(PULSE_SECONDS):
                self._tell(0.0)

    def _tell(self, done: float) -> bool:
        word = torch.tensor([done])
        dist.broadcast(word, src=0, group=self._group)
        return bool(word.item())
