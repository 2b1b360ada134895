"""ImageNet's MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) as a light general extractor: 14 MB.

Its 1280 averaged features play the part of Inception's pooling layer. Distances made with them are no FID: they carry
``mobilenetv2`` in their names and are comparable with nothing but each other. The network is written here, so that the
core needs no torchvision; the names of its tensors are torchvision's, whose file it loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from gentrain.evaluation.extractors import Extractor, FrozenExtractor, Keys
from gentrain.evaluation.imagenet import RESIZE, check_channels, imagenet_input
from gentrain.evaluation.weight_files import MOBILENETV2, fetch, load_into
from gentrain.types import PathText

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Of table 2: expansion t, channels c, blocks n, stride of the first block s."""
FEATURES, CLASSES = 1280, 1000


def _layer(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6(inplace=True))


class _InvertedResidual(nn.Module):
    """Widen, convolve each channel on its own, narrow without a non-linearity; added to its input if it fits."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        widen = [_layer(before, wide, 1)] if expansion > 1 else []
        narrow = [nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after)]
        self.conv = nn.Sequential(*widen, _layer(wide, wide, 3, stride, groups=wide), *narrow)
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        before = 32
        body: list[nn.Module] = [_layer(3, before, 3, stride=2)]
        for expansion, channels, blocks, first in STAGES:
            for block in range(blocks):
                body.append(_InvertedResidual(before, channels, 1 if block else first, expansion))
                before = channels
        self.features = nn.Sequential(*body, _layer(before, FEATURES, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, CLASSES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: uint8 [B 1|3 H W]. Returns features [B 1280] and logits [B 1000]."""
        return self.of_normalised(imagenet_input(x))

    def of_normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: float32 [B 3 H W] without ImageNet's mean and deviation, of any size."""
        features = self.features(x).mean(dim=(2, 3))  # [B 1280]
        return features, self.classifier(features)


@dataclass(frozen=True)
class MobileNetV2:
    """Source of the MobileNetV2 extractor (config target).

    ``weights_path``: torchvision's file or a folder that holds it; None looks into $GENTRAIN_WEIGHTS (file or folder),
    gentrain's cache and torch's, and downloads it at last.
    """

    weights_path: PathText | None = None

    keys: ClassVar[Keys] = Keys("fd_mobilenetv2", "_mobilenetv2")

    def check(self, data: DataSet) -> None:
        """Raises UserError for vectors, and if the weights are missing or not the published ones."""
        check_channels(data, MOBILENETV2.extractor)
        fetch(MOBILENETV2, self.weights_path)

    def num_features(self, data: DataSet) -> int:
        return FEATURES

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Extractor:
        found = fetch(MOBILENETV2, self.weights_path)
        net = MobileNetV2Net()
        load_into(net, found, MOBILENETV2)
        return FrozenExtractor(
            net,
            name="mobilenet-v2",
            sha256=found.sha256,
            num_features=FEATURES,
            classes=tuple(f"imagenet-{number}" for number in range(CLASSES)),
            shape=(None, None, None),
            resize=RESIZE,
            block=64,
            device=device,
        )
