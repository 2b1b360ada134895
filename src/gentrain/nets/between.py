"""What stands between a critic's features and its score: layers that compare the samples of a batch.

A critic that sees samples one by one cannot see that they are all alike. These tell it. Real and generated samples
must come in batches of their own (``compares_samples``), and a penalty that reads the slope at each sample by itself
does not go with a layer that mixes them (``mixes_samples``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gentrain.errors import UserError


class Between(Protocol):
    """A choice of ``model.critic.between``."""

    def build(self, features: int) -> tuple[nn.Module, int]:
        """A module [B features] -> [B F], and F."""
        ...


@dataclass(frozen=True)
class MinibatchDiscrimination:
    """``MinibatchSimilarity`` with so many ``kernels`` of ``width`` numbers. UserError for less than 1."""

    kernels: int = 100
    width: int = 5

    def __post_init__(self) -> None:
        if self.kernels < 1 or self.width < 1:
            raise UserError(f"model.critic.between: kernels={self.kernels}, width={self.width}: at least 1 each")

    def build(self, features: int) -> tuple[nn.Module, int]:
        return MinibatchSimilarity(features, self.kernels, self.width), features + self.kernels


@dataclass(frozen=True)
class MinibatchStandardDeviation:
    """``MinibatchDeviation`` in groups of ``group`` samples. ``penalised``: let a gradient penalty or R1 stand beside
    it, as ProGAN and StyleGAN2 do; the slope that it reads is then that of the whole batch's scores."""

    group: int = 4
    penalised: bool = False

    def build(self, features: int) -> tuple[nn.Module, int]:
        return MinibatchDeviation(self.group, penalised=self.penalised), features + 1


class MinibatchSimilarity(nn.Module):
    """x [B F] -> [B F+K]: beside the features how near the others of the batch are, in K learned ways.

    Salimans et al. 2016 (arXiv 1606.03498, section 3.2): M_i = x_i T, c_k(i, j) = exp(-||M_ik - M_jk||_1), and the sum
    over j of c_k(i, j) is number k of sample i. The sum leaves out j = i, which would add 1, and T starts with columns
    of unit length; both as in the authors' code.
    """

    compares_samples = mixes_samples = True

    def __init__(self, features: int, kernels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, kernels * width, bias=False)
        with torch.no_grad():
            start = torch.randn_like(self.project.weight)
            self.project.weight.copy_(start / start.norm(dim=1, keepdim=True))
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            m = self.project(x.float()).unflatten(1, (self.kernels, -1))  # [B K width]
            near = torch.exp(-(m[:, None] - m[None]).abs().sum(3))  # [B B K]
            others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            sums = (near * others[:, :, None]).sum(1)  # [B K]
        return torch.cat([x, sums.to(x.dtype)], dim=1)


class MinibatchDeviation(nn.Module):
    """x [B F] -> [B F+1], or [B C H W] -> [B C+1 H W]: beside the features how much they vary in a group of samples.

    Karras et al. 2018 (ProGAN, arXiv 1710.10196, section 3): the standard deviation of each feature at each place over
    the group, averaged over features and places, one number for the whole group. Groups have ``group`` samples; where
    the batch is no multiple of it, as many groups as fit share it out evenly, so that none has fewer than ``group``
    samples unless the batch has. UserError for groups of less than 2.
    """

    compares_samples = True

    def __init__(self, group: int = 4, *, penalised: bool = False) -> None:
        super().__init__()
        if group < 2:
            raise UserError(f"model.critic.between.group={group}: at least 2 samples can differ")
        self.group = group
        self.mixes_samples = not penalised

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        groups = max(n // self.group, 1)
        member = torch.arange(n, device=x.device) % groups == torch.arange(groups, device=x.device)[:, None]  # [G B]
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().flatten(1)  # [B D]
            share = member.float() / member.sum(1, keepdim=True)
            centred = flat - member.float().T @ (share @ flat)
            spread = (share @ centred.square() + 1e-8).sqrt().mean(1)  # [G]
            of_sample = (member.float().T @ spread).to(x.dtype)  # [B]
        shape = (n, 1, *x.shape[2:])
        return torch.cat([x, of_sample.view(-1, *[1] * (x.ndim - 1)).expand(shape)], dim=1)
