"""One process at a time in a run folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, words

from gentrain.errors import UserError
from gentrain.lock import only_one

HOLD = """
import sys, time
from pathlib import Path
from gentrain.lock import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(250)
"""


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(run: Run, workplace: Path) -> None:
    assert run(*words("model=dcgan", "name=run", "metrics=none", "train.iterations=2")).code == 0
    folder = workplace / "outputs" / "run"
    card = (folder / "run.json").read_text(encoding="utf-8").replace('"finished"', '"running"')
    (folder / "run.json").write_text(card, encoding="utf-8")
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        ended = run("resume", "run=outputs/run")
        assert ended.code == 2
        assert f"process {other.pid} of {os.uname().nodename} is at work in it" in ended.err
        assert (folder / "run.json").read_text(encoding="utf-8") == card
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert run("resume", "run=outputs/run").code == 0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written to"), only_one(tmp_path / "nowhere"):
        pass
