"""One's own config folder and root config: `-cd`, `-cn`, with the words and with Hydra's flags."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run

from gentrain.cli import main
from gentrain.compose import compose
from gentrain.errors import UserError

FEW = ("size=tiny", "trainer=cpu", "train.iterations=2", "metrics=none")


@pytest.fixture
def own(workplace: Path) -> Path:
    folder = workplace / "my_conf"
    folder.mkdir()
    return folder


@pytest.fixture
def hydras_logging() -> Iterator[None]:
    """Hydra sets up logging for the rest of the process, with streams that end with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def write(folder: Path, name: str, text: str) -> None:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_a_root_of_ones_own_extends_the_shipped_one(own: Path, run: Run, workplace: Path) -> None:
    defaults = "defaults: [train, {override model: gan}, {override size: tiny}, _self_]"
    write(own, "my_root", f"{defaults}\nseed: 5\ntrain: {{keep: 3}}\n")
    config = compose([], config_name="my_root", config_dirs=[own]).config
    assert (config["seed"], config["train"]["keep"], config["choices"]["model"]) == (5, 3, "gan")
    assert config["train"]["iterations"] == compose(["model=gan", "size=tiny"]).config["train"]["iterations"]
    assert run("-cd", "my_conf", "-cn", "my_root", *FEW, "name=run").code == 0
    card = json.loads((workplace / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert card["seed"] == 5


def test_a_full_root_needs_no_groups(own: Path, run: Run) -> None:
    whole = subprocess.run(
        [sys.executable, "-m", "gentrain", "--cfg", "job", "--resolve", "model=dcgan", *FEW],
        capture_output=True,
        text=True,
        check=True,
    )
    write(own, "full", whole.stdout)
    assert run("check", "-cd", "my_conf", "-cn", "full").code == 0
    assert run("-cd", "my_conf", "-cn", "full", "seed=3").code == 0
    assert [p.name for p in Path("outputs").iterdir()] == ["adversarial-digits"]


def test_a_file_of_ones_own_goes_before_the_shipped_one_of_its_name(own: Path) -> None:
    write(own, "model/gan", "# @package _global_\ndefaults: [dcgan]\nmodel: {latent: 3}\n")
    assert compose(["model=gan"], config_dirs=[own]).config["model"]["latent"] == 3
    assert compose(["model=gan"]).config["model"]["latent"] != 3, "and only where the folder is named"
    other = own.parent / "other"
    write(other, "model/gan", "# @package _global_\ndefaults: [dcgan]\nmodel: {latent: 4}\n")
    assert compose(["model=gan"], config_dirs=[other, own]).config["model"]["latent"] == 4


@pytest.mark.usefixtures("hydras_logging")
@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--info", "config"], ["--cfg=job", "--package", "wants"]])
def test_hydras_flags_see_the_own_root(flags: list[str], own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(own, "my_root", "defaults: [train, _self_]\nwants: {width: 77}\n")
    assert main([*flags, "-cd", "my_conf", "-cn", "my_root"]) == 0
    assert "width: 77" in capfd.readouterr().out


@pytest.mark.usefixtures("hydras_logging")
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--cfg", "job", "-cd", "nowhere"], "nowhere: no such folder"),
        (["--cfg", "job", "-cn", "nowhere"], "no config called nowhere"),
        (["--cfg", "job", "model=nope"], "there are: aae"),
        (["--cfg", "job", "train.keap=1"], "train.keep"),
        (["--cfg", "job", "-m"], "Only one of"),
        (["--cfg", "job", "foo"], "'foo'"),
    ],
)
def test_a_mistake_beside_hydras_flags_is_one_line(words: list[str], hint: str, run: Run) -> None:
    ended = run(*words)
    assert ended.code == 2, ended
    assert hint in ended.err
    assert len(ended.err.splitlines()) == 1


BAD = {
    "loop": ("defaults: [loop]\n", "leads back"),
    "nope": ("defaults: [train, _self_]\nseed: ${nope}\n", "seed: Interpolation key 'nope' not found"),
    "foo": ("defaults: [train, _self_]\nfoo: 1\n", "foo: there is no such key"),
    "open": ("defaults: [train, _self_]\ntrain: [\n", "open.yaml"),
    "group": ("defaults: [train, {modle: vae}, _self_]\n", "modle=vae"),
    "twice": ("defaults: [train, {model: vae}, _self_]\n", "override model: vae"),
    "typo": ("defaults: [train, {override data: rig}, _self_]\n", "ring"),
    "number": ("defaults: 3\n", "must be a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_an_own_root_is_one_line(name: str, own: Path, run: Run) -> None:
    text, hint = BAD[name]
    write(own, name, text)
    ended = run("check", "-cd", "my_conf", "-cn", name)
    assert ended.code == 2
    assert hint in ended.err
    assert len([line for line in ended.err.splitlines() if line.startswith("gentrain: ")]) == 1
    assert "Traceback" not in ended.err


def test_the_nearest_keys_are_those_of_the_own_root(own: Path) -> None:
    write(own, "my_root", "defaults: [train, _self_]\nwants: {flavour: 1}\n")
    with pytest.raises(UserError, match=r"did you mean wants\.flavour"):
        compose(["wants.flavuor=2"], config_name="my_root", config_dirs=[own])
    with pytest.raises(UserError, match="Interpolation key 'nope' not found"):
        compose(["seed=${nope}"], config_name="my_root", config_dirs=[own])


def test_list_shows_own_files_before_shipped_ones(own: Path, run: Run) -> None:
    write(own, "model/gan", "# Mine.\nabout: {family: GAN, paper: none, can: [sample]}\n")
    write(own, "turns/odd", "# Odd ones.\n{}\n")
    listed = json.loads(run("list", "-cd", "my_conf", "models", "turns", "--json").out)
    assert {record["name"]: record["what"] for record in listed["models"]}["gan"] == "Mine"
    assert [record["name"] for record in listed["turns"]] == [
        "alternating",
        "extragradient",
        "odd",
        "prediction",
        "simultaneous",
    ]
    assert "Mine" not in run("list", "models", "--json").out


def test_check_takes_what_train_takes(own: Path, run: Run) -> None:
    write(own, "my_root", "defaults: [train, _self_]\nseed: 5\n")
    root = ["-cd", "my_conf", "-cn", "my_root", *FEW]
    shown = run("check", *root, "-m", "model=gan,dcgan", "seed=1,2", "name=mine").out.splitlines()
    assert len(shown) == 4
    for line, (model, seed) in zip(shown, [("gan", 1), ("gan", 2), ("dcgan", 1), ("dcgan", 2)], strict=True):
        assert line.startswith("good: ")
        assert f"model={model} seed={seed}" in line
    assert run("check", "train", *root).out.startswith("good: ")
    refused = run("check", *root, "name=../x")
    assert (refused.code, refused.err.count("plain name")) == (2, 1)
    assert not (own.parent / "outputs").exists()
