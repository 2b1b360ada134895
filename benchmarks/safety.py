"""What whole checkpoints cost: checksum, flush to disk and rename, against writing the same state plainly.

    python benchmarks/safety.py [--rounds N] [--steps N] [--threads N]

The reference run is DCGAN on Fashion-MNIST at ``size=small`` with the default interval: ten validations in a run, a
checkpoint before each and one behind it. Rounds of training steps, safe saves and plain saves take turns; the share is
that of one run, ``saves * (safe - plain) / (iterations * step)``, and for all of saving ``saves * safe`` over the same.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import common
import torch

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.stream import stream
from gentrain.engine import checkpoint, fit, precision
from gentrain.engine.finite import refuse_non_finite
from gentrain.engine.session import Budget
from gentrain.engine.state import rng_state
from gentrain.engine.system import System
from gentrain.types import Images

WORDS = ("model=dcgan", "data=fashion_mnist", "size=small", "trainer=cpu")
PER_VALIDATION = 2


def state_of(system: System) -> dict[str, Any]:
    return {"system": system.state(), "rng": [rng_state()], "pending": system.pending()}


def safe(system: System, folder: Path) -> None:
    """What the runner does: nothing non-finite, checksum, flush, rename, links, older files away."""
    state = state_of(system)
    refuse_non_finite(state["system"], 1)
    path = folder / checkpoint.file_name(system.clock.iteration)
    checkpoint.save(state, path)
    checkpoint.link(path, "last.ckpt")
    checkpoint.retire(folder, 2)


def plain(system: System, folder: Path) -> None:
    torch.save(state_of(system), folder / "plain.pt")


def measure(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    config = compose([*WORDS, f"trainer.threads={threads}"]).config
    data, budget = build(config["data"]), Budget(**config["train"])
    system = fit.build_system(config, data, seed=0)
    system.prepare(total=budget.iterations, precision=precision.resolve("auto", torch.device("cpu")))
    batches: Iterator[Images] = stream(data.train, batch_size=budget.batch_size, seed=0)

    def train() -> None:
        for batch in islice(batches, steps):
            system.iterate(batch)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        folder = Path(place)
        work = {"train": train, "safe": lambda: safe(system, folder), "plain": lambda: plain(system, folder)}
        times = common.in_turns(work, rounds)
        size = (folder / "plain.pt").stat().st_size
    middle = {name: statistics.median(values) for name, values in times.items()}
    saves = PER_VALIDATION * (budget.iterations // budget.validation_interval)
    whole = budget.iterations * middle["train"] / steps
    return {
        "iterations": budget.iterations,
        "saves": saves,
        "bytes": size,
        "ms_per_step": round(1e3 * middle["train"] / steps, 4),
        "ms_per_safe_save": round(1e3 * middle["safe"], 3),
        "ms_per_plain_save": round(1e3 * middle["plain"], 3),
        "share_of_safety": round(saves * (middle["safe"] - middle["plain"]) / whole, 6),
        "share_of_saving": round(saves * middle["safe"] / whole, 6),
        "goals": {"share_of_safety": {"at_most": 0.05}},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split("\n", 1)[0])
    parser.add_argument("--steps", type=common.positive, help="of training in a round (default: 20)")
    parser.add_argument("--threads", type=common.positive, default=2, help="of torch (default: 2)")
    chosen = parser.parse_args(argv)
    rounds, steps = chosen.rounds or (1 if chosen.quick else 9), chosen.steps or (1 if chosen.quick else 20)
    machine = common.machine()
    torch.set_num_threads(chosen.threads)
    found = measure(rounds, steps, chosen.threads)
    shape = {"threads": chosen.threads, "rounds": rounds, "steps": steps, "quick": chosen.quick}
    common.write("safety", {"machine": machine, "words": WORDS, **shape, **found}, chosen.out)
    print(f"safety: {found['saves']} saves of {found['bytes']:,} bytes in {found['iterations']} iterations")
    saves = f"save {found['ms_per_safe_save']} ms, plainly {found['ms_per_plain_save']} ms"
    print(f"  step {found['ms_per_step']} ms, {saves}")
    shares = [f"{100 * found[key]:.3f} %" for key in ("share_of_safety", "share_of_saving")]
    print(f"  safety {shares[0]} of the run, all of saving {shares[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
