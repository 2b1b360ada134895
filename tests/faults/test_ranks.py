"""Ranks that die, raise or hang: the job ends, says which one it was, and leaves no process behind."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Count, Run
from fixtures_data import noise, save
from test_contract import MODELS, differences

from gentrain.engine import checkpoint, launch

HARM = """
import json, os, signal, sys, time
from pathlib import Path
from gentrain.engine.system import System
original = System.iterate
def iterate(self, batch):
    original(self, batch)
    Path(os.environ["PLACE"], f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
    if os.environ["RANK"] == "1" and self.clock.iteration == 2:
        Path(os.environ["PLACE"], "fired").touch()
        kind = os.environ["HARM"]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "sleep":
            time.sleep(600)
        if kind == "exit":
            os._exit(3)
        raise RuntimeError("the cat sat on rank 1")
System.iterate = iterate
from gentrain.engine.worker import main
sys.exit(main(sys.argv[1:]))
"""

SHARED = (
    "size=tiny",
    "data=digits",
    "trainer=ddp_cpu",
    "model=dcgan",
    "metrics=none",
    "train.iterations=6",
    "name=run",
)
SAID = {
    "kill": "rank 1 of 2 was killed by signal 9",
    "exit": "rank 1 of 2 ended with exit code 3",
    "raise": "rank 1 of 2 ended with exit code 1; it said last: RuntimeError: the cat sat on rank 1",
    "stop": "rank 0 of 2 ended with exit code",
    "sleep": "rank 0 of 2 ended with exit code",
}


@pytest.fixture
def harmed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (workplace / "harm.py").write_text(HARM, encoding="utf-8")
    monkeypatch.setenv("PLACE", str(workplace))
    monkeypatch.setattr(launch, "GRACE_SECONDS", 2.0)
    command = [sys.executable, str(workplace / "harm.py")]
    monkeypatch.setattr(launch, "worker_command", lambda folder, **_: [*command, str(folder), "--trust"])
    return workplace


@pytest.mark.parametrize("kind", ["raise", "stop", "kill", "exit", "sleep"])
def test_one_bad_rank_ends_the_job(
    kind: str, run: Run, harmed: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    """A hanging one is given up by the other after trainer.timeout; then both are ended."""
    if kind in ("kill", "exit", "sleep") and count.of(0, 1) == 0:
        pytest.skip("in make faults: its like runs here (kill in test_ddp.py)")
    monkeypatch.setenv("HARM", kind)
    number, fired, survived, slowest = count.of(1, 10), 0, 0, 0.0
    for trial in range(number):
        began = time.monotonic()
        ended = run(*SHARED, f"name=run{trial}", "trainer.timeout=12")
        slowest = max(slowest, time.monotonic() - began)
        fired += (harmed / "fired").exists()
        (harmed / "fired").unlink()
        alive = [rank for rank in (0, 1) if Path(f"/proc/{(harmed / f'pid{rank}').read_text()}").exists()]
        card = json.loads((harmed / "outputs" / f"run{trial}" / "run.json").read_text(encoding="utf-8"))
        survived += ended.code not in (0, 2) and not alive and card["status"] != "finished"
        assert SAID[kind] in ended.err
        assert "Traceback" not in ended.err, "the one that counts is in the log of the rank that failed"
    count.says(injected=number, fired=fired, survived=survived, slowest_seconds=round(slowest, 1))


def test_a_port_in_use_is_not_chosen(run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(taken))
        real = launch.free_port
        chosen: list[int] = []
        monkeypatch.setattr(launch, "free_port", lambda: chosen.append(real()) or chosen[-1])
        ended = run(*SHARED)
    count.says(injected=1, fired=1, survived=int(ended.code == 0 and chosen[0] != taken))


def test_two_ranks_count_each_image_once(run: Run, workplace: Path, count: Count) -> None:
    """The scores of two ranks are those of one: the same samples and the same test images, each once."""
    cards: list[dict[str, Any]] = []
    for name, ranks in (("one", ("trainer=cpu", "trainer.threads=1")), ("two", ("trainer=ddp_cpu",))):
        shared = ("size=tiny", "data=digits", "model=vae", "train.iterations=1", f"name={name}", "train.batch_size=16")
        assert run(*shared, *ranks, "metrics.samples=40", "model.players.autoencoder.optimizer.lr=0").code == 0
        cards.append(json.loads((workplace / "outputs" / name / "run.json").read_text(encoding="utf-8")))
    assert [card["world_size"] for card in cards] == [1, 2]
    assert cards[0]["protocol"]["splits"] == cards[1]["protocol"]["splits"]
    same = all(cards[1]["final"][key] == pytest.approx(value, rel=1e-6) for key, value in cards[0]["final"].items())
    count.says(injected=1, fired=1, survived=int(same))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_resumes_exactly_with_workers_and_with_ranks(
    model: str, run: Run, workplace: Path, count: Count
) -> None:
    """Two worker processes on one rank, and two ranks: cut behind iteration 3 of 7, the end is the straight one's."""
    if not count.of(0, 1) and model != "wgan_gp":
        pytest.skip("in make faults; one model here")
    pictures = workplace / "pictures"
    for place in ("train", "test"):
        for i in range(40):
            save(pictures / place / f"{i:03d}.png", noise(8, 8, seed=i))
    data = ("data=folder", f"data.root={pictures}", "data.size=8", "data.channels=1", "data.cache=false")
    workers = (*data, "data.in_memory_bytes=0", "trainer=cpu", "trainer.threads=1", "trainer.workers=2")
    ranks = ("data=digits", "trainer=ddp_cpu")
    survived = 0
    for name, where in (("workers", workers), ("ranks", ranks)):
        budget = ("train.iterations=7", "train.validate_every=0", "train.checkpoint_every=3", "train.keep=9")
        assert run(f"model={model}", "size=tiny", *where, *budget, "metrics=none", f"name={name}").code == 0
        folder = workplace / "outputs" / name
        straight = checkpoint.load(folder / "checkpoints" / "last.ckpt")
        for iteration in (7, 6):
            (folder / "checkpoints" / checkpoint.file_name(iteration)).unlink()
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        (folder / "run.json").write_text(json.dumps({**card, "status": "running"}), encoding="utf-8")
        ended = run("resume", f"run={folder}")
        assert "continues at 3" in ended.out
        again = checkpoint.load(folder / "checkpoints" / "last.ckpt")
        survived += ended.code == 0 and all(not differences(straight[part], again[part]) for part in ("system", "rng"))
    count.says(injected=2, fired=2, survived=survived)
