"""Two CPU processes over gloo: equal parameters, own noise, shared data, joint ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Run, words
from test_contract import differences
from torch import nn

from gentrain.engine import checkpoint
from gentrain.engine.launch import PLACE_VARIABLES, _wait, clean_environment

SPY = """
import json, os, sys, torch
from pathlib import Path
from gentrain.engine import system
from gentrain.engine.system import System
original = System.iterate
def spy(self, batch):
    original(self, batch)
    rank = os.environ["RANK"]
    digest = float(sum(t.double().abs().sum() for t in self.nets.state_dict().values()))
    record = {"indices": batch.index.tolist(), "digest": digest, "noise": float(torch.rand(1))}
    with Path(os.environ["SPY"], f"rank{rank}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\\n")
System.iterate = spy
from gentrain.engine.worker import main
sys.exit(main(sys.argv[1:]))
"""


def test_ranks_agree_on_weights_share_the_data_and_draw_their_own_noise(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "spy.py").write_text(SPY, encoding="utf-8")
    monkeypatch.setenv("SPY", str(workplace))

    def spying(folder: Path, *, resume: bool, trusted: bool) -> list[str]:
        return [sys.executable, str(workplace / "spy.py"), str(folder), "--trust"]

    monkeypatch.setattr("gentrain.engine.launch.worker_command", spying)
    budget = ["train.iterations=6", "train.validate_every=3", "metrics.samples=40"]
    assert run(*words("model=dcgan", "name=run")[:2], "trainer=ddp_cpu", "name=run", "model=dcgan", *budget).code == 0
    ranks = [
        [json.loads(line) for line in (workplace / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines()]
        for rank in (0, 1)
    ]
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
    state = checkpoint.load(workplace / "outputs" / "run" / "checkpoints" / "last.ckpt")
    assert len(state["rng"]) == 2
    assert differences(state["rng"][0]["torch"], state["rng"][1]["torch"])

    # Going on with another number of ranks is refused, and says with how many it would work.
    config = workplace / "outputs" / "run" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("devices: 2", "devices: 1"), encoding="utf-8")
    (workplace / "outputs" / "run" / "run.json").write_text(json.dumps({**card, "status": "stopped"}), encoding="utf-8")
    ended = run("resume", "run=outputs/run")
    assert ended.code == 2
    assert "trainer.devices=2" in ended.err


AVERAGING = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from gentrain.engine.system import average_gradients, average_buffers
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
"""


def test_averaged_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "averaging.py"
    script.write_text(AVERAGING, encoding="utf-8")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": "2"}
    from gentrain.engine.launch import free_port

    place["MASTER_PORT"] = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)], env={**clean_environment(), **place, "RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    net(torch.randn(8, 3)).square().mean().backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for gradient, parameter in zip(found["grads"], net.parameters(), strict=True):
            assert torch.allclose(gradient, parameter.grad, atol=1e-6)
        assert torch.equal(found["mean"], torch.full((2,), 0.5))


def test_a_rank_that_dies_ends_the_others_and_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    patient = [sys.executable, "-c", "import time; time.sleep(60)"]
    dying = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    ranks = [subprocess.Popen(patient), subprocess.Popen(dying)]
    start = time.monotonic()
    assert _wait(ranks, tmp_path) == 137
    assert time.monotonic() - start < 30
    assert all(rank.poll() is not None for rank in ranks)
    assert "rank 1 of 2 was killed by signal 9; its log is" in capfd.readouterr().err


def test_no_place_leaks_into_another_job(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for name in PLACE_VARIABLES:
        monkeypatch.setenv(name, "1")
    assert not set(PLACE_VARIABLES) & set(clean_environment())
    assert os.environ["RANK"] == "1"
    ended = run(*words("model=dcgan"))
    assert ended.code == 2
    assert "without torchrun" in ended.err
