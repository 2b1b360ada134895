"""Which numbers a run computes with, and how memory is laid out.

Autocast is applied around each player's loss here rather than by a Lightning plugin, so that sampling, evaluation and
every player's penalty go through one place.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "32-true", "bf16-mixed"]


def cpu_has_amx() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware tiles (AMX); bf16 by vector instructions does not count."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False


def resolve(precision: Precision, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """``auto`` means bf16 where the device has it in hardware (CUDA compute capability 8, CPU with AMX)."""
    if precision != "auto":
        return precision
    fast = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else cpu_has_amx()
    return "bf16-mixed" if fast else "32-true"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which the networks run. Objectives leave it again for what must be float32."""
    if precision == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
