"""What a run folder keeps of the command line: a command to paste, and no secret."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, words

from gentrain.cli import main
from gentrain.commands import train
from gentrain.commands.words import Words, read
from gentrain.compose import compose
from gentrain.config import Node, options
from gentrain.folder import RunFolder
from gentrain.masking import mask_words

CANARY = "canary-7f3a"
FEW = ("model=gan", "metrics=none", "train.iterations=2", "train.validate_every=0")


def cards(workplace: Path) -> list[dict[str, Any]]:
    files = sorted(workplace.glob("outputs/**/run.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.fixture
def own_root(workplace: Path) -> list[str]:
    """Flags of a root config in a folder whose name holds a blank."""
    folder = workplace / "my conf"
    folder.mkdir()
    (folder / "my_root.yaml").write_text("defaults: [train, _self_]\nseed: 5\n", encoding="utf-8")
    return ["-cd", "my conf", "-cn", "my_root"]


def test_the_command_of_a_run_can_be_pasted(own_root: list[str], run: Run, workplace: Path) -> None:
    assert run(*own_root, *words(*FEW), "data.resample='box'").code == 0
    (card,) = cards(workplace)
    first = RunFolder.open(next(workplace.glob("outputs/*/*"))).config()
    program, *again = shlex.split(card["command"])
    assert program == "gentrain"
    assert "sweep" not in card
    assert main(again) == 0
    configs = [RunFolder.open(path).config() for path in workplace.glob("outputs/*/*")]
    assert configs == [first, first]


def test_a_job_of_a_sweep_keeps_its_own_command_and_the_sweeps(
    own_root: list[str], run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gentrain.commands.sweep.run_all", lambda jobs, parallel, stop, retries: None)
    given = [*words(*FEW), "train.keep=1,2"]
    run("-m", *own_root, *given)
    for number, card in enumerate(cards(workplace)):
        kept = read(shlex.split(card["command"])[1:])
        assert kept == Words([*words(*FEW), f"train.keep={number + 1}"], False, "my_root", [Path("my conf")])
        whole = read(shlex.split(card["sweep"])[1:])
        assert whole == Words(given, True, "my_root", [Path("my conf")])
    assert number == 1


SECRET = [f"+wants.api_key={CANARY}", f"+wants.deep={{HF_Token:{CANARY},x:[{{password:{CANARY}}}]}}"]
SECRET += [f"+wants.Client_SECRET='{CANARY} {CANARY}'", "+wants.token=null", "+wants.mask_token=3"]


@pytest.mark.parametrize("multirun", [False, True])
def test_no_file_of_a_run_holds_a_secret(multirun: bool, run: Run, workplace: Path) -> None:
    ended = run(*(["-m", "seed=1,2"] if multirun else []), *words(*FEW, *SECRET))
    assert ended.code == 0, ended.err
    files = [path for path in (workplace / "outputs").rglob("*") if path.is_file()]
    assert any(path.name == "last.ckpt" for path in files)
    assert any(path.name == "run.json" for path in files)
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in ended.out + ended.err
    for file in [path for path in files if path.name == "config.yaml"]:
        folder = RunFolder.open(file.parent)
        wants = folder.config()["wants"]
        assert (wants["api_key"], wants["deep"]["HF_Token"], wants["token"], wants["mask_token"]) == (
            "***",
            "***",
            None,
            3,
        )
        stored = torch.load(folder.checkpoints / "last.ckpt", weights_only=True)
        assert stored["config"] == folder.config()
        assert "+wants.api_key=***" in folder.card()["command"]


def test_a_secret_that_a_sweep_varies_names_no_folder(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gentrain.commands.sweep.run_all", lambda jobs, parallel, stop, retries: None)
    ended = run("-m", *words(*FEW), f"+wants.password={CANARY}1,{CANARY}2")
    assert len(cards(workplace)) == 2
    assert CANARY not in "".join(str(path) for path in workplace.rglob("*")) + ended.out + json.dumps(cards(workplace))


def test_words_are_masked_one_by_one() -> None:
    given = [
        "x.api_key=a b",
        "address=1.2.3.4",
        "x={token:abc,y:1}",
        "mask_token=5",
        "x.token=null",
        "model=gan",
        "url=https://me:word@host",
    ]
    kept = [
        "x.api_key=***",
        "address=1.2.3.4",
        "x={token:***,y:1}",
        "mask_token=5",
        "x.token=null",
        "model=gan",
        "url=https://***@host",
    ]
    assert mask_words(given) == kept


@pytest.mark.parametrize("model", options("model"))
def test_freezing_a_config_changes_nothing_else(model: str, workplace: Path) -> None:
    for size in options("size"):
        config: Node = compose([f"model={model}", f"size={size}"]).config
        folder = train.make_folder(config, Words(), workplace / size)
        assert folder.config() == config
