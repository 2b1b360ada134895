"""Random and mistaken words, and stored configs with random damage: a line and exit code 2, or they are right."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Count, Run, words
from judge import everything_below, plain, refused

from gentrain.compose import compose
from gentrain.config import options

GROUPS = ("model", "data", "loss", "model/net", "size", "trainer", "metrics", "logger", "turns", "callbacks", "debug")
VALUES = (
    "gan", "vae", "digits", "hinge", "tiny", "0", "1", "7", "-1", "-7", "3.5", "1e-3", "-0.0", "nan", ".inf", "null",
    "true", "False", "[]", "[1,2]", "{}", "{a:1}", "{_target_:os.system}", "${seed}", "${nope}", "${train}", "${.}",
    "${oc.env:HOME}", "${oc.env:NOPE}", "${by_size:1,2}", "${by_size:1,2,3}", "${by_kind:1}", "", "'", '"', "a b",
    "$(x)", "../..", "/dev/null", "é", "漢", "=", "x=y", "a,b", "\\", "\t", "\0", "\n", "\x1b[2J", "???", "~", "[", "}",
    "'a", "${", "${}", "x:y", "@", "\udcff", "1" * 400, "x" * 3000, "0x10", "1_0", "[[[[[[]]]]]]", "choice(1,2)",
    "range(3)", "sort(1)", "int('7')", "str(7)", "glob(*)", "!!python/object:os.system", "1.0", "2001-01-01", "yes",
)  # fmt: skip


def paths(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")


def keys() -> list[str]:
    found = {path for model in ("dcgan", "vae", "wgan_gp") for path in paths(compose([f"model={model}"]).config)}
    return sorted(path for path in found if not path.startswith("choices"))


def fuzzed(generator: random.Random, known: list[str]) -> list[str]:
    """One to three words, some of them right."""
    given = []
    for _ in range(generator.choice((1, 1, 2, 3))):
        if generator.random() < 0.25:
            group = generator.choice(GROUPS)
            given.append(f"{group}={generator.choice([*options(group), generator.choice(VALUES)])}")
            continue
        key, value = generator.choice(known), generator.choice(VALUES)
        if generator.random() < 0.3:
            place = generator.randrange(len(key) + 1)
            key = (
                key[:place]
                + generator.choice(("a", "z", ".", "_", "/", "@", "~", "+", " ", "\0", "$", ""))
                + key[place + 1 :]
            )
        given.append(generator.choice(("", "", "", "+", "++", "~")) + f"{key}={value}")
    return given


@pytest.mark.timeout(1500)
def test_random_words(run: Run, workplace: Path, count: Count) -> None:
    generator, known, wanted, wrong = random.Random(68), keys(), count.of(60, 1000), 0
    assert run("check", *TINY).code == 0
    for _ in range(wanted):
        given = fuzzed(generator, known)
        ended = run("check", *TINY, "train.batch_size=8", "metrics=none", *given)
        try:
            plain(ended)
        except AssertionError:
            raise AssertionError(f"{given}: {ended}") from None
        wrong += ended.code == 2
        assert everything_below(workplace) <= {"data", "cache"}, given
    assert wanted / 3 < wrong < wanted, "some are right"
    count.says(injected=wanted, fired=wanted, survived=wanted, refused=wrong)


def test_random_words_of_a_training_leave_no_folder_when_they_are_refused(
    run: Run, workplace: Path, count: Count
) -> None:
    generator, known, wanted, wrong = random.Random(69), keys(), count.of(10, 100), 0
    while wrong < wanted:
        given = [word for word in fuzzed(generator, known) if not word.lstrip("+~").startswith("output")]
        if run("check", *TINY, *given).code == 0:
            continue
        ended = run(*TINY, *given)
        plain(ended)
        assert ended.code == 2, given
        assert not list(workplace.glob("outputs/**/*")), given
        assert everything_below(workplace) <= {"outputs", "data", "cache"}
        wrong += 1
    count.says(injected=wanted, fired=wrong, survived=wrong)


def mistakes() -> Iterator[str]:
    """Words that are wrong for certain: misspelt keys, values of a wrong type or range, pairs that do not fit."""
    known = [key for key in keys() if key.split(".")[0] in ("train", "trainer", "model", "metrics", "callbacks")]
    known = [key for key in known if not key.rsplit(".", 1)[-1].startswith("_") and "about" not in key]
    for number, key in enumerate(known):
        place = 1 + number % (len(key) - 1)
        turned = key[: place - 1] + key[place] + key[place - 1] + key[place + 1 :]
        if turned != key and "=" not in turned:
            yield f"{turned}=1"
        yield f"{key}x=1"
    for key in ("iterations", "batch_size", "accumulate", "keep", "log_every"):
        for value in ("many", "1.5", "null", "[1]", "{a:1}", "0", "-3", "true", "''", "1e9x"):
            yield f"train.{key}={value}"
    for key, value in (("validate_every", "x"), ("checkpoint_every", "x"), ("flip", "7"), ("on_nonfinite", "pray")):
        yield f"train.{key}={value}"
    for value in ("x", "null", "1.5", "[1]", "true"):
        yield f"seed={value}"
    for group in GROUPS:
        yield from (f"{group}={name}" for name in ("nope", "Digits", "dc_gan", "x y"))
    yield from ("precision=fp8", "trainer.devices=0", "trainer.workers=-1", "trainer.timeout=0", "trainer.threads=0")
    yield from ("model=vae loss=hinge", "model=dcgan loss=bernoulli", "model=vae data=ring", "metrics=modes")
    yield from (
        "model=dcgan data=ring model/net=dcgan",
        "model=vae model/net=goodfellow",
    )
    yield from ("data.size=9", "data.channels=2", "train.batch_size=5000", "name=../up", "data=folder", "data=celeba")


def test_mistakes_are_one_line_and_leave_no_folder(run: Run, workplace: Path, count: Count) -> None:
    every = list(mistakes())
    assert len(every) >= 200
    random.Random(70).shuffle(every)
    chosen, survived = every[: count.of(25, 250)], 0
    for mistake in chosen:
        given = mistake.split(" ") if "x y" not in mistake else [mistake]
        groups = {word.split("=")[0] for word in given}
        ended = run(*[word for word in TINY if word.split("=")[0] not in groups], "train.iterations=1", *given)
        assert ended.code == 2, (mistake, ended)
        refused(ended)
        assert not list(workplace.glob("outputs/**/*")), mistake
        survived += 1
    count.says(injected=len(chosen), fired=len(chosen), survived=survived)


@pytest.mark.parametrize("key", ["model.net.depth", "model.latent", "train.iterations", "seed", "+wants.more"])
def test_numbers_that_nothing_counts_to(key: str, run: Run) -> None:
    for number in ("1" * 400, "-" + "1" * 400, str(1 << 63)):
        refused(run("check", *TINY, f"{key}={number}"), key.lstrip("+"), "bits is more than")
    assert run("check", *TINY, "seed=7").code == 0


def damaged(generator: random.Random, text: str) -> bytes:
    """Bytes changed, lines lost, doubled or moved, values swapped."""
    rows = text.splitlines(keepends=True)
    match generator.randrange(7):
        case 0:
            blob = bytearray(text.encode())
            for _ in range(generator.randrange(1, 8)):
                blob[generator.randrange(len(blob))] = generator.randrange(256)
            return bytes(blob)
        case 1:
            first = generator.randrange(len(rows))
            return "".join(rows[:first] + rows[first + generator.randrange(1, 5) :]).encode()
        case 2:
            return text.encode()[: generator.randrange(len(text))]
        case 3:
            a, b = generator.randrange(len(rows)), generator.randrange(len(rows))
            rows[a], rows[b] = rows[b], rows[a]
        case 4:
            a, b = (generator.choice([k for k, row in enumerate(rows) if ": " in row]) for _ in range(2))
            rows[a] = rows[a].split(": ")[0] + ": " + rows[b].split(": ", 1)[1]
        case 5:
            place = generator.choice([k for k, row in enumerate(rows) if ": " in row])
            rows[place] = rows[place].split(": ")[0] + f": {generator.choice(VALUES[:40])}\n"
        case _:
            place = generator.randrange(len(rows))
            rows[place] = generator.choice((" ", "  ", "- ", "\t", "&a ", "*a ", "? ", "!!str ")) + rows[place]
    return "".join(rows).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("model", ["dcgan", "vae"])
def test_damaged_configs(model: str, run: Run, workplace: Path, count: Count) -> None:
    trained = run(*words(f"model={model}", "name=run", "metrics=none", "train.iterations=4", "train.batch_size=8"))
    assert trained.code == 0, trained.err
    folder = workplace / "outputs" / "run"
    good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    generator, wanted, wrong = random.Random(model), count.of(15, 150), 0
    for number in range(wanted):
        for path in folder.glob("checkpoints/*.ckpt"):
            path.unlink()
        for path, content in good.items():
            path.write_bytes(content)
        card = json.loads(good[folder / "run.json"])
        (folder / "run.json").write_text(json.dumps({**card, "status": "stopped"}))
        spoilt = damaged(generator, text)
        (folder / "config.yaml").write_bytes(spoilt)
        if _longer(spoilt):  # not a fault, but it would train for long
            continue
        for command in ("sample", "resume") if number % 5 else ("evaluate",):
            ended = run(command, "run=outputs/run", *(["n=4"] if command == "sample" else []))
            try:
                plain(ended)
            except AssertionError:
                raise AssertionError(f"{command}: {changes(text, spoilt)}: {ended}") from None
            wrong += ended.code == 2
        assert {path.split("/")[0] for path in everything_below(workplace)} <= {"outputs", "data", "cache"}
    assert wrong > wanted / 3
    count.says(injected=wanted, fired=wanted, survived=wanted, refused=wrong)


def _longer(spoilt: bytes) -> bool:
    try:
        train = yaml.safe_load(spoilt)["train"]
        return bool(train["iterations"] > 50 or train["batch_size"] > 999)
    except Exception:
        return False


def changes(before: str, after: bytes) -> list[str]:
    rows = before.splitlines()
    return [row for row in after.decode("utf-8", "replace").splitlines() if row not in rows][:9]
