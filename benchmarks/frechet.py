"""Time of a Fréchet distance between two Gaussians: ours beside a matrix root and torchmetrics.

    python benchmarks/frechet.py [flat] [steep] [--rounds N] [--dim D] [--samples N] [--threads N] [--clock cpu]

All start from the same means and covariances, float64, on the CPU: the pass over the features is no part of it.
``flat``: all variances alike. ``steep``: variances over six decades, which a matrix root takes longer over. Where they
span so many more that rounding matters, ours takes a dearer way (``gentrain.evaluation.gaussian``); that is not timed
here, because the others then do not give the same number.

``cached``: ours, the factor of the reference being there. ``ours``: with the factor. ``scipy``: the trace of
scipy.linalg.sqrtm of the product. ``torchmetrics``: FrechetInceptionDistance.compute, general eigenvalues.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import common
import torch
from scipy import linalg
from threadpoolctl import threadpool_limits
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from gentrain.evaluation.gaussian import Gaussian, frechet
from gentrain.evaluation.metric import Given

CASES = {"flat": 0.0, "steep": 6.0}
"""Decades that the variances of the features span."""

GOALS = {"scipy": 10.0, "torchmetrics": 3.0}
SEED = 0


def features(decades: float, samples: int, dim: int) -> tuple[Tensor, Tensor]:
    """Two sets float64 [N D] of one spectrum in one basis; the second is shifted."""
    generator = torch.Generator().manual_seed(SEED)
    scale = torch.logspace(0, -decades / 2, dim, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    real, fake = (
        torch.randn(samples, dim, generator=generator, dtype=torch.float64).mul_(scale) @ basis for _ in range(2)
    )
    return real, fake.add_(0.01)


def torchmetrics_of(real: Tensor, fake: Tensor) -> Callable[[], float]:
    metric = FrechetInceptionDistance(Given(real.shape[1]), sync_on_compute=False).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)

    def compute() -> float:
        metric._computed = None  # it would remember
        return float(metric.compute())

    return compute


def by_root(real: Gaussian, fake: Gaussian) -> float:
    """As most code has it."""
    root = linalg.sqrtm((real.covariance @ fake.covariance).numpy())
    shift = float((real.mean - fake.mean).square().sum())
    return shift + float(real.covariance.trace() + fake.covariance.trace()) - 2.0 * float(root.trace().real)


def measure(decades: float, rounds: int, samples: int, dim: int, clock: str) -> dict[str, Any]:
    x, y = features(decades, samples, dim)
    real, fake = Gaussian.of(x), Gaussian.of(y)
    other = torchmetrics_of(x, y)
    del x, y
    found: dict[str, float] = {}

    def anew() -> float:
        return frechet(*(Gaussian(g.mean, g.covariance, g.count) for g in (real, fake)))

    def cached() -> float:
        # The factor of the samples belongs to them: it is never there already.
        return frechet(real, Gaussian(fake.mean, fake.covariance, fake.count))

    def noting(name: str, work: Callable[[], float]) -> Callable[[], None]:
        return lambda: found.update({name: work()})

    contestants = {"cached": cached, "ours": anew, "scipy": lambda: by_root(real, fake), "torchmetrics": other}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        times = common.in_turns(
            {name: noting(name, work) for name, work in contestants.items()}, rounds, common.CLOCKS[clock]
        )
    if any(not math.isclose(value, found["cached"], rel_tol=1e-4) for value in found.values()):
        sys.exit(f"the contestants do not compute the same: {found}")
    return {
        "decades": decades,
        "distances": found,
        "seconds": {name: common.summary(values) for name, values in times.items()},
        "slower_than_cached": common.ratios(times, "cached"),
        "slower_than_ours": common.ratios(times, "ours"),
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: distance {found['distances']['cached']:.6g}")
    for contestant, values in found["seconds"].items():
        line = f"  {contestant:<13} {values['median']:>8.3f} s"
        if contestant in GOALS:
            cached, ours = (found[f"slower_than_{base}"][contestant]["of_medians"] for base in ("cached", "ours"))
            line += f"   {cached:.1f} x as long as cached (goal {GOALS[contestant]:.0f}), {ours:.1f} x as ours"
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--dim", type=common.positive, default=2048, help="features (default: %(default)s)")
    parser.add_argument("--samples", type=common.positive, default=10000, help="of each side (default: %(default)s)")
    parser.add_argument("--threads", type=common.positive, default=1, help="of torch and scipy (default: %(default)s)")
    parser.add_argument("--clock", choices=common.CLOCKS, default="wall", help="cpu if the machine is busy")
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.cases if name not in CASES]
    if unknown:
        parser.error(f"{unknown[0]}: there are {', '.join(CASES)}")
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    dim, samples = (64, 500) if chosen.quick else (chosen.dim, chosen.samples)
    machine = common.machine()
    torch.set_num_threads(chosen.threads)
    with threadpool_limits(chosen.threads):  # scipy has a BLAS of its own
        cases = {name: measure(CASES[name], rounds, samples, dim, chosen.clock) for name in chosen.cases or CASES}
    for name, found in cases.items():
        show(name, found)
    shape = {"dim": dim, "samples": samples, "threads": chosen.threads, "rounds": rounds, "clock": chosen.clock}
    others = {name: metadata.version(name) for name in ("scipy", "torchmetrics")}
    goals = {name: {"at_least": goal, "times_as_long_as": "cached"} for name, goal in GOALS.items()}
    record = {"machine": machine, **shape, "quick": chosen.quick, "cases": cases, "goals": goals, "peers": others}
    common.write("frechet", record, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
