"""Self-attention of each place over those up to it, and its walk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """[B F H W] -> the same, ``places`` = H W in their order: x plus what its features take from those of places up to
    its own (so nothing may come in that its own output must not see), plus a hidden layer of twice the width, each
    behind a layer norm. ValueError where heads do not share the width evenly."""

    def __init__(self, width: int, heads: int, places: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} features do not split into {heads} heads")
        self.heads = heads
        self.place = nn.Parameter(0.02 * torch.randn(places, width))
        self.norm, self.hidden_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.given = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # [B T F]
        query, key, value = self.projected(tokens, self.place[: tokens.shape[1]])
        taken = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.added(tokens, taken).transpose(1, 2).unflatten(2, x.shape[2:])  # type: ignore[no-untyped-call, no-any-return]

    def projected(self, tokens: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B heads T F/heads]."""
        asked = self.asked(self.norm(tokens) + place).unflatten(2, (3, self.heads, -1))
        query, key, value = asked.permute(2, 0, 3, 1, 4)
        return query, key, value

    def added(self, tokens: Tensor, taken: Tensor) -> Tensor:
        tokens = tokens + self.given(taken.transpose(1, 2).flatten(2))
        made: Tensor = tokens + self.hidden(self.hidden_norm(tokens))
        return made


class AttentionAt:
    """It place by place, keys and values kept."""

    def __init__(self, layer: CausalAttention, batch: int) -> None:
        self._layer = layer
        places, width = layer.place.shape
        self._kept = layer.place.new_zeros(2, batch, layer.heads, places, width // layer.heads)

    def at(self, place: int, x: Tensor) -> Tensor:
        """[B F] for the features [B F] of a place; places come in their order."""
        tokens = x[:, None]
        query, key, value = self._layer.projected(tokens, self._layer.place[place])
        self._kept[0, :, :, place], self._kept[1, :, :, place] = key[:, :, 0], value[:, :, 0]
        keys, values = self._kept[:, :, :, : place + 1]
        return self._layer.added(tokens, F.scaled_dot_product_attention(query, keys, values))[:, 0]
