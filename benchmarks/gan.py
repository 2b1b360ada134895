"""Time of GANs: the runner beside the best loops we know how to write by hand, plain loops, and torchgan's trainer.

    python benchmarks/gan.py [torchgan] [wgan_gp] [loops] [sampling] [--torchgan FOLDER] [--rounds N] [--steps N]
                             [--threads N] [--clock cpu] [--precision bf16-mixed]

Width 64, batch 64, images of 32x32. As in ``throughput.py`` the runner is the whole of it, and loops that do not have
its losses on the same batches and noise are refused.

``torchgan``: the same DCGAN trained by torchgan 0.1.0. Its requirements would replace what is measured, so it stands in
a folder of its own: ``pip install --no-deps --target FOLDER torchgan==0.1.0`` (torchvision is needed too). Left out
where it is not found. It runs with current versions as it is, but for the pictures at the end of an epoch, which are
off here. What else is not alike stands in the results, under ``differs``.
``wgan_gp``: beside a plain float32 loop too.
``loops``: every kind of training step that the GANs have, beside its best bare loop: ``--only NAME,NAME`` for some.
``sampling``: drawing 1,024 samples as ``gentrain sample`` does, beside a plain float32 loop of batches of 64.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import common
import gan_loops as by_hand
import torch
from loops import CPU, Bare, Job
from throughput import OFF, Case, MakesLoop, add_options, job_of, measure, refuse_unequal, show
from torch import Tensor, nn

from gentrain.engine import fit, precision
from gentrain.engine.sampling import draw
from gentrain.nets.layers import ToOneChannel

DATA = ("data=fashion_mnist", "data.size=32", "size=small", "model.net.width=64")
FIVE = ("model.players.generator.every.first=0", "model.players.generator.every.ahead=5")
"""Five critic steps from the start: the opening of WGAN's schedule is longer than these runs."""


def _case(model: str, bare: MakesLoop, *more: str, check: int = 3) -> Case:
    return Case((f"model={model}", *DATA, *more), 2, 50, {"bare": 0.95}, loops={"bare": bare}, check=check)


LOOPS = {
    "dcgan": _case("dcgan", Bare),
    "lsgan": _case("lsgan", by_hand.BareLeastSquares),
    "wgan": _case("wgan", by_hand.BareWasserstein, *FIVE, check=6),
    "wgan_gp": _case("wgan_gp", by_hand.BarePenalised, check=6),
    "sngan": _case("sngan", by_hand.BareHinge, check=4),
    "cgan": _case("cgan", Bare),
    "acgan": _case("acgan", by_hand.BareAuxiliary),
}
WGAN_GP = replace(
    LOOPS["wgan_gp"],
    goals={"tutorial": 1.5, "bare": 0.95},
    amx_only=("tutorial",),
    loops={"tutorial": by_hand.TutorialPenalised, "bare": by_hand.BarePenalised},
)
TORCHGAN_GOAL, SAMPLING_GOAL = 2.4, 2.5
SAMPLES, PLAIN_BATCH = 1024, 64


def measure_torchgan(shape: Sequence[Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        loops: dict[str, MakesLoop] = {"bare": Bare}
        found, differs = {}, ()
        if by_hand.has_torchgan():
            made = partial(_torchgan, place)
            loops |= {"bare_fresh": by_hand.FreshBare, "torchgan": made}
            # torchgan's generator moves on samples of its own: so does the runner's here, so that losses can be equal.
            job = job_of([*LOOPS["dcgan"].words, "model.fresh_noise=true", *OFF])
            fresh = {"bare_fresh": by_hand.FreshBare, "torchgan": made}
            equal = refuse_unequal(job, fresh)
            found = {"equal_losses_fresh": equal, "parameters_torchgan": by_hand.TorchGAN(job, place).parameters}
            differs = by_hand.TorchGAN.differs
        goals = {"torchgan": TORCHGAN_GOAL, "bare": 0.95} if found else {"bare": 0.95}
        case = replace(LOOPS["dcgan"], goals=goals, amx_only=("torchgan",), loops=loops, checked=("bare",))
        return {**measure(case, *shape), **found, "differs": list(differs)}


def _torchgan(place: str, job: Job, number_format: precision.Precision) -> by_hand.TorchGAN:
    return by_hand.TorchGAN(job, place)


def measure_sampling(rounds: int, threads: int, now: common.Clock, number_format: precision.Precision) -> Any:
    """Of a DCGAN with its first weights; batch norm has seen a few batches, so that its statistics are some."""
    config = LOOPS["dcgan"].words
    job = job_of([*config, *OFF, f"trainer.threads={threads}", f"precision={number_format}"])
    resolved = precision.resolve(number_format, CPU)
    system = fit.build_system(job.config, job.data, seed=job.config["seed"])
    system.prepare(total=1, precision=resolved)
    with torch.no_grad():
        for _ in range(3):
            system.nets["generator"](torch.randn(job.batch, job.latent))
    plain = as_torch_has_it(copy.deepcopy(system.nets["generator"]).to(memory_format=torch.contiguous_format).eval())
    best = copy.deepcopy(system.nets["generator"]).eval()
    contestants = {
        "runner": lambda: draw(system, SAMPLES, seed=0, weights="raw"),
        "plain": lambda: sample_plainly(plain, job.latent),
        "bare": lambda: sample_best(best, job.latent, resolved),
    }
    error = refuse_other_samples(system, plain, best, job.latent, resolved)
    times = common.in_turns(contestants, rounds, now)
    goals = {"plain": {"at_least": SAMPLING_GOAL, "needs_amx": True}, "bare": {"at_least": 0.95, "needs_amx": False}}
    return {
        "words": config,
        "subject": "runner",
        "samples": SAMPLES,
        "precision": resolved,
        "largest_difference": error,
        "ms_per_sample": common.milliseconds(times, SAMPLES),
        "speed_over": common.ratios(times, "runner"),
        "goals": goals,
    }


def as_torch_has_it(net: nn.Module) -> nn.Module:
    """Without the short cut in the last layer."""
    for layer in net.modules():
        if isinstance(layer, ToOneChannel):
            layer.__class__ = nn.ConvTranspose2d
    return net


@torch.no_grad()
def sample_plainly(generator: nn.Module, latent: int, seed: int | None = None) -> Tensor:
    noise = None if seed is None else torch.Generator().manual_seed(seed)
    sizes = range(0, SAMPLES, PLAIN_BATCH)
    return torch.cat([generator(torch.randn(PLAIN_BATCH, latent, generator=noise)) for _ in sizes])


@torch.inference_mode()
def sample_best(generator: nn.Module, latent: int, number_format: str, seed: int | None = None) -> Tensor:
    """channels_last (the network's own layout here), bf16 where the runner would take it."""
    noise = None if seed is None else torch.Generator().manual_seed(seed)
    sizes = range(0, SAMPLES, PLAIN_BATCH)
    with precision.autocast(number_format, CPU):
        return torch.cat([generator(torch.randn(PLAIN_BATCH, latent, generator=noise)).float() for _ in sizes])


def refuse_other_samples(system: Any, plain: nn.Module, best: nn.Module, latent: int, number_format: str) -> float:
    """SystemExit unless all three make the same images of the same noise; the largest difference, of 2."""
    own = draw(system, PLAIN_BATCH, seed=0, weights="raw")
    bound = 1e-4 if number_format == "32-true" else 0.1
    differences = [
        float((own - sample_plainly(plain, latent, seed=0)[:PLAIN_BATCH]).abs().max()),
        float((own - sample_best(best, latent, number_format, seed=0)[:PLAIN_BATCH]).abs().max()),
    ]
    if max(differences) > bound:
        sys.exit(f"the runner and the loops do not draw the same samples: they differ by {max(differences):.4f}")
    return round(max(differences), 7)


def show_sampling(record: dict[str, Any]) -> None:
    print(f"sampling: {SAMPLES} samples, {record['rounds']} rounds, {record['precision']}, {record['clock']} time")
    for name, values in record["ms_per_sample"].items():
        line = f"  {name:<10} {1e3 / values['median']:>8.0f} images/s"
        if name in record["speed_over"]:
            line += f"   runner is {record['speed_over'][name]['of_medians']:.2f} x as fast"
            line += f", goal >= {record['goals'][name]['at_least']:.2f}"
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split("\n", 1)[0])
    cases = ("torchgan", "wgan_gp", "loops", "sampling")
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(cases)} (default: all)")
    parser.add_argument("--torchgan", metavar="FOLDER", help="where torchgan was installed by --target")
    parser.add_argument("--only", metavar="NAMES", help=f"of loops: {','.join(LOOPS)}")
    add_options(parser)
    chosen = parser.parse_args(argv)
    names = chosen.only.split(",") if chosen.only else list(LOOPS)
    for given, known in ((chosen.cases, cases), (names, LOOPS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"{unknown[0]}: there are {', '.join(known)}")
    if chosen.torchgan:
        sys.path.append(chosen.torchgan)
    threads = chosen.threads or 2
    rounds = chosen.rounds or (1 if chosen.quick else 9)
    steps = chosen.steps or (2 if chosen.quick else 50)
    torch.set_num_threads(threads)
    now = common.CLOCKS[chosen.clock]
    shape = (rounds, steps, threads, now, chosen.precision)
    asked = "" if chosen.precision == "auto" else f"_{chosen.precision}"
    about = {"threads": threads, "rounds": rounds, "clock": chosen.clock, "quick": chosen.quick}
    for case in chosen.cases or cases:
        record: dict[str, Any] = {"machine": common.machine(), **about}
        if case == "sampling":
            record |= measure_sampling(rounds, threads, now, chosen.precision)
            show_sampling(record)
        elif case == "loops":
            record |= {"steps": steps, "loops": {}, "goals": {"bare": {"at_least": 0.95, "needs_amx": False}}}
            for name in names:
                found = {"words": LOOPS[name].words, **measure(LOOPS[name], *shape)}
                show(name, {**record, **found})
                record["loops"][name] = found
                common.write(f"gan_{case}{asked}", record, chosen.out)
        else:
            found = measure_torchgan(shape) if case == "torchgan" else measure(WGAN_GP, *shape)
            words = LOOPS["dcgan" if case == "torchgan" else "wgan_gp"].words
            record |= {"words": words, "steps": steps, **found}
            show(case, record)
        common.write(f"gan_{case}{asked}", record, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
