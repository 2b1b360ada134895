"""Self-attention over the places of a feature map.

Paper: Zhang, Goodfellow, Metaxas, Odena 2019, "Self-Attention Generative Adversarial Networks", arXiv 1805.08318,
section 3, eq. 1 to 3.
Departs, as the authors' code and BigGAN's do: values of half the channels and a convolution back to all of them, keys
and values halved in side by max-pooling (``pool=False`` keeps all places, as the text has it); no biases.
Checked by: tests/test_attention.py (a plain loop over places, identity at the start, rows that sum to 1, second
derivatives).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError


class SelfAttention(nn.Module):
    """x [B C H W] -> x + gamma * o(attended values), gamma a learned number that starts at 0: at first the identity.

    Queries and keys have C/8 channels, values C/2, at least one each. The product is written out rather than left to
    ``scaled_dot_product_attention``, whose fast kernels have no second derivative: a gradient penalty needs it."""

    def __init__(self, channels: int, *, pool: bool = True) -> None:
        super().__init__()
        narrow, middle = max(channels // 8, 1), max(channels // 2, 1)
        self.query = nn.Conv2d(channels, narrow, 1, bias=False)
        self.key = nn.Conv2d(channels, narrow, 1, bias=False)
        self.value = nn.Conv2d(channels, middle, 1, bias=False)
        self.out = nn.Conv2d(middle, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        values = self._keyed(self.value(x))  # [B C/2 K]
        attended = torch.bmm(values, self.attention_rows(x).transpose(1, 2))  # [B C/2 Q]
        back: Tensor = self.out(attended.view(*attended.shape[:2], *x.shape[2:]))
        return x + self.gamma * back

    def attention_rows(self, x: Tensor) -> Tensor:
        """[B Q K]: how much each place of x [B C H W] (Q = H W, row by row) takes from each key (K = Q, a quarter of it
        where keys are pooled). Each row is 0 or more and sums to 1."""
        queries = self.query(x).flatten(2).transpose(1, 2)  # [B Q C/8]
        return torch.bmm(queries, self._keyed(self.key(x))).softmax(dim=2)

    def _keyed(self, x: Tensor) -> Tensor:
        return (F.max_pool2d(x, 2) if self.pool else x).flatten(2)


def at_sides(attention: int | str | None, canvas: int, sides: Sequence[int]) -> int | None:
    """Side of the feature map to attend over: ``attention`` itself, or half the canvas where it is ``half``, None for
    none. UserError where none of ``sides``, those that either network has, is it."""
    side = canvas // 2 if attention == "half" else attention
    if side is not None and side not in sides:
        there = ", ".join(str(one) for one in sorted(set(sides)))
        raise UserError(
            f"model.net.attention={attention}: no feature map of this network has that side for these data; there are "
            f"{there}; half is half the canvas ({canvas // 2}), null is none"
        )
    return None if side is None else int(side)
