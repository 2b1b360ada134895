"""Two training loops written by hand, over the networks and the numbers of the runner's own config."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gentrain.config import Node, build
from gentrain.data.dataset import DataSet
from gentrain.engine import precision
from gentrain.engine.player import make_optimizer

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

    def adam(self, player: str) -> dict[str, Any]:
        numbers = self.config["model"]["players"][player]["optimizer"]
        return {"lr": numbers["lr"], "betas": tuple(numbers["betas"])}


class Scaled(Dataset[Tensor]):
    """One sample at a time, brought to [-1, 1] as torchvision's ToTensor and Normalize(0.5, 0.5) do, without PIL."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, place: int) -> Tensor:
        return (self.pixels[place].float() / 255.0 - 0.5) / 0.5


class Tutorial:
    def __init__(self, job: Job) -> None:
        nets = copy.deepcopy(job.nets)
        self.generator, self.critic, self.latent = nets["generator"], nets["critic"], job.latent
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), **job.adam("critic"))
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), **job.adam("generator"))
        self.loader = DataLoader(Scaled(job.pixels), job.batch, shuffle=True, drop_last=True)
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Tensor]:
        while True:
            yield from self.loader

    def run(self, steps: int) -> None:
        for real in islice(self.batches, steps):
            self.step(real)

    def step(self, real: Tensor) -> tuple[float, float]:
        """Losses of critic and generator for ``real`` float32 [B C H W] in [-1, 1]."""
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = self.generator(torch.randn(len(real), self.latent))
        self.critic_adam.zero_grad()
        on_real = F.binary_cross_entropy_with_logits(self.critic(real), ones)
        on_fake = F.binary_cross_entropy_with_logits(self.critic(fake.detach()), zeros)
        critic_loss = on_real + on_fake
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_adam.step()
        self.generator_adam.zero_grad()
        generator_loss = F.binary_cross_entropy_with_logits(self.critic(fake), ones)
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.generator_adam.step()
        return critic_loss.item(), generator_loss.item()


class Bare:
    """Batches indexed in memory, fused Adam, no gradients for the critic in the generator's step, one pass through the
    generator, channels_last, bf16 where the runner would take it."""

    def __init__(self, job: Job, number_format: precision.Precision = "auto") -> None:
        nets = copy.deepcopy(job.nets)
        if job.data.spec.is_image:
            nets.to(memory_format=torch.channels_last)
        self.generator, self.critic, self.latent, self.batch = nets["generator"], nets["critic"], job.latent, job.batch
        self.critic_weights, weights = list(self.critic.parameters()), list(self.generator.parameters())
        # Fused, and spared the look for a GPU driver in every step.
        self.critic_adam = make_optimizer(_adam(job, "critic"), self.critic_weights)
        self.generator_adam = make_optimizer(_adam(job, "generator"), weights)
        self.weights: list[Tensor] = [*weights]
        self.average = [weight.detach().clone() for weight in weights]
        self.decay = float(job.config["model"]["ema"]["decay"])
        self.pixels, self.format = job.pixels, precision.resolve(number_format, CPU)
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(self.pixels))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                yield self.pixels.index_select(0, order[start : start + self.batch])

    def run(self, steps: int) -> None:
        for pixels in islice(self.batches, steps):
            self.step(pixels)

    def step(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of critic and generator for uint8 [B C H W]."""
        real = pixels.float().div_(127.5).sub_(1.0)
        if real.ndim == 4:
            real = real.contiguous(memory_format=torch.channels_last)
        self._let_critic_learn(True)
        self.critic_adam.zero_grad(set_to_none=True)
        with precision.autocast(self.format, CPU):
            fake = self.generator(torch.randn(len(real), self.latent))
            on_real, on_fake = self.critic(real), self.critic(fake.detach())
        critic_loss = F.softplus(-on_real.float()).mean() + F.softplus(on_fake.float()).mean()
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_adam.step()
        self._let_critic_learn(False)
        self.generator_adam.zero_grad(set_to_none=True)
        with precision.autocast(self.format, CPU):
            on_fake = self.critic(fake)
        generator_loss = F.softplus(-on_fake.float()).mean()
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.generator_adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1.0 - self.decay)
        return critic_loss.detach(), generator_loss.detach()

    def _let_critic_learn(self, wanted: bool) -> None:
        for weight in self.critic_weights:
            weight.requires_grad_(wanted)


def _adam(job: Job, player: str) -> Any:
    return build(job.config["model"]["players"][player], where=player).optimizer
