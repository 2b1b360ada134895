"""Does a run in bf16 end where one in float32 does? Scores of both over the same seeds.

    python benchmarks/parity.py [dcgan] [wgan_gp] [vae] [--seeds N] [--iterations N] [--threads N]

``precision=auto`` means bf16 where the hardware multiplies it. That is right only as far as the scores of the two
number formats differ by no more than those of different seeds do: ``gap`` is the difference of the means, ``spread``
the standard deviation over seeds, of both formats together.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

from gentrain.compose import compose
from gentrain.engine import fit
from gentrain.folder import RunFolder

FASHION = ("data=fashion_mnist", "size=small")
CASES = {
    "dcgan": (("model=dcgan", *FASHION), 2000),
    "wgan_gp": (("model=wgan_gp", *FASHION), 3000),
    "vae": (("model=vae", "loss=gaussian", "model/net=dcgan", *FASHION), 1500),
}
FORMATS = ("32-true", "bf16-mixed")


def train(words: Sequence[str], iterations: int, seed: int, number_format: str, threads: int) -> dict[str, float]:
    """Final scores of one run."""
    budget = (f"train.iterations={iterations}", f"train.validate_every={iterations}", "callbacks.health=null")
    place = ("trainer=cpu", f"trainer.threads={threads}", f"seed={seed}", f"precision={number_format}")
    config = compose([*words, *budget, *place]).config
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder.create(Path(temporary) / "run", config, {"status": "created"})
        fit.fit(folder, config, quiet=True)
        card = folder.card()
    if card["precision"] != number_format:
        sys.exit(f"trained in {card['precision']}, not in {number_format}")
    scores: dict[str, float] = card["final"]
    return scores


def compare(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """For each score: mean of each format, the gap between them, and the spread over seeds."""
    result = {}
    for name in runs[FORMATS[0]][0]:
        values = {form: [scores[name] for scores in runs[form]] for form in FORMATS}
        means = {form: statistics.mean(values[form]) for form in FORMATS}
        variances = [statistics.variance(values[form]) if len(values[form]) > 1 else 0.0 for form in FORMATS]
        spread, gap = statistics.mean(variances) ** 0.5, means["bf16-mixed"] - means["32-true"]
        result[name] = {**{form: round(mean, 5) for form, mean in means.items()}}
        result[name] |= {"gap": round(gap, 5), "spread": round(spread, 5)}
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--seeds", type=common.positive, help="how many (default: 3)")
    parser.add_argument("--iterations", type=common.positive, help="of each run (default: by case)")
    parser.add_argument("--threads", type=common.positive, default=2, help="of torch (default: 2)")
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.cases if name not in CASES]
    if unknown:
        parser.error(f"{unknown[0]}: there are {', '.join(CASES)}")
    for name in chosen.cases or CASES:
        words, iterations = CASES[name]
        iterations = chosen.iterations or (4 if chosen.quick else iterations)
        seeds = range(chosen.seeds or (1 if chosen.quick else 3))
        machine = common.machine()
        runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMATS}
        for seed in seeds:
            for form in FORMATS:
                runs[form].append(train(words, iterations, seed, form, chosen.threads))
        scores = compare(runs)
        record: dict[str, Any] = {
            "machine": machine,
            "words": words,
            "iterations": iterations,
            "seeds": len(seeds),
            "quick": chosen.quick,
            "scores": scores,
            "runs": runs,
        }
        common.write(f"parity_{name}", record, chosen.out)
        print(f"{name}: {iterations} iterations, {len(seeds)} seeds")
        for score, found in scores.items():
            means = ", ".join(f"{form} {found[form]:.4g}" for form in FORMATS)
            print(f"  {score:<20} {means}, gap {found['gap']:+.3g}, spread over seeds {found['spread']:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
