"""Replay: the critic sees some of the generator's older samples again.

Paper: Shrivastava, Pfister, Tuzel, Susskind, Wang and Webb 2017, "Learning from Simulated and Unsupervised Images
through Adversarial Training", arXiv 1612.07828, section 2.3; the rule for each sample is that of CycleGAN's pool (Zhu
et al. 2017, arXiv 1703.10593, section 4).
Adds: a pool of samples between generator and critic, so that the critic does not forget what the generator made before.
Departs: nothing.
Checked by: tests/test_replay.py (old samples come back with the probability asked for, each sample is kept or shown,
resume bit for bit).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gentrain.errors import UserError


class Pool(nn.Module):
    """Holds ``capacity`` samples. Until it is full they are taken in and shown; from then on each sample is, with
    ``probability``, kept in the place of an older one, which is shown instead. UserError for other values.

    The pool's numbers stand in an integer tensor, bit by bit: floating-point state is averaged over ranks, and each
    rank has samples of its own.
    """

    def __init__(self, capacity: int = 512, probability: float = 0.5) -> None:
        super().__init__()
        if capacity < 1:
            raise UserError(f"model.replay.capacity={capacity}: at least 1")
        if not 0.0 <= probability <= 1.0:
            raise UserError(f"model.replay.probability={probability}: between 0 and 1")
        self.capacity, self.probability = capacity, probability
        self.register_buffer("bits", torch.empty(0, dtype=torch.int32))  # [held ...]
        self.bits: Tensor

    @torch.no_grad()
    def forward(self, fake: Tensor) -> Tensor:
        """float32 [B ...] for samples [B ...]; the shown ones carry no gradient."""
        fake = fake.detach().float()
        room = self.capacity - len(self.bits)
        if room > 0:
            first = fake[:room].contiguous().view(torch.int32)
            self.bits = first.clone() if len(self.bits) == 0 else torch.cat([self.bits, first])
            return fake
        count = min(len(fake), self.capacity)  # a larger batch than the pool: the rest passes
        place = torch.randperm(self.capacity, device=fake.device)[:count]
        swapped = torch.rand(count, device=fake.device) < self.probability
        swapped = swapped.view(-1, *[1] * (fake.ndim - 1))
        new, old = fake[:count], self.bits[place].view(torch.float32)
        self.bits[place] = torch.where(swapped, new, old).contiguous().view(torch.int32)
        return torch.cat([torch.where(swapped, old, new), fake[count:]])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        held = state_dict.get(prefix + "bits")
        if held is not None:  # how many it holds, and of what shape, is not known before the first samples
            self.bits = torch.empty_like(held, device=self.bits.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
