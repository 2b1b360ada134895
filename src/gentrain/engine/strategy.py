"""Lightning's DDP process group without its wrapper, and devices from a config."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.utils import _sync_module_states

from gentrain.errors import UserError


class Replicas(DDPStrategy):
    """One replica per rank, equal at the start; ``System`` averages gradients player by player.

    The wrapper is left out because it expects one forward and one backward pass per step (see ``average_gradients``).
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        group = torch.distributed.group.WORLD
        assert group is not None
        _sync_module_states(self.model, group, 250 * 1024 * 1024, 0, [], broadcast_buffers=True)


def ranks_strategy(backend: str | None, timeout_seconds: float) -> Any:
    """The strategy of one rank; its place comes from the environment (LOCAL_RANK, WORLD_SIZE, MASTER_*)."""
    return Replicas(
        cluster_environment=LightningEnvironment(),
        process_group_backend=backend,
        timeout=timedelta(seconds=timeout_seconds),
    )


def count_devices(accelerator: str, devices: int | str) -> tuple[str, int]:
    """(``cpu`` | ``cuda``, number of ranks). UserError if more GPUs are asked for than there are."""
    available = torch.cuda.device_count()
    kind = ("cuda" if available else "cpu") if accelerator == "auto" else accelerator
    kind = {"gpu": "cuda"}.get(kind, kind)
    if kind not in ("cpu", "cuda"):
        raise UserError(f"trainer.accelerator={accelerator}: unknown (auto, cpu, gpu)")
    if kind == "cuda" and not available:
        raise UserError("trainer.accelerator=gpu: no CUDA device is visible here; use trainer=cpu")
    if devices == "auto":
        return kind, max(available, 1) if kind == "cuda" else 1
    try:
        count = int(devices)
    except ValueError:
        raise UserError(f"trainer.devices={devices}: a whole number or auto is needed") from None
    if count < 1:
        raise UserError(f"trainer.devices={devices}: at least 1")
    if kind == "cuda" and count > available:
        raise UserError(f"trainer.devices={count}: only {available} CUDA devices are visible")
    return kind, count
