"""Features and Gaussians of real images on disk: the same digits without the work, or the work again."""

from __future__ import annotations

import errno
import os
import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gentrain.data.dataset import DataSet
from gentrain.data.files import locked
from gentrain.data.sources import digits
from gentrain.evaluation import reference
from gentrain.evaluation.extractors import Features, Keys
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.reference import FeatureCache, describe, file_name, read, write
from gentrain.evaluation.subject import Subject


@dataclass
class Pixels:
    """An extractor that is its input, and counts the images it sees."""

    name: str = "pixels"
    sha256: str = "0" * 64
    num_features: int = 64
    classes: tuple[str, ...] = ()
    resize: str = "none"
    seen: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Features:
        self.seen.append(len(x))
        flat = x.flatten(1).float()
        return Features(flat, flat + 1)


@dataclass(frozen=True)
class Source:
    extractor: Pixels = field(default_factory=Pixels, compare=False)
    keys: ClassVar[Keys] = Keys("fd_pixels", "_pixels")

    def check(self, data: DataSet) -> None: ...

    def num_features(self, data: DataSet) -> int:
        return 64

    def load(self, data: DataSet, device: torch.device | str = "cpu") -> Pixels:
        return self.extractor


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "statistics"


def scores(data: DataSet, folder: Path | None) -> tuple[dict[str, float], int]:
    """Of 70 training images, as a run that has just started would have them; and how many images were looked at."""
    source = Source()
    subject = Subject(data, None, lambda n: data.train.all(n).x, n=70, cache=FeatureCache(folder))
    found = Distances(source, splits=1).measure(subject)
    return found, sum(source.extractor.seen)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))


def one(data: DataSet, folder: Path) -> tuple[Path, dict[str, str]]:
    """A written file and its fields."""
    extractor = Pixels()
    FeatureCache(folder).gaussian(extractor, data, "test", 100)
    fields = describe("gaussian", extractor, data, "test", 100, "cpu")
    return folder / file_name(fields), fields


def test_a_second_evaluation_reads_and_gives_the_same_digits(
    data: DataSet, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    without, first, second = scores(data, None), scores(data, folder), scores(data, folder)
    assert without[0] == first[0] == second[0]
    assert (without[1], first[1], second[1]) == (len(data.test) + 70, len(data.test) + 70, 70)
    assert len(visible(folder)) == 2
    assert capfd.readouterr().err == ""
    kept, extractor = FeatureCache(folder), Pixels()
    again, fresh = kept.reference(extractor, data, "test", len(data.test)), Pixels()(data.test.all().x)
    assert again.logits is not None
    assert again.features.equal(fresh.features)
    assert again.logits.equal(fresh.features + 1)
    assert extractor.seen == []


def test_the_gaussian_comes_without_the_features(data: DataSet, folder: Path) -> None:
    path, _ = one(data, folder)
    next(folder.glob("features*")).unlink()
    extractor = Pixels()
    found = FeatureCache(folder).gaussian(extractor, data, "test", 100)
    assert extractor.seen == []
    assert "factor" in vars(found)  # nothing of it has to be computed again
    assert torch.allclose(found.factor @ found.factor.T, found.covariance)
    assert found.covariance.allclose(data.test.all(100).x.flatten(1).double().T.cov())
    assert found.count == 100
    assert path.is_file()


FIELDS = ["format", "kind", "data", "fingerprint", "shape", "split", "count", "extractor", "sha256", "features"]
FIELDS += ["resize", "bits", "device", "torch"]


@pytest.mark.parametrize("name", FIELDS)
def test_a_file_of_other_circumstances_is_refused_by_name(
    name: str, data: DataSet, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, fields = one(data, folder)
    assert list(fields) == FIELDS
    right = read(path, fields)
    assert right is not None
    lies = {key: tensor + 1 for key, tensor in right.items()}
    for header in (fields | {name: "other"}, {key: value for key, value in fields.items() if key != name}):
        write(path, lies, header)
        assert read(path, fields) is None
        said = capfd.readouterr().err
        assert f": {name} is " in said
        assert f"wanted {fields[name]!r}; they are computed again" in said
        assert said.count("\n") == 1
    again = FeatureCache(folder).gaussian(Pixels(), data, "test", 100)
    assert again.mean.equal(right["mean"])
    mended = read(path, fields)
    assert mended is not None
    assert mended["mean"].equal(right["mean"])


def test_each_circumstance_changes_its_field(data: DataSet) -> None:
    def differing(
        kind: str = "features", some: DataSet = data, split: str = "test", count: int = 9, **of: object
    ) -> set:
        device = str(of.pop("device", "cpu"))
        found = describe(kind, Pixels(**of), some, split, count, device)  # type: ignore[arg-type]
        base = describe("features", Pixels(), data, "test", 9, "cpu")
        return {name for name in base if base[name] != found[name]}

    assert differing() == set()
    assert differing("gaussian") == {"kind"}
    assert differing(some=replace(data, fingerprint="f")) == {"fingerprint"}
    assert differing(some=replace(data, name="d")) == {"data"}
    assert differing(split="train") == {"split"}
    assert differing(count=8) == {"count"}
    assert differing(device="cuda:0") == {"device"}
    for name, field_name in (("name", "extractor"), ("sha256", "sha256"), ("resize", "resize")):
        assert differing(**{name: "x"}) == {field_name}
    assert differing(num_features=9) == {"features"}


def test_a_damaged_file_never_gives_a_wrong_number(
    data: DataSet, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, fields = one(data, folder)
    right, whole = read(path, fields), path.read_bytes()
    assert right is not None
    refused = 0
    for place in [*range(0, 1400, 23), *range(1400, len(whole), 4999), len(whole) - 1]:
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        found = read(path, fields)
        refused += found is None
        assert found is None or all(found[key].equal(right[key]) for key in right)
    assert refused > 60
    for length in (0, 7, 8, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        capfd.readouterr()
        assert read(path, fields) is None
        assert "cannot be read" in capfd.readouterr().err
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read(path, fields) is None
    assert "damaged: the content is not what was written; they are computed again" in capfd.readouterr().err
    assert FeatureCache(folder).gaussian(Pixels(), data, "test", 100).mean.equal(right["mean"])
    mended = read(path, fields)
    assert mended is not None
    assert mended["factor"].equal(right["factor"])


def child(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own, which exits with 9 if it raises; returns its number."""
    pid = os.fork()
    if not pid:
        code = 9
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def test_a_kill_while_writing_leaves_nothing_that_is_read(data: DataSet, folder: Path) -> None:
    def killed() -> None:
        reference.flushed = lambda handle: os._exit(7)  # type: ignore[assignment]
        one(data, folder)

    assert os.waitstatus_to_exitcode(os.waitpid(child(killed), 0)[1]) == 7
    assert visible(folder) == []
    assert list(folder.glob(".*.part"))
    FeatureCache(folder).gaussian(Pixels(), data, "train", 100)
    assert len(visible(folder)) == 2
    assert not list(folder.glob(".*.part"))


def test_a_file_appears_by_a_rename_after_it_was_flushed(
    data: DataSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flushed, rename = reference.flushed, Path.replace
    monkeypatch.setattr(reference, "flushed", lambda handle: (order.append("flush"), flushed(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("rename"), rename(a, b))[1])
    monkeypatch.setattr(reference, "sync_folder", lambda place: order.append("sync"))
    one(data, folder)
    assert order == ["flush", "rename", "sync"] * 2

    def full(handle: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reference, "flushed", full)
    assert FeatureCache(folder).gaussian(Pixels(), data, "train", 100).count == 100
    assert len(visible(folder)) == 2
    assert not list(folder.glob(".*.part"))


def test_processes_may_share_a_folder(data: DataSet, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right = Pixels()(data.test.all(50).x).features.double().mean(0)

    def work() -> None:
        for turn in range(15):
            found = FeatureCache(folder).gaussian(Pixels(), data, "test", 50)
            assert torch.allclose(found.mean, right, rtol=1e-12)
            for path in folder.glob("*.safetensors") if turn % 3 == os.getpid() % 3 else ():
                path.unlink(missing_ok=True)

    for pid in [child(work) for _ in range(3)]:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert capfd.readouterr().err == ""


def test_who_finds_another_writing_goes_on_without(data: DataSet, folder: Path) -> None:
    path = one(data, folder)[0]
    path.unlink()
    with locked(folder / f".{path.name}.lock"):
        assert FeatureCache(folder).gaussian(Pixels(), data, "test", 100).count == 100
    assert not path.exists()


def test_a_folder_that_cannot_be_written_costs_no_score(
    data: DataSet, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    right = scores(data, None)[0]
    (tmp_path / "file").write_text("")
    assert scores(data, tmp_path / "file" / "statistics")[0] == right
    said = capfd.readouterr().err
    assert said.count("are not kept in") == said.count("\n") == 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # a write beyond fails, as on a full disk
        assert scores(data, folder)[0] == right
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capfd.readouterr().err.count("are not kept in") == 2
    assert visible(folder) == []
    assert not list(folder.glob(".*.part"))
    path = folder / one(data, folder)[0].name
    path.unlink()
    path.mkdir()  # in the way
    assert FeatureCache(folder).gaussian(Pixels(), data, "test", 100).count == 100


def test_names_of_data_stay_inside_the_folder(data: DataSet, folder: Path) -> None:
    strange = replace(data, name="folder:../../" + "x" * 300)
    path, fields = one(strange, folder)
    assert path.parent == folder
    assert read(path, fields) is not None
    near = describe("gaussian", Pixels(), replace(strange, name=strange.name + "y"), "test", 100, "cpu")
    assert file_name(near) != path.name


def test_the_cache_folder_is_the_one_of_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path))
    assert FeatureCache.on_disk().folder == tmp_path / "statistics"
    assert FeatureCache().folder is None
