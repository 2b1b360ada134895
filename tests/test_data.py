"""Order, stream and made data: what a resumed, a parallel and a straight run must agree on."""

from __future__ import annotations

import inspect
import multiprocessing
import re
import signal
from itertools import islice
from multiprocessing.resource_sharer import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fixtures_data import noise, save
from torch import Tensor

from gentrain.data import sources
from gentrain.data.dataset import DataSet, Density, FileRows, Split, TensorRows
from gentrain.data.decode import Recipe
from gentrain.data.files import FolderFiles
from gentrain.data.order import Order
from gentrain.data.stream import mirrored, stream
from gentrain.data.toys import Spiral
from gentrain.errors import UserError
from gentrain.types import Images, Spec

CONF = Path(__file__).parents[1] / "conf" / "data"


def tensors(n: int = 23) -> Split:
    """Distinct images, each of them unlike its own mirror image."""
    return Split(TensorRows(torch.from_numpy(noise(n, 1, 4, 4))), torch.arange(n) % 3)


def take(batches: Any, count: int) -> list[Images]:
    return list(islice(batches, count))


def same(left: list[Images], right: list[Images]) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))

    pairs = list(zip(left, right, strict=True))
    return all(equal(a.x, b.x) and equal(a.y, b.y) and equal(a.index, b.index) for a, b in pairs)


@pytest.fixture
def on_disk(tmp_path: Path) -> Split:
    names = [save(tmp_path / f"{number:02d}.png", noise(8, 8, 3, seed=number)).name for number in range(11)]
    return Split(FileRows(FolderFiles(tmp_path, names), Recipe(8)), torch.arange(11))


class TestOrder:
    def test_every_epoch_is_a_fresh_permutation(self) -> None:
        order = Order(n=24, batch_size=6, seed=3)
        epochs = [torch.cat([order.batch(4 * epoch + k) for k in range(4)]) for epoch in range(5)]
        assert all(torch.equal(epoch.sort().values, torch.arange(24)) for epoch in epochs)
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5

    def test_last_incomplete_batch_is_dropped(self) -> None:
        order = Order(n=25, batch_size=6, seed=3)
        assert order.batches_per_epoch == 4
        assert [order.epoch(k) for k in (0, 3, 4, 8)] == [0, 0, 1, 2]
        assert len(set(torch.cat([order.batch(k) for k in range(4)]).tolist())) == 24

    def test_depends_on_seed_epoch_and_position_alone(self) -> None:
        order = Order(50, 5, seed=1)
        forward = [order.batch(k).clone() for k in range(40)]
        for k in (39, 0, 17, 3, 25):
            assert torch.equal(order.batch(k), forward[k])
            assert torch.equal(Order(50, 5, seed=1).batch(k), forward[k])
        before = torch.get_rng_state()
        Order(50, 5, seed=1).batch(11)
        assert torch.equal(torch.get_rng_state(), before)

    def test_seed_and_epoch_are_not_interchangeable(self) -> None:
        seen = {tuple(Order(20, 20, seed).batch(epoch).tolist()) for seed in range(5) for epoch in range(5)}
        assert len(seen) == 25

    def test_too_few_samples(self) -> None:
        with pytest.raises(UserError, match=r"10 samples .* batch of 64"):
            Order(10, 64, 0)


class TestStream:
    @pytest.mark.parametrize("start", [0, 2, 5, 6, 13])
    @pytest.mark.parametrize("flip", [False, True])
    def test_any_start_continues_the_same_stream(self, start: int, flip: bool) -> None:
        keys: dict[str, Any] = {"batch_size": 4, "seed": 7, "flip": flip}  # 5 batches an epoch
        straight = take(stream(tensors(), **keys), start + 8)
        assert same(take(stream(tensors(), start=start, **keys), 8), straight[start:])

    def test_samples_labels_and_index_belong_together(self) -> None:
        split = tensors()
        assert split.y is not None
        for batch in take(stream(split, batch_size=4, seed=0), 12):
            assert batch.index is not None
            assert batch.y is not None
            assert torch.equal(batch.x, split.x.take(batch.index))
            assert torch.equal(batch.y, split.y[batch.index])

    def test_ranks_partition_the_global_batch(self) -> None:
        whole = take(stream(tensors(), batch_size=6, seed=1, flip=True), 7)
        ranks = [take(stream(tensors(), batch_size=6, seed=1, flip=True, rank=r, world=3), 7) for r in range(3)]
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([rank[step].x for rank in ranks]), batch.x)
            assert [len(rank[step]) for rank in ranks] == [2, 2, 2]
        with pytest.raises(UserError, match="batch_size=6 is not divisible by 4"):
            stream(tensors(), batch_size=6, seed=1, world=4)

    @pytest.mark.parametrize("start", [0, 4])
    def test_workers_change_no_byte(self, on_disk: Split, start: int) -> None:
        keys: dict[str, Any] = {"batch_size": 3, "seed": 5, "start": start, "flip": True}
        state = torch.get_rng_state()
        alone = take(stream(on_disk, workers=0, **keys), 8)
        helped = take(stream(on_disk, workers=2, **keys), 8)
        assert same(alone, helped)
        assert torch.equal(torch.get_rng_state(), state)  # else the model's noise would depend on the workers

    def test_disk_and_memory_agree(self, on_disk: Split) -> None:
        memory = Split(TensorRows(on_disk.all().x), on_disk.y)
        keys: dict[str, Any] = {"batch_size": 3, "seed": 5, "flip": True}
        assert same(take(stream(on_disk, **keys), 7), take(stream(memory, **keys), 7))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_bad_file_is_one_line_with_its_path(self, on_disk: Split, tmp_path: Path, workers: int) -> None:
        (tmp_path / "06.png").write_text("not a picture")
        with pytest.raises(UserError) as caught:
            take(stream(on_disk, batch_size=3, seed=5, workers=workers), 4)
        assert "06.png" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("broken", [ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError("x")])
    def test_worker_that_dies_while_it_hands_over_a_batch_is_one_line(
        self, on_disk: Split, monkeypatch: pytest.MonkeyPatch, broken: Exception
    ) -> None:
        def detach(self: DupFd) -> int:
            raise broken

        monkeypatch.setattr(DupFd, "detach", detach)
        with pytest.raises(UserError, match="a data worker died") as caught:
            take(stream(on_disk, batch_size=3, seed=5, workers=1), 2)
        assert "\n" not in str(caught.value)

    def test_death_of_a_worker_is_told_only_where_a_batch_is_asked_for(self, on_disk: Split) -> None:
        before = set(multiprocessing.active_children())
        batches = stream(on_disk, batch_size=3, seed=5, workers=1)
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # torch's handler raises wherever the program is
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        worker.join()
        with pytest.raises(UserError, match="a data worker died"):
            take(batches, 8)

    def test_flip_is_a_function_of_seed_epoch_and_index(self) -> None:
        split = tensors()
        for batch_size in (4, 5, 23):
            order = Order(len(split), batch_size, 9)
            for iteration, batch in enumerate(take(stream(split, batch_size=batch_size, seed=9, flip=True), 12)):
                assert batch.index is not None
                plain = split.x.take(batch.index)
                turned = mirrored(9, order.epoch(iteration), batch.index)
                expected = torch.stack([x.flip(-1) if flip else x for x, flip in zip(plain, turned, strict=True)])
                assert torch.equal(batch.x, expected)

    def test_flips_are_fair_and_unrelated(self) -> None:
        index = torch.arange(20_000)
        draws = [mirrored(seed, epoch, index) for seed in range(3) for epoch in range(3)]
        coins = torch.stack(draws).double() * 2 - 1  # [9 20000]
        assert coins.mean(1).abs().max() < 0.03  # 4.2 standard errors
        assert (coins @ coins.T / 20_000 - torch.eye(9)).abs().max() < 0.03
        assert (coins[:, 1:] * coins[:, :-1]).mean(1).abs().max() < 0.03  # neighbours in the file

    def test_vectors_cannot_be_flipped(self) -> None:
        with pytest.raises(UserError, match="flip"):
            stream(Split(TensorRows(torch.zeros(8, 2))), batch_size=4, seed=0, flip=True)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("resident", [True, False])
    def test_device_changes_no_byte(self, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not resident:
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
        keys: dict[str, Any] = {"batch_size": 4, "seed": 7, "flip": True}
        there = take(stream(tensors(), device="cuda", **keys), 12)
        assert all(batch.x.is_cuda and batch.y is not None and batch.y.is_cuda for batch in there)
        assert same([batch.to("cpu") for batch in there], take(stream(tensors(), **keys), 12))


class TestSplits:
    def test_limit_is_spread_over_the_split(self) -> None:
        index = tensors(20).all(limit=5).index
        assert index is not None
        assert index.tolist() == [0, 4, 8, 12, 16]
        assert len(tensors(20).all(limit=50)) == 20

    def test_empty_split_and_wrong_shape_are_refused(self) -> None:
        full, empty = tensors(8), Split(TensorRows(torch.zeros(0, 1, 4, 4, dtype=torch.uint8)))
        with pytest.raises(UserError, match=r"test split is empty .*train 8, test 0"):
            DataSet("toy", Spec((1, 4, 4)), full, empty, "")
        with pytest.raises(UserError, match="train samples are"):
            DataSet("toy", Spec((3, 4, 4)), full, full, "")
        with pytest.raises(UserError, match="3 labels for 8 samples"):
            Split(full.x, torch.zeros(3))


def integral(density: Density, half: float, step: float, power: int) -> float:
    """Sum of p (log p)^power over a lattice; exact for Gaussians wider than the step."""
    line = torch.arange(-half, half, step, dtype=torch.float64)
    log_p = density.log_prob(torch.cartesian_prod(line, line))
    return float((log_p.exp() * log_p**power).sum() * step * step)


class TestToys:
    @pytest.mark.parametrize(
        ("source", "half", "step"), [("ring", 1.6, 0.007), ("grid", 1.6, 0.0085), ("swissroll", 2.2, 0.022)]
    )
    def test_density_integrates_to_one_and_fits_its_samples(self, source: str, half: float, step: float) -> None:
        density = getattr(sources, source)(train_size=10, test_size=10).density
        assert integral(density, half, step, power=0) == pytest.approx(1, abs=1e-4)
        samples = density.sample(20_000, torch.Generator().manual_seed(0))
        negative_entropy = integral(density, half, step, power=1)
        assert float(density.log_prob(samples).mean()) == pytest.approx(negative_entropy, abs=0.04)

    @pytest.mark.parametrize(("source", "count"), [("ring", 8), ("grid", 25)])
    def test_log_prob_is_the_mixture_formula(self, source: str, count: int) -> None:
        density = getattr(sources, source)(train_size=10, test_size=10).density
        modes, std = density.modes.double().numpy(), density.mode_std
        assert len(modes) == count
        x = modes[[0, 1]] + np.array([[0.7, -1.2], [2.0, 0.3]]) * std
        squares = ((x[:, None] - modes) ** 2).sum(-1)
        expected = np.log(np.exp(-squares / (2 * std**2)).mean(1) / (2 * np.pi * std**2))
        assert np.allclose(density.log_prob(torch.from_numpy(x)).numpy(), expected, atol=1e-5)

    def test_spiral_is_integrated_well_at_its_ends(self) -> None:
        coarse, fine = Spiral(0.25, 7.5), Spiral(0.25, 7.5, panels=1000)
        ends = torch.tensor([1.5, 4.5], dtype=torch.float64) * torch.pi
        x = torch.stack((ends * ends.cos(), ends * ends.sin()), dim=1) / 7.5
        noise = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = (x[:, None] + 2 * coarse.mode_std * noise).flatten(0, 1)  # [100 2]
        assert (coarse.log_prob(x) - fine.log_prob(x)).abs().max() < 1e-3

    def test_numbers_of_the_release(self) -> None:
        ring, grid = sources.ring(train_size=10, test_size=1).density, sources.grid(train_size=10, test_size=1).density
        assert ring is not None
        assert grid is not None
        assert ring.modes is not None
        assert grid.modes is not None
        assert torch.allclose(ring.modes.norm(dim=1), torch.tensor(2 / 1.414))
        assert ring.mode_std == pytest.approx(0.02 / 1.414)
        assert sorted({round(v, 4) for v in grid.modes.flatten().tolist()}) == [-1.4144, -0.7072, 0, 0.7072, 1.4144]
        assert grid.mode_std == pytest.approx(0.05 / 2.828)

    def test_splits_differ_and_seeds_decide(self) -> None:
        first, again, other = (sources.grid(train_size=100, test_size=100, seed=seed) for seed in (0, 0, 1))
        assert first.fingerprint == again.fingerprint != other.fingerprint
        assert not torch.equal(first.train.all().x, first.test.all().x)


def _wanted(value: object, wants: dict[str, object]) -> object:
    """What ``${wants.key}`` is where no model says otherwise."""
    asked = re.fullmatch(r"\$\{wants\.(\w+)\}", str(value))
    return wants[asked[1]] if asked else value


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_keys_are_exactly_the_signature(path: Path) -> None:
    text = path.read_text()
    wants = yaml.safe_load((CONF.parent / "train.yaml").read_text())["wants"]
    data = {k: _wanted(v, wants) for k, v in yaml.safe_load(text)["data"].items()}
    module, name = data.pop("_target_").rsplit(".", 1)
    assert module == sources.__name__
    signature = inspect.signature(getattr(sources, name)).parameters
    assert list(data) == list(signature)
    plain = {key: list(v.default) if isinstance(v.default, tuple) else v.default for key, v in signature.items()}
    assert all(data[key] == value for key, value in plain.items() if key != "root")
    assert text.startswith("# @package _global_\n# ")
