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


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 numbers, of matrices (AMX) or of vectors (AVX-512)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def resolve(precision: Precision, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """``auto`` means bf16 where the device multiplies it (CUDA compute capability 8, ``cpu_multiplies_bf16``)."""
    if precision != "auto":
        return precision
    fast = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else cpu_multiplies_bf16()
    return "bf16-mixed" if fast else "32-true"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which the networks run. Objectives leave it again for what must be float32."""
    if precision == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
