"""The extractors that ship or are trained, the guard at their door, and what happens without the Inception weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pooch
import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor, nn

from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.sources import digits, fashion_mnist
from gentrain.errors import UserError
from gentrain.evaluation.classes import ClassesShown
from gentrain.evaluation.domain import SHIPPED, Domain, load_extractor, read_card
from gentrain.evaluation.extractor_training import Recipe, augment, check_trainable, make, recipe_for
from gentrain.evaluation.extractors import Features, sha256_of
from gentrain.evaluation.frechet import frechet_distance
from gentrain.evaluation.inception import INCEPTION, Inception
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.protocol import evaluate
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


# Training one

QUICK = Recipe((4, 8), features=8, epochs=2, batch=32, shift=1)


def few(data: DataSet, name: str = "digits", count: int = 160) -> DataSet:
    train, test = data.train.all(count), data.test.all(80)
    return in_memory(name, data.spec, (train.x, train.y), (test.x, test.y))


def silent(_line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "extractors"


def test_the_command_trains_what_metrics_then_find(run: Run, workplace: Path) -> None:
    other = ("data=digits", "data.size=16")
    done = run("extractor", *other, "epochs=2", "widths=8,8,12", "batch=64", "seed=3", "out=made")
    assert done.code == 0, done.err
    weights = workplace / "made" / "digits-1x16x16.safetensors"
    card = read_card(Path("made") / weights.name)
    assert (card.data, card.shape, card.widths, card.features) == ("digits", (1, 16, 16), (8, 8, 12), 12)
    assert card.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card.script == "gentrain extractor"
    assert card.command == (
        "gentrain extractor data=digits data.size=16 epochs=2 widths=8,8,12 batch=64 seed=3 out=made"
    )
    data = digits(size=16)
    assert card.fingerprint == data.fingerprint
    images = data.test.all()
    logits = load_extractor(weights)(images.x).logits
    assert logits is not None
    assert images.y is not None
    assert card.accuracy == pytest.approx(float((logits.argmax(1) == images.y).double().mean()), abs=1e-9)
    assert 0.2 < card.accuracy < 1
    assert [row["n"] for row in card.floor] == [128, 1000, 1438]
    assert all(0 < row["fd_domain"] < 100 for row in card.floor)
    assert f"{card.accuracy:.4f} on 359 test images" in done.out
    asked = (*other, "model=vae", "size=tiny", "metrics=domain")
    assert run("check", *asked).code == 2
    named = f"metrics.scores.distances.extractor.weights={Path('made') / weights.name}"
    assert named in done.out
    assert run("check", *asked, named).code == 0
    shutil.copytree("made", "cache/extractors")
    assert run("check", *asked).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs=1"], r"data= is missing"),
        (["data=digits", "epocs=1"], r"epocs=1 is not one of its keys \(did you mean epochs"),
        (["data=digits", "model=vae"], r"model=vae is not one of its keys"),
        (["data=digits", "data.sise=8"], r"data\.sise: there is no such key"),
        (["data=digits", "epochs=0"], r"epochs=0: at least 1"),
        (["data=digits", "epochs=many"], r"epochs=many: a whole number"),
        (["data=digits", "lr=-1"], r"lr=-1"),
        (["data=digits", "lr=fast"], r"lr=fast: a number"),
        (["data=digits", "dropout=nan"], r"dropout=nan"),
        (["data=digits", "widths=8,,8"], r"widths=: a whole number"),
        (["data=digits", "widths=1,1,1,1,1"], r"5 stages are too many for images 1x8x8"),
        (["data=ring"], r"'ring' are vectors"),
        (
            ["data=folder", "data.root=plain", "data.size=8"],
            r"folder:plain' have no two classes of labels.*mobilenetv2",
        ),
        (["-m", "data=digits,mnist"], r"one data set at a time"),
        (["data=digits", "epochs=1", "out=file"], r"out=file cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words: list[str], said: str, run: Run, workplace: Path) -> None:
    (workplace / "plain").mkdir()
    (workplace / "file").touch()
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(workplace / "plain" / f"{number}.png")
    answer = run("extractor", *words)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert re.search(said, answer.err), answer.err
    assert not list(workplace.rglob("*.safetensors"))


def test_training_is_a_function_of_data_recipe_and_seed(data: DataSet, tmp_path: Path) -> None:
    hashes = []
    for place, (seed, lr) in enumerate([(0, 4e-3), (0, 4e-3), (1, 4e-3), (0, 5e-3)]):
        torch.manual_seed(place)  # whatever was drawn before
        before = torch.random.get_rng_state()
        recipe = dataclasses.replace(QUICK, lr=lr)
        hashes.append(sha256_of(make(few(data), recipe, seed, tmp_path / str(place), "", silent)))
        assert torch.random.get_rng_state().equal(before)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert not torch.are_deterministic_algorithms_enabled()
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == [
        "digits-1x8x8.json", "digits-1x8x8.safetensors",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"digits-1x8x8\.safetensors is there already"):
        make(few(data), QUICK, 0, tmp_path / "0", "", silent)


def test_a_split_that_lacks_a_class_of_the_other_is_refused(run: Run, workplace: Path, data: DataSet) -> None:
    images = data.test.all(120)
    assert images.y is not None
    for split, kept in (("train", ["cat", "dog", "owl"]), ("test", ["cat"])):
        for name in kept:
            (workplace / "zoo" / split / name).mkdir(parents=True)
            for number in range(20):
                Image.fromarray(images.x[number, 0].numpy()).save(workplace / "zoo" / split / name / f"{number}.png")
    words = ("extractor", "data=folder", "data.root=zoo", "data.size=8", "epochs=1", "out=made")
    answer = run(*words)
    assert answer.code == 2
    assert "the test split lacks the classes dog, owl, which the other has" in answer.err
    assert answer.err.count("\n") == 1
    assert not (workplace / "made").exists()
    unseen = dataclasses.replace(data.train, y=torch.zeros(len(data.train), dtype=torch.int64))
    with pytest.raises(UserError, match=r"the train split lacks the classes 1, 2, 3, 4, 5, 6, 7, 8 and 1 more"):
        check_trainable(dataclasses.replace(data, train=unseen))
    check_trainable(data)


def test_a_loss_that_is_no_number_is_said_and_nothing_is_written(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is nan.*lower lr="):
        make(few(data), dataclasses.replace(QUICK, lr=1e30, weight_decay=0.0), 0, tmp_path / "out", "", silent)
    assert not list((tmp_path / "out").iterdir())


def test_only_an_extractor_of_the_very_same_data_is_found_by_itself(data: DataSet, cache: Path) -> None:
    pictures, others = few(data, "folder:pictures"), few(data, "folder:pictures", 150)
    weights = make(pictures, QUICK, 0, cache, "", silent)
    assert Domain().path(pictures) == weights
    assert Domain().load(pictures).name == "folder-pictures-1x8x8"
    with pytest.raises(UserError, match=r"'folder:pictures'.*1x8x8\.safetensors is of other files or another shape"):
        Domain().check(others)
    assert Domain(str(weights)).load(others).sha256 == sha256_of(weights)
    assert Domain().path(few(data)).parent == SHIPPED  # of its name and shape, as a foreign one
    own = make(few(data), QUICK, 0, cache, "", silent)
    assert Domain().path(few(data)) == own
    assert Domain().path(data).parent == SHIPPED  # a score that was made with it stays what it is


def test_an_extractor_of_other_data_is_said_and_recorded(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    named = few(data)  # another data set called digits
    shipped = str(SHIPPED / "digits.safetensors")
    card = read_card(Path(shipped))
    for some, source in (
        (data, Domain()),
        (data, Domain(shipped)),
        (named, Domain()),
        (few(data, "x"), Domain(shipped)),
    ):
        foreign = some is not data
        subject = Subject(some, None, lambda n: data.test.all(n).x, n=40, cache=FeatureCache())
        metrics = {"a": Distances(source, splits=1), "b": ClassesShown(source)}
        report = evaluate(metrics, subject, "given")
        said = capsys.readouterr().err
        recorded = report.protocol["extractors"]["digits"]
        assert said.count("\n") == foreign
        assert ("trained on data 'digits' (accuracy 0.9861 there)" in said) is foreign
        more = {"trained_on": "digits", "accuracy": card.accuracy} if foreign else {}
        assert recorded == {"sha256": card.sha256, "resize": "none", **more}


def test_recipes_suit_the_data_and_are_those_of_the_shipped(data: DataSet) -> None:
    card = read_card(SHIPPED / "digits.safetensors")
    recipe = recipe_for(data)
    assert (recipe.widths, recipe.features) == (card.widths, card.features)
    assert (recipe.epochs, recipe.batch, recipe.shift, recipe.flip) == (60, 32, 1, False)
    x = torch.zeros(12000, 1, 28, 28, dtype=torch.uint8)
    y = torch.arange(12000) % 10
    large = in_memory("large", Spec((1, 28, 28), tuple("abcdefghij")), (x, y), (x[:10], y[:10]))
    shipped = read_card(SHIPPED / "fashion_mnist.safetensors")
    recipe = recipe_for(large)
    assert (recipe.widths, recipe.features) == (shipped.widths, shipped.features)
    assert (recipe.epochs, recipe.batch, recipe.shift) == (24, 128, 2)


def test_augmented_images_are_shifted_and_mirrored_whole() -> None:
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(400, 1, 3, 3)
    padded = nn.functional.pad(x[0, 0], (1, 1, 1, 1))
    crops = {tuple(padded[i : i + 3, j : j + 3].flatten().tolist()) for i in range(3) for j in range(3)}
    mirrored = {tuple(torch.tensor(crop).view(3, 3).flip(1).flatten().tolist()) for crop in crops}
    for flip, expected in ((False, crops), (True, crops | mirrored)):
        found = augment(x, dataclasses.replace(QUICK, flip=flip), generator())
        assert {tuple(image.flatten().tolist()) for image in found} == expected


def test_a_shipped_cards_record_stays_readable() -> None:
    raw = json.loads((SHIPPED / "digits.json").read_text(encoding="utf-8"))
    assert raw["script"] == "scripts/train_extractor.py"
    assert load_extractor(SHIPPED / "digits.safetensors").resize == "none"


# Inception


def test_missing_inception_weights_are_one_line(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    for variable in ("GENTRAIN_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.delenv("GENTRAIN_WEIGHTS", raising=False)
    with pytest.raises(UserError) as caught:
        Inception().check(data)
    for said in (INCEPTION.name, "96 MB", str(tmp_path), "$GENTRAIN_WEIGHTS", "metrics=domain"):
        assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("GENTRAIN_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="elsewhere"):
        Inception().check(data)
    (tmp_path / INCEPTION.name).write_bytes(b"not the weights")
    monkeypatch.setenv("GENTRAIN_WEIGHTS", str(tmp_path))
    for start in (Inception().check, Inception().load):  # at start-up, and again when it is opened
        with pytest.raises(UserError, match="SHA-256"):
            start(data)


def test_inception_repeats_grey_and_gives_2048_features(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity")
    path = tmp_path / INCEPTION.also[0]
    torch.save({}, path)
    known = dataclasses.replace(INCEPTION, sha256=sha256_of(path), size=path.stat().st_size)
    monkeypatch.setattr("gentrain.evaluation.inception.INCEPTION", known)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)  # random weights do for shapes
    extractor = Inception(str(tmp_path)).load(data)
    grey = data.test.all(2).x
    found: Features = extractor(grey)
    assert found.logits is not None
    assert (found.features.shape, found.logits.shape) == ((2, 2048), (2, 1008))
    assert extractor(grey.expand(-1, 3, -1, -1)).features.equal(found.features)
    assert not extractor(grey.flip(0)).features.equal(found.features)
    assert extractor.resize.startswith("bilinear to 299")
