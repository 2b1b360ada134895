"""Does a latent that DC-IGN ties to a factor mean it? Trains on shapes, reads factors from codes, moves latents.

    python benchmarks/dcign.py [--iterations N] [--seed N] [--picture FILE] [--out FOLDER]

``read``: R^2 of the best line from a factor's own latents to it, on half of the codes of test images, fitted on the
other half; ``from_others``: of the line from all other latents. An angle counts up to what can be seen of it: for each
shape that looks the same k times in a turn the line is to (cos k a, sin k a), and R^2 is the mean over shapes, each
with a line of its own; a shape that looks the same at all angles is left out. ``moved``: what changes in the decoded
picture when one latent goes from its 2 % to its 98 % quantile over the test images and the others stand still, averaged
over images: size (square root of the brightness, in parts of that at the middle) and centroid (in parts of the side).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor

from gentrain.compose import compose
from gentrain.config import build
from gentrain.data.raster import SYMMETRY
from gentrain.data.stream import stream
from gentrain.engine.assemble import build_system, check_config
from gentrain.evaluation.randomness import at_evaluation
from gentrain.report.pictures import grid
from gentrain.types import to_bytes

WORDS = ("experiment=dcign_shapes", "trainer=cpu", "metrics=none")
COLUMNS = {"size": 2, "x": 3, "y": 4}
STEPS = 11


def determination(codes: Tensor, target: Tensor) -> float:
    """R^2 on the second half of the rows of the line fitted on the first: codes [N Z], target [N K]."""
    inputs, half = torch.cat([codes, torch.ones(len(codes), 1, dtype=codes.dtype)], dim=1), len(codes) // 2
    line = torch.linalg.lstsq(inputs[:half], target[:half]).solution
    left = (target[half:] - inputs[half:] @ line).square().sum()
    return 1.0 - float(left / (target[half:] - target[half:].mean(0)).square().sum())


def look(images: Tensor) -> Tensor:
    """[B 3]: square root of the brightness, x and y of its centroid in parts of the side; images in [-1, 1]."""
    light = (images.double() + 1).clamp_min(0).mean(1)  # [B H W]
    places = (torch.arange(light.shape[-1], dtype=torch.float64) + 0.5) / light.shape[-1]
    total = light.sum((1, 2))
    across, down = (light.sum(1) @ places) / total, (light.sum(2) @ places) / total
    return torch.stack((total.sqrt(), across, down), dim=1)


def measure(system: Any, data: Any, count: int, picture: Path | None) -> dict[str, Any]:
    images = data.test.all(count)
    values = data.test.truth.values(images.index)[:, 0].double()
    read, others, moved, rows = {}, {}, {}, []
    with torch.no_grad(), at_evaluation(system):
        z = torch.cat([system.encode(part) for part in images.x.split(250)])
        codes = z.double()
        for name, places in system.coupling.places.items():
            rest = [j for j in range(codes.shape[1]) if j not in places]
            read[name] = known(name, codes[:, list(places)], values)
            others[name] = known(name, codes[:, rest], values)
            for j in places:
                ends = torch.quantile(z[:, j], torch.tensor([0.02, 0.5, 0.98]))
                shown = [look(system.decode(set_to(z[:200], j, end))) for end in ends]
                change = shown[2] - shown[0]
                change[:, 0] /= shown[1][:, 0]
                moved[f"{name}[{j}]"] = dict(zip(COLUMNS, change.abs().mean(0).tolist(), strict=True))
                between = torch.linspace(float(ends[0]), float(ends[2]), STEPS)
                rows.append(system.decode(set_to(z[5:6].expand(STEPS, -1), j, between)))
        if picture is not None:
            made = to_bytes(torch.cat([system.decode(z[5 : 5 + STEPS]), *rows]))
            grid(torch.cat([images.x[5 : 5 + STEPS], made]), picture, columns=STEPS)
    return {"read": read, "from_others": others, "moved": moved}


def known(name: str, codes: Tensor, values: Tensor) -> float:
    """R^2 of a factor from codes [N Z]; ``values``: all factors [N 6] in the order of the data."""
    if name in COLUMNS:
        return determination(codes, values[:, [COLUMNS[name]]])
    return of_angle(codes, values[:, 0].long(), values[:, 5])


def of_angle(codes: Tensor, kinds: Tensor, degrees: Tensor, symmetry: Sequence[int] = SYMMETRY) -> float:
    """``symmetry``: angles of a turn at which each shape looks the same; 0 for all."""
    found = []
    for kind, folds in enumerate(symmetry):
        of = kinds == kind
        if folds and bool(of.any()):
            found.append(determination(codes[of], circle(folds * degrees[of])))
    return sum(found) / len(found)


def circle(degrees: Tensor) -> Tensor:
    return torch.stack((degrees.deg2rad().cos(), degrees.deg2rad().sin()), dim=1)


def set_to(z: Tensor, j: int, value: Tensor) -> Tensor:
    changed = z.clone()
    changed[:, j] = value
    return changed


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--iterations", type=common.positive, default=4000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--test-images", type=common.positive, default=2000)
    options.add_argument("--picture", type=Path)
    options.add_argument("--out", type=Path, default=common.RESULTS)
    given = options.parse_args()
    torch.set_num_threads(1)
    config = compose([*WORDS, f"train.iterations={given.iterations}", f"seed={given.seed}"]).config
    check_config(config)
    data = build(config["data"], where="data")
    system = build_system(config, data, seed=given.seed)
    system.prepare(total=given.iterations)
    begun, used = time.perf_counter(), time.process_time()
    batches = stream(data.train, batch_size=config["train"]["batch_size"], seed=given.seed)
    for batch in islice(batches, given.iterations):
        system.iterate(batch)
    record = {
        "machine": common.machine(),
        "words": list(WORDS),
        "iterations": given.iterations,
        "seed": given.seed,
        "test_images": given.test_images,
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        **measure(system, data, given.test_images, given.picture),
    }
    print(common.write("dcign", record, given.out))


if __name__ == "__main__":
    main()
