"""Pictures made by other tools: one value for each way to write the same pixels down, or one line."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Run
from fixtures_data import noise
from numpy.typing import NDArray
from PIL import Image

from gentrain.data.digits import digits
from gentrain.evaluation.extractors import FrozenExtractor

COUNT = 96
AGAINST = ("data=digits", "device=cpu", "size=tiny")
Array = NDArray[Any]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """uint8 [N 8 8], training digits."""
    found: NDArray[np.uint8] = digits().train.all(COUNT).x[:, 0].numpy()
    return found


@pytest.fixture(scope="module")
def labels() -> NDArray[np.int64]:
    y = digits().train.all(COUNT).y
    assert y is not None
    found: NDArray[np.int64] = y.numpy()
    return found


def write_folder(pixels: Array, place: Path, suffix: str = ".png", **options: Any) -> Path:
    for i, one in enumerate(pixels):
        path = place / f"{i:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(path, **options)
    return place


def scored(run: Run, *words: str) -> dict[str, Any]:
    ended = run("evaluate", *words, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def refused(ended: Outcome) -> str:
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err
    assert not Path("outputs").exists()
    return ended.err


def test_encodings_of_the_same_pictures_give_one_value(run: Run, workplace: Path, pixels: NDArray[np.uint8]) -> None:
    write_folder(pixels, workplace / "png")
    Image.fromarray(noise(40, 40)).save(workplace / "png" / "grid.png")  # as `gentrain sample` leaves one
    write_folder(np.repeat(pixels[..., None], 3, axis=3), workplace / "grey_as_rgb")
    np.savez(workplace / "bytes.npz", pixels[..., None])
    np.save(workplace / "planes.npy", pixels[:, None])
    np.save(workplace / "flat.npy", pixels)
    np.savez_compressed(workplace / "unit.npz", samples=(pixels[:, None] / 255.0).astype(np.float32))
    np.savez(workplace / "signed.npz", images=(pixels[..., None] / 127.5 - 1.0).astype(np.float32))
    np.save(workplace / "whole.npy", pixels.astype(np.int64))
    places = [("png",), ("grey_as_rgb",), ("bytes.npz",), ("planes.npy",), ("flat.npy",), ("unit.npz", "range=0..1")]
    places += [("signed.npz", "range=-1..1"), ("whole.npy", "range=0..255")]
    found = [scored(run, f"samples={place}", *words, *AGAINST) for place, *words in places]
    for other in found[1:]:
        assert other["scores"].keys() == found[0]["scores"].keys()
        for key, value in found[0]["scores"].items():
            assert other["scores"][key] == pytest.approx(value, abs=1e-6), key
    assert found[0]["scores"]["fd_domain"] > 0
    again = scored(run, "samples=png", *AGAINST)
    assert again == found[0]
    made = found[0]["protocol"]["made_elsewhere"]
    assert (made["count"], made["path"], made["lossy_files"]) == (COUNT, str(workplace / "png"), 0)
    assert found[0]["protocol"]["weights"] == "given"
    assert found[0]["protocol"]["samples"] == COUNT


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_extractors_batch_changes_no_score(
    block: int, run: Run, workplace: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(workplace / "x.npy", pixels)
    monkeypatch.setenv("GENTRAIN_CACHE", str(workplace / "one"))
    whole = scored(run, "samples=x.npy", *AGAINST)["scores"]
    original = FrozenExtractor.__init__

    def cut(self: FrozenExtractor, *given: Any, **options: Any) -> None:
        original(self, *given, **{**options, "block": block})

    monkeypatch.setattr(FrozenExtractor, "__init__", cut)
    monkeypatch.setenv("GENTRAIN_CACHE", str(workplace / "other"))
    parts = scored(run, "samples=x.npy", *AGAINST)["scores"]
    for key, value in whole.items():
        assert parts[key] == pytest.approx(value, abs=1e-6, rel=1e-6), key


def test_what_the_range_does_not_fit_is_refused(run: Run, workplace: Path, pixels: NDArray[np.uint8]) -> None:
    unit = (pixels / 255.0).astype(np.float32)
    broken = unit.copy()
    broken[3, 2, 1] = np.nan
    cases: list[tuple[str, Array, str | None, str]] = [
        ("no range", unit, None, "say what black and white are with range=0..1|-1..1|0..255"),
        ("unit called signed", unit, "-1..1", "looks like 0..1"),
        ("unit called bytes", unit, "0..255", "looks like 0..1"),
        ("signed called unit", unit * 2 - 1, "0..1", "go from -1 to 1"),
        ("a little outside", unit * 1.01, "0..1", "go from 0 to 1.01"),
        ("nan", broken, "0..1", "nan or inf"),
        ("bytes called unit", pixels, "0..1", "holds bytes"),
        ("an unknown range", unit, "0..2", "choose from 0..1"),
        ("complex", unit.astype(np.complex64), "0..1", "type complex64"),
    ]
    for name, array, values, says in cases:
        np.save(workplace / "x.npy", array)
        ended = run("evaluate", "samples=x.npy", *([f"range={values}"] if values else []), *AGAINST)
        assert says in refused(ended), name


def pickled(path: Path, pixels: Array) -> None:
    np.save(path, np.array([{"x": pixels}], dtype=object), allow_pickle=True)


def swollen(path: Path, pixels: Array) -> None:
    head = io.BytesIO()
    shape = (10**9, 64, 64, 3)
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", head.getvalue() + b"\0" * 64)


def cut(path: Path, pixels: Array) -> None:
    np.save(path.with_suffix(".npy"), pixels)
    path.with_suffix(".npy").write_bytes(path.with_suffix(".npy").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("none", lambda path, x: None, "no such folder or file"),
        ("x.npy", pickled, "pickled objects, which are not opened"),
        ("x.npz", swollen, "GB, the limit is"),
        ("x.npy", cut, "cannot be read"),
        ("x.npz", lambda path, x: path.write_bytes(b"PK no zip"), "cannot be read"),
        ("x.npz", lambda path, x: np.savez(path, faces=x), "no array called arr_0"),
        ("x.npy", lambda path, x: np.save(path, x[:0]), "shape (0, 8, 8)"),
        ("x.npy", lambda path, x: np.save(path, x[0]), "shape (8, 8)"),
        ("x.npy", lambda path, x: np.save(path, np.zeros((20, 8, 8, 2), np.uint8)), "1 or 3 channels"),
        ("x.npy", lambda path, x: np.save(path, np.zeros((40, 9, 9), np.uint8)), "9x9 pixels, the data have 8x8"),
        ("x.pt", lambda path, x: path.write_bytes(b"pickle"), "pickles are not opened"),
        ("x", lambda path, x: path.mkdir(), "no images in it"),
        ("x", lambda path, x: write_folder(np.zeros((4, 9, 9), np.uint8), path), "9x9 pixels"),
        ("x", lambda path, x: (write_folder(x, path), (path / "a.png").write_text("text")), "a.png: not an image"),
        ("x.npz", lambda path, x: np.savez(path, x, np.full(len(x), 10)), "labels from 10 to 10"),
        ("x.npz", lambda path, x: np.savez(path, x, np.zeros(3)), "labels of shape (3,)"),
        ("x.npy", lambda path, x: np.save(path, x[:20]), "samples=20"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    name: str,
    make: Callable[[Path, Array], object],
    says: str,
    run: Run,
    workplace: Path,
    pixels: NDArray[np.uint8],
) -> None:
    make(workplace / name, pixels)
    said = refused(run("evaluate", f"samples={name}", *AGAINST))
    assert says in said or (says == "samples=20" and "20 samples for 32 features" in said), said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("samples=x.npy",), "held against data=NAME"),
        (("samples=x.npy", "data=digit"), "digits"),
        (("samples=x.npy", "data=ring"), "are vectors"),
        (("samples=x.npy", "data=digits", "metrics=none"), "nothing would be scored"),
        (("samples=x.npy", "data=digits", "metrics=likelihood"), "log_likelihood"),
        (("samples=x.npy", "data=digits", "sead=3"), "seed"),
        (("samples=x.npy", "data=digits", "out=x.txt"), "ends in .json"),
        (("samples=x.npy", "data=digits", "resize=fit"), "choose from crop"),
        (("samples=x.npy", "reference=nowhere"), "no such folder"),
        (("samples=x.npy", "reference=."), "data.size=32"),
        (("samples=x.npy", "reference=.", "data=digits"), "either data=NAME or reference=FOLDER"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], says: str, run: Run, workplace: Path, pixels: NDArray[np.uint8]
) -> None:
    np.save(workplace / "x.npy", pixels)
    assert says in refused(run("evaluate", *words, "device=cpu"))


def test_resizing_must_be_said_and_is_recorded(run: Run, workplace: Path) -> None:
    np.save(workplace / "x.npy", noise(40, 16, 16))
    write_folder(noise(40, 16, 16), workplace / "folder")
    assert "resize=crop or resize=stretch" in refused(run("evaluate", "samples=x.npy", *AGAINST))
    of_array = scored(run, "samples=x.npy", "resize=crop", *AGAINST)
    of_folder = scored(run, "samples=folder", "resize=crop", *AGAINST)
    assert of_array["scores"] == of_folder["scores"]
    assert of_array["protocol"]["made_elsewhere"]["resize"] == "crop bicubic"


def test_lossy_files_are_counted(run: Run, workplace: Path, pixels: NDArray[np.uint8]) -> None:
    write_folder(pixels[:90], workplace / "x")
    write_folder(pixels[90:], workplace / "x" / "more", ".jpg", quality=60)
    assert "lies beside class folders" in refused(run("evaluate", "samples=x", *AGAINST))
    write_folder(pixels[:90], workplace / "y")
    for i, one in enumerate(pixels[90:]):
        Image.fromarray(one).save(workplace / "y" / f"j{i}.jpg", quality=60)
    assert scored(run, "samples=y", *AGAINST)["protocol"]["made_elsewhere"]["lossy_files"] == len(pixels) - 90


def test_classes_come_from_folders_and_arrays(
    run: Run, workplace: Path, pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    for one, label, i in zip(pixels, labels, range(COUNT), strict=True):
        place = workplace / "by_class" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(place / f"{i:03d}.png")
    np.savez(workplace / "x.npz", pixels, labels)
    words = (
        *("+metrics.at_end.by_class._target_=gentrain.evaluation.classes.ByClass", *AGAINST),
        *("+metrics.at_end.by_class.extractor=${metrics.scores.distances.extractor}",),
        "+metrics.at_end.by_class.allow_few=true",
    )
    found = [scored(run, f"samples={place}", *words)["scores"] for place in ("by_class", "x.npz")]
    assert found[0]["label_accuracy"] == found[1]["label_accuracy"] > 0.95
    np.savez(workplace / "x.npz", pixels, (labels + 1) % 10)
    assert scored(run, "samples=x.npz", *words)["scores"]["label_accuracy"] < 0.05
    np.save(workplace / "x.npy", pixels)
    assert "label_accuracy" not in scored(run, "samples=x.npy", *words)["scores"]


def test_two_folders_are_held_against_each_other(run: Run, workplace: Path, pixels: NDArray[np.uint8]) -> None:
    from gentrain.evaluation.domain import SHIPPED

    write_folder(pixels, workplace / "one")
    shape = ("data.size=8", "data.channels=1", "data.resize=none")
    domain = ("metrics=domain", f"metrics.scores.distances.extractor.weights={SHIPPED / 'digits.safetensors'}")
    words = ("samples=one", "reference=one", *shape, *domain, "device=cpu")
    same = scored(run, *words)
    assert same["scores"]["fd_domain"] == pytest.approx(0.0, abs=1e-6)
    assert same["protocol"]["splits"]["distances"] == f"test {COUNT}"
    write_folder(noise(60, 8, 8), workplace / "other")
    assert scored(run, "samples=other", *words[1:])["scores"]["fd_domain"] > 10


def test_a_run_is_scored_under_other_metrics(run: Run, workplace: Path) -> None:
    shared = ("model=vae", "data=digits", "size=tiny", "trainer=cpu", "trainer.threads=1", "train.iterations=4")
    assert run(*shared, "name=run", "metrics=none").code == 0
    assert "trained without metrics; say which" in run("evaluate", "run=outputs/run", "device=cpu").err
    found = [scored(run, "run=outputs/run", "metrics=domain", "device=cpu") for _ in range(2)]
    assert found[0]["scores"] == found[1]["scores"]
    assert {"fd_domain", "fd_domain_sd", "precision_domain", "nll_nats"} <= found[0]["scores"].keys()
    few = scored(run, "run=outputs/run", "metrics=likelihood", "metrics.scores.likelihood.limit=20", "out=x.json")
    assert few["protocol"]["splits"] == {"likelihood": "test 20"}
    assert json.loads(Path("x.json").read_text(encoding="utf-8"))["scores"] == few["scores"]
    ended = run("evaluate", "run=outputs/run", "metrics=domian")
    assert (ended.code, "domain" in ended.err) == (2, True)


def test_random_bytes_for_pictures_are_one_line(run: Run, workplace: Path, pixels: NDArray[np.uint8]) -> None:
    generator = random.Random(3)
    np.savez(workplace / "good.npz", pixels)
    good = (workplace / "good.npz").read_bytes()
    for _ in range(12):
        spoilt = bytearray(good)
        for _ in range(generator.randint(1, 30)):
            spoilt[generator.randrange(len(spoilt))] = generator.randrange(256)
        (workplace / "x.npz").write_bytes(bytes(spoilt[: generator.randint(10, len(spoilt))]))
        ended = run("evaluate", "samples=x.npz", *AGAINST)
        assert ended.code in (0, 2)
        assert "Traceback" not in ended.err
