"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) as an extractor: the class token of a vision transformer.

Its features were learned without labels from 142 million pictures. Stein et al. 2023 (arXiv 2306.04675) find that the
Fréchet distance of those of ViT-L/14 follows what people see, where Inception's does not. The network is written here;
the names of its tensors are those of the published files, which hold no head, so there is no Inception score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentrain.config import nearest
from gentrain.errors import UserError
from gentrain.evaluation.extractors import Extractor, FrozenExtractor, Keys
from gentrain.evaluation.imagenet import RESIZE, check_channels, imagenet_input
from gentrain.evaluation.weight_files import DINOV2, fetch, load_into
from gentrain.types import PathText

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

PATCH, GRID = 14, 37
"""Pixels of a patch; patches to a side of the 518-pixel pictures that training ended with."""


class Width(NamedTuple):
    """``features``: D. ``blocks`` and ``heads`` of attention."""

    features: int
    blocks: int
    heads: int


WIDTHS = {"vits14": Width(384, 12, 6), "vitb14": Width(768, 12, 12), "vitl14": Width(1024, 24, 16)}


class _LayerScale(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B T D], T tokens."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # each [B heads T d]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        y: Tensor = self.proj(mixed)
        return y


class _MLP(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class _Block(nn.Module):
    """Attention and MLP, each after a norm and scaled by channel before it is added."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features, eps=1e-6)
        self.attn = _Attention(features, heads)
        self.ls1 = _LayerScale(features)
        self.norm2 = nn.LayerNorm(features, eps=1e-6)
        self.mlp = _MLP(features)
        self.ls2 = _LayerScale(features)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class _Patches(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, features, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """[B 3 H W] to [B T D]."""
        y: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return y


class DINOv2Net(nn.Module):
    """``mask_token`` is of the training only; it stands here because the files hold it."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        d = width.features
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, d))
        self.mask_token = nn.Parameter(torch.zeros(1, d))
        self.patch_embed = _Patches(d)
        self.blocks = nn.Sequential(*(_Block(d, width.heads) for _ in range(width.blocks)))
        self.norm = nn.LayerNorm(d, eps=1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """x: uint8 [B 1|3 H W]. Returns features [B D], and no logits."""
        return self.of_normalised(imagenet_input(x)), None

    def of_normalised(self, x: Tensor) -> Tensor:
        """x: float32 [B 3 S S] without ImageNet's mean and deviation, S a multiple of 14. Returns [B D]."""
        patches = self.patch_embed(x)  # [B T D]
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        tokens = self.blocks(tokens + self.positions(x.shape[-1] // PATCH))
        features: Tensor = self.norm(tokens[:, 0])
        return features

    def positions(self, side: int) -> Tensor:
        """[1 1+side*side D]: the embedding of the 37x37 grid, brought to another by the published code's own rule.

        That rule is a bicubic filter without antialiasing and a scale of (side + 0.1) / 37: the 0.1 was there to keep a
        division from rounding down, it moves every sampling point a little, and the published features have it.
        """
        if side == GRID:
            return self.pos_embed
        whole, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = grid.view(1, GRID, GRID, -1).permute(0, 3, 1, 2)  # [1 D 37 37]
        scale = (side + 0.1) / GRID
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")  # [1 D side side]
        return torch.cat([whole, grid.flatten(2).transpose(1, 2)], dim=1)


@dataclass(frozen=True)
class DINOv2:
    """Source of a DINOv2 extractor (config target).

    ``size``: vits14, vitb14 or vitl14, of which the last is that of published distances. ``weights_path``: the file of
    that size or a folder that holds it; None looks into $GENTRAIN_WEIGHTS (file or folder), gentrain's cache and
    torch's, and downloads it at last. Scores of different sizes share their names: compare within one size.
    """

    size: str = "vitl14"
    weights_path: PathText | None = None

    keys: ClassVar[Keys] = Keys("fd_dinov2", "_dinov2", classifier=False)

    def __post_init__(self) -> None:
        if self.size not in WIDTHS:
            raise UserError(f"metrics: DINOv2 size={self.size}: there is no such one{nearest(str(self.size), WIDTHS)}")

    def check(self, data: DataSet) -> None:
        """Raises UserError for vectors, and if the weights are missing or not the known ones."""
        check_channels(data, DINOV2[self.size].extractor)
        fetch(DINOV2[self.size], self.weights_path)

    def num_features(self, data: DataSet) -> int:
        return WIDTHS[self.size].features

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Extractor:
        file, width = DINOV2[self.size], WIDTHS[self.size]
        found = fetch(file, self.weights_path)
        net = DINOv2Net(width)
        load_into(net, found, file)
        return FrozenExtractor(
            net,
            name=f"dinov2-{self.size}",
            sha256=found.sha256,
            num_features=width.features,
            classes=(),
            shape=(None, None, None),
            resize=RESIZE,
            block=32,
            device=device,
        )
