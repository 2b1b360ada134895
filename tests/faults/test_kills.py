"""A training that is killed loses nothing that was saved, and ends where an undisturbed one does, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Count, Run, words
from processes import Patch, dies_in, start
from test_contract import MODELS, differences, logged

from gentrain.engine import checkpoint
from gentrain.engine.loggers import MetricsCsv
from gentrain.engine.player import Seat
from gentrain.engine.scores import Scores
from gentrain.engine.system import System
from gentrain.engine.validation import Validation
from gentrain.folder import RunFolder


def stopped_at(iteration: int) -> Patch:
    """The process gets SIGTERM in an iteration, and saves it."""
    original = System.iterate

    def patch() -> None:
        def iterate(self: System, batch: Any) -> None:
            if self.clock.iteration == iteration - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, batch)

        System.iterate = iterate  # type: ignore[method-assign]

    return patch


def newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """The newest step file; every visible one must be whole."""
    states = [checkpoint.load(path) for path in checkpoint.steps(folder / "checkpoints")]
    for name in ("last.ckpt", "best.ckpt"):
        if (folder / "checkpoints" / name).exists():
            checkpoint.load(folder / "checkpoints" / name)
    return (states[0]["system"]["clock"]["iteration"], states[0]) if states else (0, {})


@pytest.fixture(params=["same", "other"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for runs on the file system of TMPDIR, or on another one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    if request.param == "same":
        yield tmp_path
        return
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_random_kills_while_saving_lose_nothing(place: Path, workplace: Path, count: Count) -> None:
    """It saves after each iteration and is killed again and again; then its state is that of a run left alone."""
    endless = ["train.iterations=1000000", "train.validate_every=0", "metrics=none", "train.keep=3", f"output={place}"]
    shared = words("model=dcgan", *endless)
    number, log = count.of(20, 200), workplace / "log"
    generator = random.Random(0)
    fired = whole = in_a_write = 0
    reached = 0
    for _ in range(number):
        again = ("resume", f"run={place / 'run'}")
        first = (*shared, "name=run", "train.checkpoint_every=1")
        child = start(log, *(again if reached else first))
        until = time.monotonic() + 60
        while newest_name(place / "run") <= reached and time.monotonic() < until:
            time.sleep(0.002)  # it trains: one more iteration is saved than when it began
        time.sleep(0.06 * generator.random())
        child.send(signal.SIGKILL)
        fired += child.wait() == -signal.SIGKILL
        in_a_write += bool(list((place / "run" / "checkpoints").glob(".*.part")))
        iteration, _ = newest(place / "run")
        whole += iteration > reached
        reached = iteration
    count.says(injected=number, fired=fired, survived=whole, killed_in_a_write=in_a_write)
    assert in_a_write > 0 or number < 100, "no kill fell into a write"
    _, killed = newest(place / "run")
    straight = (*shared, "name=straight", "train.checkpoint_every=0")
    assert start(log, *straight, patch=stopped_at(reached)).wait(300) == 143, log.read_text()
    iteration, state = newest(place / "straight")
    assert iteration == reached
    for part in ("system", "rng"):
        assert differences(killed[part], state[part]) == [], part


def newest_name(folder: Path) -> int:
    steps = checkpoint.steps(folder / "checkpoints")
    return int(checkpoint.NAME.fullmatch(steps[0].name)[1]) if steps else 0  # type: ignore[index]


BUDGET = ["train.iterations=14", "train.validate_every=5", "train.checkpoint_every=3", "train.log_every=2"]


def same_end(outputs: Path, one: str, other: str) -> bool:
    ends = [checkpoint.load(outputs / name / "checkpoints" / "last.ckpt") for name in (one, other)]
    cards = [json.loads((outputs / name / "run.json").read_text(encoding="utf-8")) for name in (one, other)]
    parts = all(not differences(ends[0][part], ends[1][part]) for part in ("system", "rng", "scores", "pending"))
    scores = all(cards[0][key] == cards[1][key] for key in ("final", "best", "protocol", "iteration", "status"))
    return parts and scores and logged(outputs / one) == logged(outputs / other)


FEW = ("ae", "vae", "wgan_gp", "infogan", "biggan", "gated_pixelcnn", "glow", "rbm")
"""One or two of each family, killed by ``make test`` too. That each model resumes bit for bit is in its contract."""


@pytest.mark.parametrize("model", MODELS)
def test_a_run_killed_at_random_steps_ends_as_one_that_was_not(model: str, workplace: Path, count: Count) -> None:
    """Each run dies once or twice, at a random step of a random player, before it or behind it."""
    number = count.of(2 if model in FEW else 0, 24)
    if not number:
        pytest.skip("killed by make faults")
    outputs, log = workplace / "outputs", workplace / "log"
    shared = words(f"model={model}", *BUDGET)
    assert start(log, *shared, "name=straight").wait() == 0, log.read_text()
    generator = random.Random(model)
    injected = fired = survived = 0
    for trial in range(number):
        name = f"killed{trial}"
        command: tuple[str, ...] = (*shared, f"name={name}")
        for most in generator.choice([(13,), (13, 3)]):  # the second time at least two iterations are left
            left = generator.randrange(1, most)
            injected += 1
            patch = dies_in(System, "_step", when=countdown(left), behind=generator.random() < 0.5)
            code = start(log, *command, patch=patch).wait()
            fired += code == -signal.SIGKILL
            command = ("resume", f"run={outputs / name}")
            if not checkpoint.steps(outputs / name / "checkpoints"):
                break
        assert start(log, *command).wait() == 0, log.read_text()
        survived += injected - survived if same_end(outputs, "straight", name) else 0
    count.says(injected=injected, fired=fired, survived=survived)


def countdown(left: int) -> Callable[[], bool]:
    remaining = [left]

    def now() -> bool:
        remaining[0] -= 1
        return remaining[0] == 0

    return now


def third() -> Callable[[], bool]:
    return countdown(3)


POINTS: dict[str, Callable[[], Patch]] = {
    "first batch": lambda: dies_in(System, "iterate"),
    "behind the last batch": lambda: dies_in(System, "iterate", when=countdown(14), behind=True),
    "between the critic's step and the generator's": lambda: dies_in(Seat, "set_rate", when=countdown(6)),
    "pictures": lambda: dies_in(Validation, "draw_pictures", when=countdown(2)),
    "scores": lambda: dies_in(Validation, "score", when=countdown(2)),
    "scores of the end": lambda: dies_in(Validation, "score_at_end", when=countdown(1)),
    "behind the scores": lambda: dies_in(Scores, "keep", when=countdown(2), behind=True),
    "a row of metrics.csv": lambda: dies_in(MetricsCsv, "_append", when=countdown(3)),
    "the run card": lambda: dies_in(RunFolder, "write_card", when=countdown(3)),
    "before the rename": lambda: dies_in(Path, "replace", when=countdown(8)),
    "behind the rename": lambda: dies_in(checkpoint, "sync_folder", when=third()),
    "before last.ckpt": lambda: dies_in(checkpoint, "link", when=third()),
    "deleting old files": lambda: dies_in(checkpoint, "retire", when=third()),
    "behind deleting": lambda: dies_in(checkpoint, "retire", when=third(), behind=True),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_a_certain_point_ends_as_one_that_was_not(point: str, workplace: Path, count: Count) -> None:
    outputs, log = workplace / "outputs", workplace / "log"
    shared = words("model=wgan_gp", *BUDGET)
    assert start(log, *shared, "name=straight").wait() == 0, log.read_text()
    killed = start(log, *shared, "name=killed", patch=POINTS[point]()).wait() == -signal.SIGKILL
    assert killed, log.read_text()
    card = outputs / "killed" / "run.json"
    begun = card.exists() and json.loads(card.read_text(encoding="utf-8")).get("status") != "created"
    if begun:
        assert start(log, "resume", f"run={outputs / 'killed'}").wait() == 0, log.read_text()
    count.says(injected=1, fired=int(killed), survived=int(not begun or same_end(outputs, "straight", "killed")))
    assert not list((outputs / "killed" / "checkpoints").glob(".*.part")), "leftovers are swept"


def test_every_iteration_sees_the_same_samples_however_often_it_is_done(workplace: Path, count: Count) -> None:
    """Over the end of an epoch (89 batches of 16), killed three times in a row."""
    outputs, log = workplace / "outputs", workplace / "log"
    budget = ["train.iterations=95", "train.validate_every=0", "train.checkpoint_every=4", "metrics=none"]
    shared = words("model=vae", *budget)

    def noted(file: Path, dies: int | None) -> Patch:
        original = System.iterate

        def patch() -> None:
            def iterate(self: System, batch: Any) -> None:
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps([self.clock.iteration, batch.index.tolist()]) + "\n")
                original(self, batch)
                if self.clock.iteration == dies:
                    os.kill(os.getpid(), signal.SIGKILL)

            System.iterate = iterate  # type: ignore[method-assign]

        return patch

    straight, cut = workplace / "straight.jsonl", workplace / "cut.jsonl"
    assert start(log, *shared, "name=straight", patch=noted(straight, None)).wait() == 0
    command: tuple[str, ...] = (*shared, "name=cut")
    fired = 0
    for dies in (30, 87, 91):
        fired += start(log, *command, patch=noted(cut, dies)).wait() == -signal.SIGKILL
        command = ("resume", f"run={outputs / 'cut'}")
    assert start(log, *command, patch=noted(cut, None)).wait() == 0
    seen = [dict(map(tuple, map(json.loads, file.read_text().splitlines()))) for file in (straight, cut)]
    every = [json.loads(line) for line in cut.read_text().splitlines()]
    assert seen[0] == seen[1]
    assert all(ids == seen[0][iteration] for iteration, ids in every)
    assert len(every) > 95, "some were done twice"
    epoch = [i for iteration in range(89) for i in seen[0][iteration]]
    assert len(set(epoch)) == len(epoch) == 89 * 16
    count.says(injected=3, fired=fired, survived=3 * same_weights(outputs))


def same_weights(outputs: Path) -> bool:
    ends = [checkpoint.load(outputs / name / "checkpoints" / "last.ckpt") for name in ("straight", "cut")]
    return not differences(ends[0]["system"], ends[1]["system"])


def test_without_its_random_states_the_end_is_another(run: Run, workplace: Path) -> None:
    """The negative twin: what the tests above compare does depend on what a checkpoint holds."""
    outputs, log = workplace / "outputs", workplace / "log"
    shared = words("model=wgan_gp", *BUDGET)
    assert start(log, *shared, "name=straight").wait() == 0
    assert start(log, *shared, "name=killed", patch=dies_in(System, "iterate", when=countdown(10))).wait() == -9
    path = checkpoint.steps(outputs / "killed" / "checkpoints")[0]
    state = {key: value for key, value in checkpoint.load(path).items() if key != "format"}
    state["rng"] = [{**state["rng"][0], "torch": torch.Generator().manual_seed(1).get_state()}]
    checkpoint.save(state, path)
    assert run("resume", f"run={outputs / 'killed'}").code == 0
    assert not same_end(outputs, "straight", "killed")
