"""Generated samples of the past: which come back, how often, and that none is lost."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import Run, tiny, words
from torch import Tensor

from gentrain.config import build
from gentrain.data.stream import stream
from gentrain.engine.fit import build_system
from gentrain.errors import UserError
from gentrain.families.adversarial import Adversarial
from gentrain.models.replay import Pool


def numbered(start: int, count: int) -> Tensor:
    """Samples [count 1 2 2] that each say which they are."""
    return torch.arange(start, start + count).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def old_share(pool: Pool, rounds: int = 60, batch: int = 16) -> float:
    """Of what is shown once the pool is full: how much is older than the batch it is shown in."""
    old = total = 0
    for turn in range(rounds):
        shown = pool(numbered(turn * batch, batch))[:, 0, 0, 0]
        if (turn + 1) * batch > pool.capacity + batch:
            old, total = old + int((shown < turn * batch).sum()), total + batch
    return old / total


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_older_samples_come_back_as_often_as_asked(probability: float) -> None:
    assert old_share(Pool(50, probability)) == pytest.approx(probability, abs=0.06)


class Forgetful(Pool):
    """What one may write by mistake: the pool is asked after the batch has gone in, and gives it back."""

    def forward(self, fake: Tensor) -> Tensor:
        super().forward(fake)
        return fake


def test_a_pool_that_returns_only_the_present_is_found_out() -> None:
    assert old_share(Forgetful(50, 0.5)) == 0.0


@pytest.mark.parametrize("batch", [16, 70])
def test_each_sample_is_shown_or_held_and_none_twice(batch: int) -> None:
    pool = Pool(50, 0.5)
    shown = []
    for turn in range(12):
        fake = numbered(turn * batch, batch)
        out = pool(fake)
        assert out.shape == fake.shape
        filling = turn * batch < 50
        if filling:
            assert torch.equal(out, fake)
            continue
        shown += out[:, 0, 0, 0].tolist()
    held = pool.bits.view(torch.float32)
    assert (held == held[:, :1, :1, :1]).all(), "samples stay whole"
    first = next(turn for turn in range(12) if turn * batch >= 50)
    taken_in = [float(n) for n in range(min(50, first * batch))]  # shown and held, both
    later = [float(n) for n in range(first * batch, 12 * batch)]
    assert sorted([*shown, *held[:, 0, 0, 0].tolist()]) == sorted([*taken_in, *later])


def test_the_first_samples_fill_it_without_a_gap() -> None:
    pool = Pool(20)
    for turn in range(3):
        pool(numbered(turn * 8, 8))
    assert pool.bits.view(torch.float32)[:, 0, 0, 0].tolist() == list(range(20))


def test_its_state_is_every_bit_of_its_samples_and_no_rank_averages_it() -> None:
    pool, other = Pool(10, 0.5), Pool(10, 0.5)
    x = torch.randn(7, 2, 3)
    pool(x)
    assert not any(buffer.is_floating_point() for buffer in pool.buffers())
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other.bits.view(torch.float32), x)
    state = torch.get_rng_state()
    y, z = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    ends = []
    for one in (pool, other):
        torch.set_rng_state(state)
        ends.append(torch.stack([one(y), one(z)]))
    assert torch.equal(*ends)
    other.load_state_dict(Pool(10).state_dict())  # an empty one, into a full one
    assert len(other.bits) == 0


def test_the_critic_sees_old_samples_and_the_generator_moves_on_new_ones() -> None:
    config = tiny("model=dcgan", "model/replay=pool", "model.replay.probability=1.0", "model.fresh_noise=true")
    data = build(config["data"])
    system = build_system(config, data, seed=0)
    assert isinstance(system, Adversarial)
    system.prepare(total=20)
    made: list[Tensor] = []
    shown: list[Tensor] = []
    generate, judge = system.generate, system.nets["critic"].judge

    def noted(*args: object) -> object:
        result = generate(*args)  # type: ignore[arg-type]
        made.append(result.x.detach())
        return result

    def asked(x: Tensor, labels: Tensor | None = None) -> object:
        shown.append(x.detach())
        return judge(x, labels)  # type: ignore[operator]

    system.generate = noted  # type: ignore[method-assign, assignment]
    system.nets["critic"].judge = asked  # type: ignore[assignment]
    for batch in itertools.islice(stream(data.train, batch_size=16, seed=0), 6):
        system.iterate(batch)
    of_critic, of_generator = made[::2], made[1::2]
    fakes, moved_on = shown[1::3], shown[2::3]
    for turn in range(6):
        assert torch.equal(moved_on[turn], of_generator[turn])
        new = torch.equal(fakes[turn], of_critic[turn])
        assert new == (turn < 2), "the pool of 32 is full after two batches"
    earlier = torch.cat(of_critic[:5])
    assert all((earlier == sample).flatten(1).all(1).any() for sample in fakes[5])


def test_it_is_refused_where_samples_belong_to_labels(run: Run) -> None:
    ended = run(*words("model=cgan", "model/replay=pool"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "model.replay" in ended.err


@pytest.mark.parametrize(("capacity", "probability"), [(0, 0.5), (5, 1.5)])
def test_numbers_out_of_range_are_named(capacity: int, probability: float) -> None:
    with pytest.raises(UserError, match=r"model\.replay"):
        Pool(capacity, probability)
