"""The progress display: what it says on a terminal and in a pipe, and that a broken output does not stop a run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gentrain.engine.progress import RichProgress, Steps, duration

ROOT = Path(__file__).parents[1]


class Hours:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_plain_output_is_a_line_per_interval_and_per_score() -> None:
    now, out = Hours(), io.StringIO()
    progress = RichProgress(every_seconds=10.0, stream=out, now=now)
    progress.start(1000, 200, "wgan on ring")
    for iteration in range(201, 301):
        now.seconds += 1.0
        progress.update(iteration, 64.0, {"loss/critic/real": -1.5})
    progress.score("metric/fid", 42.0)
    progress.line("health: [red] alarm")
    progress.stop()
    progress.stop()
    lines = out.getvalue().splitlines()
    assert lines[0] == "wgan on ring: 1000 iterations (continues at 200)"
    assert lines[1] == "210/1000 (21%)  64 images/s  13m10s left  critic/real -1.5"
    assert lines[11].endswith("fid 42")
    assert lines[12:] == ["health: [red] alarm"], "the state of the last score is not said twice"
    assert len(lines) == 13
    assert "\x1b" not in out.getvalue()


def test_a_short_run_still_ends_with_its_state() -> None:
    out = io.StringIO()
    progress = RichProgress(stream=out, now=Hours())
    progress.start(3, 0, "x")
    progress.update(3, 1.0, {})
    progress.stop()
    assert out.getvalue().splitlines()[-1].startswith("3/3 (100%)")


def test_a_terminal_shows_a_bar_and_lines_stand_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        out, now = io.StringIO(), Hours()
        progress = RichProgress(stream=out, live=True, now=now)
        progress.start(10, 0, "vae on digits")
        for iteration in range(1, 11):
            now.seconds += 6.0
            progress.update(iteration, 64.0, {"loss/model/[nll]": 1.5})
        progress.score("metric/fid", 42.0)
        progress.line("[bold] stays")
        progress.stop()
        return out.getvalue()

    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown()
    for part in ("vae on digits", "10/10", "64 images/s", "54s left", "0s left", "model/[nll] 1.5", "[bold] stays"):
        assert part in text
    assert text.rindex("[bold] stays") < text.rindex("10/10")
    assert text.rindex("fid 42") > text.rindex("[bold] stays")
    colour = "\x1b[36m"
    assert colour in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert colour not in shown()


@pytest.mark.parametrize("live", [False, True])
def test_quiet_prints_nothing(live: bool) -> None:
    out = io.StringIO()
    progress = RichProgress(quiet=True, every_seconds=0.0, stream=out, live=live)
    progress.start(2, 0, "x")
    progress.update(1, 1.0, {"a": 1.0})
    progress.score("fid", 1.0)
    progress.line("text")
    progress.stop()
    assert out.getvalue() == ""


class Broken(io.StringIO):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def write(self, text: str) -> int:
        self.after -= 1
        if self.after < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_closed_output_does_not_end_the_training(live: bool, after: int) -> None:
    real = (sys.stdout, sys.stderr)
    progress = RichProgress(every_seconds=0.0, stream=Broken(after), live=live, now=Hours())
    progress.start(20, 0, "x")
    for i in range(20):
        progress.update(i + 1, 1.0, {"a": 1.0})
        progress.score("fid", 1.0)
        progress.line("text")
    progress.stop()
    assert progress.quiet
    assert (sys.stdout, sys.stderr) == real


SCRIPT = """
import sys
from gentrain.engine.progress import RichProgress
progress = RichProgress(every_seconds=0.0)
progress.start(5000, 0, "stra\u00dfe \u2713")
for i in range(5000):
    progress.update(i + 1, 1.0, {"loss/model/nll": float(i)})
print("of somebody else " * 1000)
progress.stop()
print("trained", file=sys.stderr)
"""


@pytest.mark.parametrize("case", ["closed pipe", "full disk", "no output", "ascii"])
def test_a_process_whose_output_fails_ends_well(case: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONIOENCODING": "ascii" if case == "ascii" else "",
    }
    command = [sys.executable, "-c", SCRIPT]
    redirect = {"closed pipe": "| head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", "full disk": ">/dev/full"}
    tail = redirect.get(case, ">&-" if case == "no output" else ">/dev/null")
    shell = ["bash", "-c", f'"$@" {tail}', "bash", *command]
    done = subprocess.run(shell, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.strip() == "trained"
    assert done.returncode == 0


@pytest.mark.parametrize("live", [False, True])
def test_an_output_without_the_letters_shows_the_rest(live: bool) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    progress = RichProgress(every_seconds=0.0, stream=out, live=live)
    progress.start(2, 0, "stra\u00dfe")
    progress.line("na\u00efve")
    progress.update(2, 1.0, {})
    progress.stop()
    out.flush()
    for part in (b"stra?e", b"na?ve", b"2/2"):
        assert part in raw.getvalue()


def test_a_narrow_terminal_cuts_without_letters_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    progress = RichProgress(stream=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), live=True)
    progress.start(1000, 0, "a model of a long name on data of a long name")
    progress.update(1000, 1.0, {"a": 1.0})
    progress.stop()
    assert not progress.quiet


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (0, 45.4, 192, 3725, 183600)]
    assert shown == ["0s", "45s", "3m12s", "1h02m", "2d03h"]


def test_slow_steps_are_told_after_a_while_and_the_line_goes_away_on_a_terminal() -> None:
    def shown(seconds: float, live: bool) -> str:
        now, out = Hours(), io.StringIO()
        with Steps("sample", stream=out, live=live, now=now) as steps:
            for done in range(1, 101):
                now.seconds += seconds
                steps(done, 100)
        return out.getvalue()

    assert shown(0.01, live=False) == shown(0.01, live=True) == ""
    lines = shown(0.5, live=False).splitlines()
    assert lines[0] == "sample: 4/100 steps (4%)  48s left"
    assert lines[1] == "sample: 24/100 steps (24%)  38s left"
    assert len(lines) == 5
    live = shown(0.5, live=True)
    assert live.count("\r") == 98
    assert "\n" not in live
    assert live.endswith("\r\x1b[K")


def test_steps_that_begin_anew_are_timed_anew() -> None:
    now, out = Hours(), io.StringIO()
    with Steps("sample", stream=out, live=False, now=now, after=0.0, every_seconds=0.0) as steps:
        for _ in range(2):
            for done in (1, 2):
                now.seconds += 10.0
                steps(done, 4)
    assert [line.split()[-2] for line in out.getvalue().splitlines()] == ["30s", "20s", "0s", "10s"]


def test_a_closed_error_output_does_not_end_what_is_slow() -> None:
    with Steps("sample", stream=Broken(0), after=0.0, every_seconds=0.0) as steps:
        steps(1, 2)
