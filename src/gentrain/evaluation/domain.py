"""Extractors trained on the data's own domain: small classifiers that need no download.

Scores made with them carry ``_domain`` in their names. They order models of one data set as FID does, they are not
comparable with a published FID, and they are not comparable between data sets.

An extractor is two files: ``NAME.safetensors`` (float32 weights) and ``NAME.json`` (its card: the network's numbers,
what it was trained on and how, its accuracy, the SHA-256 of the weights, and the scores of real images, which are the
floor that no model can be expected to fall below). Two ship with the package; ``gentrain extractor`` makes others, and
one in the cache's folder ``extractors`` is found by itself where it was trained on the very same data.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save
from torch import Tensor, nn

from gentrain.disk import cache_folder
from gentrain.errors import UserError, one_line
from gentrain.evaluation.extractors import Extractor, FrozenExtractor, Keys, sha256_of
from gentrain.types import PathText

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet

SHIPPED = Path(__file__).parent / "weights"


class DomainNet(nn.Module):
    """A plain convolutional classifier: two 3x3 convolutions a stage, halved between stages, averaged over space.

    ``widths``: channels of the stages. ``features``: D. The averaged map is the feature vector, as in Inception's
    last pooling layer, so a feature is bounded below by 0 and none is tied to a place in the image.
    """

    def __init__(
        self, *, channels: int, widths: tuple[int, ...], features: int, classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            layers += [*_block(before, width, 3), *_block(width, width, 3)]
            before = width
        self.body = nn.Sequential(*layers, *_block(before, features, 1))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
        # On CPUs the last-channel layout makes these small convolutions a third quicker.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: uint8 [B C H W]. Returns features [B D] and logits [B K]."""
        x = x.float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)
        features = self.body(x).mean(dim=(2, 3))  # [B D]
        return features, self.head(features)


def _block(before: int, after: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]


@dataclass(frozen=True)
class Card:
    """What is known of a domain extractor; the JSON file beside its weights."""

    name: str
    data: str
    """Name of the data set it was trained on and serves."""
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    widths: tuple[int, ...]
    features: int
    accuracy: float
    """Of the classifier on the whole test split, 0..1."""
    test_images: int
    floor: tuple[dict[str, float], ...]
    """Scores of ``n`` training images against the whole test split: what a perfect model would get."""
    sha256: str
    fingerprint: str
    """Of the data set it was trained on."""
    script: str
    command: str
    versions: dict[str, str]

    def net(self, dropout: float = 0.0) -> DomainNet:
        return DomainNet(
            channels=self.shape[0],
            widths=self.widths,
            features=self.features,
            classes=len(self.classes),
            dropout=dropout,
        )


@dataclass(frozen=True)
class Domain:
    """Source of domain extractors (config target).

    ``weights``: a ``.safetensors`` file with its card beside it. None takes the shipped extractor whose card has name,
    shape and fingerprint of the data, or else such a one in the cache: a name alone would let two folders called
    ``pictures`` be scored by one network. Where there is neither, the shipped one of that name and shape is taken as a
    foreign one. Of a foreign one, trained on other data, a line on stderr says so when it is loaded, and the protocol
    holds what it was trained on and its accuracy there.
    """

    weights: PathText | None = None

    keys: ClassVar[Keys] = Keys("fd_domain", "_domain")

    def check(self, data: DataSet) -> None:
        """Raises UserError if no extractor serves these data, or if their shape is not the one it was trained on."""
        card = read_card(self.path(data))
        if tuple(data.spec.shape) != card.shape:
            raise UserError(
                f"metrics: extractor {card.name!r} takes images {times(card.shape)}, data {data.name!r} are "
                f"{times(data.spec.shape)}: use data.size={card.shape[-1]} data.channels={card.shape[0]}, "
                "or metrics=inception"
            )

    def num_features(self, data: DataSet) -> int:
        return read_card(self.path(data)).features

    def classes(self, data: DataSet) -> tuple[str, ...]:
        """Names of the classes that the logits stand for."""
        return read_card(self.path(data)).classes

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Extractor:
        self.check(data)
        path = self.path(data)
        card, extractor = read_card(path), load_extractor(path, device)
        if card.fingerprint != data.fingerprint:
            extractor.record = {"trained_on": card.data, "accuracy": card.accuracy}
            said = (
                f"gentrain: extractor {card.name!r} was trained on data {card.data!r} (accuracy {card.accuracy:.4f} "
                f"there), and scores others, {data.name!r}: its scores compare with its own on these data alone; "
                "`gentrain extractor data=...` trains one for them"
            )
            print(one_line(said), file=sys.stderr)
        return extractor

    def path(self, data: DataSet) -> Path:
        """The weights file for these data; UserError if there is none."""
        if self.weights is not None:
            return Path(self.weights).expanduser()
        shipped = {read_card(path).data: path for path in sorted(SHIPPED.glob("*.safetensors"))}
        own = shipped.get(data.name)
        if own is not None and _is_of(read_card(own), data):
            return own
        named = [(path, card) for path, card in _made() if card.data == data.name]
        fits = [path for path, card in named if _is_of(card, data)]
        if fits:
            return fits[0]
        if own is not None:
            return own  # of another shape, as check() says, or of other files, as load() does
        near = f"; {named[0][0]} is of other files or another shape" if named else ""
        raise UserError(
            f"metrics: no domain extractor ships for data {data.name!r} (there are: {', '.join(shipped)}{near}): "
            "use metrics=inception, or train one with `gentrain extractor data=...` and give its file as "
            "metrics.scores.distances.extractor.weights, or metrics=none"
        )


def _is_of(card: Card, data: DataSet) -> bool:
    return card.shape == tuple(data.spec.shape) and card.fingerprint == data.fingerprint


def store() -> Path:
    """The folder of gentrain's cache where extractors are found by themselves."""
    return cache_folder() / "extractors"


def _made() -> list[tuple[Path, Card]]:
    return [(path, read_card(path)) for path in sorted(store().glob("*.safetensors"))]


def read_card(weights: Path) -> Card:
    """The card beside a weights file. Raises UserError if either file is missing or the card is not one."""
    path = weights.with_suffix(".json")
    for needed in (weights, path):
        if not needed.is_file():
            raise UserError(f"extractor: no file {needed}: an extractor is a .safetensors file and its .json card")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        raw = {field.name: raw[field.name] for field in fields(Card)}
        for key in ("shape", "classes", "widths", "floor"):
            raw[key] = tuple(raw[key])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"extractor: {path} is not an extractor's card ({error}): train it again") from error
    return Card(**raw)


def load_extractor(weights: Path, device: torch.device | str = "cpu") -> FrozenExtractor:
    """Load weights and card. Raises UserError if the weights are not the very bytes that the card describes."""
    card = read_card(weights)
    content = weights.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != card.sha256:
        raise UserError(
            f"extractor: {weights} has SHA-256 {found[:12]}..., its card says {card.sha256[:12]}...: "
            "the file is damaged or of another training; restore it, or train it again"
        )
    net = card.net()
    net.load_state_dict(load_bytes(content))
    return FrozenExtractor(
        net,
        name=card.name,
        sha256=card.sha256,
        num_features=card.features,
        classes=card.classes,
        shape=card.shape,
        device=device,
    )


def write_extractor(net: DomainNet, card: Card, folder: Path) -> Path:
    """Write NAME.safetensors and NAME.json (with the SHA-256 filled in) into ``folder``; returns the weights file."""
    weights = folder / f"{card.name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(save({key: value.contiguous() for key, value in net.state_dict().items()}))
    described = asdict(card) | {"sha256": sha256_of(weights)}
    weights.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return weights


def times(shape: tuple[int, ...]) -> str:
    """``3x32x32``."""
    return "x".join(map(str, shape))
