"""Time of sampling from an autoregressive model: a walk that keeps what it computed beside the whole network at each
pixel.

    python benchmarks/sampling_ar.py [--model NAME] [--batches 1,64] [--rounds N] [--threads N] [--clock cpu]

Both are the system's own ``fill``. All pictures of the cached walk are made; of the plain one the first pixels, each of
which costs the same, and the rest is reckoned (``measured_pixels`` of ``pixels``). That both make the same pictures is
checked on all pixels: the whole network, shown the finished pictures, must draw each pixel again with the numbers that
the walk drew it with, which by induction over the pixels is what the plain sampler does. The weights are untrained but
for a spread of the outputs, so that pixels differ.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import common
import torch
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import build
from gentrain.engine.assemble import build_system
from gentrain.engine.sampling import at_rest

WORDS = ("data=fashion_mnist", "size=small", "metrics=none", "precision=32-true", "trainer=cpu")
QUICK = ("data=digits", "size=tiny", "metrics=none", "precision=32-true", "trainer=cpu")
GOALS = {"1": 20.0, "64": 200.0}
"""How many times as fast the cached walk is to be, by pictures at a time (model=gated_pixelcnn)."""

ROUNDING = 1e-4
"""Share of pixels that may fall on the other side of an edge between two levels."""


class EnoughError(Exception):
    """The plain sampler has made as many pixels as are timed."""


def fill(system: Any, n: int, seed: int, *, cached: bool, pixels: int | None = None) -> Tensor | None:
    """n pictures [n C H W], or None after so many pixels."""

    def watch(done: int, of: int) -> None:
        if done == pixels and done < of:
            raise EnoughError

    empty = torch.zeros(n, *system.spec.shape)
    labels = torch.zeros(n, dtype=torch.long) if system.conditional else None
    generator = torch.Generator().manual_seed(seed)
    try:
        filled: Tensor = system.fill(
            empty,
            torch.zeros_like(empty, dtype=torch.bool),
            labels=labels,
            generator=generator,
            cached=cached,
            watch=watch,
        )
    except EnoughError:
        return None
    return filled


def differing(system: Any, made: Tensor, seed: int) -> int:
    """Numbers of the pictures that the whole network would have drawn otherwise with the same random numbers."""
    net, head, c = system.nets["net"], system.head, system.spec.channels
    told = system.nets["condition"](torch.zeros(len(made), dtype=torch.long)) if system.conditional else None
    generator = torch.Generator().manual_seed(seed)
    output, found = net(made, told), 0
    for row, column in net.walk(made, told).places:
        pixel = made[:, :, row, column]
        drawn = torch.zeros_like(pixel)
        for colour in range(head.colours(c)):
            uniform = torch.rand(len(made), head.uniforms(c), generator=generator)
            drawn = head.draw_pixel(output[:, :, row, column], drawn, colour, uniform, 1.0)
        found += int(((drawn - pixel).abs() > 1e-4).sum())
    return found


def spread(system: Any) -> None:
    """Outputs as various as a trained network's: weights of the last layer times 20."""
    last = list(system.nets["net"].parameters())[-2]
    last.data.mul_(20.0)


def measure(system: Any, n: int, rounds: int, pixels: int, clock: common.Clock) -> dict[str, Any]:
    made = fill(system, n, 0, cached=True)
    assert made is not None
    wrong = differing(system, made, 0)
    if wrong > ROUNDING * made.numel():
        sys.exit(f"batch {n}: {wrong} of {made.numel()} pixels are not those of the whole network")
    if len(made.unique()) < 2:
        sys.exit(f"batch {n}: all pixels are alike, which shows nothing")
    whole = len(system.nets["net"].walk(made).places)
    pixels = min(pixels, whole)
    times = common.in_turns(
        {
            "cached": lambda: fill(system, n, 0, cached=True),
            "plain": lambda: fill(system, n, 0, cached=False, pixels=pixels),
        },
        rounds,
        clock,
    )
    times["plain"] = [value * whole / pixels for value in times["plain"]]
    return {
        "pixels": whole,
        "measured_pixels": {"cached": whole, "plain": pixels},
        "pixels_differing": wrong,
        "seconds": {name: common.summary(values) for name, values in times.items()},
        "images_per_second": {name: round(n / common.summary(values)["median"], 3) for name, values in times.items()},
        "speed_over": common.ratios(times, "cached"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split(":", 1)[0])
    parser.add_argument("--model", default="gated_pixelcnn", help="of the family (default: %(default)s)")
    parser.add_argument("--batches", default="1,64", help="pictures at a time (default: %(default)s)")
    parser.add_argument(
        "--pixels", type=common.positive, default=28, help="of the plain sampler (default: %(default)s)"
    )
    parser.add_argument("--threads", type=common.positive, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--clock", choices=common.CLOCKS, default="wall", help="cpu if the machine is busy")
    chosen = parser.parse_args(argv)
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    words = (f"model={chosen.model}", *(QUICK if chosen.quick else WORDS))
    batches = [common.positive(part) for part in ("1,3" if chosen.quick else chosen.batches).split(",")]
    machine = common.machine()
    torch.set_num_threads(chosen.threads)
    config = compose(words).config
    system = build_system(config, build(config["data"], where="data"), seed=config["seed"])
    spread(system)
    with at_rest(system, "raw"):
        found = {str(n): measure(system, n, rounds, chosen.pixels, common.CLOCKS[chosen.clock]) for n in batches}
    goals = {n: goal for n, goal in GOALS.items() if n in found and chosen.model == "gated_pixelcnn"}
    for n, values in found.items():
        times, faster = values["seconds"], values["speed_over"]["plain"]["of_medians"]
        goal = f", goal >= {goals[n]:g}" if n in goals else ""
        print(
            f"{chosen.model}, {n} at a time: {times['cached']['median']:.3f} s cached, "
            f"{times['plain']['median']:.1f} s plain, {faster:.0f} x as fast{goal}; "
            f"{values['pixels_differing']} pixels differ"
        )
    record = {
        "machine": machine,
        "words": words,
        "threads": chosen.threads,
        "rounds": rounds,
        "clock": chosen.clock,
        "quick": chosen.quick,
        "parameters": sum(p.numel() for p in system.nets["net"].parameters()),
        "batches": found,
        "goals": goals,
    }
    common.write(f"sampling_{chosen.model}", record, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
