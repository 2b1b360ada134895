"""The sections at the root of a config: each must be there and of its kind, or one line says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY, Run, words

from gentrain.compose import compose
from gentrain.engine.assemble import NEEDED, check_config
from gentrain.errors import UserError

WRONG = [
    ("sweep.parallel=two", r"sweep\.parallel: 'two' does not fit, int"),
    ("sweep.parallel=0", r"sweep\.parallel=0: at least 1"),
    ("sweep=null", "sweep: None does not fit, a mapping"),
    ("sweep=3", "sweep: 3 does not fit, a mapping"),
    ("+sweep.foo=1", r"sweep\.foo: .*there are: over, parallel, retry"),
    ("train=null", "train: None does not fit, a mapping"),
    ("data=null", "data=null: the name of an option .*digits"),
    ("model=null", "model=null: the name of an option .*wgan_gp"),
    ("loss=null", "loss=null: the name of an option .*hinge"),
    ("size=3", "size=3: the name of an option .*tiny"),
    ("metrics=null", "metrics=null: the name of an option .*none"),
    ("callbacks=null", "callbacks=null: the name of an option .*health"),
    ("callbacks.health=3", r"callbacks\.health: 3 does not fit"),
    ("+callbacks.foo=1", r"callbacks\.foo: .*there are: health"),
    ("+logger.foo=1", "logger: a mapping does not fit, Logger"),
    ("+logger._target_=torch.nn.ReLU", "logger: .*Logger is needed; logger= one of tensorboard, wandb"),
    ("seed=null", "seed: None does not fit, int"),
    ("kind=foo", "^kind=foo: unknown .*images, vectors"),
    ("~size", "^size=None: unknown .*tiny"),
    ("wants=null", r"^[\w.]+: .*wants"),
    ("~wants", r"^[\w.]+: .*wants\.\w+' not found"),
    ("~loss", r"model\.loss: .*loss"),
    ("name=[1]", r"name: \[1\] does not fit"),
    ("output=null", "output: None does not fit, str"),
    ("trainer.threads=x", r"trainer\.threads: 'x' does not fit"),
    ("trainer.devices=x", r"trainer\.devices=x: a whole number or auto"),
    ("trainer.backend=foo", r"trainer\.backend: 'foo' does not fit.*gloo"),
    ("train.iterations=", r"train\.iterations: '' does not fit, int"),
    ("train.validate_every=-1", r"train\.validate_every=-1: at least 1, or 0"),
    ("train.checkpoint_every=-5", r"train\.checkpoint_every=-5: at least 1, or 0"),
    ("data.size=[8]", r"data\.size: \[8\] does not fit, int"),
    ("train.iterations=${nope}", r"^train\.iterations: Interpolation key 'nope' not found"),
    ("train.iterations=${by_size:1}", r"^train\.iterations: .*small"),
]


@pytest.mark.parametrize(("word", "line"), WRONG, ids=[word for word, _ in WRONG])
def test_a_section_of_the_wrong_kind_is_one_line(word: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_config(compose([*(w for w in TINY if w.split("=")[0] != word.split("=")[0]), word]).config)


@pytest.mark.parametrize("key", [key for key in NEEDED if key != "choices"])
def test_a_section_that_is_missing_is_named(key: str) -> None:
    config = compose(TINY).config
    del config[key]
    with pytest.raises(UserError, match=rf"^{key}: every config needs this key; (choose {key}= one of|leave out ~)"):
        check_config(config)


@pytest.mark.parametrize("word", ["~callbacks", "~seed", "~logger", "~train", "~data", "~sweep"])
def test_training_without_it_is_one_line_and_leaves_no_folder(word: str, run: Run, workplace: Path) -> None:
    given = [w for w in words() if not w.startswith(word[1:] + "=")]
    ended = run(*given, word)
    assert ended.code == 2
    assert ended.err.startswith(f"gentrain: {word[1:]}: every config needs this key")
    assert len(ended.err.splitlines()) == 1
    assert not list(workplace.iterdir())


@pytest.mark.parametrize("word", ["callbacks.health=null", "~callbacks.health", "logger=csv", "trainer.backend=gloo"])
def test_what_may_be_left_out_is_no_mistake(word: str) -> None:
    check_config(compose([*TINY, word]).config)


def test_a_stored_config_serves_as_a_root(run: Run, workplace: Path) -> None:
    assert run(*words("model=gan", "metrics=none", "train.iterations=2", "name=run")).code == 0
    again = compose(["seed=4"], config_name="config", config_dirs=[workplace / "outputs" / "run"]).config
    assert (again["choices"]["model"], again["choices"]["size"], again["seed"]) == ("gan", "tiny", 4)
    check_config(again)
