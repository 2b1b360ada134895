"""Images given in part: what is kept, what is drawn, what is measured; and that slow drawing says how far it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Outcome
from torch import Tensor

from gentrain.cli import main
from gentrain.data.sources import digits
from gentrain.engine import progress, sampling, validation
from gentrain.engine.progress import Steps
from gentrain.engine.restore import load_system
from gentrain.engine.sampling import draw
from gentrain.errors import UserError
from gentrain.explore import complete
from gentrain.explore.study import Study
from gentrain.folder import RunFolder


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    assert main([*TINY, "metrics=none", "model=cond_pixelcnn", f"output={home}", "name=told"]) == 0
    return home / "told"


@pytest.mark.parametrize(
    ("known", "share", "rows", "columns"),
    [
        ("top", 0.5, range(4), range(6)),
        ("bottom", 0.25, range(6, 8), range(6)),
        ("left", 0.5, range(8), range(3)),
        ("right", 0.5, range(8), range(3, 6)),
        ("centre", 0.25, range(2, 6), range(1, 4)),
    ],
)
def test_regions_are_where_they_are_called(known: str, share: float, rows: range, columns: range) -> None:
    expected = torch.tensor([[r in rows and c in columns for c in range(6)] for r in range(8)])
    assert torch.equal(complete.mask(8, 6, known, share), expected)
    assert tuple(complete.REGIONS) == ("top", "bottom", "left", "right", "centre")


@pytest.mark.parametrize("share", [1.0, 1.5, 0.01, 0.99])
def test_a_share_that_leaves_nothing_to_do_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="some are to be given, and some not"):
        complete.mask(8, 8, "top", share)


class Painter:
    """Paints what is not given: 40 levels brighter, and one more with each completion. Told classes, it notes them."""

    device = torch.device("cpu")
    conditional = True

    def __init__(self) -> None:
        self.told: list[Tensor] = []

    def complete(
        self, x: Tensor, known: Tensor, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        assert labels is not None
        self.told.append(labels)
        other = x.int() + 40 + torch.arange(len(x)).view(-1, 1, 1, 1) % 2
        return torch.where(known, x.int(), other) / 127.5 - 1.0


def test_errors_are_those_of_the_pixels_that_are_drawn(tmp_path: Path) -> None:
    painter, data = Painter(), digits()
    study = Study(painter, data, 0, painter.device, lambda: painter)
    found = complete.explore(study, tmp_path / "c.png", n=10, k=2, known="left", share=0.5, show=3).result
    seen = study.look("test", 10)
    cut = (seen.x.double() / 255.0)[:, 0, :, 4:]
    brighter = [min(1.0, float(v) + d / 255.0) - float(v) for d in (40, 41) for v in cut.flatten()]
    assert found["to_image"] == pytest.approx(sum(b * b for b in brighter) / len(brighter), rel=1e-6)
    assert 0.0 < found["between_completions"] <= (1.0 / 255.0) ** 2 + 1e-12
    other = sum(float((cut[i] - cut[i - 1]).square().mean()) for i in range(10)) / 10
    assert found["other_image_to_image"] == pytest.approx(other, rel=1e-6)
    assert found["protocol"]["known_pixels"] == 32
    assert seen.y is not None
    assert torch.equal(torch.cat(painter.told[1:]), seen.y.repeat_interleave(2))


def test_what_is_given_stays_and_the_rest_differs_from_draw_to_draw(run_of: Path) -> None:
    system = load_system(RunFolder.open(run_of), "last").eval()
    study = Study(system, digits(), 0, system.device, lambda: system)
    seen = study.look("test", 6)
    given = complete.mask(8, 8, "top", 0.5)
    with torch.no_grad():
        made = complete._completed(study, seen.x, given, seen.y, 3)
        whole = complete._completed(study, seen.x, torch.ones_like(given), seen.y, 1)
    assert torch.equal(made[..., :4, :], seen.x[:, None, :, :4].expand(-1, 3, -1, -1, -1))
    assert torch.equal(whole[:, 0], seen.x)
    assert not torch.equal(made[:, 0], made[:, 1])


class Eager(Steps):
    """Tells of every step at once."""

    def __init__(self, title: str) -> None:
        super().__init__(title, live=False, after=0.0, every_seconds=0.0)


def test_commands_that_draw_slowly_say_how_far_they_are(
    run_of: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*words: str) -> Outcome:
        capfd.readouterr()
        code = main([*words, f"run={run_of}"])
        shown = capfd.readouterr()
        return Outcome(code, shown.out, shown.err)

    quick = told("sample", "n=4", f"out={tmp_path / 'a'}")
    assert (quick.code, quick.err) == (0, ""), "what is quick is not spoken of"
    monkeypatch.setattr(progress, "Steps", Eager)
    monkeypatch.setattr(sampling, "Steps", Eager)
    slow = told("sample", "n=4", f"out={tmp_path / 'b'}")
    assert slow.err.splitlines()[0].startswith("sample: 1/64 steps (1%)")
    assert slow.err.splitlines()[-1] == "sample: 64/64 steps (100%)  0s left"
    assert slow.out.replace("/b", "/a") == quick.out
    assert (tmp_path / "a" / "grid.png").read_bytes() == (tmp_path / "b" / "grid.png").read_bytes()
    done = told("explore", "complete", "n=2", "k=2", f"out={tmp_path}")
    assert "explore complete: 64/64 steps (100%)" in done.err
    asked = json.loads((tmp_path / "complete,k=2,n=2.json").read_text(encoding="utf-8"))
    assert asked["protocol"]["known"] == "top"


def test_steps_of_several_batches_are_counted_on(run_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = load_system(RunFolder.open(run_of), "last")
    heard: list[tuple[int, int]] = []
    plain = draw(system, 7, seed=0)
    monkeypatch.setattr(sampling, "BATCH", 3)
    draw(system, 7, seed=0, watch=lambda done, of: heard.append((done, of)))
    assert heard == [(done, 3 * 64) for done in range(1, 3 * 64 + 1)]
    assert system.watch is None
    assert len(plain) == 7


def test_pictures_that_take_long_in_training_are_spoken_of_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, "metrics=none", "model=made", "train.iterations=4", "train.validate_every=2", f"output={tmp_path}"]
    assert main([*words, "name=quick"]) == 0
    assert "pictures: about" not in capfd.readouterr().out
    monkeypatch.setattr(validation, "SLOW_SECONDS", 0.0)
    assert main([*words, "name=slow"]) == 0
    assert capfd.readouterr().out.count("pictures: about 0 s each time (train.validate_every says how often)") == 1
