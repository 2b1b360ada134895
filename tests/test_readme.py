"""Every command that README and docs show is run here, at the smallest size and on local files."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_data import celeba_set, idx_set

from gentrain.cli import main
from gentrain.compose import compose, expand
from gentrain.config import options
from gentrain.report.table import with_spread

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["size=tiny", "train.iterations=3", "train.validate_every=3", "trainer.threads=1", "data_root=data"]
REFUSED = {"gentrain check model=vae loss=hinge"}
"""Commands that the text says are refused."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = [line.strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def made_small(words: list[str]) -> list[str]:
    """The same command on a tiny budget; what the reader chose stays chosen."""
    first = words[0] if words and "=" not in words[0] and not words[0].startswith("-") else "train"
    if first != "train" or any(w in ("--cfg", "--info") for w in words):
        return words
    keys = {w.split("=")[0] for w in words}
    budget = [w for w in SMALL if w.split("=")[0] not in keys - {"size", "train.iterations", "train.validate_every"}]
    kept = [w for w in words if w.split("=")[0] not in {b.split("=")[0] for b in budget}]
    if "data=celeba" in words:
        budget += ["metrics=none", "train.batch_size=2"]  # its default score downloads Inception's weights
    return [*kept, *budget]


def first_job(words: list[str]) -> list[str]:
    """Of a sweep, run alone into the sweep's folder: in a sweep each is a process of its own, which takes longer to
    start than all else. That there are such jobs, down to the last, is asked of the composition."""
    jobs = expand([word for word in words if word != "-m" and not word.startswith("sweep.")])
    compose(jobs[-1])
    folder = [f"output=outputs/sweeps/{word.removeprefix('name=')}" for word in jobs[0] if word.startswith("name=")]
    return [*(word for word in jobs[0] if not (folder and word.startswith("name="))), *folder]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_papers"]:
        monkeypatch.delitem(sys.modules, name)  # another test's package of that name
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    idx_set(tmp_path / "data" / "fashion_mnist", train=160, test=100)
    celeba_set(tmp_path / "data" / "celeba")
    return tmp_path


@pytest.mark.timeout(900)  # a page holds dozens of runs, one behind the other
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_page_run(page: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for language in ("python", "yaml", "pgm"):
        for block in blocks(page, language):
            head, _, body = block.partition("\n")
            file = workplace / head.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(body, encoding="utf-8")
    for command in commands(page):
        program, *words = shlex.split(command)
        if program == "make":
            subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
            continue
        assert program == "gentrain", command
        main_page = page.name == "README.md"  # the one whose commands get processes of their own
        if "-m" in words and not (main_page and "size=tiny" in words):
            words = first_job(words)
        elif "trainer=ddp_cpu" in words and not main_page:
            words = ["check", *words]
        code = main(made_small(words))
        shown = capfd.readouterr()
        assert code == (2 if command in REFUSED else 0), f"{command}\n{shown.out[-2000:]}\n{shown.err[-3000:]}"


def test_pages_show_commands_and_their_files_exist() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_table_names_every_model() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for model in sorted((ROOT / "conf" / "model").glob("*.yaml")):
        assert f"`{model.stem}`" in text, f"{model.stem} is missing in the README's table"


def test_the_results_table_is_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "fashion_mnist.json").read_text(encoding="utf-8"))["tables"][0]["rows"]
    for row in found:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row['model']}` |"))
        for key in ("fd_domain", "best.fd_domain", "is_domain", "recall_domain", "coverage_domain"):
            values = row["columns"][key]["values"]
            assert len(values) == len(row["seeds"]) == 3
            mean, sd = statistics.mean(values), statistics.stdev(values)
            assert f" {with_spread(mean, sd)} |" in line, f"{row['model']}: {key}"
    assert [row["model"] for row in found] == re.findall(r"^\| `(\w+)` \| \[.* \| [0-9,]+ \|$", text, flags=re.M)


def test_the_table_of_autoencoders_is_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "docs" / "autoencoders.json").read_text(encoding="utf-8"))["tables"][0]["rows"]
    shown = re.findall(r"^\| `([^`]+)` \| [0-9] \|", text, flags=re.M)
    assert sorted(shown) == sorted(row["name"] for row in rows)
    for row in rows:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row['name']}` | {len(row['seeds'])} |"))
        for key in (
            "fd_domain",
            "fd_domain_reconstructed",
            "elbo_nats",
            "iw_bound_nats",
            "bits_per_dim",
            "cluster_accuracy",
        ):
            values = row["columns"].get(key, {}).get("values", [])
            if len(values) > 1:
                assert f" {with_spread(statistics.mean(values), statistics.stdev(values))} |" in line, key
            elif values:
                assert f" {values[0]:.4g} |" in line, key


def test_the_table_of_gans_is_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("### GANs")[2].partition("\n### ")[0]
    found = json.loads((ROOT / "docs" / "gans.json").read_text(encoding="utf-8"))
    rows, accuracy, speed = found["tables"][0]["rows"], found["label_accuracy"], found["images_per_second"]
    shown = {line.split("`")[1]: line for line in section.splitlines() if re.search(r"^\| `.* \| [0-9] \|$", line)}
    assert list(shown) == [row["model"] for row in rows]
    for row in rows:
        line = shown[row["model"]]
        assert line.endswith(f" {len(row['seeds'])} |")
        for key in ("fd_domain", "best.fd_domain", "is_domain", "precision_domain", "recall_domain", "coverage_domain"):
            values = row["columns"][key]["values"]
            mean = statistics.mean(values)
            cell = f"{mean:.4g}" if len(values) == 1 else with_spread(mean, statistics.stdev(values))
            assert f" {cell} |" in line, f"{row['model']}: {key}"
        assert f" {speed[row['model']]:,.0f} |" in line
        if row["model"] in accuracy:
            assert f" {accuracy[row['model']]:.3f} |" in line


def test_the_tables_of_densities_are_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("### Explicit density")[2].partition("\n## ")[0]
    found = json.loads((ROOT / "docs" / "densities.json").read_text(encoding="utf-8"))
    yardsticks = json.loads((ROOT / "docs" / "measured" / "yardsticks.json").read_text(encoding="utf-8"))
    rows = {
        (row["name"], bool(row["columns"].get("bits_per_dim", {}).get("values"))): row
        for table in found["tables"]
        for row in table["rows"]
    }
    first, _, second = section.partition("Fashion-MNIST, all 256 levels")[2].partition("drawn once for all")
    shown = [line for line in (first + second).splitlines() if line.startswith("| `") and "`model=`" not in line]
    assert any(of_bits for _, of_bits in rows)
    for line in shown:
        name, cells = line.split("`")[1], [cell.strip() for cell in line.split("|")[2:-1]]
        of_bits = line in first
        columns = rows.pop((name, of_bits))["columns"]
        values = {key: column["values"][0] for key, column in columns.items() if column.get("values")}
        if of_bits:
            speed = found["samples_per_second"][name]
            numbers = [f"{values['bits_per_dim']:.3f}", f"{values['parameters']:,.0f}", f"{values['images']:,.0f}"]
            assert cells == [*numbers, f"{values['seconds'] / 60:.0f}", f"{speed:,.1f}"], name
        else:
            nats = values.get("nll_nats", values.get("nll_nats_ais"))
            told = "no likelihood" if nats is None else f"{nats:.1f}"
            assert (cells[0], cells[-1]) == (told, f"{values['parameters']:,.0f}"), name
            if "log_z_sd" in values:
                assert f"sd of log Z {values['log_z_sd']:.2f}" in line
            if nats is None:
                assert f" {values['parzen_nats_unreliable']:.0f} nats" in line
    assert not rows, "measured, and not shown"
    for name in ("independent", "lzma", "webp"):
        assert f"{yardsticks['bits_per_dim'][name]:.2f}" in first


def test_the_table_of_tricks_is_what_was_measured() -> None:
    text = (ROOT / "docs" / "tricks.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "docs" / "measured" / "tricks.json").read_text(encoding="utf-8"))["tables"][0]["rows"]
    shown = re.findall(r"^\| `(\w+)` \|.*\|$", text, flags=re.M)
    assert sorted(shown) == options("trick")
    assert len(rows) == len(shown)
    for trick, row in zip(shown, rows, strict=True):
        assert row["runs"][0].endswith(f"trick={trick}")
        line = next(line for line in text.splitlines() if line.startswith(f"| `{trick}` |"))
        for key in ("fd_domain", "is_domain", "precision_domain", "recall_domain", "coverage_domain"):
            assert f" {row['columns'][key]['values'][0]:.4g} |" in line, f"{trick}: {key}"
