"""Two training loops written by hand, over the networks and the numbers of the runner's own config.

They are DCGAN's; ``gan_loops.py`` has those of other GANs, each of which says what it does otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gentrain.config import Node, build
from gentrain.data.dataset import DataSet
from gentrain.engine import precision
from gentrain.engine.player import Moves, make_optimizer
from gentrain.types import Images

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """What the loops share: untrained networks and numbers from the runner's config, and the data."""

    config: Node
    data: DataSet
    nets: nn.ModuleDict

    @property
    def latent(self) -> int:
        return int(self.config["model"]["latent"])

    @property
    def batch(self) -> int:
        return int(self.config["train"]["batch_size"])

    @property
    def pixels(self) -> Tensor:
        """uint8 [N C H W]."""
        return self.data.train.all().x

    @property
    def labels(self) -> Tensor | None:
        """int64 [N] where the model is told classes."""
        return self.data.train.all().y if self.config["model"].get("labels") else None

    def moves(self, player: str) -> Moves:
        """How the player moves, as the runner has it."""
        made: Moves = build(self.config["model"]["players"][player], where=player)
        return made

    def adam(self, player: str) -> dict[str, Any]:
        numbers = self.config["model"]["players"][player]["optimizer"]
        return {"lr": numbers["lr"], "betas": tuple(numbers["betas"])}


Losses = tuple[Tensor | float, Tensor | float | None]
"""Of critic and generator; None where the generator did not move."""


class Loop(Protocol):
    def run(self, steps: int) -> None:
        """So many batches of its own."""
        ...

    def losses(self, batch: Images) -> Losses:
        """One iteration on this batch."""
        ...


class Scaled(Dataset[Tensor]):
    """One sample at a time, brought to [-1, 1] as torchvision's ToTensor and Normalize(0.5, 0.5) do, without PIL."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: int) -> Tensor:
        return (self.pixels[place].float() / 255.0 - 0.5) / 0.5


class Tutorial:
    """The loop of most tutorials; always in float32."""

    def __init__(self, job: Job, number_format: precision.Precision = "32-true") -> None:
        nets = copy.deepcopy(job.nets)
        self.generator, self.critic, self.latent = nets["generator"], nets["critic"], job.latent
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), **job.adam("critic"))
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), **job.adam("generator"))
        self.loader = DataLoader(Scaled(job.pixels), job.batch, shuffle=True, drop_last=True)
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Tensor]:
        while True:
            yield from self.loader

    def run(self, steps: int) -> None:
        for real in islice(self.batches, steps):
            self.step(real)

    def losses(self, batch: Images) -> Losses:
        return self.step(batch.signed)

    def step(self, real: Tensor) -> tuple[float, float | None]:
        """Losses of critic and generator for ``real`` float32 [B C H W] in [-1, 1]."""
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = self.generator(torch.randn(len(real), self.latent))
        self.critic_optimizer.zero_grad()
        on_real = F.binary_cross_entropy_with_logits(self.critic(real), ones)
        on_fake = F.binary_cross_entropy_with_logits(self.critic(fake.detach()), zeros)
        critic_loss = on_real + on_fake
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimizer.step()
        self.generator_optimizer.zero_grad()
        generator_loss = F.binary_cross_entropy_with_logits(self.critic(fake), ones)
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.generator_optimizer.step()
        return critic_loss.item(), generator_loss.item()


class Bare:
    """Batches indexed in memory, fused Adam, no gradients for the critic in the generator's step, one pass through the
    generator where the model allows it, channels_last, bf16 where the runner would take it, foreach for the average."""

    shares_samples = True
    """Whether the generator moves on those that the critic has just seen."""

    averages: tuple[str, ...] = ("generator",)

    def __init__(self, job: Job, number_format: precision.Precision = "auto") -> None:
        nets = copy.deepcopy(job.nets)
        if job.data.spec.is_image:
            nets.to(memory_format=torch.channels_last)
        self.generator, self.critic, self.latent, self.batch = nets["generator"], nets["critic"], job.latent, job.batch
        self.critic_weights = list(self.critic.parameters())
        self.critic_moves, self.generator_moves = job.moves("critic"), job.moves("generator")
        # Fused, and spared the look for a GPU driver in every step.
        self.critic_optimizer = make_optimizer(self.critic_moves.optimizer, self.critic_weights)
        self.generator_optimizer = make_optimizer(self.generator_moves.optimizer, list(self.generator.parameters()))
        self.weights: list[Tensor] = [weight for name in self.averages for weight in nets[name].parameters()]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.decay = float(job.config["model"]["ema"]["decay"])
        self.pixels, self.labels, self.format = job.pixels, job.labels, precision.resolve(number_format, CPU)
        self.iteration, self.total = 0, int(job.config["train"]["iterations"])
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        while True:
            order = torch.randperm(len(self.pixels))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                rows = order[start : start + self.batch]
                labels = None if self.labels is None else self.labels.index_select(0, rows)
                yield self.pixels.index_select(0, rows), labels

    def run(self, steps: int) -> None:
        for pixels, labels in islice(self.batches, steps):
            self.step(pixels, labels)

    def losses(self, batch: Images) -> Losses:
        return self.step(batch.x, None if self.labels is None else batch.y)

    def step(self, pixels: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Losses of critic and generator for uint8 [B C H W] and int64 [B]."""
        self.iteration += 1
        real = pixels.float().div_(127.5).sub_(1.0)
        if real.ndim == 4:
            real = real.contiguous(memory_format=torch.channels_last)
        moves = self._generator_moves()
        shared = moves and self.shares_samples
        self._let_critic_learn(True)
        self.critic_optimizer.zero_grad(set_to_none=True)
        with precision.autocast(self.format, CPU):
            with torch.set_grad_enabled(shared):
                fake = self.generate(len(real), labels)
            critic_loss = self.critic_loss(real, fake.detach(), labels)
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self._step(self.critic_optimizer, self.critic_moves)
        self.constrain()
        generator_loss = self._move_generator(fake if shared else None, len(real), labels) if moves else None
        if moves or "critic" in self.averages:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.weights, 1.0 - self.decay)
        return critic_loss.detach(), generator_loss

    def _move_generator(self, fake: Tensor | None, n: int, labels: Tensor | None) -> Tensor:
        self._let_critic_learn(False)
        self.generator_optimizer.zero_grad(set_to_none=True)
        with precision.autocast(self.format, CPU):
            loss = self.generator_loss(self.generate(n, labels) if fake is None else fake, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._step(self.generator_optimizer, self.generator_moves)
        return loss.detach()

    def generate(self, n: int, labels: Tensor | None) -> Tensor:
        z = torch.randn(n, self.latent)
        made: Tensor = self.generator(z) if labels is None else self.generator(z, labels)
        return made

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        on_real, on_fake = self.critic(real, labels), self.critic(fake, labels)
        return F.softplus(-on_real.float()).mean() + F.softplus(on_fake.float()).mean()

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        return F.softplus(-self.critic(fake, labels).float()).mean()

    def constrain(self) -> None:
        """What is done to the critic's weights after its step."""

    def _generator_moves(self) -> bool:
        every = self.generator_moves.every
        return every(self.iteration) if callable(every) else self.iteration % every == 0

    def _step(self, optimizer: torch.optim.Optimizer, moves: Moves) -> None:
        if moves.schedule is not None:
            rate = moves.optimizer.keywords["lr"]  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group["lr"] = rate * moves.schedule(self.iteration, self.total)
        optimizer.step()

    def _let_critic_learn(self, wanted: bool) -> None:
        for weight in self.critic_weights:
            weight.requires_grad_(wanted)
