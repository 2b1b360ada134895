"""Checkpoints are whole or not there, and run no code."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, words
from test_contract import differences

from gentrain.engine import checkpoint
from gentrain.engine.checkpoint import DamagedError
from gentrain.engine.player import Seat
from gentrain.engine.system import System
from gentrain.errors import UserError

STATE = {"weights": torch.arange(2000, dtype=torch.float32), "names": ["a", "b"], "number": 3, "nothing": None}


def test_what_is_saved_comes_back_and_opens_with_plain_torch(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.file_name(7)
    checkpoint.save(STATE, path)
    for state in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert torch.equal(state["weights"], STATE["weights"])
        assert state["names"] == ["a", "b"]
        assert state["nothing"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["iteration-000000007.ckpt"]


def test_every_cut_and_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.file_name(1)
    checkpoint.save(STATE, path)
    data = path.read_bytes()
    generator = random.Random(0)
    damaged = [data[: len(data) * k // 50] for k in range(50)]
    for place in [0, len(data) - 1, len(data) - 70, *(generator.randrange(len(data)) for _ in range(100))]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << generator.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"iteration-000000001\.ckpt") as caught:
            checkpoint.load(path)
        assert "\n" not in str(caught.value)


def test_the_newest_whole_one_is_taken_and_the_damaged_are_named_and_kept(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        state = {**STATE, "number": i, "run": "a", "system": {"clock": {"iteration": i}}}
        checkpoint.save(state, tmp_path / checkpoint.file_name(i))
    bad = tmp_path / checkpoint.file_name(3)
    bad.write_bytes(bad.read_bytes()[:-100])
    found = checkpoint.newest_whole(tmp_path)
    assert found is not None
    path, state, passed_over = found
    assert (path.name, state["number"]) == (checkpoint.file_name(2), 2)
    assert len(passed_over) == 1
    assert bad.name in passed_over[0]
    assert bad.exists()
    with pytest.raises(UserError, match=r"no whole checkpoint is left .*is of another run \(a, this one is b\)"):
        checkpoint.newest_whole(tmp_path, "b")
    shutil.copyfile(tmp_path / checkpoint.file_name(1), tmp_path / checkpoint.file_name(7))
    found = checkpoint.newest_whole(tmp_path, "a")
    assert found is not None
    assert found[0].name == checkpoint.file_name(2)
    assert "iteration-000000007.ckpt: holds iteration 1" in found[2][0]
    for path in checkpoint.steps(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.newest_whole(tmp_path)
    assert checkpoint.newest_whole(tmp_path / "empty") is None


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.canary),))


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.file_name(1)
    checkpoint.save({"bomb": 0}, path)
    torch.save({"format": 1, "bomb": Bomb(tmp_path / "canary")}, tmp_path / "raw")
    path.write_bytes(checkpoint._signed((tmp_path / "raw").read_bytes()))
    with pytest.raises(DamagedError, match="more than tensors"):
        checkpoint.load(path)
    assert not (tmp_path / "canary").exists()
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists(), "the bomb is live"


def test_a_kill_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    """A child saves in a loop and is killed; the whole of what is visible must load."""
    generator = random.Random(1)
    big = {"weights": torch.randn(300_000)}
    caught_writing = 0
    for trial in range(20):
        child = os.fork()
        if child == 0:  # the child never returns into pytest
            try:
                for i in range(10**6):
                    checkpoint.save({**big, "number": i}, tmp_path / checkpoint.file_name(i % 4))
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.05 * generator.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"trial {trial}: the child was not killed while saving"
        caught_writing += bool(list(tmp_path.glob(".*.part")))
        for path in checkpoint.steps(tmp_path):
            checkpoint.load(path)
        checkpoint.sweep(tmp_path)
        assert not list(tmp_path.glob(".*.part"))
    assert caught_writing > 0, "no kill fell into a write"


def test_a_leftover_is_swept_only_if_its_writer_is_gone(tmp_path: Path) -> None:
    mine = tmp_path / f".iteration-000000001.ckpt.{os.getpid()}.abc.part"
    others = tmp_path / ".iteration-000000001.ckpt.999999999.abc.part"
    for part in (mine, others):
        part.write_bytes(b"half")
    checkpoint.sweep(tmp_path)
    assert mine.exists()
    assert not others.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / checkpoint.file_name(2)
    checkpoint.save(STATE, path)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"iteration-000000002\.ckpt: cannot be written, [\d,]+ bytes needed") as caught:
        checkpoint.save({**STATE, "number": 9}, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bytes_are_on_disk_before_the_name_and_the_name_before_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        calls.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def seen_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    checkpoint.save(STATE, tmp_path / checkpoint.file_name(1))
    assert calls == ["file", "rename", "folder"]


def test_last_and_best_are_files_of_their_own(tmp_path: Path) -> None:
    for i in range(1, 6):
        path = tmp_path / checkpoint.file_name(i)
        checkpoint.save({**STATE, "number": i}, path)
        checkpoint.link(path, "last.ckpt")
        if i == 2:
            checkpoint.link(path, "best.ckpt")
        checkpoint.retire(tmp_path, keep=2)
    assert [p.name for p in checkpoint.steps(tmp_path)] == [checkpoint.file_name(5), checkpoint.file_name(4)]
    assert checkpoint.load(tmp_path / "last.ckpt")["number"] == 5
    assert checkpoint.load(tmp_path / "best.ckpt")["number"] == 2


def test_a_newer_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / checkpoint.file_name(1)
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save(STATE, path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99, this gentrain reads 3"):
        checkpoint.load(path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_saves_that_very_iteration_and_the_run_goes_on_as_if_nothing_had_been(
    number: signal.Signals, code: int, run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the middle of iteration 5: between the critic's step and the generator's next, and between blocks."""
    shared = [*words("model=wgan_gp"), "train.iterations=9", "train.validate_every=0", "train.checkpoint_every=0"]
    assert run(*shared, "metrics=none", "name=straight").code == 0
    original = System._step

    def interrupted(self: System, seat: Seat, iteration: int) -> None:
        if iteration == 5:
            os.kill(os.getpid(), number)
        original(self, seat, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(System, "_step", interrupted)
        assert run(*shared, "metrics=none", "name=cut").code == code
    folder = workplace / "outputs" / "cut"
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "stopped"
    assert [path.name for path in checkpoint.steps(folder / "checkpoints")] == [checkpoint.file_name(5)]
    assert run("resume", "run=outputs/cut").code == 0
    ends = [checkpoint.load(workplace / "outputs" / name / "checkpoints" / "last.ckpt") for name in ("straight", "cut")]
    for part in ("system", "rng"):
        assert differences(ends[0][part], ends[1][part]) == []


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(run: Run, workplace: Path) -> None:
    budget = ["train.iterations=6", "train.validate_every=0", "train.checkpoint_every=2", "train.keep=9"]
    assert run(*words("model=vae", "name=run", "metrics=none", *budget)).code == 0
    folder = workplace / "outputs" / "run"
    end = checkpoint.load(folder / "checkpoints" / "last.ckpt")
    bad = folder / "checkpoints" / checkpoint.file_name(6)
    bad.write_bytes(bad.read_bytes()[:1000])
    card = (folder / "run.json").read_text(encoding="utf-8").replace('"finished"', '"failed"')
    (folder / "run.json").write_text(card, encoding="utf-8")
    ended = run("resume", "run=outputs/run")
    assert ended.code == 0
    assert re.search(rf"^gentrain: passed over \S+{checkpoint.file_name(6)}: .*: resuming from", ended.err)
    assert ended.err.count("\n") == 1
    assert checkpoint.file_name(4) in ended.err
    assert differences(end["system"], checkpoint.load(folder / "checkpoints" / "last.ckpt")["system"]) == []
