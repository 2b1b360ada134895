"""Every source on small files in its exact layout, and the message when they are missing or wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_data import (
    ATTRIBUTES,
    celeba_set,
    cifar_batches,
    cifar_binary,
    cifar_python,
    noise,
    pack,
    refused,
    save,
    unpack,
)
from PIL import Image
from sklearn.datasets import load_digits

from gentrain.data import cifar
from gentrain.data.sources import celeba, cifar10, digits, folder


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))


class TestDigits:
    def test_pixels_labels_and_split(self) -> None:
        data, bunch = digits(), load_digits()
        every = np.arange(1797)
        for split, chosen in ((data.train, every[every % 5 != 4]), (data.test, every[every % 5 == 4])):
            batch = split.all()
            assert batch.y is not None
            assert np.array_equal(batch.x[:, 0].numpy(), np.round(bunch.images[chosen] * 255 / 16))
            assert np.array_equal(batch.y.numpy(), bunch.target[chosen])
        assert (len(data.train), len(data.test), data.spec.classes) == (1438, 359, 10)

    def test_size_and_channels(self) -> None:
        data = digits(size=16, channels=3)
        x = data.train.all(limit=4).x
        assert x.shape == (4, 3, 16, 16)
        assert torch.equal(x[:, 0], x[:, 2])
        assert len({digits(size=size).fingerprint for size in (8, 16)} | {data.fingerprint}) == 3
        refused(lambda: digits(size=12), "size=12", "8, 16, 32, 64, 128")
        refused(lambda: digits(channels=2), "channels=2")
        refused(lambda: digits(size=16, resample="cubic"), "resample=cubic", "bicubic")


class TestCifar:
    @pytest.mark.parametrize("layout", ["binary folder", "binary archive", "python folder", "python archive"])
    @pytest.mark.parametrize("place", ["cifar10", "."])
    def test_four_layouts_are_one_data_set(
        self, tmp_path: Path, layout: str, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = cifar_batches()
        kind, form = layout.split()
        files = cifar_binary(batches) if kind == "binary" else cifar_python(batches)
        home = tmp_path / place
        name = cifar.BINARY[0] if kind == "binary" else cifar.PYTHON[0]
        if form == "folder":
            unpack(files, home)
            sums = {Path(key).name: hashlib.md5(blob).hexdigest() for key, blob in files.items()}
            monkeypatch.setattr(cifar, "PYTHON_FILES", sums if kind == "python" else cifar.PYTHON_FILES)
        else:
            monkeypatch.setattr(cifar, "PYTHON", (cifar.PYTHON[0], pack(files, home / name)))
        data = cifar10(str(tmp_path), download=False)
        train, test = data.train.all(), data.test.all()
        pixels = np.concatenate([batches[f"data_batch_{k}"][0] for k in range(1, 6)])
        assert np.array_equal(train.x.numpy(), pixels.reshape(-1, 3, 32, 32))
        assert np.array_equal(test.x.numpy(), batches["test_batch"][0].reshape(-1, 3, 32, 32))
        assert test.y is not None
        assert np.array_equal(test.y.numpy(), batches["test_batch"][1])

    @pytest.mark.parametrize("form", ["archive", "folder"])
    @pytest.mark.parametrize("checksum_fits", [False, True])
    def test_pickles_run_nothing(
        self, tmp_path: Path, form: str, checksum_fits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        canary = tmp_path / "canary"

        class Payload:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return os.system, (f"touch {canary}",)

        files = cifar_python(cifar_batches())
        files["cifar-10-batches-py/data_batch_1"] = pickle.dumps({"data": Payload(), "labels": []}, protocol=2)
        if form == "archive":
            made = pack(files, tmp_path / cifar.PYTHON[0])
            monkeypatch.setattr(cifar, "PYTHON", (cifar.PYTHON[0], made if checksum_fits else cifar.PYTHON[1]))
        else:
            unpack(files, tmp_path)
            sums = {Path(key).name: hashlib.md5(blob).hexdigest() for key, blob in files.items()}
            monkeypatch.setattr(cifar, "PYTHON_FILES", sums if checksum_fits else cifar.PYTHON_FILES)
        fragment = "it asks for" if checksum_fits else "not the published"
        refused(lambda: cifar10(str(tmp_path), download=False), fragment)
        assert not canary.exists()
        pickle.loads(files["cifar-10-batches-py/data_batch_1"])  # the payload itself is sound
        assert canary.exists()

    def test_missing_and_damaged(self, tmp_path: Path) -> None:
        refused(lambda: cifar10(str(tmp_path), download=False), "cifar-10-binary.tar.gz", str(tmp_path / "cifar10"))
        pack(cifar_binary(cifar_batches()), tmp_path / cifar.BINARY[0])
        blob = (tmp_path / cifar.BINARY[0]).read_bytes()
        (tmp_path / cifar.BINARY[0]).write_bytes(blob[: len(blob) // 2])
        refused(lambda: cifar10(str(tmp_path), download=False), "damaged archive", cifar.BINARY[0])
        files = cifar_binary(cifar_batches())
        files["cifar-10-batches-bin/data_batch_3.bin"] += b"x"
        pack(files, tmp_path / cifar.BINARY[0])
        refused(lambda: cifar10(str(tmp_path), download=False), "data_batch_3.bin", "records of 3073")


class TestCeleba:
    @pytest.mark.parametrize("zipped", [False, True])
    def test_splits_attributes_and_crop(self, tmp_path: Path, zipped: bool) -> None:
        attributes = celeba_set(tmp_path / "celeba", zipped=zipped)
        data = celeba(str(tmp_path), size=64)
        assert (len(data.train), len(data.test)) == (4, 2)
        assert data.spec.attribute_names == ATTRIBUTES
        assert data.train.y is not None
        assert data.test.y is not None
        assert np.array_equal(data.train.y.numpy(), attributes[:4])
        assert np.array_equal(data.test.y.numpy(), attributes[5:])
        if not zipped:
            picture = Image.open(tmp_path / "celeba" / "img_align_celeba" / "000006.jpg").crop((19, 39, 159, 179))
            expected = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            assert np.array_equal(data.test.x.take(torch.tensor([0]))[0], expected)

    def test_folder_and_zip_agree(self, tmp_path: Path) -> None:
        for zipped in (False, True):
            celeba_set(tmp_path / str(zipped), zipped=zipped)
        loose, packed = (celeba(str(tmp_path / str(zipped)), size=8, cache=zipped) for zipped in (False, True))
        assert torch.equal(loose.train.all().x, packed.train.all().x)

    def test_missing_and_wrong(self, tmp_path: Path) -> None:
        refused(lambda: celeba(str(tmp_path)), "img_align_celeba.zip", "by hand", str(tmp_path / "celeba"))
        celeba_set(tmp_path)
        images = tmp_path / "img_align_celeba"
        save(images / "000002.jpg", noise(100, 100, 3))
        refused(lambda: celeba(str(tmp_path)), "000002.jpg", "100x100", "178x218")
        (images / "000002.jpg").unlink()
        refused(lambda: celeba(str(tmp_path)), "lacks 1 of 4 images", "000002.jpg")
        lines = (tmp_path / "list_attr_celeba.txt").read_text().splitlines()
        (tmp_path / "list_attr_celeba.txt").write_text("\n".join([*lines[:5], "000004.jpg 7" + " 1" * 39, *lines[6:]]))
        refused(lambda: celeba(str(tmp_path)), "list_attr_celeba.txt", "line 6")
        (tmp_path / "list_attr_celeba.txt").unlink()
        refused(lambda: celeba(str(tmp_path)), "lacks list_attr_celeba.txt")

    def test_web_page_instead_of_the_zip(self, tmp_path: Path) -> None:
        celeba_set(tmp_path, zipped=True)
        (tmp_path / "img_align_celeba.zip").write_text("<html>Google Drive - Quota exceeded</html>")
        refused(lambda: celeba(str(tmp_path)), "img_align_celeba.zip", "web page")


def pictures(home: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        save(home / name, noise(20, 16, 3, seed=number))


class TestFolder:
    def test_classes_are_sub_folders(self, tmp_path: Path) -> None:
        pictures(tmp_path, [f"{kind}/deep/{number}.PNG" for kind in ("b", "a ä") for number in range(20)])
        data = folder(str(tmp_path), size=8, test_fraction=0.3)
        assert data.spec.class_names == ("a ä", "b")
        assert len(data.train) + len(data.test) == 40
        for split in (data.train, data.test):
            assert split.y is not None
            assert set(split.y.tolist()) == {0, 1}

    def test_without_classes_new_files_move_no_old_one(self, tmp_path: Path) -> None:
        pictures(tmp_path, [f"{number}.png" for number in range(40)])
        before = folder(str(tmp_path), size=8, cache=False)
        assert before.train.y is None
        assert before.spec.classes == 0
        held_out = set(before.test.x.files.names)  # type: ignore[attr-defined]
        pictures(tmp_path, [f"{number}.png" for number in range(40, 80)])
        after = folder(str(tmp_path), size=8, cache=False)
        assert {name for name in after.test.x.files.names if int(name[:-4]) < 40} == held_out  # type: ignore[attr-defined]
        assert before.fingerprint != after.fingerprint

    def test_train_and_test_are_used(self, tmp_path: Path) -> None:
        pictures(tmp_path, ["train/x/1.png", "train/y/2.png", "test/y/3.png"])
        data = folder(str(tmp_path), size=8)
        assert (len(data.train), len(data.test)) == (2, 1)
        assert data.test.y is not None
        assert data.test.y.tolist() == [1]
        pictures(tmp_path, ["test/z/4.png"])
        refused(lambda: folder(str(tmp_path), size=8), "z/4.png", "not among")

    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        refused(lambda: folder(str(tmp_path / "none")), "none", "no such folder")
        (tmp_path / "text.txt").write_text("hello")
        refused(lambda: folder(str(tmp_path)), "no images", ".png")
        pictures(tmp_path, ["1.png", "2.png"])
        refused(lambda: folder(str(tmp_path), test_fraction=0.0001), "test split is empty", "2 images", "0.0001")
        refused(lambda: folder(str(tmp_path), test_fraction=0), "test_fraction=0")
        refused(lambda: folder(str(tmp_path), size=20), "size=20", "8, 16, 32, 64, 128")
        pictures(tmp_path, ["a/3.png"])
        refused(lambda: folder(str(tmp_path)), "1.png", "beside class folders")

    def test_no_resize_refuses_mixed_sizes(self, tmp_path: Path) -> None:
        for number in range(20):
            save(tmp_path / f"{number}.png", noise(20, 20, 3))
        assert folder(str(tmp_path), size=20, resize="none").spec.shape == (3, 20, 20)
        save(tmp_path / "7.png", noise(20, 21, 3))
        refused(lambda: folder(str(tmp_path), size=20, resize="none"), "7.png", "21x20", "20x20")

    def test_odd_names_stay_on_one_line(self, tmp_path: Path) -> None:
        pictures(tmp_path, [f"{number}.png" for number in range(30)])
        (tmp_path / "a\nb ü.png").write_text("no picture")
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / "1.png").read_bytes())
        refused(lambda: folder(str(tmp_path), size=8), "a\\nb ü.png", "not an image")
        (tmp_path / "a\nb ü.png").unlink()
        data = folder(str(tmp_path), size=8)
        assert len(data.train) + len(data.test) == 31

    def test_links_in_a_circle_end(self, tmp_path: Path) -> None:
        pictures(tmp_path / "all", [f"a/{number}.png" for number in range(30)])
        (tmp_path / "all" / "a" / "up").symlink_to(tmp_path / "all")
        data = folder(str(tmp_path / "all"), size=8)
        assert len(data.train) + len(data.test) == 30
