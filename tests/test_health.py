"""Health signs: each appears where the training is sick, once, and not where it is well."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gentrain.engine.advice import ADVICE
from gentrain.engine.health import Health, HealthWarning, distances
from gentrain.engine.trends import falling_and_worse, level, roughness

ROOT = Path(__file__).parents[1]


def images(n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def signs(warnings: list[HealthWarning]) -> list[tuple[str, str]]:
    return [(warning.sign, warning.player) for warning in warnings]


def critic(real: float, fake: float, **more: float) -> dict[str, dict[str, float]]:
    return {"critic": {"real": real, "fake": fake, **more}, "generator": {"adversarial": 3.0}}


WELL: dict[str, Any] = {"terms": critic(0.6, 0.7), "grad_norms": {"critic": 1.0, "generator": 1.0}}


def test_a_healthy_run_is_silent() -> None:
    health = Health()
    for iteration in range(0, 5000, 50):
        kl = torch.full((16,), 0.5)
        samples = images(seed=iteration)
        assert health.observe(iteration, **WELL, samples=samples, reference=images(seed=1), latent_kl=kl) == []


# One sick and one well observation of each sign, as arguments of observe().
SICK: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "discriminator_wins": ({"terms": critic(0.001, 0.002)}, {"terms": critic(0.5, 0.5)}, "critic"),
    "pinned": ({"terms": critic(math.log(2), math.log(2) + 1e-3)}, {"terms": critic(0.5, 0.5)}, "critic"),
    "gradient_norm": ({"grad_norms": {"generator": 101.0}}, {"grad_norms": {"generator": 1.0}}, "generator"),
    "collapse": (
        {"samples": images(1).repeat(64, 1, 1, 1), "reference": images(seed=1)},
        {"samples": images(), "reference": images(seed=1)},
        "generator",
    ),
    "unused_latent": (
        {"latent_kl": torch.tensor([1.0] + [0.001] * 31)},
        {"latent_kl": torch.tensor([1.0] * 16 + [0.0] * 16)},
        "generator",
    ),
    "nonfinite": ({"terms": critic(math.nan, 0.5)}, {"terms": critic(0.5, 0.5)}, "critic"),
}


@pytest.mark.parametrize("sign", SICK)
def test_each_sign_warns_once_and_again_only_after_it_was_gone(sign: str) -> None:
    sick, well, player = SICK[sign]
    health = Health(patience=3)
    now = 1000

    def observe(change: dict[str, Any], times: int) -> list[tuple[str, str]]:
        nonlocal now
        found = []
        for _ in range(times):
            now += 1
            found += signs(health.observe(now, **{**WELL, **change}))
        return found

    assert observe(well, 5) == []
    assert observe(sick, 20) == [(sign, player)]
    assert observe(well, 2) == []
    assert observe(sick, 20) == [(sign, player)]


@pytest.mark.parametrize("sign", [sign for sign in SICK if sign != "nonfinite"])
def test_none_turns_a_sign_off(sign: str) -> None:
    off: dict[str, Any] = {sign: None}
    health = Health(patience=1, **off)
    assert [w for i in range(5) for w in health.observe(2000 + i, **{**WELL, **SICK[sign][0]})] == []


def test_a_value_that_trembles_about_its_threshold_warns_once() -> None:
    health = Health(gradient_norm=100.0, hysteresis=1.5)
    norms = [101, 99, 101, 70, 101, 66, 101]
    found = [health.observe(i, {}, {"critic": float(norm)}) for i, norm in enumerate(norms)]
    assert [len(warnings) for warnings in found] == [1, 0, 0, 0, 0, 0, 1]


def test_a_critic_must_win_several_times_in_a_row() -> None:
    health = Health(patience=3)
    losses = [0.01, 0.01, 0.2, 0.01, 0.01, 0.01]
    found = [health.observe(i, critic(loss / 2, loss / 2), {}) for i, loss in enumerate(losses)]
    assert [len(warnings) for warnings in found] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    "terms",
    [
        critic(-0.001, 0.0005),  # a Wasserstein critic under weight clipping: small numbers are its daily bread
        critic(-3.0, 0.001),
        {"autoencoder": {"reconstruction": 0.001}},
        {"generator": {"adversarial": 0.0}},
    ],
)
def test_a_small_loss_is_no_victory_where_it_is_not_a_bounded_critics(terms: dict[str, dict[str, float]]) -> None:
    health = Health(patience=1)
    assert [w for i in range(10) for w in health.observe(5000 + i, terms, {})] == []


# Signs that show in a series


@pytest.mark.parametrize(
    ("real", "fake", "named"),
    [
        (math.log(2), math.log(2), "2 ln 2"),
        (1.0, 0.999, "an output of 0"),
        (0.125, 0.1252, "1/2"),
        (0.66, 0.72, None),
        (math.log(2), 1.0, None),
        (-0.125, 0.125, None),
    ],
)
def test_levels_are_those_of_a_critic_that_says_the_same_of_all(real: float, fake: float, named: str | None) -> None:
    found = level(real, fake, 0.005)
    assert (found is None) == (named is None)
    assert named is None or named in str(found)


def test_the_levels_are_what_the_losses_give() -> None:
    from gentrain.objectives.adversarial import hinge, least_squares, nonsaturating

    for loss, output in ((nonsaturating(), 0.0), (hinge(), 0.0), (least_squares(), 0.5)):
        terms = loss.critic(torch.full((4,), output), torch.full((4,), output))
        assert level(float(terms["real"]), float(terms["fake"]), 1e-4) is not None


def test_a_critic_may_start_where_it_tells_nothing_apart() -> None:
    health = Health(patience=2, warmup=1000)
    pinned = critic(math.log(2), math.log(2))
    assert [w for i in range(0, 1000, 50) for w in health.observe(i, pinned, {})] == []
    assert signs(health.observe(1000, pinned, {})) == [("pinned", "critic")]


def series(*parts: tuple[int, float, float, float]) -> list[float]:
    """(length, start, end, jitter): straight lines with a jitter of fixed signs, one behind the other."""
    generator = torch.Generator().manual_seed(0)
    found: list[float] = []
    for length, start, end, jitter in parts:
        line = torch.linspace(start, end, length) + jitter * torch.randn(length, generator=generator)
        found += line.tolist()
    return found


@pytest.mark.parametrize(
    ("losses", "warns"),
    [
        (series((200, 0.8, 0.8, 0.02)), False),  # quiet
        (series((200, 1.38, 0.2, 0.02)), False),  # learning
        (series((100, 0.8, 0.8, 0.2), (100, 0.8, 0.8, 0.02)), False),  # settling
        (series((100, 1.38, 1.38, 0.0005), (100, 1.38, 0.6, 0.02)), False),  # wakes up, and its steps stay small
        (series((100, 0.8, 0.8, 0.02), (60, 0.8, 0.8, 0.3)), True),
        (series((100, 0.8, 0.3, 0.01), (60, 0.3, 0.3, 0.15)), True),
    ],
)
def test_a_critic_whose_loss_jumps_more_and_more_is_named(losses: list[float], warns: bool) -> None:
    health = Health(pinned=None)
    found = [
        w for i, loss in enumerate(losses) for w in health.observe(50 * i, critic(abs(loss) / 2, abs(loss) / 2), {})
    ]
    assert signs(found) == ([("unsteady", "critic")] if warns else [])


def test_a_score_without_bounds_is_never_unsteady() -> None:
    health = Health()
    for i, loss in enumerate(series((100, 0.1, 0.1, 0.01), (60, 3.0, 3.0, 2.0))):
        assert health.observe(50 * i, critic(-loss, loss / 2), {}) == []


def test_roughness_is_of_steps_and_not_of_the_trend() -> None:
    assert roughness([0.0, 1.0, 0.0, 1.0, 4.0, 6.0, 4.0, 6.0]) == (4.0, 2.0 / 5.0)
    steep = roughness([10.0 - 0.1 * i for i in range(40)])
    assert steep is not None
    assert steep[0] == pytest.approx(1.0)
    assert roughness([1.0] * 8) is None


def played(health: Health, losses: list[float], scores: list[float], every: int = 100) -> list[HealthWarning]:
    """Each score stands behind three observations of a game."""
    found = []
    for turn, (loss, score) in enumerate(zip(losses, scores, strict=True)):
        for i in range(3):
            terms = {"critic": {"real": 0.5, "fake": 0.6}, "generator": {"adversarial": loss + 0.1 * (i - 1)}}
            found += health.observe(every * (3 * turn + i), terms, {})
        found += health.observe(every * (3 * turn + 2), {}, {}, score=score)
    return found


@pytest.mark.parametrize(
    ("losses", "scores", "warns"),
    [
        ([3.0, 2.5, 2.0, 1.5, 1.0], [5.0, 6.0, 7.0, 8.0, 9.0], True),
        ([3.0, 2.5, 2.0, 1.5, 1.0], [9.0, 8.0, 7.0, 6.0, 5.0], False),  # falling, and better
        ([1.0, 1.5, 2.0, 2.5, 3.0], [5.0, 6.0, 7.0, 8.0, 9.0], False),  # worse, but it does not fool the critic
        ([3.0, 2.5, 2.0, 2.1, 2.0], [5.0, 6.0, 7.0, 8.0, 9.0], False),  # not steadily
        ([3.0, 2.5, 2.0, 1.5, 1.0], [5.0, 6.0, 7.0, 6.9, 9.0], False),
    ],
)
def test_a_generator_that_fools_the_critic_with_worse_samples_is_named(
    losses: list[float], scores: list[float], warns: bool
) -> None:
    assert signs(played(Health(), losses, scores)) == ([("misled", "generator")] if warns else [])
    assert played(Health(misled=None), losses, scores) == []
    assert played(Health(), losses, scores, every=10) == []  # the first iterations tell nothing


def test_a_model_without_a_critic_overfits_and_is_not_misled() -> None:
    health = Health()
    for turn in range(6):
        health.observe(turn, {"autoencoder": {"reconstruction": 6.0 - turn}}, {})
        assert health.observe(turn, {}, {}, score=float(turn)) == []


def test_steps_are_counted_from_the_last() -> None:
    assert falling_and_worse([(3, 1), (2, 2), (1, 3)]) == 2
    assert falling_and_worse([(3, 1), (4, 0), (1, 3)]) == 1
    assert falling_and_worse([(1, 1)]) == falling_and_worse([]) == 0


def test_the_series_go_on_after_a_resume() -> None:
    losses = series((100, 0.8, 0.8, 0.02), (60, 0.8, 0.8, 0.3))
    straight, found, again = Health(), [], []
    resumed = Health()
    for i, loss in enumerate(losses):
        found += straight.observe(i, critic(loss / 2, loss / 2), {}, score=float(i % 7))
        if i == 95:
            resumed.restore(straight.state())
        if i > 95:
            again += resumed.observe(i, critic(loss / 2, loss / 2), {}, score=float(i % 7))
    assert [str(w) for w in again] == [str(w) for w in found if w.iteration > 95] != []
    assert straight.state() == resumed.state()


def test_penalties_do_not_hide_a_critic_that_wins() -> None:
    assert signs(Health(patience=1).observe(0, critic(0.001, 0.001, gradient_penalty=4.0), {}))


@pytest.mark.parametrize("modes", [1, 2, 8])
def test_repeated_images_are_a_collapse_and_the_ratio_is_named(modes: int) -> None:
    samples = images(modes).repeat(64 // modes, 1, 1, 1)
    warning = Health().observe(2000, {"generator": {}}, {}, samples=samples, reference=images(seed=1))[0]
    assert warning.value < 0.01
    assert f"{warning.value:.3g} times" in str(warning)
    assert "fewer" not in str(warning)


def test_distances_are_those_of_every_pair() -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    pairs = [float((x[i] - x[j]).norm()) for i in range(7) for j in range(7) if i != j]
    nearest = [min(pairs[i * 6 : i * 6 + 6]) for i in range(7)]
    found = distances(x)
    assert found["each other"] == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert found["their nearest neighbour"] == pytest.approx(sum(nearest) / 7, rel=1e-5)


def test_the_ratio_is_one_for_real_images_whatever_their_number_and_type() -> None:
    health = Health()
    signed = images().float() / 127.5 - 1
    health.observe(0, {}, {}, samples=signed, reference=images())
    assert health.values["health/collapse"] == pytest.approx(1.0, abs=1e-4)
    for made, real in ((16, 64), (64, 16)):
        health.observe(0, {}, {}, samples=images(made), reference=images(real))
        assert health.values["health/collapse"] == pytest.approx(1.0, abs=1e-4)


def test_an_untrained_generator_is_given_time_but_one_that_falls_is_not() -> None:
    flat, real = images(1).repeat(64, 1, 1, 1), images(seed=1)
    health = Health(warmup=1000)
    found = [signs(health.observe(i, **WELL, samples=flat, reference=real)) for i in (1, 500, 999, 1000, 1001)]
    assert found == [[], [], [], [("collapse", "generator")], []]
    health = Health(warmup=1000)
    assert health.observe(10, **WELL, samples=images(), reference=real) == []
    assert signs(health.observe(20, **WELL, samples=flat, reference=real)) == [("collapse", "generator")]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(("active", "warns"), [(0, True), (1, True), (2, False), (20, False)])
def test_unused_latents_are_counted(batch: bool, active: int, warns: bool) -> None:
    kl = torch.tensor([0.02] * active + [0.005] * (20 - active))  # [Z]
    if batch:  # the mean over images decides: two images of one batch may differ
        kl = torch.stack([0 * kl, 2 * kl])  # [B Z]
    health = Health()
    assert bool(health.observe(2000, {"autoencoder": {"kl": 1.0}}, {}, latent_kl=kl)) == warns
    assert health.values["health/unused_latent"] == active / 20


def test_nan_names_the_term_and_does_not_count_as_well() -> None:
    health = Health(patience=1)
    assert signs(health.observe(1, critic(0.001, 0.001), {})) == [("discriminator_wins", "critic")]
    found = health.observe(2, critic(math.inf, 0.001), {"generator": math.nan})
    assert signs(found) == [("nonfinite", "critic"), ("nonfinite", "generator")]
    assert "real is inf" in str(found[0])
    assert "gradient is nan" in str(found[1])
    assert health.observe(3, critic(0.001, 0.001), {"generator": 1.0}) == []


@pytest.mark.parametrize("sign", SICK)
def test_a_warning_is_one_line_with_player_iteration_and_a_key(sign: str) -> None:
    sick, _, player = SICK[sign]
    (warning,) = Health(patience=1).observe(4321, **{**WELL, **sick})
    text = str(warning)
    assert "\n" not in text
    assert player in text
    assert "4321" in text
    assert "{" not in text
    assert warning.advice in text
    assert (f"model.players.{player}.optimizer.lr" in text) == ("{player}" in ADVICE[sign])


def test_watching_draws_no_random_number_and_changes_nothing() -> None:
    samples, real = images().float().requires_grad_(), images(seed=1)
    before, state = samples.detach().clone(), torch.get_rng_state()
    Health().observe(2000, **WELL, samples=samples, reference=real, latent_kl=torch.zeros(4, requires_grad=True))
    assert torch.equal(samples, before)
    assert samples.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_config_file_has_the_class_s_own_defaults() -> None:
    node = yaml.safe_load((ROOT / "conf" / "callbacks" / "health.yaml").read_text())
    assert node.pop("_target_") == "gentrain.engine.health.Health"
    assert node == {key: p.default for key, p in inspect.signature(Health).parameters.items()}
