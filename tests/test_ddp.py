"""Two CPU processes over gloo: equal parameters, own noise, shared data, joint ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import differences
from torch import nn

from gentrain.config import build
from gentrain.data.stream import stream
from gentrain.engine import checkpoint
from gentrain.engine.fit import build_system, check_config
from gentrain.engine.launch import PLACE_VARIABLES, _wait, clean_environment, free_port

SPY = """
import json, os, signal, sys, torch
from pathlib import Path
from gentrain.engine.system import System
original = System.iterate
poisoned = []
def spy(self, batch):
    if os.environ.get("POISON") == f"{os.environ['RANK']}@{self.clock.iteration + 1}" and not poisoned:
        poisoned.append(True)
        with torch.no_grad():
            next(self.nets["critic"].parameters()).fill_(float("nan"))
    original(self, batch)
    rank = os.environ["RANK"]
    if os.environ.get("DIES_AT") == f"{rank}@{self.clock.iteration}":
        os.kill(os.getpid(), signal.SIGKILL)
    held = [*self.nets.state_dict().values(), *self.rules.buffers()]
    digest = float(sum(t.double().abs().sum() for t in held))
    record = {"pid": os.getpid(), "indices": batch.index.tolist(), "digest": digest, "noise": float(torch.rand(1))}
    with Path(os.environ["SPY"], f"rank{rank}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\\n")
System.iterate = spy
if "SLOW_SCORES" in os.environ:
    import time
    from gentrain.engine import ranks
    from gentrain.engine.validation import Validation
    quick = Validation.score
    Validation.score = lambda self, system: time.sleep(float(os.environ["SLOW_SCORES"])) or quick(self, system)
    ranks.PULSE_SECONDS, tell = 0.1, ranks.Patience._tell
    def heard(self, done):
        with Path(os.environ["SPY"], f"heard{os.environ['RANK']}").open("a") as file:
            file.write(f"{done}\\n")
        return tell(self, done)
    ranks.Patience._tell = heard
from gentrain.engine.worker import main
sys.exit(main(sys.argv[1:]))
"""


SHARED = ["size=tiny", "data=digits", "trainer=ddp_cpu", "model=dcgan"]


@pytest.fixture
def spied(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each rank writes what it saw in each iteration into rankN.jsonl."""
    (workplace / "spy.py").write_text(SPY, encoding="utf-8")
    monkeypatch.setenv("SPY", str(workplace))

    def spying(folder: Path, *, resume: bool, trusted: bool) -> list[str]:
        flags = ["--resume"] if resume else []
        return [sys.executable, str(workplace / "spy.py"), str(folder), "--trust", *flags]

    monkeypatch.setattr("gentrain.engine.launch.worker_command", spying)
    return workplace


def records(workplace: Path) -> list[list[dict[str, Any]]]:
    files = [workplace / f"rank{rank}.jsonl" for rank in (0, 1)]
    return [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]


def test_ranks_agree_on_weights_share_the_data_draw_their_own_noise_and_resume_bit_for_bit(
    run: Run, spied: Path
) -> None:
    workplace = spied
    budget = ["train.iterations=6", "train.validate_every=3", "metrics.samples=40", "train.keep=9"]
    assert run(*SHARED, "name=run", *budget).code == 0
    ranks = records(workplace)
    assert len(ranks[0]) == len(ranks[1]) == 6
    for one, other in zip(*ranks, strict=True):
        assert one["digest"] == other["digest"], "parameters and buffers, batch-norm statistics among them"
        assert one["noise"] != other["noise"]
        assert len(one["indices"]) == len(other["indices"]) == 8
        assert not set(one["indices"]) & set(other["indices"])
    seen = [i for batch in zip(*ranks, strict=True) for part in batch for i in part["indices"]]
    assert len(set(seen)) == 6 * 16
    card = json.loads((workplace / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert (card["world_size"], card["images"], card["iteration"]) == (2, 96, 6)
    folder = workplace / "outputs" / "run"
    state = checkpoint.load(folder / "checkpoints" / "last.ckpt")
    assert len(state["rng"]) == 2
    assert differences(state["rng"][0]["torch"], state["rng"][1]["torch"])

    # One process gives the very scores of two: each sample and each reference image counted once.
    alone = json.loads(run("evaluate", "run=outputs/run", "device=cpu", "--json").out)
    assert alone["scores"] == card["final"]
    assert alone["protocol"] == card["protocol"]
    assert card["protocol"]["samples"] == 40

    # As if both ranks had been killed behind the checkpoint of iteration 3.
    (folder / "checkpoints" / checkpoint.file_name(6)).unlink()
    (folder / "run.json").write_text(json.dumps({**card, "status": "running"}), encoding="utf-8")
    assert run("resume", "run=outputs/run").code == 0
    again = [rank[6:] for rank in records(workplace)]
    for before, after in zip(ranks, again, strict=True):
        for key in ("indices", "digest", "noise"):
            assert [record[key] for record in before[3:]] == [record[key] for record in after], key
    resumed = checkpoint.load(folder / "checkpoints" / "last.ckpt")
    for part in ("system", "rng"):
        assert differences(state[part], resumed[part]) == [], part

    # Going on with another number of ranks is refused, and says with how many it would work.
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("devices: 2", "devices: 1"), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({**card, "status": "stopped"}), encoding="utf-8")
    ended = run("resume", "run=outputs/run")
    assert ended.code == 2
    assert "put devices: 2 into its config.yaml" in ended.err
    kept = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert kept["status"] == "stopped", "a resume that is refused leaves the card as it was"


def test_ranks_agree_on_singular_vectors_moving_averages_and_the_past(run: Run, spied: Path) -> None:
    chosen = "model/penalty=[spectral,lecam,historical,r1]"
    assert run(*SHARED, chosen, "name=run", "metrics=none", "train.iterations=4", "train.validate_every=0").code == 0
    ranks = records(spied)
    assert len(ranks[0]) == len(ranks[1]) == 4
    for one, other in zip(*ranks, strict=True):
        assert one["digest"] == other["digest"]
    state = checkpoint.load(spied / "outputs" / "run" / "checkpoints" / "last.ckpt")["system"]
    assert {key.split(".")[0] for key in state["rules"]} == {"lecam", "historical"}
    assert state["rules"]["lecam.sums"].abs().sum() > 0
    assert any("_u" in key for key in state["nets"])


def test_ranks_take_their_first_values_from_the_batch_of_the_first(run: Run, spied: Path) -> None:
    """Each has another batch, and layers that start from it would differ for good."""
    shared = [*SHARED[:3], "model=pixelcnnpp", "metrics=none"]
    assert run(*shared, "name=run", "train.iterations=3", "train.validate_every=0").code == 0
    ranks = records(spied)
    assert len(ranks[0]) == len(ranks[1]) == 3
    for one, other in zip(*ranks, strict=True):
        assert one["digest"] == other["digest"]
        assert not set(one["indices"]) & set(other["indices"])


AVERAGING = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from gentrain.engine.ranks import average_gradients, average_buffers
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
x = torch.randn(8, 3)
net(x.chunk(2)[rank]).square().mean().backward()
average_gradients(list(net.parameters()))
norm = nn.BatchNorm1d(2)
norm.running_mean.fill_(float(rank))
average_buffers(norm)
torch.save({"grads": [p.grad for p in net.parameters()], "mean": norm.running_mean}, f"{sys.argv[1]}/rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()  # a process that exits while gloo's threads run may be aborted
"""


def pair(text: str, tmp_path: Path, **more: Any) -> list[subprocess.Popen[bytes]]:
    """Two processes that run ``text`` as ranks 0 and 1, with the folder as their argument."""
    script = tmp_path / "script.py"
    script.write_text(text, encoding="utf-8")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**clean_environment(), **place, "RANK": str(rank)},
            **more,
        )
        for rank in (0, 1)
    ]


def test_averaged_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    assert [rank.wait(120) for rank in pair(AVERAGING, tmp_path)] == [0, 0]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net(torch.randn(8, 3)).square().mean().backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for gradient, parameter in zip(found["grads"], net.parameters(), strict=True):
            assert torch.allclose(gradient, parameter.grad, atol=1e-6)
        assert torch.equal(found["mean"], torch.full((2,), 0.5))


STEPS_OF_RANKS = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, os.environ["TESTS"])
from test_ddp import steps
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.save(steps(os.environ["MODEL"], dist.get_rank(), 2), f"{sys.argv[1]}/rank{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def steps(model: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Three steps on this rank's share of the batch, with its share of one draw of the noise: the terms of the first
    step, and the weights at the end. Plain descent: Adam would blow up the rounding of a gradient near 0."""
    config = tiny(f"model={model}")
    for moves in config["model"]["players"].values():
        moves["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1e-3}
    check_config(config)
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    system.prepare(total=3)
    normal, generator = torch.randn, torch.Generator().manual_seed(1)

    def share(n: int, *rest: int, **_: Any) -> torch.Tensor:
        return normal(n * world, *rest, generator=generator)[rank * n : (rank + 1) * n]

    first: dict[str, torch.Tensor] = {}
    size = config["train"]["batch_size"]
    with mock.patch("torch.randn", share), mock.patch("torch.randn_like", lambda x: share(*x.shape)):
        for batch in islice(stream(data.train, batch_size=size, seed=0, rank=rank, world=world), 3):
            system.iterate(batch)
            first = first or {k: v[0].clone() for k, v in system.ledger.entries.items() if k.startswith("loss/")}
    return {"first": first, "nets": system.nets.state_dict()}


@pytest.mark.parametrize("model", ["vae", "aae"])
def test_two_ranks_go_as_one_process_with_the_whole_batch(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL", model)
    monkeypatch.setenv("TESTS", str(Path(__file__).parent))
    begun = pair(STEPS_OF_RANKS, tmp_path)
    whole = steps(model)
    assert [rank.wait(300) for rank in begun] == [0, 0]
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert differences(one["nets"], other["nets"]) == []
    assert len(whole["first"]) >= (3 if model == "aae" else 2)
    for name, term in whole["first"].items():
        assert torch.allclose((one["first"][name] + other["first"][name]) / 2, term, rtol=1e-5), name
        assert not torch.equal(one["first"][name], other["first"][name]), f"{name}: each has its own share"
    start = build_system(tiny(f"model={model}"), build(tiny(f"model={model}")["data"]), seed=0).nets.state_dict()
    for name, weights in whole["nets"].items():
        assert torch.allclose(one["nets"][name], weights, rtol=0, atol=1e-6), name
        if name.endswith("weight"):
            assert (weights - start[name]).abs().max() > 1e-5, f"{name}: it has moved"


def test_a_rank_that_dies_while_training_ends_the_job(run: Run, spied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it in an all-reduce; the whole job ends, says who it was, and leaves no process."""
    monkeypatch.setenv("DIES_AT", "1@2")
    ended = run(*SHARED, "name=run", "metrics=none", "train.iterations=6")
    assert ended.code not in (0, 2)
    assert "rank 1 of 2 was killed by signal 9" in ended.err
    ranks = records(spied)
    assert [len(rank) for rank in ranks] == [2, 1] or [len(rank) for rank in ranks] == [1, 1]
    for rank in ranks:
        assert not Path(f"/proc/{rank[0]['pid']}").exists()
    card = json.loads((spied / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))
    assert card["status"] != "finished"


def test_the_others_wait_as_long_as_the_first_rank_scores(
    run: Run, spied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hear from it all the while: an evaluation may outlast trainer.timeout."""
    monkeypatch.setenv("SLOW_SCORES", "2")
    assert run(*SHARED, "name=run", "train.iterations=2", "train.validate_every=2", "metrics.samples=40").code == 0
    heard = (spied / "heard1").read_text(encoding="utf-8").splitlines()
    assert len(heard) > 8


PATIENCE = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from gentrain.engine import ranks
ranks.PULSE_SECONDS = 0.1
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank = dist.get_rank()
patience = ranks.Patience(1.5)
with patience.while_first_works(rank == 0):
    if rank == 0:
        time.sleep(3)
Path(sys.argv[1], f"waited{rank}").touch()
with patience.while_first_works(rank == 0):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
Path(sys.argv[1], f"never{rank}").touch()
"""


def test_a_first_rank_that_works_is_waited_for_and_one_that_hangs_is_not(tmp_path: Path) -> None:
    ranks = pair(PATIENCE, tmp_path, stderr=subprocess.DEVNULL)
    try:
        assert ranks[1].wait(60) != 0, "it gave up"
        assert (tmp_path / "waited1").exists(), "after twice its timeout"
        assert not (tmp_path / "never1").exists()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_ranks_go_back_together_when_one_of_them_loses_its_numbers(
    run: Run, spied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POISON", "1@5")
    shared = (*SHARED, "metrics=none", "train.iterations=6", "train.checkpoint_every=2", "train.validate_every=0")
    assert run(*shared, "name=run", "train.on_nonfinite=rollback").code == 0
    ranks = records(spied)
    assert [len(rank) for rank in ranks] == [6, 6], "the fifth did not end, and began again"
    for one, other in zip(*ranks, strict=True):
        assert one["digest"] == other["digest"]
    state = checkpoint.load(spied / "outputs" / "run" / "checkpoints" / "last.ckpt")["system"]
    assert (state["setbacks"], state["clock"]["iteration"]) == (1, 6)
    ended = run(*shared, "name=other")
    assert ended.code == 2
    assert "iteration 5: the loss of the critic" in ended.err
    assert "the last good checkpoint is iteration-000000004.ckpt" in ended.err


WAITING = """
import signal, sys, time
from pathlib import Path
def told(number, frame):
    Path(sys.argv[1], "told").touch()
    if sys.argv[2] == "obeys":
        sys.exit(143)
signal.signal(signal.SIGTERM, told)
Path(sys.argv[1], "ready").touch()
while True:
    time.sleep(0.05)
"""

DYING = """
import os, signal, sys, time
from pathlib import Path
while not Path(sys.argv[1], "ready").exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("manner", "code"), [("obeys", 143), ("hangs", -signal.SIGKILL)])
def test_when_a_rank_dies_the_others_are_told_to_stop_and_then_made_to(
    manner: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gentrain.engine.launch.GRACE_SECONDS", 0.5 if manner == "hangs" else 200.0)
    ranks = [
        subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path), manner]),
        subprocess.Popen([sys.executable, "-c", DYING, str(tmp_path)]),
    ]
    (tmp_path / "rank-1.log").write_text("begun\nenough of this\n", encoding="utf-8")
    assert _wait(ranks, tmp_path) == 137
    assert (tmp_path / "told").exists()
    assert [rank.returncode for rank in ranks] == [code, -signal.SIGKILL]
    assert "rank 1 of 2 was killed by signal 9; it said last: enough of this; its log is" in capfd.readouterr().err


def test_no_place_leaks_into_another_job(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for name in PLACE_VARIABLES:
        monkeypatch.setenv(name, "1")
    assert not set(PLACE_VARIABLES) & set(clean_environment())
    assert os.environ["RANK"] == "1"
    ended = run(*words("model=dcgan"))
    assert ended.code == 2
    assert "without torchrun" in ended.err
