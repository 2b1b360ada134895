"""What mixes samples is refused, lazy penalties keep their weight, terms of scores and weights equal hand-made ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from test_contract import batches, differences, ready
from torch import Tensor, nn

from gentrain.engine import checkpoint
from gentrain.engine.state import rng_state, set_rng_state
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.game import Round, Verdict
from gentrain.nets.critic import spectral_norm
from gentrain.objectives.penalties import R1, R2, refuse_mixing
from gentrain.objectives.regularisers import Consistency, HistoricalAverage, LeCam, Orthogonal, moved, overlap
from gentrain.types import Spec

ALL = "model/penalty=[r1,r2,orthogonal,consistency,lecam,historical,spectral]"


def number(t: Tensor) -> float:
    return float(t.detach())


# --- what mixes samples --------------------------------------------------------------------------------------------


class Virtual(nn.Module):
    """Normalises by a batch that it keeps, or, as it should not, by the batch that it is given."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or not self.fixed:
            self.kept = x.detach().clone()
        return (x - self.kept.mean(0)) / (self.kept.std(0) + 1e-3)


class BatchFeature(nn.Module):
    """One more feature: how much the samples of the batch differ."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.std(0).mean().expand(len(x), 1)], dim=1)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (nn.Identity(), None),
        (nn.Dropout(0.5), None),
        (nn.GroupNorm(1, 8), None),
        (Virtual(fixed=True), None),
        (Virtual(fixed=False), "'1' .Virtual. mixes"),
        (BatchFeature(), "'1' .BatchFeature. mixes"),
        (nn.BatchNorm1d(8), "'1' is BatchNorm1d"),
        (nn.Sequential(nn.ReLU(inplace=True), BatchFeature()), "'1.1' .BatchFeature. mixes"),
    ],
)
def test_a_layer_that_mixes_samples_is_found_whatever_its_name(layer: nn.Module, names: str | None) -> None:
    """Behind a last layer of zeros, too, through which no difference passes."""
    last = nn.LazyLinear(1)
    net = nn.Sequential(nn.Linear(6, 8), layer, last)
    before, x = rng_state(), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    copy.deepcopy(net)(x)
    net(x)
    nn.init.zeros_(last.weight)
    set_rng_state(before)
    state = copy.deepcopy(net.state_dict())
    if names is None:
        refuse_mixing(net, x)
    else:
        with pytest.raises(UserError, match=names) as refusal:
            refuse_mixing(net, x)
        assert "\n" not in str(refusal.value)
    assert differences(before, rng_state()) == []
    assert differences(dict(state), dict(net.state_dict())) == []


def test_batch_norm_in_a_penalised_critic_is_refused_and_layer_norm_takes_its_place() -> None:
    deeper = ("model.net.depth=2", "model/penalty=r1")
    for model in ("dcgan", "cgan", "lsgan"):
        system, _ = ready(tiny(f"model={model}", *deeper))
        assert any(isinstance(layer, nn.GroupNorm) for layer in system.nets["critic"].modules())
        with pytest.raises(UserError, match="critic_norm"):
            ready(tiny(f"model={model}", *deeper, "model.net.critic_norm=batch"))
    system, _ = ready(tiny("model=wgan_gp", *deeper))  # this one asks for none
    assert not any(isinstance(layer, nn.GroupNorm) for layer in system.nets["critic"].modules())


def test_a_plus_before_a_group_that_has_its_place_is_answered() -> None:
    with pytest.raises(UserError, match=r"^\+model/penalty: .*model/penalty=\.\.\. chooses, without the \+"):
        tiny("model=dcgan", "+model/penalty=r1")
    assert set(tiny("model=dcgan", "+model/penalty=[r1,r2]")["model"]["penalties"]) == {"r1", "r2"}


# --- penalties -----------------------------------------------------------------------------------------------------


def test_r1_looks_at_real_samples_and_r2_at_generated_ones() -> None:
    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.square().sum(1)

    real, fake = torch.randn(4, 3), torch.randn(4, 3)
    for penalty, looked, name in ((R1(1.0), real, "r1"), (R2(1.0), fake, "r2")):
        seen.clear()
        terms = penalty(spy, real, fake)
        assert torch.equal(torch.cat(seen), looked)
        assert number(terms[name]) == pytest.approx(0.5 * number((2 * looked).square().sum(1).mean()), rel=1e-5)


def test_a_lazy_penalty_acts_in_each_so_many_th_iteration() -> None:
    entries = ledger("model=dcgan", "model/penalty=[r1,r2]", "model.penalties.r1.every=3", iterations=7)
    assert len(entries["loss/critic/r1"]) == 2
    assert len(entries["loss/critic/r2"]) == 7


def test_a_lazy_penalty_wants_a_critic_that_moves_in_each_iteration() -> None:
    lazy = ("model=dcgan", "model/penalty=r1", "+model.players.critic.every=2")
    assert len(ledger(*lazy, iterations=4)["loss/critic/r1"]) == 2
    with pytest.raises(UserError, match=r"model\.penalties\.r1\.every=4: .*model\.players\.critic\.every"):
        ready(tiny(*lazy, "model.penalties.r1.every=4"))


def test_batch_norm_is_named_with_the_key_that_takes_it_away() -> None:
    for model, key in (
        ("ebgan", r"'decoder\.\d+' .*set model\.net\.decoder_norm=none"),
        ("infogan", r"'heads\.codes\.1' .*set model\.critic\.batch_norm=false"),
    ):
        with pytest.raises(UserError, match=key):
            ready(tiny(f"model={model}", "model/net=dcgan", "model.net.depth=2", "model/penalty=r1"))
    ready(tiny("model=ebgan", "model.net.depth=2", "model/penalty=r1", "model.net.decoder_norm=none"))


def test_spectral_normalisation_takes_the_place_of_batch_norm() -> None:
    deeper = ("model=dcgan", "model.net.depth=2")
    system, _ = ready(tiny(*deeper))
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in system.nets["critic"].modules())
    system, _ = ready(tiny(*deeper, "model/penalty=spectral"))
    critic, generator = system.nets["critic"], system.nets["generator"]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in critic.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in generator.modules())


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.penalties.again: the player has a term 'r1' already"):
        ledger("model=dcgan", "model/penalty=r1", "+model.penalties.again=${model.penalties.r1}", iterations=1)
    with pytest.raises(UserError, match=r"model.aims.again: the player has a term 'lecam' already"):
        ledger("model=dcgan", "model/penalty=lecam", "+model.aims.again=${model.aims.lecam}", iterations=1)


def ledger(*overrides: str, iterations: int) -> Mapping[str, Any]:
    config = tiny(*overrides)
    system, data = ready(config)
    for batch in batches(config, data, iterations):
        system.iterate(batch)
    return system.ledger.entries


# --- orthogonal filters --------------------------------------------------------------------------------------------


def a_round(real: Tensor, fake: Tensor, judge: Any, iteration: int = 1, **nets: nn.Module) -> Round:
    empty = nn.Module()
    return Round(
        real, fake, None, None, judge(real), judge(fake), judge, nets.get("critic", empty),
        nets.get("generator", empty), None, iteration,
    )  # fmt: skip


def scored(net: Any) -> Any:
    def judge(x: Tensor, labels: Tensor | None = None) -> Verdict:
        return Verdict(net(x), x, {})

    return judge


def test_overlap_is_the_sum_over_pairs_of_filters_and_embeddings_are_left_out() -> None:
    conv, up, dense = nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(2, 3, 4), nn.Linear(5, 4)
    by_hand = 0.0
    for filters in (list(conv.weight), [up.weight[:, k] for k in range(3)], list(dense.weight)):
        for i, one in enumerate(filters):
            by_hand += sum(number((one * other).sum()) ** 2 for j, other in enumerate(filters) if i != j)
    net = nn.ModuleList([conv, up, dense, nn.Embedding(7, 5), nn.BatchNorm2d(3)])
    assert number(overlap(net)) == pytest.approx(by_hand, rel=1e-4)
    assert number(overlap(nn.ModuleList([net, conv]))) == pytest.approx(by_hand, rel=1e-4)  # shared weights once
    nn.init.orthogonal_(dense.weight)
    with torch.no_grad():
        dense.weight[0] *= 9.0  # the lengths are free
    assert number(overlap(dense)) == pytest.approx(0.0, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(overlap(net), overlap(net).float())
        assert overlap(net).dtype == torch.float32
    with pytest.raises(UserError, match="neither dense nor"):
        overlap(nn.Embedding(3, 3))


def test_the_orthogonal_term_is_of_the_player_whose_turn_it_is_and_falls_when_minimised() -> None:
    critic, generator = nn.Linear(4, 6), nn.Linear(3, 5)
    seen = a_round(torch.zeros(2, 4), torch.zeros(2, 4), scored(critic), critic=critic, generator=generator)
    aim = Orthogonal(of_generator=0.5, of_critic=2.0)
    assert number(aim.critic(seen)["orthogonal"]) == pytest.approx(2.0 * number(overlap(critic)), rel=1e-6)
    assert number(aim.generator(seen)["orthogonal"]) == pytest.approx(0.5 * number(overlap(generator)), rel=1e-6)
    assert Orthogonal(of_generator=1.0).critic(seen) == {}
    assert Orthogonal(of_critic=1.0).generator(seen) == {}
    optimizer, start = torch.optim.SGD(generator.parameters(), 0.05), number(overlap(generator))
    for _ in range(200):
        optimizer.zero_grad()
        aim.generator(seen)["orthogonal"].backward()
        optimizer.step()
    assert number(overlap(generator)) < 0.7 * start  # five filters in three dimensions cannot all be orthogonal
    assert generator.weight.abs().max() > 0.1


def test_reading_filters_makes_no_step_of_the_power_iteration() -> None:
    net = spectral_norm(nn.Sequential(nn.Linear(4, 4)))
    raw = net[0].parametrizations.weight.original  # type: ignore[index, union-attr]
    before = copy.deepcopy(net.state_dict())
    value = overlap(net)
    assert differences(dict(before), dict(net.state_dict())) == []
    (slope,) = torch.autograd.grad(value, raw)
    gram = (raw @ raw.T).detach()
    torch.testing.assert_close(slope, 4 * (gram - gram.diagonal().diag()) @ raw.detach())


@pytest.mark.parametrize("spectral", [False, True])
def test_filters_that_weight_normalisation_makes_are_read_before_a_division(spectral: bool) -> None:
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)) for _ in range(2)]
    by_hand = 0.0
    for layer in layers:
        gram = (layer.weight @ layer.weight.T).detach()
        by_hand += number((gram - gram.diagonal().diag()).square().sum())
    net = nn.Sequential(*layers, nn.Linear(6, 1))
    net = spectral_norm(net) if spectral else net
    before = copy.deepcopy(net.state_dict())
    value = overlap(nn.ModuleList([net, layers[0]]))  # shared weights once
    assert number(value) == pytest.approx(by_hand, rel=1e-4)
    assert differences(dict(before), dict(net.state_dict())) == []
    moved = [p for layer in layers for name, p in layer.named_parameters() if "original" in name]
    assert all(slope.abs().max() > 0 for slope in torch.autograd.grad(value, moved))


# --- consistency ---------------------------------------------------------------------------------------------------


def test_images_are_moved_as_cut_from_a_reflected_border() -> None:
    x, shift = torch.randn(800, 2, 5, 6), 2
    for flip in (False, True):
        changed = moved(x, flip=flip, shift=shift)
        padded = F.pad(x, (shift,) * 4, mode="reflect")
        cuts = [padded[:, :, i : i + 5, j : j + 6] for i in range(5) for j in range(5)]
        cuts += [cut.flip(3) for cut in cuts] if flip else []
        which = torch.stack([(changed == cut).all(3).all(2).all(1) for cut in cuts])  # [cuts B]
        assert which.any(0).all()
        assert which.any(1).all(), "each shift, and each mirror image, of some sample"
    assert torch.equal(moved(x, flip=False, shift=0), x)


def test_consistency_is_the_squared_change_of_the_score_with_a_gradient_on_both_sides() -> None:
    critic, x, fake = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    torch.manual_seed(3)
    terms = Consistency(of_real=10.0, of_fake=2.0, shift=1).critic(a_round(x, fake, scored(critic)))
    torch.manual_seed(3)
    changed = [moved(part, flip=True, shift=1) for part in (x, fake)]
    for (name, term), weight, one, other in zip(terms.items(), (10.0, 2.0), (x, fake), changed, strict=True):
        expected = weight * (critic(one) - critic(other)).square().mean()
        assert number(term) == pytest.approx(number(expected), rel=1e-5), name
        weight_of = critic[1].weight
        (slope,) = torch.autograd.grad(term, weight_of)
        torch.testing.assert_close(slope, torch.autograd.grad(expected, weight_of)[0], rtol=1e-4, atol=1e-4)
        still = weight * (critic(one).detach() - critic(other)).square().mean()  # wrong: one side alone
        assert not torch.allclose(slope, torch.autograd.grad(still, weight_of)[0], rtol=1e-2)
    assert list(Consistency().critic(a_round(x, fake, scored(lambda x: x.mean((1, 2, 3)))))) == ["consistency"]
    mirrored = Consistency(shift=0).critic(a_round(x, fake, scored(lambda x: x.mean((1, 2, 3)))))
    assert number(mirrored["consistency"]) == pytest.approx(0.0, abs=1e-12)  # a critic that mirror images do not change


def test_data_that_cannot_be_moved_are_refused() -> None:
    with pytest.raises(UserError, match="vectors"):
        Consistency().heads(Spec((2,)), 0)
    with pytest.raises(UserError, match="shift=8: less than the images' 8"):
        Consistency(shift=8).heads(Spec((1, 8, 8)), 0)
    with pytest.raises(UserError, match="neither flip nor shift"):
        Consistency(flip=False, shift=0)


# --- LeCam ---------------------------------------------------------------------------------------------------------


def test_lecam_by_hand_and_from_a_checkpoint() -> None:
    whole = LeCam(weight=2.0, decay=0.5)
    turns = [([1.0, 3.0], [-1.0, 0.0]), ([2.0, 2.0], [1.0, -4.0]), ([0.0, -1.0], [3.0, 1.0])]
    reals, fakes, values = [], [], []
    for place, (r, f) in enumerate(turns):
        reals.append(sum(r) / 2)
        fakes.append(sum(f) / 2)
        weights = [0.5 ** (place - i) for i in range(place + 1)]
        a_real, a_fake = (sum(w * m for w, m in zip(weights, s, strict=True)) / sum(weights) for s in (reals, fakes))
        by_hand = sum((x - a_fake) ** 2 for x in r) / 2 + sum((x - a_real) ** 2 for x in f) / 2
        one_sided = sum(max(x - a_fake, 0) ** 2 for x in r) / 2 + sum(max(a_real - x, 0) ** 2 for x in f) / 2
        seen = a_round(torch.tensor(r)[:, None], torch.tensor(f)[:, None], scored(lambda x: x))
        half = LeCam(1.0, 0.5, one_sided=True)
        half.load_state_dict(whole.state_dict())
        values.append(number(whole.critic(seen)["lecam"]))
        assert values[-1] == pytest.approx(2.0 * by_hand, rel=1e-5)
        assert number(half.critic(seen)["lecam"]) == pytest.approx(one_sided, rel=1e-5)
        assert whole.generator(seen) == {}
    assert values[1] != pytest.approx(values[2])


def test_lecams_averages_carry_no_gradient() -> None:
    score = torch.tensor([[1.0], [3.0]], requires_grad=True)
    aim = LeCam(weight=1.0)
    (slope,) = torch.autograd.grad(aim.critic(a_round(score, torch.zeros(2, 1), scored(lambda x: x)))["lecam"], score)
    torch.testing.assert_close(slope, score.detach())  # 2 (r - 0) / B: the fake's own term holds mean r fixed


# --- historical averages -------------------------------------------------------------------------------------------


def test_historical_average_by_hand() -> None:
    """theta = 1, 4, 1, 10: means of the past 1, 2.5, 2."""
    net, aim = nn.Linear(1, 1, bias=False), HistoricalAverage(of_critic=0.5)
    for turn, (theta, mean) in enumerate([(1.0, 1.0), (4.0, 1.0), (1.0, 2.5), (10.0, 2.0)], start=1):
        nn.init.constant_(net.weight, theta)
        seen = a_round(torch.zeros(1, 1), torch.zeros(1, 1), scored(net), turn, critic=net, generator=nn.Linear(9, 9))
        for part in range(2):  # the parts of one batch are one turn
            mean_before = mean if part == 0 else (mean * (turn - 1) + theta) / turn
            term = aim.critic(seen)["historical"]
            assert number(term) == pytest.approx(0.5 * (theta - mean_before) ** 2, abs=1e-6), (turn, part)
            (slope,) = torch.autograd.grad(term, net.weight)
            assert number(slope) == pytest.approx(theta - mean_before, abs=1e-6)
        assert aim.generator(seen) == {}
        again = HistoricalAverage(of_critic=0.5)
        again.load_state_dict(aim.state_dict())
        aim = again


# --- all together --------------------------------------------------------------------------------------------------


def test_the_rules_travel_in_the_checkpoint_and_a_resumed_game_is_the_straight_one(tmp_path: Path) -> None:
    config = tiny("model=cgan", ALL)
    straight, data = ready(config)
    state, noise = {}, {}
    for place, batch in enumerate(batches(config, data, 6), start=1):
        straight.iterate(batch)
        if place == 3:
            checkpoint.save({"system": straight.state()}, tmp_path / checkpoint.file_name(3))
            state, noise = checkpoint.load(tmp_path / checkpoint.file_name(3))["system"], rng_state()

    def rest(state: dict[str, Any]) -> System:
        resumed, _ = ready(config, seed=7)
        resumed.restore(state)
        set_rng_state(noise)
        for batch in batches(config, data, 3, start=3):
            resumed.iterate(batch)
        return resumed

    assert differences(straight.state(), rest(state).state()) == []
    for rule in ("lecam", "historical"):
        assert any(key.startswith(rule) for key in state["rules"])
        other, _ = ready(config, seed=7)
        fresh = {k: v for k, v in other.rules.state_dict().items() if k.startswith(rule)}
        assert differences(straight.state(), rest({**state, "rules": {**state["rules"], **fresh}}).state()), rule
