"""MNIST and Fashion-MNIST: their files in every place and shape, damaged ones, and the download."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_data import idx_bytes, idx_set, noise, refused

from gentrain.data import idx
from gentrain.data.sources import fashion_mnist, mnist


@pytest.fixture(autouse=True)
def _no_system_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "FASHION_MNIST", replace(idx.FASHION_MNIST, system_folder=None))


class TestIdx:
    @pytest.mark.parametrize(
        ("source", "place"), [(mnist, "MNIST/raw"), (mnist, "mnist"), (mnist, "."), (fashion_mnist, ".")]
    )
    @pytest.mark.parametrize("packed", [True, False])
    def test_reads_both_layouts_in_every_place(self, tmp_path: Path, source: Any, place: str, packed: bool) -> None:
        content = idx_set(tmp_path / place, packed=packed)
        data = source(str(tmp_path), download=False)
        for split, part in ((data.train, "train"), (data.test, "t10k")):
            batch = split.all()
            assert np.array_equal(batch.x[:, 0].numpy(), content[f"{part}-images-idx3-ubyte"])
            assert np.array_equal(batch.y.numpy(), content[f"{part}-labels-idx1-ubyte"])
        assert data.spec.shape == (1, 28, 28)

    def test_debians_package_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        idx_set(tmp_path / "system")
        changed = replace(idx.FASHION_MNIST, system_folder=str(tmp_path / "system"))
        monkeypatch.setattr(idx, "FASHION_MNIST", changed)
        assert len(fashion_mnist(str(tmp_path / "none"), download=False).train) == 30

    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        refused(lambda: mnist(str(tmp_path), download=False), "train-images-idx3-ubyte", str(tmp_path / "mnist"))
        refused(lambda: fashion_mnist(str(tmp_path), download=False), "apt-get install dataset-fashion-mnist")
        idx_set(tmp_path / "mnist")
        (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
        refused(lambda: mnist(str(tmp_path), download=False), "lacks t10k-labels-idx1-ubyte")

    def test_one_set_is_not_taken_for_the_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        content = idx_set(tmp_path)
        seen = hashlib.md5(idx_bytes(content["train-labels-idx1-ubyte"]), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(idx, "MNIST", replace(idx.MNIST, labels_md5=seen))
        assert len(mnist(str(tmp_path)).train) == 30
        refused(lambda: fashion_mnist(str(tmp_path)), "holds MNIST, not Fashion-MNIST")

    @pytest.mark.parametrize(
        ("blob", "fragment"),
        [
            (b"", "empty file"),
            (b"<html>quota exceeded</html>", "web page"),
            (gzip.compress(noise(50, 28, 28).tobytes())[:-20], "damaged gzip"),
            (gzip.compress(b"hello, world", mtime=0), "not an IDX file"),
            (gzip.compress(idx_bytes(noise(30, 28, 28))[:-1]), "are announced"),
            (gzip.compress(idx_bytes(noise(30, 20, 28))), "not images of 28x28"),
            (gzip.compress(idx_bytes(noise(29, 28, 28))), "do not belong together"),
        ],
    )
    def test_damaged_files_are_named(self, tmp_path: Path, blob: bytes, fragment: str) -> None:
        idx_set(tmp_path / "mnist")
        (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(blob)
        refused(lambda: mnist(str(tmp_path), download=False), fragment, "train-")

    def test_label_out_of_range(self, tmp_path: Path) -> None:
        idx_set(tmp_path / "mnist")
        labels = np.full(10, 10, dtype=np.uint8)
        (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
        refused(lambda: mnist(str(tmp_path)), "t10k-labels", "label 10")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine and the folder that it serves."""
    home = tmp_path / "web"
    home.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(home))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", home
        running.shutdown()


class TestDownload:
    def test_checked_and_kept(self, tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        url, home = server
        idx_set(home)
        sums = [hashlib.md5((home / f"{name}.gz").read_bytes()).hexdigest() for name in idx._NAMES]
        dead = "http://127.0.0.1:9/"
        monkeypatch.setattr(idx, "MNIST", replace(idx.MNIST, urls=(dead, url), md5=tuple(sums)))
        assert len(mnist(str(tmp_path / "data")).train) == 30
        assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(
            f"{n}.gz" for n in idx._NAMES
        )
        assert len(mnist(str(tmp_path / "data"), download=False).train) == 30

    def test_wrong_content_is_not_kept(
        self, tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, home = server
        idx_set(home)
        monkeypatch.setattr(idx, "MNIST", replace(idx.MNIST, urls=(url,)))
        refused(lambda: mnist(str(tmp_path / "data")), "not the published checksum", "put train-images")
        assert not (tmp_path / "data" / "mnist").exists()
