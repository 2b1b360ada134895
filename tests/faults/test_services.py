"""A tracking service that is away, slow or broken changes no weight and ends no run."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Count, Run, words
from test_contract import differences

from gentrain.engine import checkpoint

BUDGET = ("model=dcgan", "train.iterations=6", "train.validate_every=0", "train.log_every=2", "metrics=none")


class Service:
    """A server on the loopback interface that misbehaves; ``asked`` counts what came."""

    def __init__(self, kind: str) -> None:
        self.asked = 0
        service = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                service.asked += 1
                if kind == "hangs":
                    time.sleep(30)
                if kind in ("breaks off", "hangs"):
                    self.connection.close()
                    return
                body = b"<html>not json</html>" if kind == "talks nonsense" else b'{"errors": ["no"]}'
                self.send_response(200 if kind == "talks nonsense" else 500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(params=["answers 500", "talks nonsense", "breaks off", "hangs", "is away"])
def service(request: pytest.FixtureRequest) -> Iterator[tuple[str, Service]]:
    made = Service(request.param)
    if request.param == "is away":
        made.stop()
    yield request.param, made
    if request.param != "is away":
        made.stop()


def test_a_broken_service_changes_no_weight_and_ends_no_run(
    service: tuple[str, Service], run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, count: Count
) -> None:
    if not count.of(0, 1):
        pytest.skip("in make faults; test_wandb.py has the same with a stand-in for the package")
    pytest.importorskip("wandb")
    kind, server = service
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert run(*words(*BUDGET, "name=alone")).code == 0
    ends = checkpoint.load(workplace / "outputs" / "alone" / "checkpoints" / "last.ckpt")
    number, survived, slowest = 10, 0, 0.0
    for trial in range(number):
        began = time.monotonic()
        asks = words(*BUDGET, f"name=run{trial}", "logger=wandb", "logger.mode=online")
        # A process of its own: the package reads its settings once in each.
        ended = subprocess.run([sys.executable, "-m", "gentrain", *asks], capture_output=True, text=True, check=False)
        slowest = max(slowest, time.monotonic() - began)
        folder = workplace / "outputs" / f"run{trial}"
        state = checkpoint.load(folder / "checkpoints" / "last.ckpt")
        same = all(not differences(ends[part], state[part]) for part in ("system", "rng"))
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = [row["iteration"] for row in csv.DictReader(file)]
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        survived += ended.returncode == 0 and same and rows == ["2", "4", "6"] and card["status"] == "finished"
        assert "Traceback" not in ended.stderr
    fired = number if kind == "is away" or server.asked else 0
    count.says(injected=number, fired=fired, survived=survived, slowest_seconds=round(slowest, 1))
