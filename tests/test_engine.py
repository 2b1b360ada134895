"""The training step: clocks, cadences, turns, averages, logging, precision, and what must not disturb what."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, tiny, words
from test_contract import batches, differences, parameters, ready
from torch import Tensor, nn

from gentrain.engine import checkpoint
from gentrain.engine.clock import Clock, Ledger
from gentrain.engine.ema import Average, Ema
from gentrain.engine.finite import NonFiniteError, refuse_non_finite
from gentrain.engine.loop import LENGTH, Blocks
from gentrain.engine.player import Linear, Moves, Player, Warmup
from gentrain.engine.system import System
from gentrain.engine.turns import Alternating, Simultaneous, Turns
from gentrain.errors import UserError
from gentrain.families.generating import Made
from gentrain.models.wgan import CriticAhead, WeightClip
from gentrain.types import Images, Spec, Terms, to_bytes, to_signed


class Point(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))


class Saddle(System):
    """Two players of one number each on f(u, v) = u v: the first goes down, the second up."""

    sampled = ("down",)

    def __init__(self, turns: Turns, lr: float = 0.1, **moves: int) -> None:
        def sgd(parameters: Sequence[nn.Parameter]) -> torch.optim.SGD:
            return torch.optim.SGD(parameters, lr=lr)

        players = {name: Moves(sgd, every=moves.get(name, 1)) for name in ("down", "up")}
        super().__init__(Spec((2,)), players, turns)
        self.nets["down"], self.nets["up"] = Point(1.0), Point(1.0)
        self.seen: list[str] = []

    def f(self) -> Tensor:
        return (self.nets["down"].value * self.nets["up"].value).sum()  # type: ignore[operator, no-any-return]

    def _down(self, batch: Images) -> Terms:
        self.seen.append("down")
        return {"value": self.f()}

    def _up(self, batch: Images) -> Terms:
        self.seen.append("up")
        return {"value": -self.f()}

    def players(self) -> Sequence[Player]:
        return (Player("down", ("down",), self._down), Player("up", ("up",), self._up))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.nets["down"].value.expand(n, 2)  # type: ignore[operator, no-any-return]


def nothing(n: int = 4) -> Images:
    return Images(torch.zeros(n, 2))


def values(system: System) -> tuple[float, float]:
    return float(system.nets["down"].value.detach()), float(system.nets["up"].value.detach())  # type: ignore[operator]


def test_alternating_players_see_what_the_other_just_did_and_simultaneous_ones_do_not() -> None:
    for turns, up in ((Alternating(), 1.0 + 0.1 * 0.9), (Simultaneous(), 1.0 + 0.1 * 1.0)):
        system = Saddle(turns)
        system.prepare(total=10)
        system.iterate(nothing())
        down_now, up_now = values(system)
        assert down_now == pytest.approx(0.9)
        assert up_now == pytest.approx(up)


def test_the_clock_counts_batches_whatever_the_number_of_players() -> None:
    system = Saddle(Alternating(), up=5)
    system.prepare(total=100)
    for _ in range(10):
        system.iterate(nothing(7))
    assert (system.clock.iteration, system.clock.images) == (10, 70)
    assert system.seen.count("down") == 10
    assert system.seen.count("up") == 2
    assert [system.seen[i - 1] for i, who in enumerate(system.seen) if who == "up"] == ["down", "down"]
    assert system.seen.index("up") == 5, "the fifth batch is the first that moves it, behind five of the other's steps"


def test_run_folder_counts_iterations_with_two_optimisers(run: Run, workplace: Path) -> None:
    budget = ["train.iterations=12", "train.log_every=4", "train.validate_every=0", "train.checkpoint_every=5"]
    assert run(*words("model=dcgan", "name=run", "train.keep=9", "metrics=none", *budget)).code == 0
    folder = workplace / "outputs" / "run"
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == [checkpoint.file_name(n) for n in (5, 10, 12)] + ["last.ckpt"]
    rows = [row.split(",")[:2] for row in (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()]
    assert rows == [["iteration", "images"], ["4", "64"], ["8", "128"], ["12", "192"]]
    state = checkpoint.load(folder / "checkpoints" / "last.ckpt")["system"]
    for optimizer in state["optimizers"].values():
        assert {int(slot["step"]) for slot in optimizer["state"].values()} == {12}


def authors_schedule(every: int, ahead: int, first: int, again: int, length: int) -> list[bool]:
    """The loop of the WGAN authors' code: so many critic steps, then one generator step."""
    moves: list[bool] = []
    steps = 0
    while len(moves) < length:
        critic_steps = ahead if steps < first or steps % again == 0 else every
        moves += [False] * (critic_steps - 1) + [True]
        steps += 1
    return moves[:length]


@pytest.mark.parametrize("numbers", [(5, 100, 25, 500), (2, 7, 3, 4), (1, 3, 2, 2), (3, 5, 0, 3), (2, 4, 4, 4)])
def test_critic_ahead_is_the_authors_loop(numbers: tuple[int, int, int, int]) -> None:
    length = 12000 if numbers[0] == 5 else 300
    cadence = CriticAhead(*numbers)
    assert [cadence(i) for i in range(1, length + 1)] == authors_schedule(*numbers, length=length)


def test_weight_clip_leaves_no_weight_outside_after_every_step() -> None:
    config = tiny("model=wgan", "model.constraint.bound=0.003")
    system, data = ready(config)
    for batch in batches(config, data, 5):
        system.iterate(batch)
        assert max(float(p.detach().abs().max()) for p in system.nets["critic"].parameters()) <= 0.003001
    assert max(float(p.detach().abs().max()) for p in system.nets["generator"].parameters()) > 0.003
    assert WeightClip().bound == 0.01


def test_schedules_are_per_iteration() -> None:
    half = Linear(start=0.5)
    assert [half(i, 10) for i in (1, 6, 7, 10, 50)] == pytest.approx([1.0, 1.0, 0.8, 0.2, 0.0])
    assert Linear(start=1.0)(99, 10) == 1.0
    assert [Warmup(4)(i, 10) for i in (1, 2, 4, 9)] == pytest.approx([0.25, 0.5, 1.0, 1.0])
    system = Saddle(Alternating(), lr=0.1)
    system.moves = {name: Moves(m.optimizer, schedule=Linear()) for name, m in system.moves.items()}
    system.prepare(total=4)
    rates = []
    for _ in range(4):
        system.iterate(nothing())
        rates.append(system.seats[0].optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_clip_bounds_the_gradient_and_reports_the_norm_before() -> None:
    system = Saddle(Alternating())
    system.moves = {name: Moves(m.optimizer, clip=0.25) for name, m in system.moves.items()}
    system.prepare(total=4)
    system.iterate(nothing())
    assert values(system)[0] == pytest.approx(1.0 - 0.1 * 0.25, abs=1e-5)
    assert system.report()["grad_norm/down"] == pytest.approx(1.0)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch() -> None:
    grads = []
    for parts in (1, 4):
        config = tiny("model=vae")
        system, data = ready(config)
        system._code = Still()  # type: ignore[assignment]
        batch = next(batches(config, data, 1)).to("cpu", channels_last=True)
        system._gradients(system.seats[0], list(batch.chunks(parts)), 1)
        grads.append([p.grad.clone() for p in system.nets.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()) + 1e-7)


class Still:
    """A posterior without noise."""

    def draw(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=1)[0]

    def decoded(self, latents: Tensor) -> Tensor:
        return latents

    def divergences(self, output: Tensor, latents: Tensor) -> dict[str, Tensor]:
        return {"kl": output.chunk(2, dim=1)[1].square()}


def test_fused_kernels_are_used_where_torch_has_them() -> None:
    system, _ = ready(tiny("model=dcgan"))
    assert all(seat.optimizer.defaults["fused"] for seat in system.seats)
    system, _ = ready(tiny("model=wgan"))  # RMSprop has none
    assert all("fused" not in seat.optimizer.defaults for seat in system.seats)


def test_the_average_is_its_closed_form_and_buffers_are_those_of_the_live_network() -> None:
    live = nn.ModuleDict({"g": nn.BatchNorm1d(3)})
    average = Average(Ema(decay=0.3, start=2), live, ["g"])
    weight = live["g"].weight
    expected = weight.detach().clone()
    for iteration in range(1, 7):
        with torch.no_grad():
            weight.add_(torch.randn(3))
        live["g"](torch.randn(5, 3))
        average.update(iteration)
        t = iteration - 2
        decay = min(0.3, (1 + t) / (10 + t)) if iteration > 2 else 0.0
        expected = decay * expected + (1 - decay) * weight.detach()
        assert torch.allclose(average.nets["g"].weight, expected, atol=1e-6)
        for name, buffer in live["g"].named_buffers():
            assert torch.equal(dict(average.nets["g"].named_buffers())[name], buffer), name
    assert not any(p.requires_grad for p in average.parameters())
    assert "_live" not in "".join(average.state_dict())


def test_averaged_weights_stand_in_and_step_back_even_after_an_error() -> None:
    config = tiny("model=dcgan")
    system, data = ready(config)
    for batch in batches(config, data, 3):
        system.iterate(batch)
    live = system.nets["generator"]
    with contextlib.suppress(KeyError), system.weights("ema"):
        assert system.nets["generator"] is not live
        raise KeyError
    assert system.nets["generator"] is live
    ema, raw = (system.state()["average"], system.state()["nets"])
    key = "generator.0.weight"
    assert not torch.equal(ema[f"nets.{key}"], raw[key])


def test_the_generator_moves_on_the_critics_samples_where_noise_is_shared() -> None:
    """One step of fresh_noise=false equals the hand-written tutorial step with one forward pass of the generator."""
    config = tiny("model=dcgan", "model.ema=null")
    system, data = ready(config)
    other, _ = ready(config)
    batch = next(batches(config, data, 1))
    torch.manual_seed(5)
    system.iterate(batch)

    torch.manual_seed(5)
    generator, critic = other.nets["generator"], other.nets["critic"]
    softplus = nn.functional.softplus
    real = to_signed(batch.x).contiguous(memory_format=torch.channels_last)
    fake = generator(torch.randn(len(batch), other.latent))
    loss = softplus(-critic(real)).mean() + softplus(critic(fake.detach())).mean()
    other.optimizers_by_name["critic"].zero_grad()
    loss.backward()
    other.optimizers_by_name["critic"].step()
    other.optimizers_by_name["generator"].zero_grad()
    softplus(-critic(fake)).mean().backward()
    other.optimizers_by_name["generator"].step()
    assert differences(system.state()["nets"], other.state()["nets"]) == []


def test_fresh_noise_gives_the_generator_samples_of_its_own() -> None:
    config = tiny("model=dcgan", "model.fresh_noise=true")
    system, data = ready(config)
    made: list[Tensor] = []
    original = system.generate

    def generate(*asked: Any) -> Made:
        result = original(*asked)
        made.append(result.x)
        return result

    system.generate = generate
    system.iterate(next(batches(config, data, 1)))
    assert len(made) == 2
    assert not made[0].requires_grad
    assert made[1].requires_grad
    assert not torch.equal(made[0], made[1])


def test_joint_and_separate_batches_agree_without_batch_norm() -> None:
    grads = []
    for joint in ("true", "false"):
        config = tiny("model=wgan_gp", f"model.joint_batch={joint}", "model/net=mlp")
        system, data = ready(config)
        torch.manual_seed(0)
        system._gradients(system.seats[0], [next(batches(config, data, 1))], 1)
        grads.append([p.grad.clone() for p in system.seats[0].parameters if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_terms_are_means_over_the_interval_and_keep_no_graph() -> None:
    ledger = Ledger()
    for value in (1.0, 2.0, 6.0):
        ledger.note("a", torch.tensor(value, requires_grad=True) * 1)
    assert not ledger.entries["a"][0].requires_grad
    assert ledger.means() == {"a": 3.0}
    assert ledger.means() == {}


def test_what_is_logged_is_the_mean_since_the_last_row(run: Run, workplace: Path) -> None:
    tables = []
    for every in (1, 4):
        look = [f"train.log_every={every}", f"name=every{every}", "train.validate_every=0", "metrics=none"]
        assert run(*words("model=wgan_gp", "train.iterations=8", *look)).code == 0
        with (workplace / "outputs" / f"every{every}" / "metrics.csv").open(encoding="utf-8", newline="") as file:
            tables.append({int(row["iteration"]): row for row in csv.DictReader(file)})
    single, rows = tables
    assert list(rows) == [4, 8]
    keys = [key for key in rows[4] if key.startswith(("loss/", "score/"))]
    assert {"loss/critic/gradient_penalty", "score/real"} <= set(keys)
    for end, row in rows.items():
        for key in keys:
            parts = [float(single[i][key]) for i in range(end - 3, end + 1) if single[i][key]]
            assert len(parts) == (2 if "generator" in key else 4)
            assert float(row[key]) == pytest.approx(sum(parts) / len(parts), rel=1e-5, abs=1e-6)


def test_blocks_end_where_something_is_due_and_read_nothing_ahead() -> None:
    drawn: list[int] = []

    def numbers(start: int) -> object:
        for i in range(start, 10**6):
            drawn.append(i)
            yield i

    clock = Clock(iteration=3, total=100)
    ends = []
    blocks = iter(Blocks(numbers, clock, [10, 0, 25]))  # type: ignore[arg-type]
    ahead = next(blocks)
    following = next(blocks)
    assert drawn == []
    for block in (ahead, following, *blocks):
        got = list(block)
        assert 0 < len(got) <= LENGTH
        ends.append(got[-1] + 1)
    assert drawn == list(range(3, 100))
    assert set(range(10, 101, 10)) | {25, 75} <= set(ends)
    assert [c for c in (Clock(9, 0, 10), Clock(10, 0, 10), Clock(0, 0, 10)) if c.due(5)] == [Clock(10, 0, 10)]


def test_bf16_computes_and_penalties_stay_float32() -> None:
    config = tiny("model=wgan_gp")
    system, data = ready(config)
    system.precision_name = "bf16-mixed"
    dtypes: list[torch.dtype] = []
    system.nets["critic"].score.register_forward_hook(lambda _m, _i, out: dtypes.append(out.dtype))
    for batch in batches(config, data, 4):
        system.iterate(batch)
    assert set(dtypes) == {torch.bfloat16, torch.float32}
    assert dtypes[:2] == [torch.bfloat16, torch.float32], "the scores, then the penalty"
    assert all(math.isfinite(v) for v in system.report().values())
    assert all(p.dtype == torch.float32 for p in system.nets.parameters())


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(run: Run, workplace: Path) -> None:
    rate = "model.players.critic.optimizer.lr=1e30"
    ended = run(*words("model=dcgan", "name=run", rate, "train.iterations=50", "train.checkpoint_every=1"))
    assert ended.code == 2
    assert "not finite" in ended.err
    assert "iteration 1: the loss of the generator" in ended.err
    assert "Traceback" not in ended.err
    for path in (workplace / "outputs" / "run" / "checkpoints").glob("*.ckpt"):
        refuse_non_finite(checkpoint.load(path)["system"], 0)
    with pytest.raises(NonFiniteError, match=r"a\[1\]"):
        refuse_non_finite({"a": [torch.zeros(2), torch.tensor([1.0, math.nan])]}, 3)


@pytest.mark.parametrize("model", ["wgan_gp", "vae"])  # the likelihood bound draws without a generator of its own
def test_pictures_scores_and_logs_change_no_weight(model: str, run: Run, workplace: Path) -> None:
    ends = []
    looks = (
        ["train.validate_every=0", "metrics=none", "train.log_every=100"],
        ["train.validate_every=2", "train.log_every=1"],
        ["train.validate_every=3", "metrics.samples=200", "train.checkpoint_every=1"],
    )
    for i, look in enumerate(looks):
        assert run(*words(f"model={model}", f"name=r{i}", "train.iterations=9", *look)).code == 0
        ends.append(checkpoint.load(workplace / "outputs" / f"r{i}" / "checkpoints" / "last.ckpt"))
    for end in ends[1:]:
        assert differences(ends[0]["system"], end["system"]) == []
        assert differences(ends[0]["rng"], end["rng"]) == []


def test_a_player_that_does_not_exist_is_named(run: Run) -> None:
    optimizer = "{_target_:torch.optim.SGD,_partial_:true}"
    player = f"+model.players.judge={{_target_:gentrain.engine.player.Moves,optimizer:{optimizer}}}"
    ended = run(*words("model=dcgan", player))
    assert ended.code == 2
    assert "judge" in ended.err
    assert "critic, generator" in ended.err


def test_ranges_round_trip_exactly() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_signed(levels)), levels)
    assert to_bytes(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]
    batch = Images(levels.reshape(4, 1, 8, 8), torch.arange(4), torch.arange(4))
    parts = list(batch.chunks(3))
    assert [len(p) for p in parts] == [2, 1, 1]
    assert torch.equal(torch.cat([p.x for p in parts]), batch.x)
    assert list(islice(batch.chunks(1), 2)) == [batch]
    assert parameters(Saddle(Alternating())).keys() == {"down.value", "up.value"}
    with pytest.raises(UserError, match="missing"):
        Saddle(Alternating())._moves_of(Player("nobody", (), lambda b: {}))
