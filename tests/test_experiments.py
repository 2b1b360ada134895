"""Recipes: each one checks, and the one at full size that cannot be run here takes its first steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures_data import celeba_set, cifar_batches, cifar_binary, idx_set, noise, save, unpack

from gentrain.cli import main
from gentrain.config import options

ROOT = Path(__file__).parents[1]
AGES = ("0-18", "19-29", "30-39", "40-49", "50-59", "60+")


def faces(folder: Path, each: int) -> None:
    """Made pictures in the layout of the face-ageing recipe."""
    for group, name in enumerate(AGES):
        for number in range(each):
            save(folder / name / f"{number}.png", noise(64, 64, 3, seed=100 * group + number) // 4 + 30 * group)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_recipe_checks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    for name_ in ("fashion_mnist", "mnist"):
        idx_set(tmp_path / "data" / name_, train=160, test=100)
    celeba_set(tmp_path / "data" / "celeba", parts=(0,) * 64 + (2, 2))
    if name.endswith("cifar10"):
        unpack(cifar_binary(cifar_batches(1000)), tmp_path / "data" / "cifar10")  # 400 of a class are asked for
    faces(tmp_path / "data" / "face_age", 25)
    assert main(["check", f"experiment={name}", "metrics=none"]) == 0


@pytest.mark.parametrize("name", options("experiment"))
def test_every_recipe_measures_something(name: str) -> None:
    from gentrain.compose import compose

    metrics = compose([f"experiment={name}"]).config["metrics"]
    assert {**metrics["scores"], **metrics["at_end"], **metrics["also"]}


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("rbm_mnist_static", "annealed"),
        ("rbm_fashion_mnist", "annealed"),
        ("dbm_mnist_static", "annealed"),
        ("gsn_mnist", "parzen"),
        ("gsn_fashion_mnist", "parzen"),
        ("ssgan_cifar10", "classification"),
    ],
)
def test_a_recipe_measures_what_its_protocol_says(name: str, score: str) -> None:
    from gentrain.compose import compose

    metrics = compose([f"experiment={name}"]).config["metrics"]
    assert (list(metrics["scores"]), list(metrics["at_end"]), list(metrics["also"])) == ([], [], [score])
    assert metrics["also"][score]["limit"] is None  # the whole test split


def test_a_model_s_own_scores_are_measured_alone_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=digits", "size=tiny", "train.iterations=2", "trainer.threads=1", "metrics=own", "name=run"]
    assert main(["model=rbm", *words]) == 0
    final = json.loads((tmp_path / "outputs" / "run" / "run.json").read_text(encoding="utf-8"))["final"]
    assert "nll_nats_ais" in final
    assert not any(key.startswith("fd") for key in final)
    capsys.readouterr()
    assert main(["model=dcgan", *words]) == 2
    assert "asks for no scores of its own" in capsys.readouterr().err


@pytest.mark.timeout(280)
def test_the_celeba_recipe_takes_twenty_steps_at_the_papers_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    celeba_set(tmp_path / "data" / "celeba", parts=(0,) * 64 + (2, 2))
    words = [
        "experiment=wgan_gp_celeba",
        "metrics=none",
        "train.batch_size=16",
        "train.iterations=20",
        "train.log_every=5",
    ]
    assert main([*words, "name=run", "train.validate_every=20"]) == 0
    run = tmp_path / "outputs" / "run"
    rows = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    seen = list(dict.fromkeys(tuple(row.split(",")[:2]) for row in rows[1:]))
    assert seen == [(str(i), str(16 * i)) for i in (5, 10, 15, 20)]
    assert "loss/critic/gradient_penalty" in rows[0]
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "samples" / "samples-latest.png").is_file()


@pytest.mark.timeout(280)
def test_the_face_ageing_recipe_goes_from_its_layout_to_the_other_ages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a small size: a conditional GAN of the six folders, then both projections with every age."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    faces(tmp_path / "data" / "face_age", 12)
    tiny = ["size=tiny", "data.size=16", "trainer=cpu", "trainer.threads=1", "train.iterations=4"]
    assert main(["experiment=face_age", "metrics=none", "name=run", *tiny]) == 0
    run = tmp_path / "outputs" / "run"
    words = ["explore", "project", f"run={run}", "n=2", "starts=1", "steps=3", "encoder_steps=2", "edit=label"]
    found = {}
    for kind in ("identity", "pixels"):
        choice = ["pixel_weight=0"] if kind == "identity" else ["features=none"]
        assert main([*words, *choice, f"out={tmp_path / kind}"]) == 0
        (file,) = (tmp_path / kind).glob("*.json")
        found[kind] = json.loads(file.read_text(encoding="utf-8"))
        assert list(tmp_path.glob(f"{kind}/*.png"))
    assert set(found["identity"]["classes"]) <= set(AGES)
    assert 0.0 <= found["identity"]["measured"]["cnn_opt"]["found_again"] <= 1.0
    assert "found_again" not in found["pixels"]["measured"]["cnn_opt"]
    assert "label" in found["identity"]["edits"]


def test_every_recipe_of_fashion_mnist_states_what_was_reached() -> None:
    for name in options("experiment"):
        head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").split("defaults:")[0]
        for word in ("Command:", "Hardware:", "Minutes:", "Published:", "Reached:"):
            assert word in head, f"conf/experiment/{name}.yaml does not state its {word}"


@pytest.mark.parametrize(
    ("name", "draws", "nats"), [("vae_mnist_static", 200, 89.9), ("iwae_mnist_static", 5000, 87.1)]
)
def test_a_published_figure_stands_beside_its_protocol(name: str, draws: int, nats: float) -> None:
    from gentrain.compose import compose

    config = compose([f"experiment={name}"]).config
    assert config["published"] == {"nll_nats": nats}
    assert config["metrics"]["scores"]["likelihood"]["importance_samples"] == draws
    assert config["metrics"]["scores"]["likelihood"]["limit"] is None
    assert config["model"]["loss"]["binarize"] == "once"
    assert (config["train"]["batch_size"], config["model"]["latent"]) == (20, 50)
    head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").split("defaults:")[0]
    for words in (f"nll_nats {nats}", "nats per image", "# Reached: null."):
        assert words in head


CIFAR = {"sngan_cifar10": (7.97, 16.77), "wgan_gp_cifar10": (7.33, 22.29), "cgan_pd_cifar10": (8.25, 10.84)}


@pytest.mark.parametrize("name", sorted(CIFAR))
def test_a_library_s_figure_stands_beside_its_settings(name: str) -> None:
    """TAB-05: 100,000 generator steps, five critic steps each, Adam 2e-4 (0, 0.9) falling to 0, batch 64."""
    from gentrain.compose import compose

    head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").split("defaults:")[0]
    (command,) = [line.partition("Command: gentrain ")[2] for line in head.splitlines() if "Command:" in line]
    config = compose(command.split()).config
    assert tuple(config["published"].values()) == CIFAR[name]
    assert (config["train"]["batch_size"], config["train"]["iterations"]) == (64, 5 * 100_000)
    players = config["model"]["players"]
    assert players["generator"]["every"] == 5
    for moves in players.values():
        assert (moves["optimizer"]["lr"], moves["optimizer"]["betas"]) == (2e-4, [0.0, 0.9])
        assert (moves["schedule"]["start"], moves["schedule"].get("end", 0.0)) == (0.0, 0.0)
    assert config["model"]["ema"] is None
    assert config["metrics"]["samples"] == 50_000
    assert config["metrics"]["scores"]["distances"]["split"] == "train"
    assert config["model"]["net"]["stages"]["32"]["generator"] == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("name", "labels"), [("ssgan_mnist", (20, 50, 100, 200)), ("ssgan_cifar10", (1000, 2000, 4000, 8000))]
)
def test_the_sweep_over_labels_is_the_published_table_s(name: str, labels: tuple[int, ...]) -> None:
    from gentrain.compose import compose

    config = compose([f"experiment={name}"]).config
    (over,) = config["sweep"]["over"]
    assert [10 * int(each) for each in over.partition("=")[2].split(",")] == list(labels)
    assert [row[0] for row in config["published"]] == list(labels)


def test_the_losses_of_the_large_scale_study_are_all_swept() -> None:
    from gentrain.compose import compose

    config = compose(["experiment=gan_losses_fashion_mnist"]).config
    assert config["sweep"]["variants"].keys() == config["published"].keys()
    for name, asked in config["sweep"]["variants"].items():
        made = compose(["experiment=gan_losses_fashion_mnist", *asked]).config["model"]
        kind = made["loss"]["_target_"].rpartition(".")[2].lower()
        expected = {"gradient_penalty": "wasserstein", "dragan": "nonsaturating"}.get(name, name)
        assert kind == expected, name
        assert ("dragan" in (made.get("penalties") or {})) == (name == "dragan")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gated_pixelcnn_cifar10", {"bits_per_dim": 3.03}),
        ("pixelcnn_cifar10", {"bits_per_dim": 3.14}),
        ("pixelcnn_mnist_static", {"nll_nats": 81.3}),
        ("made_mnist_static", {"nll_nats": 88.04}),
        ("gated_pixelcnn_fashion_mnist", {}),
        ("pixelcnn_fashion_mnist", {}),
    ],
)
def test_a_recipe_of_pixels_measures_what_was_published(name: str, published: dict[str, float]) -> None:
    from gentrain.compose import compose

    config = compose([f"experiment={name}"]).config
    assert (config.get("published") or {}) == published
    static = name.endswith("static")
    assert config["model"]["loss"].get("binarize") == ("once" if static else None)
    assert config["metrics"]["monitor"] == "nll_nats"
    for scores in (config["metrics"]["scores"], config["metrics"]["also"]):
        assert (scores["likelihood"]["split"], scores["likelihood"]["limit"]) == ("test", None)


@pytest.mark.parametrize(("name", "bits"), [("glow_cifar10", 3.35), ("realnvp_cifar10", 3.49)])
def test_a_flow_s_published_bits_stand_beside_the_papers_size(name: str, bits: float) -> None:
    from gentrain.compose import compose

    config = compose([f"experiment={name}"]).config
    assert config["published"] == {"bits_per_dim": bits}
    assert config["model"]["dequantisation"]["bits"] == 8
    assert config["metrics"]["also"]["likelihood"]["limit"] is None
    assert config["train"]["batch_size"] == 64
    net, head = config["model"]["net"], (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    sizes = [net.get(key) for key in ("levels", "steps", "scales", "blocks", "width")]
    assert sizes == ([3, 32, None, None, 512] if "levels" in net else [None, None, 2, 8, 64])
    assert f"# Published: {bits} bits/dim" in head
    assert "# Reached: null." in head
