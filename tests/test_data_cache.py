"""The cache of decoded images: built once, whole or not at all, and never stale."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_data import noise, save

from gentrain.data import pool
from gentrain.data.cache import Storage, rows
from gentrain.data.dataset import FileRows, MemmapRows, Rows, TensorRows
from gentrain.data.decode import Recipe, decode
from gentrain.data.files import FolderFiles
from gentrain.errors import UserError

COUNT = 150  # more than two chunks


@pytest.fixture
def files(tmp_path: Path) -> FolderFiles:
    home = tmp_path / "images"
    return FolderFiles(home, [save(home / f"{k:03d}.png", noise(8, 8, 3, seed=k)).name for k in range(COUNT)])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(cache_dir=str(tmp_path / "cache"))


def visible(storage: Storage) -> list[Path]:
    return sorted(path for path in storage.folder.glob("*") if not path.name.startswith("."))


def leftovers(storage: Storage) -> list[Path]:
    return sorted(storage.folder.glob(".*.part"))


def everything(x: Rows) -> torch.Tensor:
    return x.take(torch.arange(len(x)))


def expected(files: FolderFiles, recipe: Recipe) -> torch.Tensor:
    return everything(FileRows(files, recipe))


def test_three_ways_give_the_same_pixels(files: FolderFiles, storage: Storage) -> None:
    recipe = Recipe(8)
    held = rows(files, recipe, storage, "a")
    mapped = rows(files, recipe, Storage(in_memory_bytes=100, cache_dir=storage.cache_dir), "a")
    streamed = rows(files, recipe, Storage(cache=False), "a")
    assert (type(held), type(mapped), type(streamed)) == (TensorRows, MemmapRows, FileRows)
    index = torch.tensor([149, 3, 3, 70])
    assert torch.equal(held.take(index), mapped.take(index))
    assert torch.equal(held.take(index), streamed.take(index))
    assert len(visible(storage)) == 1


def test_map_is_not_written_through(files: FolderFiles, storage: Storage) -> None:
    mapped = rows(files, Recipe(8), Storage(in_memory_bytes=100, cache_dir=storage.cache_dir), "a")
    before = everything(mapped)
    mapped.take(torch.tensor([5])).zero_()
    assert torch.equal(everything(mapped), before)


def test_built_once(files: FolderFiles, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(files, Recipe(8), storage, "a")

    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(pool, "decode", never)
    rows(files, Recipe(8), storage, "a")


def test_other_content_or_recipe_is_another_file(files: FolderFiles, storage: Storage) -> None:
    recipes = [
        Recipe(8),
        Recipe(16),
        Recipe(8, 1),
        Recipe(8, crop=4),
        Recipe(8, resize="stretch"),
        Recipe(8, resample="box"),
    ]
    for recipe in recipes:
        assert torch.equal(everything(rows(files, recipe, storage, "a")), expected(files, recipe))
    assert len(visible(storage)) == len(recipes)
    save(files.root / files.names[7], noise(8, 8, 3, seed=999))
    assert torch.equal(everything(rows(files, Recipe(8), storage, "a")), expected(files, Recipe(8)))
    assert len(visible(storage)) == len(recipes) + 1


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_fingerprint_sees_changes(files: FolderFiles, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gentrain.data.files.CONTENT_LIMIT", limit)
    first = files.fingerprint()
    assert files.fingerprint() == first
    path = files.root / files.names[3]
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert (files.fingerprint() == first) == (limit > 0)  # content is the same: only the large folder must trust times
    path.write_bytes(path.read_bytes() + b"\0")
    assert files.fingerprint() != first
    assert FolderFiles(files.root, files.names[1:]).fingerprint() != first


def _killed(files: FolderFiles, storage: Storage) -> None:
    """Build, and be killed without warning in the third chunk."""
    done = 0

    def decode_then_die(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done > 140:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(*args)

    vars(pool)["decode"] = decode_then_die
    rows(files, Recipe(8), storage, "a")


def test_kill_half_way_leaves_nothing_visible(files: FolderFiles, storage: Storage) -> None:
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(files, storage))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert visible(storage) == []
    assert len(leftovers(storage)) == 1
    other = FolderFiles(files.root, files.names[:5])
    rows(other, Recipe(8), storage, "b")  # any later build sweeps it, not only that of the same images
    assert leftovers(storage) == []
    assert torch.equal(everything(rows(files, Recipe(8), storage, "a")), expected(files, Recipe(8)))


def test_part_in_work_is_not_swept(files: FolderFiles, storage: Storage) -> None:
    from gentrain.data.files import locked

    storage.folder.mkdir(parents=True)
    part = storage.folder / ".other.npy.part"
    part.write_bytes(b"half")
    with locked(storage.folder / ".other.npy.lock"):
        rows(files, Recipe(8), storage, "a")
        assert part.exists()
    rows(files, Recipe(16), storage, "a")
    assert not part.exists()


def test_file_cut_short_is_built_again(files: FolderFiles, storage: Storage) -> None:
    rows(files, Recipe(8), storage, "a")
    [path] = visible(storage)
    path.write_bytes(path.read_bytes()[:-100])
    assert torch.equal(everything(rows(files, Recipe(8), storage, "a")), expected(files, Recipe(8)))


def test_bad_image_names_itself_and_leaves_nothing(files: FolderFiles, storage: Storage) -> None:
    (files.root / files.names[100]).write_text("")
    with pytest.raises(UserError, match=r"100\.png"):
        rows(files, Recipe(8), storage, "a")
    assert visible(storage) == leftovers(storage) == []


def test_many_processes_keep_the_order(files: FolderFiles, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PARALLEL_FROM", 2)
    monkeypatch.setattr(pool, "CHUNK", 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert torch.equal(everything(rows(files, Recipe(8), storage, "a")), expected(files, Recipe(8)))
    (files.root / files.names[100]).write_text("")
    with pytest.raises(UserError, match=r"100\.png"):
        rows(files, Recipe(8), storage, "a")
    assert leftovers(storage) == []


def test_unwritable_folder_is_one_line(files: FolderFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the cache .*data\.cache_dir"):
        rows(files, Recipe(8), Storage(cache_dir=str(tmp_path / "file")), "a")


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GENTRAIN_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert Storage(cache_dir="/zero").folder == Path("/zero")
    assert Storage().folder == Path("/one")
    monkeypatch.delenv("GENTRAIN_CACHE")
    assert Storage().folder == Path("/two/gentrain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage().folder == tmp_path / ".cache" / "gentrain"


def test_cache_is_plain_numpy(files: FolderFiles, storage: Storage) -> None:
    rows(files, Recipe(8), storage, "odd/title ä")
    [path] = visible(storage)
    assert path.name.startswith("odd_title_-8px-")
    assert np.load(path, allow_pickle=False).shape == (COUNT, 3, 8, 8)
