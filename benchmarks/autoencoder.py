"""Time of a training step of a dense VAE: the runner beside a bare loop and beside pythae's trainer, on the same
network, data, batch size and loss.

    python benchmarks/autoencoder.py [--rounds N] [--steps N] [--threads N] [--clock cpu]

The runner is the whole of it, as in ``throughput.py``. ``bare``: the best loop we know how to write by hand.
``pythae``: an epoch of ``BaseTrainer.train_step`` per round, without its checkpoints (``pip install pythae==0.1.2``;
left out where it is not installed). The network is pythae's default: 784-512-10 and back, ReLU, cross-entropy with
grey pixels.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import islice
from typing import Any

import common
import torch
import torch.nn.functional as F
from throughput import OFF, time_runner
from torch import Tensor, nn

from gentrain.compose import compose
from gentrain.config import Node, build
from gentrain.data.stream import stream
from gentrain.engine import fit
from gentrain.engine.player import make_optimizer

WORDS = (
    *("model=vae", "data=fashion_mnist", "size=small", "model/net=mlp_vae", "model.net.hidden=[512]"),
    *("model.latent=10", "loss.binarize=none", *OFF, "train.batch_size=128", "precision=32-true"),
)
GOALS = {"bare": 1.0 / 1.5, "pythae": 1.8}
"""The least speed of the runner over that of each."""


class Bare:
    """Batches indexed in memory, fused Adam, the loss in three lines."""

    def __init__(self, nets: nn.ModuleDict, pixels: Tensor, batch: int, rate: float) -> None:
        nets = copy.deepcopy(nets)
        self.encoder, self.decoder = nets["encoder"], nets["decoder"]
        parameters = list(nets.parameters())
        self.adam = make_optimizer(lambda own, **more: torch.optim.Adam(own, lr=rate, **more), parameters)
        self.pixels, self.batch, self.batches = pixels, batch, self._epochs(pixels, batch)

    @staticmethod
    def _epochs(pixels: Tensor, batch: int) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(pixels))
            for start in range(0, len(order) - batch + 1, batch):
                yield pixels.index_select(0, order[start : start + batch])

    def run(self, steps: int) -> None:
        for pixels in islice(self.batches, steps):
            self.step(pixels)

    def step(self, pixels: Tensor) -> float:
        """Minus the ELBO of uint8 [B C H W], nats per image."""
        unit = pixels.float().div_(255.0)
        mu, log_variance = self.encoder(unit * 2.0 - 1.0).chunk(2, dim=1)
        z = torch.addcmul(mu, torch.randn_like(mu), (0.5 * log_variance).exp())
        error = F.binary_cross_entropy_with_logits(self.decoder(z), unit, reduction="sum")
        divergence = -0.5 * (1.0 + log_variance - mu.square() - log_variance.exp()).sum()
        loss = (error + divergence) / len(pixels)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        return loss.item()


def pythae_epochs(pixels: Tensor, batch: int, rate: float, place: str) -> Callable[[int], None]:
    """``run(steps)``: an epoch of pythae's trainer over ``steps`` batches of images in [0, 1]."""
    from pythae.data.datasets import BaseDataset  # type: ignore[import-not-found]
    from pythae.models import VAE, VAEConfig  # type: ignore[import-not-found]
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # type: ignore[import-not-found]

    logging.disable(logging.INFO)
    model = VAE(VAEConfig(input_dim=tuple(pixels.shape[1:]), latent_dim=10, reconstruction_loss="bce"))
    trainers: dict[int, Any] = {}

    def run(steps: int) -> None:
        if steps not in trainers:
            unit = pixels[: steps * batch].float() / 255.0
            numbers = {"num_epochs": 1, "learning_rate": rate, "per_device_train_batch_size": batch, "no_cuda": True}
            config = BaseTrainerConfig(output_dir=place, **numbers)
            trainers[steps] = BaseTrainer(model, BaseDataset(unit, torch.zeros(len(unit))), training_config=config)
            trainers[steps].prepare_training()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            trainers[steps].train_step(1)

    return run


def refuse_unequal(config: Node, data: Any, iterations: int = 3) -> float:
    """Train the runner and the bare loop on the same batches and noise: SystemExit unless their losses agree."""
    system = fit.build_system(config, data, seed=config["seed"])
    bare = _bare(config, data, system.nets)
    system.prepare(total=iterations)
    batches = list(islice(stream(data.train, batch_size=bare.batch, seed=0), iterations))
    torch.manual_seed(0)
    for batch in batches:
        system.iterate(batch)
    mean = sum(value for key, value in system.report().items() if key.startswith("loss/"))
    torch.manual_seed(0)
    by_hand = sum(bare.step(batch.x) for batch in batches) / iterations
    if abs(mean - by_hand) > 1e-3 * abs(by_hand):
        sys.exit(f"the bare loop and the runner do not compute the same: {by_hand:.4f}, {mean:.4f}")
    return round(by_hand, 4)


def _bare(config: Node, data: Any, nets: nn.ModuleDict) -> Bare:
    rate = config["model"]["players"]["autoencoder"]["optimizer"]["lr"]
    return Bare(nets, data.train.all().x, config["train"]["batch_size"], rate)


def measure(rounds: int, steps: int, threads: int, clock: common.Clock) -> dict[str, Any]:
    total = steps * (rounds + 1) + 1  # one step more, so that the last round has a batch after it
    config = compose([*WORDS, f"train.iterations={total}", f"trainer.threads={threads}"]).config
    data = build(config["data"], where="data")
    loss = refuse_unequal(config, data)
    nets = fit.build_system(config, data, seed=config["seed"]).nets
    bare = _bare(config, data, nets)
    others: dict[str, Callable[[int], None]] = {"bare": bare.run}
    with tempfile.TemporaryDirectory() as place:
        if importlib.util.find_spec("pythae") is not None:
            rate = config["model"]["players"]["autoencoder"]["optimizer"]["lr"]
            others["pythae"] = pythae_epochs(bare.pixels, bare.batch, rate, place)
        times, card = time_runner(config, others, rounds, steps, clock)
    return {
        "subject": "runner",
        "batch_size": bare.batch,
        "precision": card["precision"],
        "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()},
        "equal_loss": loss,
        "pythae": metadata.version("pythae") if "pythae" in others else None,
        "ms_per_step": common.milliseconds(times, steps),
        "speed_over": common.ratios(times, "runner"),
        "goals": {name: goal for name, goal in GOALS.items() if name in others},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split(":", 1)[0])
    parser.add_argument("--steps", type=common.positive, default=None, help="per round (default: 100)")
    parser.add_argument("--threads", type=common.positive, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--clock", choices=common.CLOCKS, default="wall", help="cpu if the machine is busy")
    chosen = parser.parse_args(argv)
    rounds = chosen.rounds or (1 if chosen.quick else 9)
    steps = chosen.steps or (2 if chosen.quick else 100)
    machine = common.machine()
    torch.set_num_threads(chosen.threads)
    found = measure(rounds, steps, chosen.threads, common.CLOCKS[chosen.clock])
    shape = {"threads": chosen.threads, "rounds": rounds, "steps": steps, "clock": chosen.clock, "quick": chosen.quick}
    print(f"dense VAE, batch {found['batch_size']}, {rounds} rounds of {steps} steps, {chosen.clock} time")
    for name, values in found["ms_per_step"].items():
        speed = 1e3 * found["batch_size"] / values["median"]
        line = f"  {name:<8} {values['median']:>8.3f} ms/step {speed:>8.0f} images/s"
        if name in found["speed_over"]:
            line += f"   runner is {found['speed_over'][name]['of_medians']:.2f} x as fast, goal >= {GOALS[name]:.2f}"
        print(line)
    common.write("autoencoder", {"machine": machine, "words": WORDS, **shape, **found}, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
