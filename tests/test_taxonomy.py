"""The page that says which models know a density: it is what its script writes, and models stand where they belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from test_demonstrations import script

from gentrain.config import options

ROOT = Path(__file__).parents[1]
KNOWN = {
    "pixelcnn": "explicit density, tractable, autoregressive",
    "vae": "explicit density, approximate, variational",
    "gmvae": "explicit density, approximate, variational",
    "dcgan": "implicit density, direct",
    "wae_mmd": "implicit density, direct",
    "dfc_vae": "implicit density, direct",  # it compares features: no likelihood of pixels
    "dae": "implicit density, Markov chain",
}


def test_the_page_is_what_the_script_writes_and_the_picture_is_there() -> None:
    taxonomy = script("taxonomy")
    written = (ROOT / "docs" / "taxonomy.md").read_text(encoding="utf-8")
    assert written == taxonomy.page(taxonomy.scores(ROOT / "docs")), "run python scripts/taxonomy.py"
    for name in options("model"):
        assert f"`{name}" in written
    with Image.open(ROOT / "docs" / "pictures" / "taxonomy.png") as picture:
        assert picture.width == 1000
        # As many names, as many lines: a picture made before a model came is too low, but for a line with room left.
        assert picture.height == pytest.approx(100 * taxonomy.tree()[2], abs=1)


def test_models_stand_on_the_branch_of_what_they_can_do() -> None:
    placed = script("taxonomy").models()
    where = {model.name: branch for branch, models in placed.items() for model in models}
    assert set(where) == set(options("model"))
    for name, title in KNOWN.items():
        assert where[name].title == title, name
    assert where["ae"] is None


@pytest.mark.parametrize(
    ("about", "title"),
    [
        ({"family": "Flow", "can": ["sample", "log_likelihood"]}, "explicit density, tractable, flows"),
        (
            {"family": "Boltzmann", "can": ["sample", "log_likelihood", "chain"]},
            "explicit density, approximate, Markov",
        ),
        ({"family": "GSN", "can": ["sample", "chain"]}, "implicit density, Markov chain"),
        ({"family": "New", "can": ["sample"]}, "implicit density, direct"),
    ],
)
def test_families_to_come_have_their_branch(about: dict[str, object], title: str) -> None:
    branch = script("taxonomy").branch_of({"about": about, "model": {}})
    assert branch.title.startswith(title)


def test_a_likelihood_from_an_unknown_family_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="LIKELIHOODS"):
        script("taxonomy").branch_of({"about": {"family": "New", "can": ["sample", "log_likelihood"]}, "model": {}})


def test_scores_are_those_of_the_tables_with_their_bounds_and_units(tmp_path: Path) -> None:
    def row(name: str, columns: dict[str, object], **of: object) -> dict[str, object]:
        protocol = {"likelihood": {"likelihood": of}} if of else {}
        return {"name": name, "model": "m", "seeds": [0, 1, 2], "columns": columns, "protocol": protocol}

    rows = [
        row("m a=1", {"bits_per_dim": {"mean": 3.21, "sd": 0.012}, "fd_domain": {"mean": 5.5, "sd": None}}, bits=8),
        row("m a=2", {"bits_per_dim": {"mean": 4.0, "sd": None, "bound": "<="}}, bits=8),
        row("m a=3", {"iw_bound_nats": {"mean": -90.25, "sd": None, "bound": ">="}}, bits=1, binarisation="static"),
        row("m a=6", {"nll_nats_ais": {"mean": 80.5, "sd": None}}, bits=1, binarisation="threshold"),
        row("m a=4", {"nll_nats": {"mean": -12.5, "sd": None}}, bits=None),
        row("m a=5", {"bits_per_dim": {"mean": None}, "fd_domain": {"mean": None}}),
    ]
    (tmp_path / "some.json").write_text(json.dumps({"tables": [{"data": "digits", "rows": rows}]}), encoding="utf-8")
    (tmp_path / "other.json").write_text("[1, 2]", encoding="utf-8")
    found = script("taxonomy").scores(tmp_path)
    assert [(score.name, score.likelihood, score.distance) for score in found["m"]] == [
        ("m a=1", "3.210 ± 0.012 bits/dim", "5.5"),
        ("m a=2", "at most 4 bits/dim", ""),
        ("m a=3", "at most 90.25 nats, binarised once", ""),
        ("m a=6", "about 80.5 nats, on at half brightness", ""),
        ("m a=4", "-12.5 nats, of a density", ""),
    ]
    assert {(score.data, score.seeds, score.file) for score in found["m"]} == {("digits", 3, "some.json")}
