"""The Inception-v3 of the published FID, KID and Inception scores (Heusel et al. 2017, arXiv 1706.08500).

The network and its TensorFlow-like resizing are torch-fidelity's; the weights are the 2015-12-05 ones converted to
torch, a file that circulates under two names. They are checked against the published SHA-256 before they are opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.evaluation.extractors import Extractor, FrozenExtractor, Keys
from gentrain.evaluation.imagenet import check_channels
from gentrain.evaluation.weight_files import INCEPTION, fetch
from gentrain.types import PathText

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


class _Inception(nn.Module):
    """torch-fidelity's network behind the call that FrozenExtractor makes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: uint8 [B 1|3 H W]. Returns the 2048 pooled features and the 1008 logits without their bias."""
        colour = x.expand(-1, 3, -1, -1)  # [B 3 H W]: a grey channel three times, colour as it is
        features, logits = self.net(colour)
        return features, logits


@dataclass(frozen=True)
class Inception:
    """Source of the Inception extractor (config target).

    ``weights_path``: the weights file or a folder that holds it; None looks into $GENTRAIN_WEIGHTS (file or folder),
    gentrain's cache and torch's, and downloads it at last.
    """

    weights_path: PathText | None = None

    keys: ClassVar[Keys] = Keys("fid", "")

    def check(self, data: DataSet) -> None:
        """Raises UserError if torch-fidelity or the weights are missing, or if their bytes are not the published ones.
        Downloads here, not after the first epoch."""
        check_channels(data, INCEPTION.extractor)
        if find_spec("torch_fidelity") is None:
            raise UserError(
                f"metrics: Inception scores need torch-fidelity: pip install 'gentrain[{INCEPTION.extra}]'; "
                f"{INCEPTION.stand_in} is the stand-in that needs no download"
            )
        fetch(INCEPTION, self.weights_path)

    def num_features(self, data: DataSet) -> int:
        return 2048

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Extractor:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # torch-fidelity opens the file as a pickle: only because its bytes are the published ones.
        found = fetch(INCEPTION, self.weights_path)
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(found.path))
        return FrozenExtractor(
            _Inception(net),
            name="inception-v3-compat",
            sha256=found.sha256,
            num_features=2048,
            classes=tuple(f"imagenet-{number}" for number in range(1008)),
            shape=(None, None, None),
            resize="bilinear to 299, TensorFlow 1 grid, not antialiased",
            block=64,
            device=device,
        )
