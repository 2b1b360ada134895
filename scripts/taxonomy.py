"""Which models say how probable a picture is, and how: the page and its picture, made from the configs.

    python scripts/taxonomy.py [--out docs]

Writes OUT/taxonomy.md and OUT/pictures/taxonomy.png. A model's branch follows from ``about.family`` and ``about.can``
in conf/model/NAME.yaml; scores come from the tables in docs/*.json (``gentrain table --json``). After Goodfellow 2016,
NIPS 2016 Tutorial: Generative Adversarial Networks, arXiv 1701.00160.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentrain.config import Node, conf_dir, load_yaml, options
from gentrain.report.canvas import save_figure, write_atomically
from gentrain.report.table import number, with_spread

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Branch:
    path: tuple[str, ...]
    """From the root's child to the branch."""

    text: str

    @property
    def title(self) -> str:
        return ", ".join(self.path)


AUTOREGRESSIVE = Branch(
    ("explicit density", "tractable", "autoregressive"),
    "The probability of a picture is a product over its pixels, each given those before it: exact in one pass. A "
    "sample takes a step for every pixel.",
)
FLOWS = Branch(
    ("explicit density", "tractable", "flows"),
    "An invertible map between data and noise of the same size: the density is that of the noise times a determinant. "
    "Sampling is one pass; levels need noise added, so their likelihood is a bound.",
)
VARIATIONAL = Branch(
    ("explicit density", "approximate", "variational"),
    "A density with latents that cannot be summed over: trained on a lower bound, which is also what is scored.",
)
BOLTZMANN = Branch(
    ("explicit density", "approximate", "Markov chain"),
    "An energy whose sum over all states is out of reach: its gradient and its samples come from a Markov chain, and "
    "its likelihood is an estimate.",
)
DIRECT = Branch(
    ("implicit density", "direct"),
    "A sample is one pass of a network over noise. What density these samples have nobody can say; a critic, or a "
    "distance between codes and their prior, stands in for it.",
)
CHAIN = Branch(
    ("implicit density", "Markov chain"),
    "The model is one step of a chain, trained to restore what was corrupted; its samples are where the chain goes.",
)
BRANCHES = (AUTOREGRESSIVE, FLOWS, VARIATIONAL, BOLTZMANN, DIRECT, CHAIN)

LIKELIHOODS = {"autoregressive": AUTOREGRESSIVE, "Flow": FLOWS, "VAE": VARIATIONAL, "Boltzmann": BOLTZMANN}
"""How a family (``about.family``) comes by a likelihood, for those of its models that have one."""


def branch_of(config: Node) -> Branch | None:
    """Where a model stands; None for one that makes no samples. ValueError for a likelihood of a family not in
    ``LIKELIHOODS``."""
    about: Mapping[str, Any] = config["about"]
    can, family = about["can"], about["family"]
    if "sample" not in can:
        return None
    if "log_likelihood" in can:
        if family not in LIKELIHOODS:
            raise ValueError(f"about.family {family}: say in LIKELIHOODS how it comes by its likelihood")
        return LIKELIHOODS[family]
    # Autoencoders that draw from no prior say by model.sampler how their chain goes.
    return CHAIN if "chain" in can or "sampler" in config["model"] else DIRECT


@dataclass(frozen=True)
class Model:
    name: str
    title: str
    paper: str
    year: int
    arxiv: str | None


def models() -> dict[Branch | None, list[Model]]:
    """Every model file by its branch, oldest paper first."""
    found: dict[Branch | None, list[Model]] = {branch: [] for branch in (*BRANCHES, None)}
    for name in options("model"):
        config = load_yaml(conf_dir() / "model" / f"{name}.yaml")
        about = config["about"]
        cited = re.match(r"(.*?\b((?:19|20)\d\d))\b", about["paper"])
        if cited is None:
            raise ValueError(f"conf/model/{name}.yaml: about.paper has no year")
        model = Model(name, about["name"], cited[1], int(cited[2]), about.get("arxiv"))
        found[branch_of(config)].append(model)
    return {branch: sorted(some, key=lambda m: (m.year, m.name)) for branch, some in found.items()}


@dataclass(frozen=True)
class Score:
    """One row of a measured table."""

    data: str
    name: str
    likelihood: str
    distance: str
    seeds: int
    file: str


def cell(found: Mapping[str, Any] | None, unit: str = "") -> str:
    """``at most 4.0645 ± 0.0013``; empty for what was not measured."""
    if found is None or found.get("mean") is None:
        return ""
    mean, sd = found["mean"], found["sd"]
    bound = {"<=": "at most ", ">=": "at least "}.get(found.get("bound", ""), "")
    return bound + (number(mean) if sd is None else with_spread(mean, sd)) + unit


BINARISED = {
    "threshold": "on at half brightness",
    "static": "binarised once",
    "dynamic": "binarised anew each time",
}


def likelihood(row: Mapping[str, Any]) -> str:
    """bits/dim where pixels have 8 bits, else nats per image and of what."""
    columns = row["columns"]
    if bits := cell(columns.get("bits_per_dim"), " bits/dim"):
        return bits
    of = next(iter(row["protocol"].get("likelihood", {}).values()), {})
    rule, bits_of = of.get("binarisation", ""), of.get("bits")
    what = BINARISED.get(rule) or ("of a density" if bits_of is None else f"{rule} {bits_of}-bit")
    if estimate := cell(columns.get("nll_nats_ais")):
        return f"about {estimate} nats, {what}"
    nats = dict(columns.get("nll_nats") or columns.get("iw_bound_nats") or columns.get("elbo_nats") or {})
    if "nll_nats" not in columns and nats.get("mean") is not None:  # a log-likelihood's lower bound, turned round
        nats |= {"mean": -nats["mean"], "bound": "<="}
    return cell(nats, f" nats, {what}")


def scores(folder: Path) -> dict[str, list[Score]]:
    """Rows of the tables in ``folder``/*.json, by model."""
    found: dict[str, list[Score]] = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        for table in content.get("tables", []) if isinstance(content, dict) else []:
            for row in table["rows"]:
                said, distance = likelihood(row), cell(row["columns"].get("fd_domain"))
                score = Score(table["data"], row["name"], said, distance, len(row["seeds"]), file.name)
                if said or distance:
                    found.setdefault(row["model"], []).append(score)
    return found


def lines_of(model: Model, measured: Sequence[Score]) -> Iterator[str]:
    paper = f"[{model.paper}](https://arxiv.org/abs/{model.arxiv})" if model.arxiv else model.paper
    for score in measured:
        source = f"[{score.file.removesuffix('.json')}]({score.file})"
        numbers = f"{score.likelihood or '-'} | {score.distance or '-'} | {score.seeds}"
        yield f"| `{score.name}` | {paper} | {score.data} | {numbers} | {source} |"
    if not measured:
        yield f"| `{model.name}` | {paper} | not measured | - | - | - | - |"


def page(measured: Mapping[str, Sequence[Score]]) -> str:
    placed = models()
    count = sum(len(placed[branch]) for branch in BRANCHES)
    text = [
        "# What a model knows of a picture's probability",
        "",
        "Generative models differ in whether they can say how probable a picture is (explicit density) or only make "
        "pictures (implicit density), and in what that costs: the tree of Goodfellow's tutorial "
        "([arXiv 1701.00160](https://arxiv.org/abs/1701.00160)) with this package's models on it. "
        f"{count} models make samples; each stands on the branch that its `about.family` and `about.can` put it on.",
        "",
        "![The tree](pictures/taxonomy.png)",
        "",
        "Written by `python scripts/taxonomy.py` from `conf/model/*.yaml` and the measured tables beside this page. "
        "Scores of different tables had different budgets: the file named in the row says which. `fd_domain` is a "
        "Fréchet distance of samples, smaller is better ([evaluation](evaluation.md)). bits/dim are those of 8-bit "
        "pixels; nats of other pixels, named beside them, compare with nothing else. ± is the standard deviation over "
        "seeds.",
        "",
    ]
    for branch in BRANCHES:
        text += [f"## {branch.title[0].upper()}{branch.title[1:]}", "", branch.text, ""]
        if placed[branch]:
            text += ["| `model=` | paper | data | likelihood | `fd_domain` | seeds | table |"]
            text += ["|---|---|---|---:|---:|---:|---|"]
            text += [line for model in placed[branch] for line in lines_of(model, measured.get(model.name, ()))]
        else:
            text += ["None yet."]
        text.append("")
    names = ", ".join(f"`{model.name}`" for model in placed[None])
    text += ["## No samples", "", f"Codes alone, on no branch of the tree: {names}.", ""]
    return "\n".join(text)


HEAD, LINE, GAP = 0.36, 0.15, 0.18
"""Inches of a leaf's title with its margins, of a line of names, and between leaves."""


def tree() -> tuple[dict[tuple[str, ...], float], dict[Branch, list[str]], float]:
    """Distance of each node's middle from the top, lines of text of each leaf, and the height of all; in inches."""
    placed = models()
    leaves = {
        branch: textwrap.wrap(", ".join(model.name for model in placed[branch]), 62, break_on_hyphens=False)
        or ["none yet"]
        for branch in BRANCHES
    }
    middle: dict[tuple[str, ...], float] = {}
    top = GAP
    for branch, names in leaves.items():
        height = HEAD + LINE * len(names)
        middle[branch.path] = top + height / 2
        top += height + GAP
    for depth in (2, 1, 0):
        for path in {branch.path[:depth] for branch in BRANCHES if len(branch.path) > depth}:
            below = {branch.path[: depth + 1] for branch in BRANCHES if branch.path[:depth] == path}
            middle[path] = sum(middle[child] for child in below) / len(below)
    return middle, leaves, top


def picture(out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    middle, leaves, height = tree()
    figure = Figure(figsize=(10.0, height), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 10.0), ylim=(height, 0))
    axes.axis("off")
    left = {0: 0.15, 1: 1.65, 2: 3.5, 3: 5.1}  # of the columns
    wide = {0: 1.2, 1: 1.55, 2: 1.3, 3: 4.75}
    tones = {"explicit density": "#dce9f5", "implicit density": "#fbe5d0"}
    named = {branch.path: names for branch, names in leaves.items()}
    for path, y in middle.items():
        column = 3 if path in named else len(path)
        x, half = left[column], (HEAD + LINE * len(named[path])) / 2 if path in named else 0.22
        axes.fill_between([x, x + wide[column]], y - half, y + half, color=tones[path[0]] if path else "#eeeeee")
        title = path[-1] if path else "generative\nmodels"
        if path in named:
            axes.text(x + 0.1, y - half + 0.07, title, fontsize=10, weight="bold", va="top")
            for row, names in enumerate(named[path]):
                axes.text(x + 0.1, y - half + 0.28 + LINE * row, names, fontsize=8.5, va="top", family="monospace")
        else:
            axes.text(x + wide[column] / 2, y, title, fontsize=10, weight="bold", ha="center", va="center")
        if path:
            parent, turn = left[len(path) - 1] + wide[len(path) - 1], x - 0.12
            heights = [middle[path[:-1]]] * 2 + [y] * 2
            axes.plot([parent, turn, turn, x], heights, color="#888888", linewidth=1, zorder=0)
    save_figure(figure, out)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    given = parser.parse_args(arguments)
    write_atomically(given.out / "taxonomy.md", page(scores(ROOT / "docs")).encode())
    picture(given.out / "pictures" / "taxonomy.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
