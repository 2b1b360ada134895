"""Disks that are full, read-only or forgetful, and files that are not what their names say."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import Count, Run, words
from processes import start
from test_contract import differences

from gentrain.engine import checkpoint

BUDGET = ("train.iterations=9", "train.validate_every=0", "train.checkpoint_every=3", "train.keep=9", "metrics=none")


@pytest.fixture
def finished(run: Run, workplace: Path) -> Path:
    """A run with step files 3, 6 and 9; it counts as killed behind the last one."""
    assert run(*words("model=dcgan", "name=run", *BUDGET)).code == 0
    folder = workplace / "outputs" / "run"
    unfinished(folder)
    return folder


def unfinished(folder: Path) -> None:
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**card, "status": "running"}), encoding="utf-8")


def step(folder: Path, iteration: int) -> Path:
    return folder / "checkpoints" / checkpoint.file_name(iteration)


def test_a_limit_on_file_sizes_ends_the_run_in_one_line_and_leaves_no_half_file(workplace: Path, count: Count) -> None:
    """The kernel's own refusal, in the middle of a write (EFBIG; a full disk says ENOSPC in the same place)."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    child = start(workplace / "log", *words("model=dcgan", "name=run", *BUDGET), patch=limited)
    code = child.wait()
    lines = [line for line in child.said().splitlines() if line.startswith("gentrain:")]
    one_line = len(lines) == 1 and "bytes needed (File too large)" in lines[0]
    left = list((workplace / "outputs" / "run" / "checkpoints").iterdir())
    fired = "File too large" in child.said()
    count.says(injected=1, fired=int(fired), survived=int(code == 2 and one_line and not left))
    assert "Traceback" not in child.said()


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_one_line_and_costs_no_older_file(
    kind: int, run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    step(finished, 9).unlink()
    fired = 0

    def refuse(*_a: Any, **_k: Any) -> Any:
        nonlocal fired
        fired += 1
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", refuse)
        ended = run("resume", f"run={finished}")
    said = f"{checkpoint.file_name(9)}: cannot be written"
    good = ended.code == 2 and said in ended.err and ended.err.count("\n") == 1
    assert fired == (2 if kind == errno.EIO else 1), "a hiccup is tried again, once"
    whole = [path.name for path in checkpoint.steps(finished / "checkpoints") if checkpoint.load(path)]
    survived = good and whole == [checkpoint.file_name(n) for n in (6, 3)]
    count.says(injected=1, fired=1, survived=int(survived))
    assert run("resume", f"run={finished}").code == 0


def test_a_disk_that_hiccups_once_costs_nothing(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    fired = 0
    real = tempfile.mkstemp

    def hiccup(*a: Any, **k: Any) -> Any:
        nonlocal fired
        if fired == 0 and str(k.get("dir", "")).endswith("checkpoints"):
            fired += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*a, **k)

    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tempfile, "mkstemp", hiccup)
    ended = run(*words("model=dcgan", "name=run", *BUDGET))
    count.says(injected=1, fired=fired, survived=int(ended.code == 0))
    assert len(checkpoint.steps(workplace / "outputs" / "run" / "checkpoints")) == 3


def test_an_unusable_tmpdir_does_not_matter(workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count) -> None:
    monkeypatch.setenv("TMPDIR", str(workplace / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(workplace / "missing"))
    with pytest.raises(FileNotFoundError):
        tempfile.mkstemp()
    child = start(workplace / "log", *words("model=vae", "name=run", *BUDGET), "train.validate_every=3")
    count.says(injected=1, fired=1, survived=int(child.wait() == 0))


def test_damaged_checkpoints_are_named_passed_over_and_kept(run: Run, finished: Path, count: Count) -> None:
    """Cut, flipped, empty, text, a foreign ZIP, another iteration's, another run's: the one before is used."""
    number, generator = count.of(20, 300), random.Random(0)
    whole = {n: step(finished, n).read_bytes() for n in (3, 6, 9)}
    end = checkpoint.load(step(finished, 9))["system"]
    assert run(*words("model=dcgan", "name=other", "seed=1", *BUDGET)).code == 0
    foreign = step(finished.parent / "other", 9).read_bytes()
    last = finished / "checkpoints" / "last.ckpt"
    fired = survived = 0
    for trial in range(number):
        bad = damaged(trial, whole, foreign, generator)
        step(finished, 9).unlink()  # it shares its bytes with last.ckpt
        step(finished, 9).write_bytes(bad)
        step(finished, 6).write_bytes(whole[6])
        unfinished(finished)
        fired += bad != whole[9]
        ended = run("resume", f"run={finished}")
        named = ended.err.count("\n") == 1 and ended.err.startswith("gentrain: passed over")
        named = named and checkpoint.file_name(9) in ended.err and f"from {checkpoint.file_name(6)}" in ended.err
        again = not differences(end, checkpoint.load(last)["system"])
        survived += ended.code == 0 and named and again
    count.says(injected=number, fired=fired, survived=survived)


def damaged(trial: int, whole: dict[int, bytes], foreign: bytes, generator: random.Random) -> bytes:
    good = whole[9]
    if trial % 10 < 4:
        flipped = bytearray(good)
        flipped[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        return bytes(flipped)
    if trial % 10 < 7:
        return good[: generator.randrange(len(good))]
    kinds = [b"", b"<html>not found</html>", whole[6], foreign, good + b"x", good[:100] + good[120:], os.urandom(5000)]
    return kinds[(trial // 10 + trial % 10) % len(kinds)]


def test_only_damaged_checkpoints_are_no_new_start(run: Run, finished: Path, count: Count) -> None:
    for path in checkpoint.steps(finished / "checkpoints"):
        path.write_bytes(path.read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in (finished / "checkpoints").iterdir()}
    ended = run("resume", f"run={finished}")
    kept = before == {path.name: path.read_bytes() for path in (finished / "checkpoints").iterdir()}
    good = ended.code == 2 and "no whole checkpoint is left" in ended.err and ended.err.count("\n") == 1
    count.says(injected=3, fired=3, survived=3 * int(good and kept))


@pytest.mark.parametrize("kind", ["missing", "dangling", "loop", "cut"])
def test_a_lost_last_is_the_newest_whole_step(kind: str, run: Run, finished: Path, count: Count) -> None:
    last = finished / "checkpoints" / "last.ckpt"
    expected = run("sample", f"run={finished}", "n=4", "out=a", "device=cpu")
    assert expected.code == 0
    last.unlink()
    if kind == "dangling":
        last.symlink_to("nowhere.ckpt")
    elif kind == "loop":
        last.symlink_to("last.ckpt")
    elif kind == "cut":
        last.write_bytes(step(finished, 9).read_bytes()[:500])
    ended = run("sample", f"run={finished}", "n=4", "out=b", "device=cpu")
    same = Path("a/grid.png").read_bytes() == Path("b/grid.png").read_bytes()
    assert "Traceback" not in ended.err
    survived = ended.code == 0 and same and f"taking {checkpoint.file_name(9)}" in ended.err
    count.says(injected=1, fired=int(not last.is_file() or kind == "cut"), survived=int(survived))
    unfinished(finished)
    assert run("resume", f"run={finished}").code == 0


def test_a_changed_config_is_refused_and_its_keys_named(run: Run, finished: Path, count: Count) -> None:
    step(finished, 9).unlink()
    config = finished / "config.yaml"
    text = config.read_text(encoding="utf-8")
    changes = {
        "latent: 16": ("latent: 17", "model.latent (16 -> 17)"),
        "lr: 0.0002": ("lr: 0.0003", "model.players.critic.optimizer.lr (0.0002 -> 0.0003)"),
        "seed: 0\n": ("seed: 1\n", "seed (0 -> 1)"),
        "iterations: 9": ("iterations: 12", "train.iterations (9 -> 12)"),
    }
    fired = survived = 0
    for old, (new, said) in changes.items():
        config.write_text(text.replace(old, new), encoding="utf-8")
        fired += text.replace(old, new) != text
        ended = run("resume", f"run={finished}")
        survived += ended.code == 2 and said in ended.err and ended.err.count("\n") == 1
    count.says(injected=len(changes), fired=fired, survived=survived)
    # What is meant is allowed, key by key; where the run takes place and what is written of it may change anyway.
    assert run("resume", f"run={finished}", "allow=train.iterations").code == 0
    card = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    assert (card["iteration"], card["status"]) == (12, "finished")


def test_a_setting_that_does_not_touch_the_end_may_change(run: Run, finished: Path) -> None:
    step(finished, 9).unlink()
    config = finished / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("keep: 9", "keep: 1").replace("timeout: 300", "timeout: 200"), encoding="utf-8")
    assert config.read_text(encoding="utf-8").count("200") > text.count("200")
    assert run("resume", f"run={finished}").code == 0


def test_an_average_that_is_missing_is_not_made_anew(run: Run, finished: Path, count: Count) -> None:
    step(finished, 9).unlink()
    state = {key: value for key, value in checkpoint.load(step(finished, 6)).items() if key != "format"}
    ema, raw = state["system"]["average"], state["system"]["nets"]
    assert any(differences(ema[f"nets.{key}"], raw[key]) for key in raw if key.startswith("generator"))
    state["system"] = {**state["system"], "average": None}
    checkpoint.save(state, step(finished, 6))
    ended = run("resume", f"run={finished}")
    good = ended.code == 2 and "model.ema: the checkpoint has no average" in ended.err
    count.says(injected=1, fired=1, survived=int(good))


def test_learning_rates_go_on_where_they_were(run: Run, workplace: Path, count: Count) -> None:
    linear = "+model.players.{}.schedule={{_target_:gentrain.engine.player.Linear,start:0.3}}"
    shared = words("model=dcgan", *BUDGET, linear.format("critic"), linear.format("generator"))
    assert run(*shared, "name=straight").code == 0
    assert run(*shared, "name=cut").code == 0
    cut = workplace / "outputs" / "cut"
    step(cut, 9).unlink()
    step(cut, 6).unlink()
    unfinished(cut)
    assert run("resume", f"run={cut}").code == 0

    def rates(name: str) -> list[float]:
        states = [checkpoint.load(step(workplace / "outputs" / name, n))["system"]["optimizers"] for n in (3, 6, 9)]
        return [group["lr"] for state in states for key in sorted(state) for group in state[key]["param_groups"]]

    assert len(set(rates("straight"))) > 2, "they do change"
    count.says(injected=1, fired=1, survived=int(rates("straight") == rates("cut")))


def test_a_run_folder_may_be_moved(run: Run, finished: Path, workplace: Path) -> None:
    step(finished, 9).unlink()
    shutil.move(finished, workplace / "elsewhere")
    assert run("resume", "run=elsewhere").code == 0
    assert run("sample", "run=elsewhere", "n=4").code == 0
