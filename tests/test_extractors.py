"""The two extractors that ship, the guard at their door, and what happens without the Inception weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.sources import digits, fashion_mnist
from gentrain.errors import UserError
from gentrain.evaluation.classes import ClassesShown
from gentrain.evaluation.domain import SHIPPED, Domain, load_extractor, read_card
from gentrain.evaluation.extractors import Features, sha256_of
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.inception import FILE, Inception
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.subject import FeatureCache, Subject
from gentrain.types import Spec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


def of_images(data: DataSet, images: Tensor) -> Subject:
    return Subject(data, None, lambda n: images[:n], n=len(images))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(2, 1, 8, 8), TypeError),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), TypeError),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int8), TypeError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ValueError),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), ValueError),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), ValueError),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), ValueError),
    ],
)
def test_only_bytes_of_the_right_shape_are_taken(x: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        load_extractor(SHIPPED / "digits.safetensors")(x)


def test_batch_size_and_callers_settings_change_nothing(data: DataSet) -> None:
    extractor = load_extractor(SHIPPED / "digits.safetensors")
    x = data.test.all(64).x
    whole = extractor(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert extractor(x).features.equal(whole.features)
    for size in (1, 7, 64):
        parts = torch.cat([extractor(part).features for part in torch.split(x, size)])
        torch.testing.assert_close(parts, whole.features, rtol=1e-5, atol=1e-6)
        assert frechet_distance(whole.features, parts) < 1e-6
    assert not whole.features.requires_grad
    assert whole.features.dtype == torch.float32


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_shipped_extractors_are_what_their_cards_say(name: str) -> None:
    weights = SHIPPED / f"{name}.safetensors"
    card = read_card(weights)
    assert weights.stat().st_size < 1_000_000
    assert sha256_of(weights) == card.sha256
    assert card.accuracy >= {"digits": 0.98, "fashion_mnist": 0.91}[name]
    assert card.data == name
    floors = [row["fd_domain"] for row in card.floor]
    assert floors == sorted(floors, reverse=True)  # n grows down the card, and a distance falls with n
    extractor = load_extractor(weights)
    features = extractor(torch.randint(0, 256, (4, *card.shape), generator=generator()).to(torch.uint8))
    assert features.features.shape == (4, card.features)
    assert features.logits is not None
    assert features.logits.shape == (4, len(card.classes))


def accuracy(data: DataSet, limit: int | None = None) -> float:
    images = data.test.all(limit)
    logits = Domain().load(data)(images.x).logits
    assert logits is not None
    assert images.y is not None
    return float((logits.argmax(1) == images.y).double().mean())


def test_digits_accuracy_is_the_cards(data: DataSet) -> None:
    assert accuracy(data) == pytest.approx(read_card(SHIPPED / "digits.safetensors").accuracy, abs=1e-6)


def test_fashion_accuracy_is_the_cards() -> None:
    try:
        data = fashion_mnist(root="nowhere", download=False)
    except UserError:
        pytest.skip("Fashion-MNIST is not on this machine")
    card = read_card(SHIPPED / "fashion_mnist.safetensors")
    assert accuracy(data, 2000) == pytest.approx(card.accuracy, abs=0.015)
    assert card.fingerprint == data.fingerprint


def test_a_tampered_file_is_refused(tmp_path: Path) -> None:
    for suffix in ("safetensors", "json"):
        shutil.copy(SHIPPED / f"digits.{suffix}", tmp_path)
    weights = tmp_path / "digits.safetensors"
    load_extractor(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        load_extractor(weights)
    (tmp_path / "digits.json").write_text("{}")
    with pytest.raises(UserError, match="not an extractor's card"):
        load_extractor(weights)
    (tmp_path / "digits.json").unlink()
    with pytest.raises(UserError, match=r"no file .*digits\.json"):
        load_extractor(weights)


def test_data_find_their_extractor_by_their_own_name(data: DataSet) -> None:
    assert Domain().load(data).name == "digits"
    images = data.test.all()
    stranger = in_memory("faces", data.spec, (images.x, images.y), (images.x, images.y))
    with pytest.raises(UserError, match=r"'faces' \(there are: digits, fashion_mnist\): use metrics=inception"):
        Domain().check(stranger)
    assert Domain(str(SHIPPED / "digits.safetensors")).load(stranger).name == "digits"
    wide = images.x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    large = in_memory("digits", Spec((1, 16, 16), data.spec.class_names), (wide, images.y), (wide, images.y))
    with pytest.raises(UserError, match=r"1x8x8.*1x16x16: use data\.size=8 data\.channels=1"):
        Domain().check(large)


def test_real_digits_score_near_the_floor_and_damage_is_seen(data: DataSet) -> None:
    train, test = data.train.all(1000), data.test.all()
    distances, classes = Distances(Domain(), splits=1), ClassesShown(Domain())
    cache = FeatureCache()

    def fd(x: Tensor) -> float:
        return distances.measure(Subject(data, None, lambda n: x, n=len(x), cache=cache))["fd_domain"]

    floor = next(row for row in read_card(SHIPPED / "digits.safetensors").floor if row["n"] == 1000)
    real = fd(train.x)
    assert real == pytest.approx(floor["fd_domain"], rel=0.25)
    noisy = (train.x.float() + 60 * torch.randn(train.x.shape, generator=generator())).clamp(0, 255).to(torch.uint8)
    noise = torch.randint(0, 256, train.x.shape, generator=generator()).to(torch.uint8)
    assert real < fd(noisy) < fd(noise)
    assert test.y is not None
    shown = classes.measure(of_images(data, test.x))
    assert shown["classes_shown"] == 10
    true = torch.special.entr(test.y.bincount() / len(test.y)).sum()
    assert shown["label_entropy_nats"] == pytest.approx(float(true), abs=0.01)
    dropped = classes.measure(of_images(data, test.x[test.y < 3]))
    assert dropped["classes_shown"] < 6
    assert dropped["label_entropy_nats"] < 1.4


# Inception


def test_missing_inception_weights_are_one_line(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("GENTRAIN_WEIGHTS", raising=False)
    with pytest.raises(UserError) as caught:
        Inception().check(data)
    for said in (FILE, "96 MB", str(tmp_path), "$GENTRAIN_WEIGHTS", "metrics=domain"):
        assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("GENTRAIN_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="elsewhere"):
        Inception().check(data)
    (tmp_path / FILE).write_bytes(b"not the weights")
    monkeypatch.setenv("GENTRAIN_WEIGHTS", str(tmp_path))
    Inception().check(data)
    with pytest.raises(UserError, match="SHA-256"):
        Inception().load(data)


def test_inception_repeats_grey_and_gives_2048_features(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    path = tmp_path / FILE
    torch.save({}, path)
    monkeypatch.setattr("gentrain.evaluation.inception.SHA256", sha256_of(path))
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)  # random weights do for shapes
    extractor = Inception(str(tmp_path)).load(data)
    grey = data.test.all(2).x
    found: Features = extractor(grey)
    assert found.logits is not None
    assert (found.features.shape, found.logits.shape) == ((2, 2048), (2, 1008))
    assert extractor(grey.expand(-1, 3, -1, -1)).features.equal(found.features)
    assert not extractor(grey.flip(0)).features.equal(found.features)
