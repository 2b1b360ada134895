"""What is wrong with a config is found before anything is built, and a stored config names no foreign code."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, tiny

from gentrain.check import check
from gentrain.config import TARGET, Node, build, conf_dir, locate, options
from gentrain.engine.fit import build_system, check_config
from gentrain.errors import UserError

MODELS = options("model")
Place = tuple[str | int, ...]


def leaves(node: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """(path, value) of every plain value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from leaves(value, (*path, i))
    else:
        yield path, node


def targets(node: Any, path: Place = ()) -> Iterator[tuple[Place, Node]]:
    """(path, node) of everything that names a ``_target_``."""
    if isinstance(node, dict):
        if TARGET in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, (*path, key))


def at(config: Node, path: Place) -> Any:
    for key in path:
        config = config[key]  # type: ignore[index]
    return config


def changed(config: Node, path: Place, value: Any) -> Node:
    other = copy.deepcopy(config)
    at(other, path[:-1])[path[-1]] = value
    return other


def complaint(call: Callable[[], object]) -> str | None:
    """The one line in which a call refuses, or None. Anything but a UserError is a fault of ours and gets out."""
    line = None
    try:
        call()
    except UserError as error:
        line = str(error)
    assert "\n" not in (line or "")
    return line


@pytest.fixture(scope="module")
def losses() -> dict[str, Node]:
    """Each option of ``loss=`` as it stands in a config."""
    return {name: tiny("model=dcgan", f"loss={name}")["loss"] for name in options("loss")}


@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_pair_names_exactly_the_losses_that_fit(model: str, losses: dict[str, Node]) -> None:
    config = tiny(f"model={model}")
    if "loss" not in config["model"]:
        refused = complaint(lambda: tiny(f"model={model}", "loss=bernoulli"))
        assert refused == f"loss=bernoulli: model={model} depends on no loss=, it has one of its own: leave it out"
        return
    answers = {
        name: complaint(
            lambda loss=loss: check_config({**config, "loss": loss, "model": config["model"] | {"loss": loss}})
        )
        for name, loss in losses.items()
    }
    fitting = {loss for loss, answer in answers.items() if answer is None}
    assert fitting
    assert fitting != set(answers), "some loss is not for this model"
    for answer in filter(None, answers.values()):
        named = re.search(r"loss= one of (.*) fits", answer)
        assert named is not None, answer
        assert set(named[1].split(", ")) == fitting


@pytest.mark.parametrize("model", MODELS)
def test_every_misspelt_key_is_found_where_it_stands(model: str) -> None:
    config = tiny(f"model={model}")
    spots = [*targets(config), *(((name,), config[name]) for name in ("train", "trainer", "metrics"))]
    seen = 0
    for path, node in spots:
        for key in [key for key in node if not key.startswith("_")]:
            wrong = copy.deepcopy(config)
            section = at(wrong, path)
            section[f"{key}x"] = section.pop(key)
            found = complaint(lambda wrong=wrong: check_config(wrong))
            assert found is not None, (path, key)
            assert found.startswith(f"{'.'.join(map(str, path))}.{key}x:"), found
            assert key in found.split("(did you mean")[-1], "the right spelling is offered"
            seen += 1
    assert seen > 30


OR_BY_NAME = [("model", "bound", "free_nats")]
"""Where one number for all may be a number for each, by name."""


@pytest.mark.parametrize("model", MODELS)
def test_a_word_or_a_mapping_where_a_number_belongs_is_refused(model: str) -> None:
    config = tiny(f"model={model}")
    sections = ("train", "metrics", "model", "callbacks", "data", "loss")
    numbers = [
        path
        for path, value in leaves({name: config.get(name) for name in sections})
        if type(value) in (int, float, bool)
    ]
    assert len(numbers) > 25
    for path in numbers:
        for value in ("many", {"a": 1}):
            if path[-1] == "_partial_" or (path in OR_BY_NAME and isinstance(value, dict)):
                continue
            found = complaint(lambda path=path, value=value: check_config(changed(config, path, value)))
            assert found is not None, (path, value)
            assert ".".join(str(part) for part in path if isinstance(part, str)) in found, found


@pytest.mark.parametrize("model", MODELS)
def test_no_number_of_a_config_is_nan_or_infinite(model: str) -> None:
    config = tiny(f"model={model}")
    floats = [path for path, value in leaves(config) if type(value) in (int, float)]
    for path in floats:
        if path[0] in ("about", "published"):
            continue
        for value in (math.nan, math.inf, -math.inf):
            assert complaint(lambda path=path, value=value: check_config(changed(config, path, value))), path


OUT_OF_RANGE = [
    ("dcgan", "model.latent", 0, "model.latent"),
    ("dcgan", "model.latent", -1, "model.latent"),
    ("vae", "model.latent", -1, "model.latent"),
    ("wgan_gp", "model.players.generator.every", 0, "every=0"),
    ("wgan_gp", "model.players.generator.every", -1, "every=-1"),
    ("dcgan", "model.players.critic.clip", 0.0, "clip=0.0"),
    ("dcgan", "model.players.critic.optimizer.lr", -1.0, "model.players.critic.optimizer"),
    ("dcgan", "model.players.critic.optimizer.betas", [0.5, 1.5], "model.players.critic.optimizer"),
    ("dcgan", "model.ema.decay", 1.0, "model.ema.decay"),
    ("dcgan", "model.ema.decay", -0.1, "model.ema.decay"),
    ("dcgan", "trainer.threads", 0, "trainer.threads"),
    ("dcgan", "trainer.workers", -1, "trainer.workers"),
    ("dcgan", "trainer.timeout", 0, "trainer.timeout"),
    ("dcgan", "train.keep", 0, "train.keep"),
]


@pytest.mark.parametrize(("model", "key", "value", "hint"), OUT_OF_RANGE)
def test_a_number_out_of_its_range_is_one_line(model: str, key: str, value: Any, hint: str) -> None:
    config = changed(tiny(f"model={model}"), tuple(key.split(".")), value)

    def begin() -> None:
        check_config(config)
        system = build_system(config, build(config["data"]), seed=0)
        system.prepare(total=3)

    found = complaint(begin)
    assert found is not None
    assert hint in found


def test_checking_builds_nothing_and_leaves_the_config_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("model=wgan_gp")
    before = copy.deepcopy(config)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr("torch.nn.Module.__init__", refuse)
    monkeypatch.setattr("torch.optim.Optimizer.__init__", refuse)
    check_config(config)
    assert config == before
    with pytest.raises(AssertionError, match="something was built"):
        build_system(config, build(config["data"]), seed=0)


def test_every_shipped_target_is_one_that_a_stored_config_may_name() -> None:
    named = {
        name
        for file in conf_dir().rglob("*.yaml")
        for name in re.findall(r"_target_: *([\w.]+)", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 25
    for name in named:
        assert callable(locate(name, trusted=False))


FOREIGN = [
    "os.mkdir",
    "evil.Net",
    "torch.hub.load",
    "torch.load",
    "numpy.load",
    "builtins.eval",
    "gentrain.errors.os.system",
    "gentrain.config.importlib.import_module",
    "gentrain.engine.loggers.base.Path",
    "torch.nn.modules.module.torch.load",
    "torch.optim.optimizer.torch.load",
    # Our own, and yet no part of a config: each runs, imports or writes what its arguments say.
    "gentrain.config.locate",
    "gentrain.config.build",
    "gentrain.check.product",
    "gentrain.cli.main",
    "gentrain.engine.checkpoint.write_atomically",
    "gentrain.engine.launch.launch",
    "gentrain.commands.train.run",
    "gentrain.evaluation.domain.write_extractor",
    "gentrain.data.files.fetch",
]


@pytest.mark.parametrize("target", FOREIGN)
def test_a_stored_config_may_not_name_it(target: str) -> None:
    """Refused as text or by where it leads, by the check and by the builder, whatever the depth."""
    node = {"net": {TARGET: target, "target": "evil.Net"}}
    for refuse in (
        lambda: locate(target, trusted=False),
        lambda: build(node, trusted=False),
        lambda: build([node], trusted=False),
        lambda: check({"model": node}, trusted=False),
    ):
        found = complaint(refuse)
        assert found is not None
        assert "outside" in found or "nothing called" in found


def test_a_target_of_ours_cannot_be_made_to_import_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_part.py").write_text("open('canary', 'w').close()\nclass Net: pass\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = {TARGET: "gentrain.config.locate", "target": "evil_part.Net"}
    assert complaint(lambda: build(stored, trusted=False))
    assert not (tmp_path / "canary").exists()
    assert build(stored, trusted=True).__name__ == "Net"
    assert (tmp_path / "canary").exists(), "it would have been imported"


OWN_CODE = """
from torch import nn
class Flat:
    def __init__(self, width: int) -> None:
        self.width = width
    def decoder(self, spec, latent, *, channels=None, bounded=True):
        return nn.Sequential(nn.Linear(latent, self.width), nn.Linear(self.width, spec.numel), nn.Tanh(),
                             nn.Unflatten(1, spec.shape))
    def encoder(self, spec, out):
        return nn.Sequential(nn.Flatten(), nn.Linear(spec.numel, out))
"""


def test_own_config_folder_and_own_package_add_a_model(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "my_conf" / "model").mkdir(parents=True)
    shipped = (conf_dir() / "model" / "dcgan.yaml").read_text(encoding="utf-8")
    own = shipped.replace("model:\n", "model:\n  net: {_target_: my_papers.nets.Flat, width: 3}\n", 1)
    own = own.replace("  - override /model/net: dcgan\n", "  - override /model/net: null\n")
    assert "my_papers" in own
    (workplace / "my_conf" / "model" / "flat_gan.yaml").write_text(own, encoding="utf-8")
    (workplace / "my_papers").mkdir()
    (workplace / "my_papers" / "__init__.py").touch()
    (workplace / "my_papers" / "nets.py").write_text(OWN_CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(workplace))
    chosen = ["-cd", "my_conf", "model=flat_gan", "size=tiny", "data=digits", "trainer=cpu"]
    assert run("check", *chosen).code == 0
    assert "model.net.width" in run("check", *chosen, "model.net.widht=4").err
    assert run("check", *chosen[2:]).code == 2, "without the folder there is no such model"
    assert run(*chosen, "metrics=none", "train.iterations=2", "name=run").code == 0
    refused = run("sample", "run=outputs/run", "n=2")
    assert refused.code == 2
    assert "my_papers.nets.Flat" in refused.err
    assert "trust=true" in refused.err
    assert run("sample", "run=outputs/run", "n=2", "trust=true").code == 0
