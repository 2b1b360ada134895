"""Scoring and sampling a finished run: it computes as it was trained and where it is told to, and tidies up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, words
from PIL import Image

from gentrain.engine.restore import device_called, load_system
from gentrain.engine.sampling import draw
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.folder import RunFolder
from gentrain.types import to_bytes


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("model", ["dcgan", "vae"])
def test_a_run_is_scored_in_the_precision_it_was_trained_in(
    model: str, precision: str, run: Run, workplace: Path
) -> None:
    assert run(*words(f"model={model}", f"precision={precision}", "name=run")).code == 0
    folder = RunFolder.open(workplace / "outputs" / "run")
    card = folder.card()
    assert (card["protocol"]["precision"], card["protocol"]["device"]) == (precision, "cpu")
    assert load_system(folder).precision_name == precision
    again = json.loads(run("evaluate", "run=outputs/run", "device=cpu", "--json").out)
    assert again["scores"] == card["final"]
    assert again["protocol"] == card["protocol"]
    other = "32-true" if precision == "bf16-mixed" else "bf16-mixed"
    folder.update_card(precision=other)
    changed = json.loads(run("evaluate", "run=outputs/run", "device=cpu", "--json").out)
    assert changed["scores"] != card["final"], "the precision matters, so it has to be the run's own"
    assert changed["protocol"]["precision"] == other


def test_the_device_is_chosen_or_refused_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*words("model=dcgan", "metrics=none", "name=run")).code == 0
    for command in ("evaluate", "sample"):
        ended = run(command, "run=outputs/run", "device=tpu")
        assert (ended.code, len(ended.err.splitlines())) == (2, 1)
        assert "auto, cpu or cuda" in ended.err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_called("auto") == device_called("cpu") == torch.device("cpu")
    ended = run("sample", "run=outputs/run", "device=cuda")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "no CUDA device is visible" in ended.err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_called("auto") == device_called("cuda") == torch.device("cuda", 0)
    assert device_called("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device=gpu"):
        device_called("gpu")


def test_the_system_is_moved_before_its_optimisers_are_made(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*words("model=dcgan", "metrics=none", "name=run")).code == 0
    calls: list[object] = []
    prepare = System.prepare

    def moved(self: System, place: torch.device) -> System:
        calls.append(place)
        return self

    def prepared(self: System, **given: Any) -> None:
        calls.append("prepared")
        prepare(self, **given)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(System, "to", moved)
    monkeypatch.setattr(System, "prepare", prepared)
    load_system(RunFolder.open(workplace / "outputs" / "run"), device="auto")
    assert calls == [torch.device("cuda", 0), "prepared"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_is_scored_and_sampled_on_the_gpu(run: Run, workplace: Path) -> None:
    assert run(*words("model=vae", "name=run")).code == 0
    folder = RunFolder.open(workplace / "outputs" / "run")
    assert load_system(folder, device="cuda").device.type == "cuda"
    found = json.loads(run("evaluate", "run=outputs/run", "--json").out)
    assert found["protocol"]["device"] == "cuda"
    assert found["scores"]["elbo_nats"] == pytest.approx(folder.card()["final"]["elbo_nats"], rel=0.05)
    assert run("sample", "run=outputs/run", "n=5").code == 0


def test_a_shorter_draw_leaves_no_file_of_a_longer_one(run: Run, workplace: Path) -> None:
    assert run(*words("model=dcgan", "metrics=none", "name=run")).code == 0
    assert run("sample", "run=outputs/run", "n=9", "out=drawn").code == 0
    mine = ["0000001.png", "00001.png", "000003.jpg", "000003.png.txt", "a000003.png", "notes.txt", "٠٠٠٠٠١.png"]
    for name in mine:
        (workplace / "drawn" / name).touch()
    (workplace / "drawn" / "000007").mkdir()
    assert run("sample", "run=outputs/run", "n=3", "out=drawn").code == 0
    drawn = [f"{i:06d}.png" for i in range(3)]
    assert {p.name for p in (workplace / "drawn").iterdir()} == {*drawn, *mine, "grid.png", "000007"}
    assert run("sample", "run=outputs/run", "n=3", "files=false", "out=drawn").code == 0
    assert {p.name for p in (workplace / "drawn").iterdir()} == {*mine, "grid.png", "000007"}


@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_samples_are_the_samples_and_score_as_they_do(channels: int, run: Run, workplace: Path) -> None:
    wide = (f"data.channels={channels}", *(["metrics=none"] if channels == 3 else []))
    assert run(*words("model=dcgan", "name=run", "train.iterations=2", *wide)).code == 0
    assert run("sample", "run=outputs/run", "n=128", "out=drawn", "device=cpu").code == 0
    system = load_system(RunFolder.open(workplace / "outputs" / "run"))
    images = to_bytes(draw(system, 128, seed=0))
    for i in (0, 5, 127):
        with Image.open(workplace / "drawn" / f"{i:06d}.png") as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels if channels == 3 else pixels[..., None], images[i].permute(1, 2, 0).numpy())
    if channels == 1:
        own = json.loads(run("evaluate", "run=outputs/run", "samples=128", "device=cpu", "--json").out)
        given = json.loads(run("evaluate", "samples=drawn", "data=digits", "size=tiny", "device=cpu", "--json").out)
        assert own["scores"] == given["scores"]


def test_a_config_of_other_networks_is_one_line(run: Run, workplace: Path) -> None:
    assert run(*words("model=dcgan", "name=run", "train.iterations=2", "metrics=none")).code == 0
    config = workplace / "outputs" / "run" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("latent: 16", "latent: 17"), encoding="utf-8")
    assert config.read_text(encoding="utf-8") != text
    for command in ("sample", "evaluate"):
        ended = run(command, "run=outputs/run", "device=cpu")
        assert ended.code == 2
        assert "Traceback" not in ended.err
    assert "the checkpoint is of other networks" in run("sample", "run=outputs/run", "device=cpu").err


def test_a_number_that_an_optimiser_refuses_leaves_no_folder(run: Run, workplace: Path) -> None:
    ended = run(*words("model=dcgan", "name=run", "model.players.critic.optimizer.lr=-1"))
    assert ended.code == 2
    assert "model.players.critic.optimizer" in ended.err
    assert not (workplace / "outputs" / "run").exists()
