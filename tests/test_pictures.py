"""Pictures: pixels where they belong, the same bytes each time, and films and curves that read back."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gentrain.engine.loggers import MetricsCsv
from gentrain.errors import UserError
from gentrain.report.canvas import ACCENT, CAPTION, FRAME, PAPER, write_atomically
from gentrain.report.curves import Metrics, _bent, _panels, curves, read_metrics
from gentrain.report.pictures import AXES, film, grid, neighbours, reconstructions, scatter, side_by_side


def images(n: int, channels: int = 3, size: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("columns", "scale", "captions"), [(3, 1, False), (3, 4, False), (2, 12, True), (7, 2, False)])
def test_every_image_stands_in_its_place(
    tmp_path: Path, channels: int, columns: int, scale: int, captions: bool
) -> None:
    x = images(7, channels)
    text = [f"{i}" for i in range(7)] if captions else None
    found = pixels(grid(x, tmp_path / "g.png", columns=columns, scale=scale, captions=text))
    side = 5 * scale
    across, down = side + 1, side + 1 + (CAPTION if captions else 0)
    assert found.shape == (math.ceil(7 / columns) * down + 1, columns * across + 1, 3)
    covered = np.zeros(found.shape[:2], dtype=bool)
    for i in range(7):
        top, left = i // columns * down + 1, i % columns * across + 1
        place = (slice(top, top + side), slice(left, left + side))
        expected = x[i].expand(3, 5, 5).permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
        assert np.array_equal(found[place], expected)
        covered[top : top + down - 1, left : left + side] = True
        if captions:
            assert (found[top + side : top + side + CAPTION, left : left + side] != PAPER).any()
    assert (found[~covered] == PAPER).all()


@pytest.mark.parametrize(("n", "size"), [(64, 8), (64, 28), (64, 32), (16, 28), (64, 64), (100, 128), (1, 3)])
def test_small_images_are_magnified_to_about_512_pixels(tmp_path: Path, n: int, size: int) -> None:
    found = pixels(grid(images(n, 1, size), tmp_path / "g.png"))
    plain = math.isqrt(n) * (size + 1) + 1
    assert found.shape[1] == plain or 384 <= found.shape[1] <= 640
    assert found.shape[1] >= plain


def test_the_same_picture_is_the_same_file_and_says_how_it_was_made(tmp_path: Path) -> None:
    facts = {"iteration": 1200, "seed": 0, "weights": "ema", "name": "größe ✓"}
    first = grid(images(9), tmp_path / "a" / "g.png", metadata=facts)
    second = grid(images(9).numpy(), tmp_path / "b" / "g.png", metadata=facts)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as picture:
        assert {key: picture.info[key] for key in facts} == {key: str(value) for key, value in facts.items()}
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    one, two = (scatter(points, points, tmp_path / f"{i}.png", metadata=facts) for i in range(2))
    assert one.read_bytes() == two.read_bytes()


def test_a_picture_that_cannot_be_written_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grid(images(4), tmp_path / "g.png")
    with path.open("rb") as reader:
        grid(images(9, size=20), path)
        assert Image.open(reader).size == (513, 513), "somebody who looks at it sees the old picture to its end"
    before = path.read_bytes()

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"x" * 100)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("x", [torch.zeros(4, 3, 5, 5), images(4)[0], images(4)[:, :2], images(4)[:0]])
def test_what_is_no_picture_is_refused(tmp_path: Path, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        grid(x, tmp_path / "g.png")


def test_side_by_side_holds_both_grids_under_their_captions(tmp_path: Path) -> None:
    first, second = images(4), images(4, seed=1)
    both = pixels(side_by_side([("EMA", first), ("raw", second)], tmp_path / "s.png", scale=8))
    one, two = (pixels(grid(x, tmp_path / "g.png", scale=8)) for x in (first, second))
    assert np.array_equal(both[CAPTION:, : one.shape[1]], one)
    assert np.array_equal(both[CAPTION:, -two.shape[1] :], two)
    for part in (both[:CAPTION, : one.shape[1]], both[:CAPTION, -two.shape[1] :]):
        assert (part != PAPER).any()


def test_reconstructions_stand_under_their_images_with_the_error_below(tmp_path: Path) -> None:
    x = images(5)
    xhat = x.clone()
    xhat[1, 0] = 255 - xhat[1, 0]
    found = pixels(reconstructions(x, xhat, tmp_path / "r.png", columns=3, scale=2))
    left, block = 64, 3 * 12 + 8
    for i in range(5):
        top, side = i // 3 * block, left + i % 3 * 11 + 1
        tiles = [found[top + row * 12 + 1 :, side:][:10, :10][::2, ::2] for row in range(3)]
        assert np.array_equal(tiles[0], x[i].permute(1, 2, 0))
        assert np.array_equal(tiles[1], xhat[i].permute(1, 2, 0))
        difference = (x[i].float() - xhat[i].float()).abs().mean(0)
        assert np.array_equal(tiles[2][..., 0], (2 * difference).clamp(max=255).round())
        assert (tiles[2].max() > 0) == (i == 1)


@pytest.mark.parametrize(("channels", "numbers"), [(1, False), (3, True)])
def test_samples_stand_framed_beside_their_neighbours(tmp_path: Path, channels: int, numbers: bool) -> None:
    x = images(4, channels)
    near = [images(4 * k, channels, seed=k).unflatten(0, (4, k)) for k in (3, 2)]
    distances = [[[0.5 + i] * k for i in range(4)] for k in (3, 2)] if numbers else None
    panels = list(zip(("pixels", "features"), near, strict=True))
    path = neighbours(x, panels, tmp_path / "n.png", distances=distances, scale=8)
    found = pixels(path)
    side, step = 40, max(40 + 2 * FRAME, 42 + (CAPTION if numbers else 0))
    assert found.shape[0] == CAPTION + 4 * step

    def tile(top: int, left: int) -> np.ndarray:
        return found[top : top + side, left : left + side][::8, ::8]

    second = side + 2 * FRAME + 12
    third = second + 3 * (side + 1) + 1 + 12
    for i in range(4):
        top = CAPTION + i * step
        assert np.array_equal(tile(top + FRAME, FRAME), x[i].expand(3, 5, 5).permute(1, 2, 0))
        around = found[top : top + side + 2 * FRAME, : side + 2 * FRAME].copy()
        around[FRAME:-FRAME, FRAME:-FRAME] = ACCENT
        assert (around == ACCENT).all()
        for left, rows in ((second, near[0]), (third, near[1])):
            for j, image in enumerate(rows[i]):
                place = left + j * (side + 1) + 1
                assert np.array_equal(tile(top + 1, place), image.expand(3, 5, 5).permute(1, 2, 0))
                under = found[top + 1 + side : top + step, place : place + side]
                assert (under != PAPER).any() == numbers
                first = found[CAPTION + 1 + side : CAPTION + step, place : place + side]
                assert np.array_equal(under, first) == (i == 0 or not numbers)
    assert not (found[:, side + 2 * FRAME :] == ACCENT).all(axis=2).any()
    assert neighbours(x, panels, tmp_path / "m.png", distances=distances, scale=8).read_bytes() == path.read_bytes()
    for wrong in ([], [("pixels", near[0][:3])], [("pixels", images(8, channels, 6).unflatten(0, (4, 2)))]):
        with pytest.raises(ValueError, match="as many rows"):
            neighbours(x, wrong, tmp_path / "w.png")


def test_axes_of_a_scatter_do_not_move_with_the_generated_points(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 2, generator=generator)

    def frame(picture: np.ndarray) -> Any:
        return (picture[40:] < 60).all(axis=2)  # axes and ticks, below the line that says what lies outside

    def reds(picture: np.ndarray) -> int:
        return int(((picture[..., 0] > 180) & (picture[..., 1] < 120)).sum())

    wild = torch.tensor([[1e3, 1e3], [math.nan, 0.0], [0.0, 0.0]])
    near = pixels(scatter(real, real[:10] * 0.1, tmp_path / "near.png"))
    far = pixels(scatter(real, wild, tmp_path / "far.png"))
    assert np.array_equal(frame(near), frame(far))
    assert reds(near) > reds(far) > 0
    assert not (near[:25] < 100).any()
    assert (far[:25] < 100).any(), "it says that two points lie outside"


def test_contours_hold_half_and_nine_tenths_of_the_probability(tmp_path: Path) -> None:
    real = torch.tensor([[-3.0, -3.0], [3.0, 3.0]])

    def normal(points: np.ndarray) -> Any:
        return np.exp(-(points**2).sum(axis=1) / 2)

    plain = pixels(scatter(real, real[:0], tmp_path / "a.png")).astype(int)
    drawn = pixels(scatter(real, real[:0], tmp_path / "b.png", density=normal)).astype(int)
    changed = np.argwhere(np.abs(plain - drawn).sum(axis=2) > 100)
    centre = (changed.min(axis=0) + changed.max(axis=0)) / 2
    per_unit = 512 * AXES[2] / (2 * 0.6 * 6.0)  # the axes are 1.2 times as wide as the data
    radii = np.linalg.norm(changed - centre, axis=1) / per_unit
    for share in (0.5, 0.9):  # of a normal density in two dimensions lies within sqrt(-2 log(1 - share))
        assert np.abs(radii - math.sqrt(-2 * math.log(1 - share))).min() < 0.1
    assert radii.max() < math.sqrt(-2 * math.log(0.1)) + 0.15
    assert radii.min() > math.sqrt(-2 * math.log(0.5)) - 0.15


@pytest.mark.parametrize("name", ["film.gif", "film.apng", "film.png"])
def test_a_film_shows_every_picture_in_order(tmp_path: Path, name: str) -> None:
    sizes = [4, 4, 6]
    paths = []
    for i, size in enumerate(sizes):
        x = torch.full((1, 1, size, size), 80 * i, dtype=torch.uint8)
        paths.append(grid(x, tmp_path / f"{i}.png", scale=10, metadata={"iteration": i} if i < 2 else None))
    out = film(paths, tmp_path / name)
    again = film(paths, tmp_path / f"again-{name}")
    assert out.read_bytes() == again.read_bytes()
    with Image.open(out) as picture:
        movie: Any = picture
        assert movie.n_frames == 3
        centres = []
        for i in range(3):
            movie.seek(i)
            frame = np.asarray(movie.convert("RGB"))
            assert frame.shape[:2] == (62, 62)
            centres.append(frame[25, 31, 0])
    assert np.abs(np.array(centres).astype(int) - [0, 80, 160]).max() <= 4


def test_a_film_without_pictures_or_with_a_broken_one_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    for paths, out, says in (
        ([], "f.gif", "no pictures"),
        ([broken], "f.gif", "broken.png"),
        ([broken], "f.mp4", "gif"),
    ):
        with pytest.raises(UserError, match=says):
            film(paths, tmp_path / out)
        assert not (tmp_path / out).exists()


# Curves


def metrics(folder: Path, batch: int = 64) -> Path:
    table = MetricsCsv()
    table.start({}, folder, "run")
    for i in range(1, 31):
        values = {"loss/critic/real": -float(i), "loss/critic/fake": math.nan if i == 3 else 10.0**i}
        table.scalars({**values, "loss/generator/adversarial": 1.0, "health/collapse": math.nan}, i, i * batch)
        if i % 10 == 0:
            table.scalars({"metric/fid": 100.0 / i, "metric/recall": 0.5}, i, i * batch)
    return folder / "metrics.csv"


def test_curves_hold_every_finite_number_and_losses_share_a_panel(tmp_path: Path) -> None:
    table = read_metrics(metrics(tmp_path))
    x, y = table.curve("metric/fid")
    assert x.tolist() == [10, 20, 30]
    assert y.tolist() == [10.0, 5.0, 100.0 / 30]
    assert 3 not in table.curve("loss/critic/fake")[0]
    panels = _panels(table)
    losses = ["loss/critic/real", "loss/critic/fake", "loss/generator/adversarial"]
    assert panels == {"loss": losses, "metric/fid": ["metric/fid"], "metric/recall": ["metric/recall"]}


def test_curves_are_drawn_without_a_complaint_and_the_same_each_time(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (curves(metrics(tmp_path / "run"), tmp_path / f"{i}.png") for i in range(2))
    assert one.read_bytes() == two.read_bytes()
    more = pixels(one)
    assert more.shape[0] < more.shape[1]
    assert (more < 200).any(axis=2).mean() > 0.005


def test_one_row_or_a_number_that_never_changes_is_drawn_too(tmp_path: Path) -> None:
    table = MetricsCsv()
    table.start({}, tmp_path, "run")
    table.scalars({"loss/model/nll": 0.0}, 1, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curves(tmp_path / "metrics.csv", tmp_path / "c.png").exists()


def test_images_seen_follow_a_batch_size_that_changed_at_a_resume() -> None:
    table = Metrics(np.array([0.0, 10.0, 20.0]), np.array([0.0, 640.0, 1920.0]), {})
    x = np.array([-5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 30.0])
    seen = _bent(x, table.iteration, table.images)
    assert seen.tolist() == [-320.0, 0.0, 320.0, 640.0, 1280.0, 1920.0, 3200.0]
    assert np.allclose(_bent(seen, table.images, table.iteration), x)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), ("a,b\n1,2\n", "not a metrics.csv"), ("iteration,images,seconds\n", "no rows yet")],
)
def test_a_file_without_numbers_is_refused_in_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        curves(path, tmp_path / "c.png")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
