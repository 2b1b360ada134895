"""The Inception-v3 of the published FID, KID and Inception scores (Heusel et al. 2017, arXiv 1706.08500).

The network and its TensorFlow-like resizing are torch-fidelity's; the weights are the 2015-12-05 ones converted to
torch, a file that circulates under two names. They are checked against the published SHA-256 before they are opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.evaluation.extractors import Extractor, FrozenExtractor, Keys, sha256_of
from gentrain.types import PathText

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

FILE = "pt_inception-2015-12-05-6726825d.pth"
NAMES = (FILE, "weights-inception-2015-12-05-6726825d.pth")
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
MEGABYTES = 96
VARIABLE = "GENTRAIN_WEIGHTS"
STAND_IN = "metrics=domain is the stand-in that needs no download"


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
    then into the torch hub cache, and downloads it there at last.
    """

    weights_path: PathText | None = None

    keys: ClassVar[Keys] = Keys("fid", "")

    def check(self, data: DataSet) -> None:
        """Raises UserError if torch-fidelity or the weights are missing. Downloads here, not after the first epoch."""
        if data.spec.channels not in (1, 3):
            raise UserError(f"metrics: Inception takes 1 or 3 channels, data {data.name!r} have {data.spec.channels}")
        if find_spec("torch_fidelity") is None:
            raise UserError(
                f"metrics: Inception scores need torch-fidelity: pip install 'gentrain[vision]'; {STAND_IN}"
            )
        self._weights()

    def num_features(self, data: DataSet) -> int:
        return 2048

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Extractor:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = self._weights()
        # The file is a pickle: it is opened only because its bytes are the published ones.
        found = sha256_of(path)
        if found != SHA256:
            raise UserError(
                f"metrics: {path} has SHA-256 {found[:12]}..., the published weights have {SHA256[:12]}...: "
                f"delete it and fetch {FILE} again"
            )
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        return FrozenExtractor(
            _Inception(net),
            name="inception-v3-compat",
            sha256=found,
            num_features=2048,
            classes=tuple(f"imagenet-{number}" for number in range(1008)),
            shape=(None, None, None),
            block=64,
            device=device,
        )

    def _weights(self) -> Path:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        if self.weights_path is not None:
            return _expect("weights_path", self.weights_path)
        if os.environ.get(VARIABLE):
            return _expect(f"${VARIABLE}", os.environ[VARIABLE])
        return _within(cache) or _download(cache / FILE)


def _within(place: Path) -> Path | None:
    """The weights file at or in ``place``."""
    candidates = [place] if place.is_file() else [place / name for name in NAMES]
    return next((path for path in candidates if path.is_file()), None)


def _expect(said: str, place: str) -> Path:
    path = _within(Path(place).expanduser())
    if path is None:
        raise UserError(
            f"metrics: no Inception weights at {said}={place}: put {FILE} ({MEGABYTES} MB) there; {STAND_IN}"
        )
    return path


def _download(target: Path) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), hash_prefix=SHA256)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise UserError(
            f"metrics: no Inception weights, and the download failed: put {FILE} ({MEGABYTES} MB) into "
            f"{target.parent} or name its folder in ${VARIABLE}; {STAND_IN}"
        ) from error
    return target
