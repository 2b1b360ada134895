"""Time of a training step: the runner beside hand-written loops over the same networks, data, loss and optimiser.

    python benchmarks/throughput.py [dcgan] [mlp] [precision] [--rounds N] [--steps N] [--threads N] [--clock cpu]

The runner is the whole of it: ``engine.fit`` with Lightning's Trainer, logging and the average of the generator;
pictures, scores and checkpoints are off. The only thing changed is that its batches come from a generator that lets the
other loops have their turn between two rounds. All of it happens on the CPU, in one process.

``tutorial``: the loop of most tutorials: DataLoader, transform per sample, default Adam, float32, no average.
``bare``: the best loop we know how to write by hand, with the average too. The runner may lose a little against it.
``precision``: the same step in bf16 and in float32, to see whether ``precision=auto`` chooses well on this machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import common
import torch
from loops import CPU, Bare, Job, Loop, Tutorial

from gentrain.compose import compose
from gentrain.config import Node, build
from gentrain.data.stream import stream
from gentrain.engine import fit, precision
from gentrain.folder import RunFolder
from gentrain.types import Images

OFF = ("trainer=cpu", "metrics=none", "train.batch_size=64", "train.validate_every=0", "train.checkpoint_every=0")


MakesLoop = Callable[[Job, precision.Precision], Loop]
LOOPS: dict[str, MakesLoop] = {"tutorial": Tutorial, "bare": Bare}


@dataclass(frozen=True)
class Case:
    """``goals``: the speed of the runner over that of a loop; ``amx_only``: goals that need bf16 in hardware.
    ``check``: iterations over which the loops must have the runner's losses; ``checked``: of which (None: all)."""

    words: tuple[str, ...]
    threads: int
    steps: int
    goals: dict[str, float] = field(default_factory=dict)
    amx_only: tuple[str, ...] = ()
    loops: dict[str, MakesLoop] = field(default_factory=lambda: dict(LOOPS))
    check: int = 3
    checked: tuple[str, ...] | None = None


DCGAN = ("model=dcgan", "data=fashion_mnist", "size=small", "model.net.width=64")
MLP = ("model=gan", "data=digits", "size=small", "model/net=mlp", "model.net.hidden=[128,128]")
CASES = {
    "dcgan": Case(DCGAN, 2, 50, {"tutorial": 2.0, "bare": 0.95}, amx_only=("tutorial",)),
    # Tiny networks: what is measured is the runner's own cost. Noise as in the loops, one set of samples per step.
    "mlp": Case((*MLP, "+model.fresh_noise=false", "model.prior=normal"), 1, 1000, {"bare": 0.65}),
    "precision": Case(DCGAN, 2, 50),
}


def refuse_unequal(job: Job, loops: dict[str, MakesLoop] = LOOPS, iterations: int = 3) -> dict[str, float]:
    """Train runner and loops on the same batches and noise in float32: SystemExit unless their losses agree. They are
    taken for the start of a long run: tutorials have no schedules."""
    job = replace(job, config={**job.config, "train": {**job.config["train"], "iterations": 10**9}})
    system = fit.build_system(job.config, job.data, seed=job.config["seed"])
    system.prepare(total=job.config["train"]["iterations"], precision="32-true")
    batches = list(islice(stream(job.data.train, batch_size=job.batch, seed=0), iterations))
    torch.manual_seed(0)
    for batch in batches:
        system.iterate(batch)
    means = system.report()
    expected = {
        player: sum(value for key, value in means.items() if key.startswith(f"loss/{player}/"))
        for player in ("critic", "generator")
    }
    for name, make in loops.items():
        loop = make(job, "32-true")
        torch.manual_seed(0)
        losses = [loop.losses(batch) for batch in batches]
        for place, (player, value) in enumerate(expected.items()):
            own = [float(pair[place]) for pair in losses if pair[place] is not None]  # type: ignore[arg-type]
            mean = sum(own) / max(len(own), 1)
            if abs(mean - value) > 1e-3 * abs(value):
                sys.exit(f"{name} and the runner do not compute the same: loss of the {player} {mean:.5f}, {value:.5f}")
    return {player: round(value, 5) for player, value in expected.items()}


def job_of(words: Sequence[str]) -> Job:
    """Its networks are those that the runner starts from."""
    config = compose(list(words)).config
    data = build(config["data"], where="data")
    return Job(config, data, fit.build_system(config, data, seed=config["seed"]).nets)


def time_runner(
    config: Node,
    others: dict[str, Callable[[int], None]],
    rounds: int,
    steps: int,
    now: common.Clock = time.perf_counter,
) -> Any:
    """(seconds per round of ``runner`` and of the others, the run card)."""
    times: common.Times = {name: [] for name in ("runner", *others)}

    def turns(*arguments: Any, **options: Any) -> Iterator[Images]:
        source = stream(*arguments, **options)
        for turn in range(rounds + 1):  # the first warms up
            start = now()
            yield from islice(source, steps)
            # The runner asks for the batch after this round: all that belongs to the round is done.
            times["runner"].append(now() - start)
            for name, run in others.items():
                start = now()
                run(steps)
                times[name].append(now() - start)
            if turn == 0:
                for seconds in times.values():
                    seconds.clear()
        yield from source

    with tempfile.TemporaryDirectory() as place, patch.object(fit, "stream", turns):
        folder = RunFolder.create(Path(place) / "run", config, {"status": "created"})
        fit.fit(folder, config, quiet=True)
        return times, folder.card()


def measure(case: Case, rounds: int, steps: int, threads: int, now: common.Clock, number_format: str) -> dict[str, Any]:
    total = steps * (rounds + 1) + 1  # one step more, so that the last round has a batch after it
    budget = (f"train.iterations={total}", f"trainer.threads={threads}", f"precision={number_format}")
    job = job_of([*case.words, *OFF, *budget])
    checked = {name: make for name, make in case.loops.items() if case.checked is None or name in case.checked}
    losses = refuse_unequal(job, checked, case.check)
    loops = {name: make(job, job.config["precision"]) for name, make in case.loops.items()}
    times, card = time_runner(job.config, {name: loop.run for name, loop in loops.items()}, rounds, steps, now)
    parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in job.nets.items()}
    own = precision.resolve(job.config["precision"], CPU)
    if card["parameters"] != parameters or card["precision"] != own:
        sys.exit(f"the runner trained {card['parameters']} in {card['precision']}, not {parameters} in {own}")
    goals = {name: {"at_least": goal, "needs_amx": name in case.amx_only} for name, goal in case.goals.items()}
    return {
        "subject": "runner",
        "batch_size": job.batch,
        "precision": card["precision"],
        "parameters": parameters,
        "equal_losses": losses,
        "ms_per_step": common.milliseconds(times, steps),
        "speed_over": common.ratios(times, "runner"),
        "goals": goals,
    }


def measure_precision(case: Case, rounds: int, steps: int, threads: int, now: common.Clock) -> dict[str, Any]:
    config = compose([*case.words, *OFF, f"trainer.threads={threads}"]).config
    data = build(config["data"], where="data")
    contestants: dict[str, Callable[[], None]] = {}
    formats: tuple[precision.Precision, ...] = ("32-true", "bf16-mixed")
    for name in formats:
        system = fit.build_system(config, data, seed=config["seed"])
        system.prepare(total=steps * (rounds + 1), precision=name)
        batches = stream(data.train, batch_size=config["train"]["batch_size"], seed=0)
        contestants[name] = _stepper(system.iterate, batches, steps)
    times = common.in_turns(contestants, rounds, now)
    return {
        "subject": "bf16-mixed",
        "batch_size": config["train"]["batch_size"],
        "precision": f"auto, which is {precision.resolve('auto', CPU)}",
        "ms_per_step": common.milliseconds(times, steps),
        "speed_over": common.ratios(times, "bf16-mixed"),
        "goals": {},
    }


def _stepper(iterate: Callable[[Images], None], batches: Iterator[Images], steps: int) -> Callable[[], None]:
    def work() -> None:
        for batch in islice(batches, steps):
            iterate(batch)

    return work


def show(name: str, record: dict[str, Any]) -> None:
    machine, threads = record["machine"], record["threads"]
    work = f"{record['rounds']} rounds of {record['steps']} steps"
    print(f"{name}: batch {record['batch_size']}, threads {threads}, {work}, precision {record['precision']}")
    print(f"  {machine['cpu']}, AMX {'yes' if machine['amx_bf16'] else 'no'}, {record['clock']} time")
    for loop, values in record["ms_per_step"].items():
        speed = 1e3 * record["batch_size"] / values["median"]
        line = f"  {loop:<10} {values['median']:>9.3f} ms/step {speed:>8.0f} images/s"
        if loop in record["speed_over"]:
            ratio = record["speed_over"][loop]
            line += f"   {record['subject']} is {ratio['of_medians']:.2f} x as fast ({ratio['paired']:.2f} paired)"
        goal = record["goals"].get(loop)
        if goal:
            line += f", goal >= {goal['at_least']:.2f}{' with AMX' if goal['needs_amx'] else ''}"
        print(line)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of benchmarks that time steps."""
    parser.add_argument("--steps", type=common.positive, help="per round (default: by case)")
    parser.add_argument("--threads", type=common.positive, help="of torch (default: by case)")
    formats = get_args(precision.Precision)
    parser.add_argument("--precision", choices=formats, default="auto", help="of runner and bare (default: auto)")
    parser.add_argument(
        "--clock", choices=common.CLOCKS, default="wall", help="cpu (best with --threads 1) if it is busy"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)} (default: all)")
    add_options(parser)
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.cases if name not in CASES]
    if unknown:
        parser.error(f"{unknown[0]}: there are {', '.join(CASES)}")
    for name in chosen.cases or CASES:
        case = CASES[name]
        rounds = chosen.rounds or (1 if chosen.quick else 9)
        steps = chosen.steps or (2 if chosen.quick else case.steps)
        threads = chosen.threads or case.threads
        machine = common.machine()
        torch.set_num_threads(threads)
        now = common.CLOCKS[chosen.clock]
        if name == "precision":
            found = measure_precision(case, rounds, steps, threads, now)
        else:
            found = measure(case, rounds, steps, threads, now, chosen.precision)
        shape = {"threads": threads, "rounds": rounds, "steps": steps, "clock": chosen.clock, "quick": chosen.quick}
        record = {"machine": machine, "words": case.words, **shape, **found}
        show(name, record)
        asked = chosen.precision != "auto" and name != "precision"
        common.write(f"{name}_{chosen.precision}" if asked else name, record, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
