"""``gentrain explore``: every tool end to end on tiny runs, and its numbers against independent computations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Outcome
from PIL import Image
from torch import Tensor

from gentrain.cli import main
from gentrain.commands.tools import TOOLS
from gentrain.data.sources import digits
from gentrain.engine.restore import load_system
from gentrain.engine.sampling import at_rest
from gentrain.explore import anomaly, arithmetic, chain, interpolate, latent, probe, traverse
from gentrain.explore.study import Study, mean_square
from gentrain.folder import RunFolder
from gentrain.report.strips import MARGIN

OF_CODES = {"probe", "cluster", "latent", "anomaly", "reconstruct", "interpolate", "arithmetic", "traverse", "project"}
CAN = {
    "rbm": OF_CODES | {"neighbours", "chain"},
    "ae": OF_CODES,
    "vae": OF_CODES | {"neighbours"},
    "dcgan": {"interpolate", "project", "neighbours", "truncate"},
    "sagan": {"interpolate", "project", "neighbours", "truncate", "classes", "attention"},
    "pixelcnn": {"anomaly", "complete", "neighbours", "temperature"},
    "glow": OF_CODES | {"neighbours", "temperature"},
}
OF_OTHERS = ("attention", "classes", "chain", "complete", "temperature")
"""Tools that an encoder would not let a GAN have."""
NEEDED = {"anomaly": ["class=3"], "arithmetic": ["from=3", "to=8"]}
QUICK = {
    "probe": ["per_class=3,10", "repeats=2", "n=150"],
    "cluster": ["repeats=2", "n=200"],
    "anomaly": ["n=120"],
    "chain": ["n=6", "length=5"],
    "truncate": ["n=60", "at=0.5,1", "passes=2"],
    "temperature": ["n=8", "at=0.5,1"],
    "project": ["n=2", "starts=1", "steps=4", "encoder_steps=3"],
    "neighbours": ["n=60", "train=200"],
    "complete": ["n=9", "k=2"],
}

Explore = Callable[..., Outcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny trained run of each kind; ``plane`` has codes of two numbers, ``without`` never saw a 3."""
    home = tmp_path_factory.mktemp("runs")
    more = {
        "ae": ["model=ae"],
        "rbm": ["model=rbm"],
        "vae": ["model=vae"],
        "dcgan": ["model=dcgan"],
        "sagan": ["model=sagan"],
        "pixelcnn": ["model=pixelcnn"],
        "glow": ["model=glow"],
        "plane": ["model=vae", "model.latent=2"],
        "without": ["model=ae", "data.leave_out=[3]"],
        "ring": ["model=vae", "data=ring", "loss=density"],
        "roll": ["model=aae", "model/prior=swiss_roll", "model.latent=2"],
    }
    for name, choices in more.items():
        code = main([*TINY, "precision=32-true", "metrics=none", *choices, f"output={home}", f"name={name}"])
        assert code == 0, name
    return {name: home / name for name in more}


@pytest.fixture
def explore(capfd: pytest.CaptureFixture[str]) -> Explore:
    def call(*words: str) -> Outcome:
        capfd.readouterr()
        code = main(["explore", *words])
        shown = capfd.readouterr()
        return Outcome(code, shown.out, shown.err)

    return call


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def numbers(out: Path) -> dict[str, Any]:
    (file,) = out.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def study(runs: dict[str, Path]) -> Iterator[Callable[[str], Study]]:
    def of(name: str) -> Study:
        system = load_system(RunFolder.open(runs[name]), "last")
        system.eval()
        return Study(system, digits(), 0, system.device, lambda: system)

    with torch.no_grad():
        yield of


@pytest.mark.parametrize("tool", sorted(TOOLS))
@pytest.mark.parametrize("model", list(CAN))
def test_every_tool_works_on_every_run_that_can_and_refuses_the_others(
    runs: dict[str, Path], explore: Explore, tmp_path: Path, model: str, tool: str
) -> None:
    before = content(runs[model])
    words = [tool, f"run={runs[model]}", *NEEDED.get(tool, []), *QUICK.get(tool, [])]
    done = explore(*words, f"out={tmp_path / 'a'}")
    assert content(runs[model]) == before
    if tool not in CAN[model]:
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert "it needs" in done.err
        assert all(capability in done.err for needed in TOOLS[tool].needs for capability in needed)
        others = ", ".join(name for name in TOOLS if name in CAN[model])
        assert f"tools for this run: {others}" in done.err
        lacks_codes = model in ("dcgan", "sagan") and tool not in OF_OTHERS
        if model != "pixelcnn":
            assert ("nothing leads from an image to its code" in done.err) == lacks_codes
        assert not (tmp_path / "a").exists()
        return
    assert done.code == 0, done.err
    (picture,) = (tmp_path / "a").glob("*.png")
    assert str(picture) in done.out
    with Image.open(picture) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 8
    found = numbers(tmp_path / "a")
    assert (found["tool"], found["run"], found["checkpoint"], found["seed"]) == (tool, str(runs[model]), "last", 0)
    assert found["weights"] == ("ema" if model in ("dcgan", "sagan", "pixelcnn", "glow") else "raw")
    assert found["data"]["fingerprint"] == digits().fingerprint
    assert found["asked"].keys() == TOOLS[tool].keys.keys()
    assert explore(*words, f"out={tmp_path / 'b'}").code == 0
    again = numbers(tmp_path / "b")
    if found.pop("seconds", None) is not None:  # of the clock, which no two runs share
        assert again.pop("seconds").keys() == {"encoder", "opt", "cnn", "cnn_opt"}
        assert found == again
        for folder in (tmp_path / "a", tmp_path / "b"):
            next(folder.glob("*.json")).unlink()
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_distance_along_a_chain_tells_mixing_from_standing_still() -> None:
    fresh = torch.randn(200, 6, 1, 2, 2)
    assert chain.distances(fresh) == pytest.approx([1.0] * 5, abs=0.1)  # a new state at every step
    caught = fresh[:, :1].expand(200, 6, 1, 2, 2)
    assert chain.distances(caught) == [0.0] * 5
    slow = fresh.cumsum(1)  # random walks: l after l steps, 2 t between two of them at time t, 7 in the mean
    assert chain.distances(slow) == pytest.approx([lag / 7 for lag in range(1, 6)], rel=0.2)


def test_chains_start_from_test_images_and_are_drawn_while_training(
    runs: dict[str, Path], explore: Explore, tmp_path: Path
) -> None:
    for start in ("noise", "test"):
        words = ["n=5", "length=4", "stride=1", f"start={start}"]
        assert explore("chain", f"run={runs['rbm']}", *words, f"out={tmp_path / start}").code == 0
        found = numbers(tmp_path / start)
        assert (found["protocol"]["start"], found["lag_steps"]) == (start, [1, 2, 3])
    widths = [Image.open(next((tmp_path / start).glob("*.png"))).width for start in ("noise", "test")]
    assert widths[1] > widths[0] - 1  # the images themselves stand before their chains
    with Image.open(runs["rbm"] / "samples" / "chains-latest.png") as film:
        assert film.width > film.height  # ten chains of sixteen states
    done = explore("chain", f"run={runs['rbm']}", "n=400", "start=test")
    assert (done.code, "the test split has 359 images" in done.err) == (2, True)


def test_files_are_named_by_what_was_asked_and_lie_in_the_run(runs: dict[str, Path], explore: Explore) -> None:
    place = runs["plane"] / "explore"
    before = content(runs["plane"])
    for words in ([], ["method=pca"], ["method=pca", "seed=3"]):
        assert explore("latent", f"run={runs['plane']}", "n=30", *words).code == 0
    names = {file.name for file in place.iterdir()}
    stems = ("latent,n=30", "latent,method=pca,n=30", "latent,method=pca,n=30,seed=3")
    assert names == {f"{stem}{end}" for stem in stems for end in (".png", ".json")}
    kept = content(runs["plane"])
    assert {name: kept[name] for name in before} == before


def test_mistakes_are_one_line_with_the_nearest_names(runs: dict[str, Path], explore: Explore, tmp_path: Path) -> None:
    at, photo = f"run={runs['ae']}", tmp_path / "photo.png"
    Image.new("RGB", (16, 16), (200, 40, 40)).save(photo)
    for words, said in (
        (["prob", at], r"prob: no such tool (did you mean probe?)"),
        ([at], "explore: which tool?"),
        (["probe"], "explore probe: run= is missing"),
        (["probe", at, "label=3"], "explore probe: label=3 is not one of its keys (did you mean labels?)"),
        (["probe", at, "labels=100", "per_class=3"], "one of the two"),
        (["probe", at, "per_class=400"], "per_class=400: the rarest class has"),
        (["probe", at, "labels=7"], "at least one of each of the 10 classes"),
        (["probe", at, "labels=few"], "labels=few: numbers of labelled images"),
        (["latent", at, "method=umap"], "method=umap: auto, pca, tsne"),
        (["anomaly", at], "class= is missing, the class to find: one of 0, 1"),
        (["anomaly", at, "class=eleven"], "class=eleven: no such class (there are: 0, 1"),
        (["arithmetic", at, "from=3"], "to= is missing"),
        (["arithmetic", at, "from=3", "to=3"], "two different classes"),
        (["arithmetic", at, "attribute=Smiling"], "data 'digits' have none; give from= and to="),
        (["arithmetic", at, "from=3", "to=8", "strengths=1,x"], "strengths=x: a number is needed"),
        (["traverse", at, "image=359"], "image=359: a place in the test split, 0 to 358, or none"),
        (["traverse", at, "reach=0"], "reach=0: above 0"),
        (["reconstruct", f"run={runs['ring']}"], "data 'ring' are vectors"),
        (["probe", f"run={runs['ring']}"], "data 'ring' have no class labels"),
        (["project", at, "edit=age"], "edit=age: none, or some of path, class, label, strokes"),
        (["project", at, "edit=strokes"], "edit=strokes: strokes= is missing; strokes=FILE shows the colours"),
        (["project", at, "edit=strokes", "strokes=a.png", "mask=b.png"], "strokes=a.png: there is no such file"),
        (["project", at, "pictures=nowhere"], "pictures=nowhere: there is no such folder or file"),
        (["project", at, f"pictures={photo}"], "pictures: 16x16 RGB pictures, held against 8x8 grey: say resize="),
        (["project", at, f"pictures={photo}", "images=3"], "images= and pictures="),
        (
            ["project", at, f"pictures={photo}", "resize=tilt"],
            "resize=tilt is not possible here; choose from crop, stretch",
        ),
        (["project", at, f"pictures={photo}", "channels=2"], "channels=2: 1, 3"),
        (["project", at, "mask=b.png"], "strokes= and mask= are of edit=strokes, which is missing"),
        (["project", at, "range=0..1"], "range= is about pictures=FOLDER, which is missing"),
        (["project", at, "channels=1"], "channels= is about pictures=FOLDER, which is missing"),
        (["project", at, "edit=label"], "edit=label: the system's images are not made for a class"),
        (["project", at, "edit=class", "from=3"], "to= is missing, a class"),
        (["project", at, "images=3,900"], "images=900: a place in the test split, 0 to 358"),
        (["project", at, "pull=-1"], "pull=-1: 0 or more"),
        (["project", at, "pixel_weight=0", "features=none"], "leave nothing to compare images by"),
        (["project", at, "features=faces"], "features=faces: domain, vgg19, none, or the .safetensors file"),
        (["latent", f"run={tmp_path}"], "not a run folder"),
        (["latent", at, "checkpoint=first"], "checkpoint=first: not in"),
        (["latent", at, "weights=best"], "weights=best: ema or raw"),
    ):
        done = explore(*words, *([f"out={tmp_path / 'x'}"] if any(w.startswith("run=") for w in words) else []))
        assert (done.code, done.err.count("\n")) == (2, 1), (words, done.err)
        assert said in done.err, (words, done.err)
        assert not list(tmp_path.glob("x/*")), words


def test_help_lists_the_tools(explore: Explore) -> None:
    for words in ([], ["--help"]):
        done = explore(*words)
        assert done.code == 0
        assert all(f"  {name} " in done.out and tool.line in done.out for name, tool in TOOLS.items())
    assert "[method=auto]" in explore("latent", "--help").out


def test_vectors_have_a_map_too(runs: dict[str, Path], explore: Explore, tmp_path: Path) -> None:
    done = explore("latent", f"run={runs['ring']}", "n=40", f"out={tmp_path}")
    assert done.code == 0, done.err
    assert numbers(tmp_path)["grid"] == {}
    assert len(numbers(tmp_path)["points"]) == 40


# ---------------------------------------------------------------- mathematics


class Stub:
    """Codes and pictures that are known: a code is the label and the mean, a decoded picture all of one level."""

    device = torch.device("cpu")

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes  # of the samples of the digits, by their bytes
        data = digits()
        both = torch.cat([data.train.all().x, data.test.all().x])
        self.place = {bytes(x.numpy().tobytes()): i for i, x in enumerate(both)}

    def encode(self, x: Tensor) -> Tensor:
        return self.codes[[self.place[bytes(one.numpy().tobytes())] for one in x]]


def labels_of_all() -> Tensor:
    data = digits()
    assert data.train.y is not None
    assert data.test.y is not None
    return torch.cat([data.train.y, data.test.y])


def test_a_code_that_is_the_label_is_probed_without_a_mistake(tmp_path: Path) -> None:
    labels = labels_of_all()
    noise = torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(0))
    told, nothing = Stub(torch.nn.functional.one_hot(labels, 10).float()), Stub(noise)
    study = Study(told, digits(), 0, torch.device("cpu"), lambda: nothing)
    found = probe.explore(
        study, tmp_path / "p.png", per_class="", labels="20,50,all", repeats=3, k=1, train=1438, n=359
    )
    assert found.result["protocol"]["labelled"] == [20, 50, 1438]
    for kind in ("logistic", "knn"):
        by = found.result["accuracy"][kind]
        assert all(entry["mean"] == 1.0 for entry in by["codes"].values())
        assert all(entry["mean"] < 0.25 for entry in by["untrained codes"].values())
        assert by["pixels"]["1438"]["mean"] > 0.9 > by["pixels"]["20"]["mean"] > 0.3
        assert [len(entry["values"]) for entry in by["PCA"].values()] == [3, 3, 1]
        values = by["pixels"]["20"]["values"]
        assert by["pixels"]["20"]["sd"] == pytest.approx(np.std(values, ddof=1))


def test_nearest_neighbours_are_those_of_standardised_codes() -> None:
    rng = np.random.default_rng(0)
    x, held = rng.normal(size=(40, 3)) * [1, 100, 1], rng.normal(size=(60, 3)) * [1, 100, 1]
    y, target = (x[:, 0] > 0).astype(np.int64), (held[:, 0] > 0).astype(np.int64)
    mean, sd = x.mean(0), x.std(0)  # of the training samples, not of the held-out ones
    distances = np.linalg.norm(((held - mean) / sd)[:, None] - ((x - mean) / sd)[None], axis=2)
    expected = (y[distances.argmin(1)] == target).mean()
    plain = (y[np.linalg.norm(held[:, None] - x[None], axis=2).argmin(1)] == target).mean()
    fitted, asked = probe.standardised(x, held)
    found, converged = probe.accuracies(fitted, y, asked, target, 1)
    assert found["knn"] == expected != plain
    assert converged


def test_the_untrained_network_is_the_one_that_training_began_from(
    runs: dict[str, Path], study: Callable[[str], Study]
) -> None:
    from gentrain.commands.explore import _untrained
    from gentrain.engine.assemble import build_system

    this, config = study("ae"), RunFolder.open(runs["ae"]).config()
    state = torch.get_rng_state()
    untrained = _untrained(config, this, trusted=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert not untrained.training
    began = build_system(config, this.data, seed=config["seed"])
    first, trained = untrained.nets.state_dict(), this.system.nets.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in began.nets.state_dict().items())
    assert not any(torch.equal(value, first[name]) for name, value in trained.items())


def test_labelled_images_are_shared_out_evenly_and_nested() -> None:
    y = np.repeat(np.arange(4), [30, 20, 25, 40])
    few, more = (probe._drawn(y, (number, True), 0, 0) for number in (5, 12))
    assert np.bincount(y[few]).tolist() == [5] * 4
    assert set(few) < set(more)
    assert not np.array_equal(few, probe._drawn(y, (5, True), 0, 1))
    assert sorted(np.bincount(y[probe._drawn(y, (10, False), 0, 0)])) == [2, 2, 3, 3]


def test_a_class_that_was_left_out_has_no_labels_to_learn_from(
    runs: dict[str, Path], explore: Explore, tmp_path: Path
) -> None:
    assert explore("probe", f"run={runs['without']}", "per_class=5", "repeats=1", f"out={tmp_path}").code == 0
    protocol = numbers(tmp_path)["protocol"]
    y = digits().test.y
    assert y is not None
    assert "3" not in protocol["classes"]
    assert protocol["test"] == int((y != 3).sum())
    assert protocol["labelled"] == [45]


def test_codes_that_are_the_label_make_perfect_clusters(tmp_path: Path) -> None:
    from gentrain.explore import cluster

    codes = Stub(torch.nn.functional.one_hot(labels_of_all(), 10).float())
    study = Study(codes, digits(), 0, torch.device("cpu"), lambda: codes)
    found = cluster.explore(study, tmp_path / "c.png", k=0, repeats=1, n=359).result["scores"]
    assert found["codes"]["accuracy"]["mean"] == found["codes"]["nmi"]["mean"] == 1.0
    assert 0.4 < found["pixels"]["accuracy"]["mean"] < 1.0


def test_own_clusters_are_shown(tmp_path: Path) -> None:
    from gentrain.explore import cluster

    class Clusters(Stub):
        def cluster(self, x: Tensor) -> Tensor:
            return self.encode(x)

    own = Clusters(torch.nn.functional.one_hot(labels_of_all(), 10).float().flip(1))
    study = Study(own, digits(), 0, torch.device("cpu"), lambda: own)
    found = cluster.explore(study, tmp_path / "c.png", k=5, repeats=1, n=200).result
    assert found["scores"]["own clusters"]["accuracy"]["mean"] == found["own"]["accuracy_confident"] == 1.0
    assert found["own"]["clusters_used"] == 10
    assert found["scores"]["codes"]["accuracy"]["mean"] < 0.7  # five clusters cannot be ten classes


def test_the_anomaly_scores_are_those_of_all_pairs(runs: dict[str, Path], explore: Explore, tmp_path: Path) -> None:
    data = digits()
    for name in ("ae", "without"):
        assert explore("anomaly", f"run={runs[name]}", "class=3", "n=359", f"out={tmp_path / name}").code == 0
        found = numbers(tmp_path / name)
        seen = data.test.all()
        assert seen.y is not None
        assert data.train.y is not None
        system = load_system(RunFolder.open(runs[name]), "last")
        with at_rest(system):
            back = (system.decode(system.encode(seen.x)) + 1) * 127.5  # type: ignore[operator]
        error = ((seen.x.double() - back.round().clamp(0, 255)) / 255).square().flatten(1).mean(1)
        ours, others = error[seen.y == 3], error[seen.y != 3]
        above = (ours[:, None] > others[None]).double() + 0.5 * (ours[:, None] == others[None]).double()
        assert found["scores"]["reconstruction_error"]["auroc"] == pytest.approx(float(above.mean()), abs=1e-6)
        trained = 0 if name == "without" else int((data.train.y == 3).sum())
        assert found["protocol"]["training_images_of_class"] == trained
        assert found["protocol"]["class_in_training"] == (trained > 0)
        assert "minus_log_likelihood" not in found["scores"]


def test_news_are_said_apart_from_what_was_trained_on(runs: dict[str, Path], explore: Explore, tmp_path: Path) -> None:
    words = ["class=3", "n=100", f"out={tmp_path}"]
    assert "was in training" in explore("anomaly", f"run={runs['ae']}", *words).out
    assert "was not in training" in explore("anomaly", f"run={runs['without']}", *words).out


def test_the_baseline_of_anomalies_is_the_rest_of_pca(study: Callable[[str], Study]) -> None:
    this = study("ae")
    fitted, seen = this.look("train", 300), this.look("test", 50)
    x, held = fitted.flat.double().numpy(), seen.flat.double().numpy()
    _, _, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = (held - x.mean(0)) @ axes[:5].T @ axes[:5] + x.mean(0)
    assert np.allclose(anomaly.pca_errors(fitted, seen, 5, 0), ((held - kept) ** 2).mean(1), atol=1e-8)


def test_the_cross_fade_is_in_the_picture_pixel_for_pixel(
    runs: dict[str, Path], explore: Explore, tmp_path: Path
) -> None:
    assert explore("interpolate", f"run={runs['vae']}", "pairs=3", "steps=5", "show=1", f"out={tmp_path}").code == 0
    found = numbers(tmp_path)
    a, b = (digits().test.take(torch.tensor([i])).x[0, 0].numpy().astype(float) for i in found["index"][0])
    (file,) = tmp_path.glob("*.png")
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("L"))
    scale = round((512 - 7 - 1) / (7 * 8))
    side = 8 * scale
    top = pixels.shape[0] - 1 - side  # the last row of the block is that of the pixels
    for place, share in enumerate((0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0)):
        left = MARGIN + 1 + place * (side + 1)
        expected = np.rint((1 - share) * a + share * b).repeat(scale, 0).repeat(scale, 1)
        assert np.array_equal(pixels[top : top + side, left : left + side], expected)
    assert all(first != second for first, second in found["classes"])


def test_paths_start_and_end_where_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 5, generator=generator)
    t = torch.linspace(0, 1, 5)
    for path in (interpolate.linear(a, b, t), interpolate.spherical(a, b, t)):
        assert path.shape == (6, 5, 5)
        assert torch.allclose(path[:, 0], a, atol=1e-6)
        assert torch.allclose(path[:, -1], b, atol=1e-6)
    unit = torch.nn.functional.normalize
    arc = interpolate.spherical(3 * unit(a), 3 * unit(b), t)
    assert torch.allclose(arc.norm(dim=2), torch.full((6, 5), 3.0), atol=1e-5)
    middle = torch.nn.functional.cosine_similarity(arc[:, 2], unit(a))
    whole = torch.nn.functional.cosine_similarity(a, b).acos()
    assert torch.allclose(middle.acos(), whole / 2, atol=1e-4)  # half the angle after half the way
    assert (interpolate.linear(3 * unit(a), 3 * unit(b), t)[:, 2].norm(dim=1) < 2.99).all()
    for flat in (a, -a, torch.zeros_like(a)):  # no arc: the straight line
        assert torch.allclose(interpolate.spherical(a, flat, t), interpolate.linear(a, flat, t), atol=1e-5)


def test_evenness_is_one_for_equal_steps_and_small_for_a_jump() -> None:
    even = torch.arange(5).view(1, 5, 1, 1, 1).expand(1, 5, 1, 2, 2) * 10
    jump = torch.tensor([0, 0, 0, 0, 40]).view(1, 5, 1, 1, 1).expand(1, 5, 1, 2, 2)
    assert interpolate._evenness(even.to(torch.uint8)) == 1.0
    assert interpolate._evenness(jump.to(torch.uint8)) == 0.25


def test_errors_of_reconstructions_and_their_order(runs: dict[str, Path], explore: Explore, tmp_path: Path) -> None:
    assert explore("reconstruct", f"run={runs['ae']}", "show=2", f"out={tmp_path}").code == 0
    found = numbers(tmp_path)
    errors = np.array(found["errors"])
    system = load_system(RunFolder.open(runs["ae"]), "last")
    x = digits().test.all().x
    with at_rest(system):
        back = ((system.decode(system.encode(x)) + 1) * 127.5).round().clamp(0, 255)  # type: ignore[operator]
    expected = ((x.double() - back) / 255).square().flatten(1).mean(1).numpy()
    assert np.allclose(errors, expected, atol=1e-9)
    assert found["mean"] == pytest.approx(expected.mean())
    assert [entry["index"] for entry in found["worst"]] == np.argsort(-expected)[:2].tolist()
    assert [entry["index"] for entry in found["best"]] == np.argsort(expected)[:2].tolist()
    assert mean_square(x, x).sum() == 0


def test_attribute_vectors_are_differences_of_mean_codes(
    runs: dict[str, Path], explore: Explore, tmp_path: Path, study: Callable[[str], Study]
) -> None:
    words = [f"run={runs['vae']}", "from=3", "to=8", "strengths=0,2"]
    assert explore("arithmetic", *words, f"out={tmp_path}").code == 0
    found, this = numbers(tmp_path), study("vae")
    train = this.data.train.all()
    assert train.y is not None
    codes = this.system.encode(train.x)
    vector = codes[train.y == 8].mean(0) - codes[train.y == 3].mean(0)
    assert np.allclose(found["vector"], vector.numpy(), atol=1e-5)
    assert found["norms"]["vector"] == pytest.approx(float(vector.norm()), rel=1e-5)
    assert found["protocol"]["judge"]["name"]
    assert found["classified_as"]["0"]["target"] == found["classified_as"]["0"]["target_by_random_vector"]


class Bright:
    """Codes are mean brightness and 0; decoded pictures are as bright as their first number says."""

    def encode(self, x: Tensor) -> Tensor:
        mean = x.float().flatten(1).mean(1)
        return torch.stack([mean / 127.5 - 1, torch.zeros_like(mean)], 1)

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :1, None, None].expand(-1, 1, 8, 8).clamp(-1, 1)

    def latent_kl(self, x: Tensor) -> Tensor:
        return torch.stack([self.encode(x)[:, 0].square().mean(), torch.zeros(())])


def test_named_attributes_are_read_from_their_column(tmp_path: Path) -> None:
    from gentrain.data.dataset import in_memory
    from gentrain.errors import UserError
    from gentrain.types import Spec

    levels = torch.tensor([10, 20, 200, 220], dtype=torch.uint8)
    x = levels.view(4, 1, 1, 1).expand(4, 1, 8, 8).contiguous()
    y = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1]], dtype=torch.uint8)
    data = in_memory("faces", Spec((1, 8, 8), attribute_names=("Odd", "Bright")), (x, y), (x, y))
    study = Study(Bright(), data, 0, torch.device("cpu"), Bright)

    def asked(**changes: Any) -> dict[str, Any]:
        words: dict[str, Any] = {"source": "", "target": "", "attribute": "", "strengths": (1.0,)}
        more = {"n": 9, "train": 9, "show": 2}
        return arithmetic.explore(study, tmp_path / "a.png", **(words | more | changes)).result

    found = asked(attribute="Bright")
    assert found["vector"][0] == pytest.approx((210 - 15) / 127.5)
    assert found["index"] == [0, 1]
    assert found["protocol"]["judge"] is None
    assert asked(attribute="Odd")["vector"][0] == pytest.approx((105 - 120) / 127.5)
    for words, said in (({"attribute": "Brihgt"}, "did you mean Bright"), ({}, "attribute= is missing")):
        with pytest.raises(UserError, match=said):
            asked(**words)


def test_traversal_moves_one_number_at_a_time_and_ranks_by_what_it_carries(tmp_path: Path) -> None:
    study = Study(Bright(), digits(), 0, torch.device("cpu"), Bright)

    def asked(**changes: Any) -> dict[str, Any]:
        words: dict[str, Any] = {"image": "none", "dims": 2, "steps": 3, "reach": 1.0, "n": 359, "order": "activity"}
        return traverse.explore(study, tmp_path / "t.png", **(words | changes)).result

    found = asked()
    mean = digits().test.all().x.double().flatten(1).mean(1) / 127.5 - 1
    assert found["code_variance"] == pytest.approx([float(mean.var(unbiased=False)), 0.0], abs=1e-6)
    assert found["kl_nats"] == pytest.approx([float(mean.square().mean()), 0.0], abs=1e-6)
    assert found["ranked"] == [0, 1]
    assert found["protocol"]["spread"] == "codes"  # there is no prior
    assert found["change"][1] == 0.0
    # From mean - sd to mean + sd; pictures have 256 levels.
    assert found["change"][0] == pytest.approx(float(mean.std()), abs=1 / 255)
    assert asked(image="4")["protocol"]["around"] == "test image 4"


def test_the_prior_says_the_spread_where_there_is_one(runs: dict[str, Path], explore: Explore, tmp_path: Path) -> None:
    assert explore("traverse", f"run={runs['vae']}", "dims=2", "order=index", f"out={tmp_path}").code == 0
    found = numbers(tmp_path)
    assert found["protocol"]["spread"] == "prior"
    assert found["protocol"]["around"] == "0"
    assert found["spread"] == pytest.approx([1.0] * 4, abs=0.05)  # of N(0, I)
    assert found["protocol"]["shown"] == sorted(found["ranked"][:2])
    assert found["ranked"] == np.argsort(-np.array(found["kl_nats"]), kind="stable").tolist()


def test_maps_are_the_codes_or_their_components(study: Callable[[str], Study]) -> None:
    codes = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 1.0, 4.0, 1.0])
    points, how = latent.project(codes, "auto", 0)
    centred = codes.double().numpy() - codes.double().numpy().mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    assert how["method"] == "pca"
    assert np.allclose(np.abs(points), np.abs(left[:, :2] * sizes[:2]))
    same, how = latent.project(codes[:, :2], "auto", 0)
    assert how == {"method": "codes"}
    assert np.array_equal(same, codes[:, :2].double().numpy())
    assert latent.project(codes[:, :1], "auto", 0)[0].shape == (60, 2)
    assert latent.project(codes, "tsne", 0)[1]["method"] == "tsne"


def test_the_decoded_plane_lies_on_quantiles_of_the_prior(
    runs: dict[str, Path], explore: Explore, tmp_path: Path
) -> None:
    assert explore("latent", f"run={runs['plane']}", "n=40", "side=5", f"out={tmp_path}").code == 0
    grid = numbers(tmp_path)["grid"]
    assert grid["from"] == "quantiles of the prior"
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    for axis in ("z0", "z1"):
        assert grid[axis] == pytest.approx(normal.tolist(), abs=0.05)


def test_the_plane_grows_to_the_right_and_upwards() -> None:
    study = Study(Bright(), digits(), 0, torch.device("cpu"), Bright)
    codes = torch.tensor([[-1.0, 0.0], [1.0, 0.0]] * 50)
    picture, facts = latent._plane(study, codes, 3)
    pixels = np.asarray(picture.convert("L"))
    assert facts["from"].startswith("range of the codes")
    third = pixels.shape[1] // 3
    row = [int(pixels[pixels.shape[0] // 2, third // 2 + i * third]) for i in range(3)]
    assert row == [0, 128, 255]

    class Upright(Bright):
        def decode(self, z: Tensor) -> Tensor:
            return super().decode(z.flip(1))

    study = Study(Upright(), digits(), 0, torch.device("cpu"), Upright)
    picture, _ = latent._plane(study, codes.flip(1), 3)
    pixels = np.asarray(picture.convert("L"))
    column = [int(pixels[third // 2 + i * third, pixels.shape[1] // 2]) for i in range(3)]
    assert column == [255, 128, 0]


def test_neighbours_of_the_same_class_are_counted_without_oneself() -> None:
    values = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]])
    assert latent.same_class(values, torch.tensor([0, 0, 1, 2, 2])) == pytest.approx(3 / 5)


def test_an_adversarial_autoencoder_is_shown_by_its_prior(
    runs: dict[str, Path], explore: Explore, tmp_path: Path
) -> None:
    """A roll is neither centred on 0 nor as wide as the codes of an untrained encoder."""
    for tool, words in (("latent", ("n=100",)), ("traverse", ("n=100",))):
        ended = explore(tool, f"run={runs['roll']}", f"out={tmp_path}", "device=cpu", *words)
        assert ended.code == 0, ended.err
    (latent,) = tmp_path.glob("latent*.json")
    (traverse,) = tmp_path.glob("traverse*.json")
    assert json.loads(latent.read_text(encoding="utf-8"))["grid"]["from"] == "quantiles of the prior"
    found = json.loads(traverse.read_text(encoding="utf-8"))["protocol"]
    assert found["spread"] == "prior"
    assert found["around"] in ("the mean of the prior", "0")


def test_what_was_trained_with_labels_says_so(explore: Explore, tmp_path: Path) -> None:
    for name, choices in (("semi", ["model=aae_semi", "model.labels_per_class=3"]), ("plain", ["model=ae"])):
        assert main([*TINY, "metrics=none", *choices, f"output={tmp_path}", f"name={name}"]) == 0
        ended = explore("cluster", f"run={tmp_path / name}", "n=60", "repeats=1", f"out={tmp_path / 'out' / name}")
        assert ended.code == 0, ended.err
        seen = None if name == "plain" else dict.fromkeys(digits().spec.class_names, 3)
        assert numbers(tmp_path / "out" / name)["labels_seen"] == seen
        assert RunFolder.open(tmp_path / name).card()["labels_seen"] == seen
        assert ("trained with labels: 3 of each of 10 classes" in ended.out) == (name == "semi")


def test_a_truncation_curve_falls_in_recall_and_ends_at_the_whole_prior(
    runs: dict[str, Path], explore: Explore, tmp_path: Path
) -> None:
    words = ["n=200", "at=0.000001", "passes=3", f"out={tmp_path}"]
    assert explore("truncate", f"run={runs['dcgan']}", *words).code == 0
    scores = numbers(tmp_path)["scores"]
    assert scores.keys() == {"standing", "training"}
    for kind in scores.values():
        assert list(kind) == ["1e-06", "whole"]
    assert scores["training"]["1e-06"]["recall_domain"] == 0.0  # one picture, over and over
    assert scores["training"]["1e-06"]["is_domain"] == pytest.approx(1.0, abs=1e-4)
    assert scores["training"]["whole"]["fd_domain"] != scores["standing"]["whole"]["fd_domain"]


def test_attention_lies_over_the_pixels_that_it_is_about(study: Callable[[str], Study]) -> None:
    from gentrain.explore import attention

    found = attention._on_image(torch.eye(16)[[0, 15, 5]], canvas=32, size=28, times=2)[:, 0]
    for picture, (top, bottom, left, right) in zip(
        found, ((0, 6, 0, 6), (22, 28, 22, 28), (6, 14, 6, 14)), strict=True
    ):
        expected = torch.zeros(28, 28)
        expected[top:bottom, left:right] = 1.0
        assert torch.equal(picture[::2, ::2], expected)
        assert torch.equal(picture[1::2, 1::2], expected)
    x, seen = attention.watched(study("sagan"), 3)
    assert [one.name for one in seen] == ["generator", "critic"]
    assert x.shape == (3, 1, 8, 8)
    for one in seen:
        assert one.rows.shape == (3, 16, 4)
        assert torch.allclose(one.rows.sum(2), torch.ones(3, 16), atol=1e-5)
