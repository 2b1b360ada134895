"""Pictures made elsewhere: every encoding gives one value or is refused in one line, and labels, sizes, colours, two
folders, damaged files and other metrics for a run."""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome, Run, words
from fixtures_data import noise, refused, save
from numpy.typing import NDArray
from PIL import Image

from gentrain.commands.evaluate import show
from gentrain.data import given_arrays
from gentrain.data.dataset import DataSet
from gentrain.data.fit import Said
from gentrain.data.given import one_set, read
from gentrain.data.sources import digits
from gentrain.errors import UserError
from gentrain.evaluation.classes import ByClass
from gentrain.evaluation.domain import SHIPPED, Domain
from gentrain.evaluation.extractors import Extractor
from gentrain.evaluation.given import score_pictures
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.subject import Subject
from gentrain.folder import RunFolder
from gentrain.records import dumped

Array = NDArray[Any]

SHAPE = (1, 8, 8)
COUNT = 70  # more than the extractor has features
QUICK = ("data=digits", "metrics=domain", "~metrics.at_end", "device=cpu")
DISTANCES = Distances(Domain(), splits=1)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


@pytest.fixture(scope="module")
def pictures(data: DataSet) -> Array:
    """uint8 [N 1 8 8]: images that are no part of the reference."""
    found: Array = data.train.all(COUNT).x.numpy()
    return found


def png_folder(home: Path, pictures: Array, *, colour: bool = False, suffix: str = ".png") -> Path:
    for place, pixels in enumerate(pictures[:, 0]):
        save(home / f"{place:03d}{suffix}", np.stack([pixels] * 3, axis=-1) if colour else pixels)
    return home


def in_files(home: Path, pictures: Array) -> Path:
    home.mkdir()
    for place, part in enumerate(np.array_split(pictures, 3)):
        np.savez_compressed(home / f"{place}.npz", part.transpose(0, 2, 3, 1))
    return home


def npz(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)
    return path


def npy(path: Path, array: Array) -> Path:
    np.save(path, array)
    return path


ENCODINGS: dict[str, tuple[Callable[[Path, Array], Path], str | None]] = {
    "bytes N H W C": (lambda p, x: npz(p / "a.npz", arr_0=x.transpose(0, 2, 3, 1)), None),
    "bytes N C H W": (lambda p, x: npz(p / "a.npz", samples=x), None),
    "bytes N H W": (lambda p, x: npy(p / "a.npy", x[:, 0]), None),
    "bytes in columns": (lambda p, x: npy(p / "a.npy", np.asfortranarray(x[:, 0])), None),
    "0..1": (lambda p, x: npz(p / "a.npz", images=(x / 255).astype(np.float32)), "0..1"),
    "-1..1": (lambda p, x: npz(p / "a.npz", x=(x.transpose(0, 2, 3, 1) / 127.5 - 1).astype(np.float32)), "-1..1"),
    "-1..1, half": (lambda p, x: npy(p / "a.npy", (x / 127.5 - 1).astype(np.float16)), "-1..1"),
    "0..1, double, big-endian": (lambda p, x: npy(p / "a.npy", (x / 255).astype(">f8")), "0..1"),
    "0..255, floats": (lambda p, x: npy(p / "a.npy", x.astype(np.float32)), "0..255"),
    "0..255, whole numbers": (lambda p, x: npy(p / "a.npy", x.astype(np.int64)), "0..255"),
    "PNG": (lambda p, x: png_folder(p / "png", x), None),
    "PNG, grey stored as RGB": (lambda p, x: png_folder(p / "png", x, colour=True), None),
    "several files": (lambda p, x: in_files(p / "parts", x), None),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_the_same_pixels_and_fingerprint(name: str, pictures: Array, tmp_path: Path) -> None:
    make, said = ENCODINGS[name]
    found = read(make(tmp_path, pictures), Said(range=said), "samples", SHAPE)
    assert np.array_equal(found.x.numpy(), pictures)
    plain = read(npy(tmp_path / "plain.npy", pictures), Said(), "samples", SHAPE)
    assert found.facts["fingerprint"] == plain.facts["fingerprint"]
    assert (found.facts["found"], found.facts["count"], found.facts["levels"]) == (COUNT, COUNT, "0..255")
    assert Path(found.facts["path"]).is_absolute()


def scores(ended: Outcome) -> dict[str, float]:
    assert ended.code == 0, ended.err
    found: dict[str, float] = json.loads(ended.out)["scores"]
    return found


def test_five_encodings_give_one_value_and_it_is_that_of_the_images(
    run: Run, workplace: Path, data: DataSet, pictures: Array
) -> None:
    direct = DISTANCES.measure(Subject(data, None, lambda n: torch.from_numpy(pictures)[:n], n=COUNT))
    for place, name in enumerate(("bytes N H W C", "0..1", "-1..1", "PNG", "bytes N C H W")):
        make, said = ENCODINGS[name]
        (workplace / str(place)).mkdir()
        at = make(workplace / str(place), pictures)
        found = scores(run("evaluate", f"samples={at}", *QUICK, *([f"range={said}"] if said else []), "--json"))
        for key, value in direct.items():
            assert found[key] == pytest.approx(value, abs=1e-6), (name, key)


def test_the_same_command_twice_prints_the_same_digits_and_writes_them(
    run: Run, workplace: Path, pictures: Array
) -> None:
    at = npz(workplace / "a.npz", arr_0=pictures)
    first, second = (run("evaluate", f"samples={at}", *QUICK, "out=a.json", "seed=3") for _ in range(2))
    assert first.code == 0, first.err
    assert first.out == second.out
    assert run("evaluate", f"samples={at}", *QUICK, "seed=3", "--json").out == (workplace / "a.json").read_text("utf-8")
    written = json.loads((workplace / "a.json").read_text(encoding="utf-8"))
    assert f"fd_domain        {written['scores']['fd_domain']!r}" in first.out
    assert f"'path': '{at}'" in first.out
    source = written["protocol"]["made_elsewhere"]
    assert (source["path"], source["count"], source["range"]) == (str(at), COUNT, "0..255")
    assert (written["protocol"]["weights"], written["protocol"]["seed"]) == ("given", 3)
    assert sorted(path.name for path in workplace.iterdir() if path.name != "cache") == ["a.json", "a.npz"]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_of_the_extractor_change_nothing(
    size: int, data: DataSet, pictures: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read(npy(tmp_path / "a.npy", pictures), Said(), "samples", SHAPE)
    whole = score_pictures(given, data, {"metrics.scores": {"distances": DISTANCES}}, seed=0)[0].scores
    load, called = Domain.load, []

    def in_batches(self: Domain, *arguments: Any) -> Extractor:
        extractor: Any = load(self, *arguments)
        extractor._block = size
        called.append(size)
        return extractor  # type: ignore[no-any-return]

    monkeypatch.setattr(Domain, "load", in_batches)
    parts = score_pictures(given, data, {"metrics.scores": {"distances": DISTANCES}}, seed=0)[0].scores
    assert called
    assert parts == pytest.approx(whole, abs=1e-6)


def test_n_pictures_are_spread_over_all(pictures: Array, tmp_path: Path) -> None:
    for place in (npy(tmp_path / "a.npy", pictures), in_files(tmp_path / "parts", pictures)):
        some = read(place, Said(n=7), "samples", SHAPE)
        assert np.array_equal(some.x.numpy(), pictures[::10])
        assert (some.facts["found"], some.facts["count"]) == (COUNT, 7)
    some = read(png_folder(tmp_path / "png", pictures), Said(n=7), "samples", SHAPE)
    assert np.array_equal(some.x.numpy(), pictures[::10])


# Ranges


def ranged(path: Path, array: Array, said: str | None = None) -> Callable[[], object]:
    npy(path / "a.npy", array)
    return lambda: read(path / "a.npy", Said(range=said), "samples", SHAPE)


def test_floats_are_never_guessed(pictures: Array, tmp_path: Path) -> None:
    unit = (pictures / 255).astype(np.float32)
    for array in (unit, unit * 2 - 1, unit - 0.5, unit * 255, pictures.astype(np.int32)):
        refused(ranged(tmp_path, array), "must be said", "range=0..1|-1..1|0..255")


@pytest.mark.parametrize(
    ("low", "high", "said", "hint"),
    [
        (0.0, 1.01, "0..1", "outside range=0..1"),
        (-0.01, 1.0, "0..1", "outside range=0..1"),
        (-1.0, 1.0, "0..1", "outside range=0..1"),
        (-1.02, 1.0, "-1..1", "outside range=-1..1"),
        (0.0, 1.0, "-1..1", "say range=0..1"),
        (0.0, 255.0, "-1..1", "outside range=-1..1"),
        (0.0, 1.0, "0..255", "say range=0..1"),
        (-1.0, 255.0, "0..255", "outside range=0..255"),
        (0.0, 256.0, "0..255", "outside range=0..255"),
        (0.0, 1.0, "0..2", "choose from"),
    ],
)
def test_values_that_belie_the_range_are_refused(
    low: float, high: float, said: str, hint: str, tmp_path: Path, pictures: Array
) -> None:
    refused(ranged(tmp_path, low + (high - low) * (pictures / 255), said), hint)


def test_rounding_at_the_ends_of_a_range_is_no_mistake(tmp_path: Path, pictures: Array) -> None:
    exact = pictures / 127.5 - 1
    found: Any = ranged(tmp_path, exact * (1 + 1e-6), "-1..1")()
    assert np.array_equal(found.x.numpy(), pictures)


def test_nan_wrong_types_and_bytes_of_ones_are_refused(tmp_path: Path, pictures: Array) -> None:
    broken = (pictures / 255).astype(np.float32)
    broken[3, 0, 0, 0], broken[5, 0, 1, 1] = np.nan, np.inf
    refused(ranged(tmp_path, broken, "0..1"), "nan or inf in 2 of 70")
    refused(ranged(tmp_path, broken), "nan or inf")
    refused(ranged(tmp_path, pictures > 128), "bool is no type")
    refused(ranged(tmp_path, pictures.astype(np.complex64)), "complex64 is no type")
    binary = (pictures > 128).astype(np.uint8)
    refused(ranged(tmp_path, binary), "no value is above 1", "range=0..1")
    found: Any = ranged(tmp_path, binary, "0..1")()
    assert np.array_equal(found.x.numpy(), binary * 255)
    black: Any = ranged(tmp_path, binary * 0, "0..255")()
    assert int(black.x.max()) == 0
    refused(lambda: read(png_folder(tmp_path / "png", binary), Said(), "samples", SHAPE), "no value is above 1")
    refused(lambda: read(tmp_path / "png", Said(range="0..1"), "samples", SHAPE), "image files are bytes")


# Sizes and colours


def test_other_sizes_and_colours_are_refused_until_they_are_said(tmp_path: Path) -> None:
    colour = npy(tmp_path / "colour.npy", noise(4, 32, 32, 3))
    grey = npy(tmp_path / "grey.npy", noise(4, 28, 28))
    refused(
        lambda: read(grey, Said(), "samples", (3, 32, 32)), "28x28 grey", "32x32 RGB", "resize=stretch", "channels=3"
    )
    refused(lambda: read(grey, Said(resize="crop"), "samples", (3, 32, 32)), "say channels=3")
    refused(lambda: read(colour, Said(), "samples", (1, 28, 28)), "32x32 RGB", "28x28 grey", "channels=1")
    refused(lambda: read(colour, Said(), "samples", (1, 32, 32)), "pictures with colours", "channels=1")
    refused(lambda: read(colour, Said(channels=3), "samples", (1, 32, 32)), "channels=3", "32x32 grey")
    refused(lambda: Said(resize="none"), "resize=none", "crop, stretch")
    refused(lambda: Said(channels=4), "channels=4")
    refused(lambda: Said(resample="nearest"), "resample=nearest")


def test_what_is_said_is_done_antialiased_and_recorded(tmp_path: Path) -> None:
    pixels = noise(3, 32, 32, 3)
    wanted = [np.asarray(Image.fromarray(one).convert("L").resize((8, 8), Image.Resampling.LANCZOS)) for one in pixels]
    said = Said(resize="stretch", resample="lanczos", channels=1)
    for place, one in enumerate(pixels):
        save(tmp_path / "png" / f"{place}.png", one)
    for place in (npy(tmp_path / "a.npy", pixels), tmp_path / "png"):
        found = read(place, said, "samples", SHAPE)
        assert np.array_equal(found.x.numpy()[:, 0], np.stack(wanted))
        assert (found.facts["resize"], found.facts["channels"]) == ("stretch lanczos from 32x32", "luma")
    repeated = read(npy(tmp_path / "b.npy", pixels[..., 0]), Said(channels=3), "samples", (3, 32, 32))
    assert np.array_equal(repeated.x.numpy(), np.stack([pixels[..., 0]] * 3, axis=1))
    wide = npy(tmp_path / "c.npy", noise(2, 8, 12))
    cut = read(wide, Said(resize="crop"), "samples", SHAPE)
    assert np.array_equal(cut.x.numpy()[:, 0], noise(2, 8, 12)[:, :, 2:10])


def test_jpeg_is_taken_with_a_note(tmp_path: Path, pictures: Array) -> None:
    found = read(png_folder(tmp_path / "jpeg", pictures, suffix=".jpg"), Said(), "samples", SHAPE)
    assert found.facts["stored"] == f"{COUNT} JPEG"
    assert f"{COUNT} of {COUNT} files" in found.facts["lossy"]
    assert "lossy" not in read(png_folder(tmp_path / "png", pictures), Said(), "samples", SHAPE).facts


# Labels


def test_labels_come_from_arrays_and_from_folders(tmp_path: Path, data: DataSet) -> None:
    some = data.train.all(300)
    pictures, y = some.x.numpy(), some.y
    assert y is not None
    batch = read(npz(tmp_path / "a.npz", arr_0=pictures, arr_1=y.numpy()), Said(), "samples", SHAPE)
    found = batch.labels(data.spec)
    assert found is not None
    assert found.equal(y)
    for place, label in enumerate(y.tolist()):
        save(tmp_path / "classes" / str(label) / f"{place:03d}.png", pictures[place, 0])
    sorted_by_class = read(tmp_path / "classes", Said(), "samples", SHAPE)
    found = sorted_by_class.labels(data.spec)
    assert found is not None
    assert found.equal(y.sort().values)
    metric = ByClass(Domain(), allow_few=True)
    for given in (batch, sorted_by_class):
        report, _ = score_pictures(given, data, {"metrics.scores": {"by_class": metric}}, seed=0)
        assert report.scores["label_accuracy"] > 0.9
        assert report.protocol["made_elsewhere"]["labels"] == "of 10 classes"
    wrong = read(npz(tmp_path / "b.npz", arr_0=pictures, arr_1=(y.numpy() + 1) % 10), Said(), "samples", SHAPE)
    assert (
        score_pictures(wrong, data, {"metrics.scores": {"by_class": metric}}, seed=0)[0].scores["label_accuracy"] < 0.1
    )


def test_labels_of_other_classes_are_said_to_be_unused(tmp_path: Path, data: DataSet, pictures: Array) -> None:
    other = read(npz(tmp_path / "a.npz", arr_0=pictures, arr_1=np.full(COUNT, 10)), Said(), "samples", SHAPE)
    assert other.labels(data.spec) is None
    report, _ = score_pictures(other, data, {"metrics.scores": {"distances": DISTANCES}}, seed=0)
    assert "no classes of the data" in report.protocol["made_elsewhere"]["labels"]
    (tmp_path / "shards").mkdir()
    png_folder(tmp_path / "shards" / "part-0", pictures[:3])
    assert read(tmp_path / "shards", Said(), "samples", SHAPE).labels(data.spec) is None


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.zeros(COUNT), noise(COUNT, 8, 8), np.full(COUNT, -1)])
def test_what_is_no_labels_is_refused(labels: Array, tmp_path: Path, pictures: Array) -> None:
    at = npz(tmp_path / "a.npz", arr_0=pictures, arr_1=labels)
    refused(lambda: read(at, Said(), "samples", SHAPE), "arr_1")


# Two folders


def test_two_folders_give_what_the_data_set_gives(run: Run, workplace: Path, data: DataSet, pictures: Array) -> None:
    png_folder(workplace / "made", pictures)
    real = data.test.all()
    assert real.y is not None
    npz(empty(workplace / "real") / "a.npz", arr_0=real.x.numpy(), arr_1=real.y.numpy())
    weights = f"metrics.scores.distances.extractor.weights={SHIPPED / 'digits.safetensors'}"
    ended = run("evaluate", "samples=made", "reference=real", "metrics=domain", weights, "device=cpu", "--json")
    two = json.loads(ended.out)
    one = scores(run("evaluate", "samples=made", "data=digits", "metrics=domain", "device=cpu", "--json"))
    for key, value in two["scores"].items():
        assert value == pytest.approx(one[key], abs=1e-6), key
    assert one.keys() - two["scores"].keys() == {"fd_domain_train", "fd_domain_floor"}
    assert "fd_domain_train" in ended.err
    assert len(two["left_out"]) == 1
    assert [line for line in ended.err.splitlines() if "was trained on data" not in line] == [
        f"gentrain: {two['left_out'][0]}"
    ]
    assert two["protocol"]["reference"]["path"] == str(workplace / "real")
    assert two["protocol"]["splits"]["distances"] == f"test {len(data.test)}"
    shape = ("data.size=8", "data.channels=1", "data.resize=none")
    for how in ((), shape):
        some = ("reference=made", "metrics=domain", weights, "~metrics.at_end", "device=cpu", "--json", *how)
        same = run("evaluate", "samples=made", *some)
        assert abs(scores(same)["fd_domain"]) < 1e-6
        assert json.loads(same.out)["protocol"]["splits"]["distances"] == f"test {COUNT}"
    ended = run("evaluate", "samples=made", "reference=real", "metrics=full", weights, "device=cpu")
    one_line(ended, "training and held-out images apart")


def test_a_set_of_its_own_knows_its_classes(tmp_path: Path, pictures: Array) -> None:
    for place in range(6):
        save(tmp_path / "real" / "ab"[place % 2] / f"{place}.png", pictures[place, 0])
    data = one_set(read(tmp_path / "real", Said(), "reference"), tmp_path / "real")
    assert data.spec.class_names == ("a", "b")
    assert data.test.y is not None
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match="held-out"):
        data.train.all()


# Mistakes


def one_line(ended: Outcome, *hints: str) -> None:
    assert ended.code == 2, ended
    lines = [line for line in ended.err.splitlines() if "was trained on data" not in line]  # a note, not the error
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("gentrain: ")
    assert all(hint in lines[0] for hint in hints), lines[0]


def bomb(path: Path) -> Path:
    """A few hundred bytes whose lists promise 64 GB of zeros."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 8, 8)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", head.getvalue() + bytes(1000))
        archive.filelist[0].file_size = len(head.getvalue()) + 64 * 10**9
    return path


def promise(path: Path) -> Path:
    """A header that promises more than there is."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 8, 8)})
    return path


def pickled(path: Path) -> Path:
    np.savez(path, arr_0=np.array([{"a": 1}], dtype=object))
    return path


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def mixed(home: Path) -> Path:
    for place, side in enumerate((8, 8, 9)):
        save(home / f"{place}.png", noise(side, side))
    return home


def spoilt(home: Path) -> Path:
    png_folder(home, noise(6, 1, 8, 8))
    for place in range(5):
        written(home / f"{place:03d}.png", b"nothing")
    return home


def two_kinds(home: Path) -> Path:
    png_folder(home, noise(2, 1, 8, 8))
    npy(home / "a.npy", noise(2, 8, 8))
    return home


def unlike(home: Path, other: Array) -> Path:
    home.mkdir()
    npy(home / "a.npy", noise(2, 8, 8))
    npy(home / "b.npy", other)
    return home


def empty(home: Path) -> Path:
    home.mkdir()
    return home


MISTAKES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "nothing there": (lambda p: p / "nowhere", ("no such folder",)),
    "empty folder": (lambda p: empty(p / "e"), ("no pictures in it", ".png")),
    "text": (lambda p: written(p / "a.txt", b"x"), ("give a folder of images",)),
    "a pickle": (lambda p: written(p / "a.pt", pickle.dumps([1])), ("can run code", "numpy.savez")),
    "a folder of pickles": (lambda p: written(p / "f" / "a.pkl", pickle.dumps([1])).parent, ("can run code",)),
    "pickled objects": (lambda p: pickled(p / "a.npz"), ("can run code",)),
    "pickle called npy": (lambda p: written(p / "a.npy", pickle.dumps([1])), ("not an array",)),
    "pickle called npz": (lambda p: written(p / "a.npz", pickle.dumps([1])), ("not a zip",)),
    "web page": (lambda p: written(p / "a.npz", b"<html>"), ("it is a web page",)),
    "zip bomb": (lambda p: bomb(p / "a.npz"), ("GB", "n=")),
    "empty promise": (lambda p: promise(p / "a.npy"), ("promises 64,000,000,000 bytes", "damaged")),
    "other arrays": (lambda p: npz(p / "a.npz", mu=noise(4), sigma=noise(4, 4)), ("mu, sigma", "arr_0")),
    "two arrays": (lambda p: npz(p / "a.npz", x=noise(4, 8, 8), images=noise(4, 8, 8)), ("images and x",)),
    "no arrays": (lambda p: in_zip(p / "a.npz"), ("no arrays in it (a.txt)",)),
    "no pictures": (lambda p: npy(p / "a.npy", noise(0, 8, 8)), ("no pictures",)),
    "flat": (lambda p: npy(p / "a.npy", noise(4, 64)), ("[N H W C]",)),
    "alpha": (lambda p: npy(p / "a.npy", noise(4, 8, 8, 4)), ("1 or 3 channels",)),
    "wrong size": (lambda p: npy(p / "a.npy", noise(4, 16, 16)), ("16x16 grey", "8x8 grey", "resize=stretch")),
    "wrong size, files": (lambda p: save(p / "f" / "a.png", noise(9, 9)).parent, ("9x9 grey", "resize=")),
    "mixed sizes": (lambda p: mixed(p / "f"), ("2.png has 9x9", "2 of 3 files have 8x8")),
    "bad files": (lambda p: spoilt(p / "f"), ("5 of 6 files", "000.png: not an image", "and 2 more")),
    "two kinds": (lambda p: two_kinds(p / "f"), ("2 image files and 1 arrays",)),
    "loose files": (
        lambda p: save(png_folder(p / "f", noise(2, 1, 8, 8)) / "b" / "a.png", noise(8, 8)).parents[1],
        ("beside",),
    ),
    "unlike types": (lambda p: unlike(p / "f", noise(2, 8, 8).astype(np.float32)), ("b.npy", "its type is float32")),
    "unlike sizes": (lambda p: unlike(p / "f", noise(2, 9, 9)), ("b.npy", "its size is")),
    "nan": (lambda p: npy(p / "a.npy", np.full((4, 8, 8), np.nan)), ("nan or inf in 4",)),
    "too few": (lambda p: npy(p / "a.npy", noise(20, 8, 8)), ("20 samples for 32 features", "number of pictures")),
}


def in_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "nothing")
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name: str, run: Run, workplace: Path) -> None:
    make, hints = MISTAKES[name]
    place = make(workplace)
    before = sorted(workplace.rglob("*"))
    one_line(run("evaluate", f"samples={place}", *QUICK), *hints)
    assert sorted(workplace.rglob("*")) == before


def test_too_many_pictures_are_refused_before_they_are_counted_out(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A billion places take eight gigabytes."""
    monkeypatch.setattr(given_arrays, "spread", lambda *_: pytest.fail("places were made"))
    one_line(run("evaluate", f"samples={bomb(workplace / 'a.npz')}", *QUICK), "n=")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["samples=png"], "data= is missing"),
        (["samples=png", "metrics=domain"], "reference=FOLDER"),
        (["samples=png", "data=digit"], "digits"),
        (["samples=png", "data=ring"], "vectors"),
        (["samples=png", "data=digits", "metrics=none"], "scores nothing"),
        (["samples=png", "data=digits", "metrics=likelihood"], "log_likelihood"),
        (["samples=png", "data=digits", "model=dcgan"], "model=dcgan is not one of its keys"),
        (["samples=png", "data=digits", "rnage=0..1"], "range"),
        (["samples=png", "data=digits", "--jsn"], "--jsn"),
        (["samples=png", "data=digits", "metrics.samples=5"], "n=..."),
        (["samples=png", "data=digits", "data.sise=8"], "data.size"),
        (["samples=png", "data=digits", "reference=png"], "one of the two"),
        (["samples=png", "data=digits", "n=100"], "there are 3 pictures"),
        (["samples=png", "data=digits", "n=0"], "at least 1"),
        (["samples=png", "data=digits", "seed=x"], "seed=x"),
        (["samples=png", "data=digits", "range=0-1"], "-1..1"),
        (["samples=png", "data=digits", "channels=2"], "channels=2"),
        (["samples=png", "data=digits", "device=tpu"], "cuda"),
        (["samples=png", "data=digits", "out=a.txt"], ".json"),
        (["samples=png", "data=digits", "out=nowhere/a.json"], "nowhere"),
        (["samples=png", "reference=split"], "data=folder"),
        (["samples=png", "reference=nowhere"], "reference=nowhere"),
        (["samples=png", "reference=png", "metrics=domain"], "extractor.weights"),
        (["smples=png", "data=digits"], "samples"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_one_line(arguments: list[str], hint: str, run: Run, workplace: Path) -> None:
    png_folder(workplace / "png", noise(3, 1, 8, 8))
    for name in ("train", "test"):
        png_folder(workplace / "split" / name, noise(3, 1, 8, 8))
    before = sorted(workplace.rglob("*"))
    one_line(run("evaluate", *arguments), hint)
    assert sorted(workplace.rglob("*")) == before


def test_a_likelihood_is_left_out_of_others(run: Run, workplace: Path, pictures: Array) -> None:
    at = npy(workplace / "a.npy", pictures)
    more = "+metrics.scores.likelihood._target_=gentrain.evaluation.likelihood.LikelihoodBound"
    ended = run("evaluate", f"samples={at}", *QUICK, more, "--json")
    assert scores(ended) == scores(run("evaluate", f"samples={at}", *QUICK, "--json"))
    assert "log_likelihood" in ended.err
    assert ended.err.count("\n") == 1


def test_every_metric_takes_labelled_pictures_of_data_with_a_small_class(
    run: Run, workplace: Path, data: DataSet
) -> None:
    """21 test images of class 1 are too few for 32 features; nobody asked for that score by its name."""
    images = data.train.all(200)
    assert images.y is not None
    at = npz(workplace / "a.npz", images=images.x.numpy().transpose(0, 2, 3, 1), labels=images.y.numpy())
    slow = ("memorisation", "swd_images", "frechet", "manifold")
    quick = ("metrics.at_end.cas.epochs=1", *(f"~metrics.at_end.{name}" for name in slow), "device=cpu", "data=digits")
    ended = run("evaluate", f"samples={at}", "metrics=full", *quick, "--json")
    found = scores(ended)
    assert {"cas", "ms_ssim", "fd_domain"} <= found.keys()
    assert "fd_domain_by_class" not in found
    (line,) = ended.err.splitlines()
    assert line.startswith("gentrain: metrics.at_end.by_class (ByClass) is left out: 21 images of data 'digits' split=")
    few = (*quick, "metrics.at_end.by_class.allow_few=true")
    assert scores(run("evaluate", f"samples={at}", "metrics=full", *few, "--json")).keys() > found.keys()
    ended = run("evaluate", f"samples={at}", "metrics=full", *quick, "metrics.at_end.by_class.optional=false")
    one_line(ended, "21 images of data 'digits'", "set metrics.at_end.by_class.allow_few=true")


def test_spoilt_arrays_are_read_or_refused(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for kind in ("npy", "npz", "packed"):
        whole = tmp_path / f"whole.{'npy' if kind == 'npy' else 'npz'}"
        pixels, labels = noise(6, 8, 8), np.arange(6)
        if kind == "npy":
            np.save(whole, pixels)
        else:
            (np.savez if kind == "npz" else np.savez_compressed)(whole, arr_0=pixels, arr_1=labels)
        content = whole.read_bytes()
        for trial in range(150):
            spoilt = bytearray(content)
            if trial % 3 == 0:
                del spoilt[int(draw.integers(len(spoilt))) :]
            for _ in range(int(draw.integers(1, 4))):
                if spoilt:
                    edge = min(len(spoilt), 200 if trial % 2 else len(spoilt))
                    spoilt[int(draw.integers(edge))] = int(draw.integers(256))
            place = written(tmp_path / f"spoilt{whole.suffix}", bytes(spoilt))
            try:
                found = read(place, Said(), "samples", SHAPE)
            except UserError:
                outcomes["refused"] += 1
            else:
                assert found.x.shape[1:] == SHAPE
                outcomes["read"] += 1
    assert min(outcomes.values()) > 20, outcomes


# Runs


def test_what_is_not_finite_is_null_and_said(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = {"scores": {"a": math.inf, "b": [math.nan, 1.5]}, "protocol": {}}
    assert json.loads(dumped(result))["scores"] == {"a": None, "b": [None, 1.5]}
    show("title", {"scores": {"a": math.inf}, "protocol": {}}, as_json=True)
    shown = capfd.readouterr()
    assert json.loads(shown.out)["scores"] == {"a": None}
    assert "a is inf" in shown.err
    folder = RunFolder(tmp_path)
    folder.write_card({"final": {"a": math.nan}})
    assert "NaN" not in folder.card_file.read_text(encoding="utf-8")


def test_a_runs_own_metrics_are_changed_by_key(run: Run, workplace: Path) -> None:
    assert run(*words("model=dcgan", "name=run", "train.iterations=2", "metrics.samples=60")).code == 0
    scored = json.loads(run("evaluate", "run=outputs/run", "metrics.samples=100", "--json").out)
    assert scored["protocol"]["samples"] == 100
    few = "metrics.scores.distances.reference=200"
    scored = json.loads(run("evaluate", "run=outputs/run", few, "--json").out)
    assert (scored["protocol"]["samples"], scored["protocol"]["splits"]["distances"]) == (60, "test 200")
    one_line(run("evaluate", "run=outputs/run", "metrics.sample=100"), "metrics.samples")
    one_line(run("evaluate", "run=outputs/run", "metrics.samples=many"), "metrics.samples")
    one_line(run("evaluate", "run=outputs/run", "samples=60", "metrics.samples=100"), "one of the two")
    one_line(run("evaluate", "run=outputs/run", "samples=10"), "raise samples")
    one_line(run("evaluate", "run=outputs/run", "samples=100000000000"), "GiB")


def test_a_run_is_scored_under_other_metrics(run: Run, workplace: Path) -> None:
    assert run(*words("model=vae", "name=run", "train.iterations=2", "metrics=none")).code == 0
    one_line(run("evaluate", "run=outputs/run", "device=cpu"), "without metrics", "metrics=")
    asked = ("evaluate", "run=outputs/run", "device=cpu", "metrics=domain", "~metrics.at_end", "metrics.samples=100")
    first, second = run(*asked), run(*asked)
    assert first.code == 0, first.err
    assert first.out == second.out
    assert "samples=100" in first.out
    found = json.loads(run("evaluate", "run=outputs/run", "device=cpu", "metrics=likelihood", "--json").out)
    assert math.isfinite(found["scores"]["nll_nats"])
    one_line(run("evaluate", "run=outputs/run", "metrics=domian"), "domain")
    one_line(run("evaluate", "run=outputs/run", "metrics=none"), "scores nothing")
    one_line(run("evaluate", "run=outputs/run", "metrics=modes"), "metrics")
    one_line(run("evaluate", "run=outputs/run", "samples=folder"), "without run=")
    one_line(run("evaluate", "run=outputs/run", "data=digits"), "data=digits")


def test_a_run_leaves_out_what_its_reference_is_too_small_for(run: Run, workplace: Path) -> None:
    by_class = ("_target_=gentrain.evaluation.classes.ByClass", "optional=true")
    also = [f"+metrics.at_end.by_class.{word}" for word in by_class]
    also.append("+metrics.at_end.by_class.extractor=${metrics.scores.distances.extractor}")
    line = "gentrain: metrics.at_end.by_class (ByClass) is left out: 21 images of data 'digits' split=test"
    tiny_run = words("model=cgan", "name=run", "train.iterations=2", "~metrics.at_end.frechet", *also)
    for command in (tiny_run, ("check", *tiny_run), ("evaluate", "run=outputs/run", "device=cpu", "--json")):
        ended = run(*command)
        assert ended.code == 0, ended.err
        assert ended.err.count(line) == 1
    found = json.loads(ended.out)
    assert found["left_out"][0] == ended.err.strip().removeprefix("gentrain: ")
    assert "by_class" not in found["protocol"]["metrics"]
    card = json.loads((workplace / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert card["final"] == found["scores"]
    assert card["conditional"] is True


def test_samples_of_a_run_score_as_the_run_does(run: Run, workplace: Path) -> None:
    assert run(*words("model=dcgan", "name=run", "train.iterations=2", "metrics.samples=70")).code == 0
    at_once = scores(run("evaluate", "run=outputs/run", "device=cpu", "--json"))
    assert run("sample", "run=outputs/run", "n=70", "device=cpu", "out=drawn").code == 0
    ended = run("evaluate", "samples=drawn", "data=digits", "device=cpu", "--json")
    assert scores(ended) == at_once
    assert json.loads(ended.out)["protocol"]["made_elsewhere"]["left_out"] == "grid.png"
