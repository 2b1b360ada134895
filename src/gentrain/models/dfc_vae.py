"""Deep feature consistent VAE: an autoencoder whose pictures are compared by the features of a frozen network.

Paper: Hou, Shen, Sun, Qiu 2017, Deep Feature Consistent Variational Autoencoder, arXiv 1610.00291, section 3: the
feature perceptual loss, 1/(2 C W H) of the squared distance of the feature maps of each layer, added up.
Adds to the autoencoder family: that reconstruction error. The code of a VAE, its divergence as a regulariser and the
prior it is sampled from are shared parts.
Departs: VGG-19 is torchvision's, which sees pixels over their standard deviation and not 0 .. 255, so that its features
are scaled; convolutions pad with zeros, not with the border; without its file a small network of the data's own domain
stands in. The released script halves the learning rate in every step of every second epoch, which ends the training;
here it is constant.
Checked by: tests/test_perceptual.py (0 for equal images, no gradient into the network, features equal torchvision's).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.nets.frozen import Frozen
from gentrain.types import Spec, to_signed


class FeatureSource(Protocol):
    """Where a frozen network comes from."""

    def build(self, spec: Spec) -> Frozen:
        """The network for such images. UserError where there is none."""
        ...


class DeepFeatures(nn.Module):
    """``weight`` times the feature perceptual loss of images in [-1, 1], which leave the decoder through tanh (a
    ``Reconstruction``): [B], for each layer half the mean squared distance over its C H W, summed over layers. It is no
    likelihood. UserError for a weight that is not above 0."""

    def __init__(self, features: FeatureSource, weight: float = 0.5) -> None:
        super().__init__()
        if not weight > 0:
            raise UserError(f"model.loss.weight={weight}: above 0")
        self.source, self.weight = features, weight

    def require(self, spec: Spec) -> None:
        """UserError for vectors, and where the source has no network."""
        if not spec.is_image:
            raise UserError("model.loss: this loss compares features of images, and data= gives vectors: choose images")
        self.features = self.source.build(spec)

    def remarks(self) -> dict[str, str]:
        return {"features": f"{self.features.name}, SHA-256 {self.features.sha256[:12]}"}

    def channels(self, c: int) -> int:
        return c

    def head(self) -> nn.Module:
        return nn.Identity()

    def prepare(self, x: Tensor, *, fixed: bool = False) -> Tensor:
        return to_signed(x)

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        pairs = zip(self.features(self.mean(output)), wanted, strict=True)
        layers = [0.5 * (made.float() - goal.float()).square().flatten(1).mean(1) for made, goal in pairs]
        return self.weight * torch.stack(layers).sum(0)  # [B]

    def mean(self, output: Tensor) -> Tensor:
        return torch.tanh(output.float())
