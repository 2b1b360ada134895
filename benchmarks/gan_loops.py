"""Loops of single GANs by hand: what each does otherwise than those in ``loops.py``; and torchgan's trainer."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from loops import CPU, Bare, Job, Losses, Tutorial
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from gentrain.engine import precision
from gentrain.types import Images, to_signed


class FreshBare(Bare):
    """The generator moves on samples of its own."""

    shares_samples = False


class BareLeastSquares(Bare):
    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        on_real, on_fake = self.critic(real).float(), self.critic(fake).float()
        return 0.5 * ((on_real - 1.0).square().mean() + on_fake.square().mean())

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        return 0.5 * (self.critic(fake).float() - 1.0).square().mean()


class BareWasserstein(FreshBare):
    def __init__(self, job: Job, number_format: precision.Precision = "auto") -> None:
        super().__init__(job, number_format)
        self.bound = float(job.config["model"].get("constraint", {}).get("bound", 0.0))

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        return self.critic(fake).float().mean() - self.critic(real).float().mean()

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        return -self.critic(fake).float().mean()

    @torch.no_grad()
    def constrain(self) -> None:
        if self.bound:
            torch._foreach_clamp_min_(self.critic_weights, -self.bound)
            torch._foreach_clamp_max_(self.critic_weights, self.bound)


class BarePenalised(BareWasserstein):
    """Real and generated samples in one pass; the penalty in float32."""

    def __init__(self, job: Job, number_format: precision.Precision = "auto") -> None:
        super().__init__(job, number_format)
        self.weight = penalty_weight(job)

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        on_real, on_fake = self.critic(torch.cat([real, fake.to(real.dtype)])).float().chunk(2)
        with torch.autocast("cpu", enabled=False):
            between = torch.lerp(fake.float(), real, torch.rand(len(real), 1, 1, 1)).requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
            norm = slope.flatten(1).square().sum(1).add(1e-12).sqrt()
            return on_fake.mean() - on_real.mean() + self.weight * (norm - 1.0).square().mean()


class BareHinge(FreshBare):
    """Real and generated samples in one pass: one step of the power iteration that spectral norm takes in each."""

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        on_real, on_fake = self.critic(torch.cat([real, fake.to(real.dtype)])).float().chunk(2)
        return F.relu(1.0 - on_real).mean() + F.relu(1.0 + on_fake).mean()

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        return -self.critic(fake).float().mean()


class BareAuxiliary(Bare):
    """AC-GAN's: the critic tells the class of real and of generated samples, and both networks are averaged."""

    averages = ("generator", "critic")

    def critic_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        (on_real, real_class), (on_fake, fake_class) = self._judge(real, labels), self._judge(fake, labels)
        return F.softplus(-on_real).mean() + F.softplus(on_fake).mean() + real_class + fake_class

    def generator_loss(self, fake: Tensor, labels: Tensor | None) -> Tensor:
        on_fake, fake_class = self._judge(fake, labels)
        return F.softplus(-on_fake).mean() + fake_class

    def _judge(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self.critic.trunk(x)  # type: ignore[operator]
        (head,) = self.critic.heads.values()  # type: ignore[union-attr,operator]
        return self.critic.score(features).float(), F.cross_entropy(head(features).float(), labels)  # type: ignore[operator,arg-type]


class TutorialPenalised(Tutorial):
    """WGAN-GP as most tutorials have it: one pass for each of real, generated and mixed samples."""

    def __init__(self, job: Job, number_format: precision.Precision = "32-true") -> None:
        super().__init__(job, number_format)
        self.weight, self.every, self.iteration = penalty_weight(job), int(job.moves("generator").every), 0  # type: ignore[arg-type]

    def step(self, real: Tensor) -> tuple[float, float | None]:
        self.iteration += 1
        fake = self.generator(torch.randn(len(real), self.latent)).detach()
        self.critic_optimizer.zero_grad()
        loss = self.critic(fake).mean() - self.critic(real).mean() + self.weight * self._penalty(real, fake)
        loss.backward()
        self.critic_optimizer.step()
        if self.iteration % self.every:
            return loss.item(), None
        self.generator_optimizer.zero_grad()
        generator_loss = -self.critic(self.generator(torch.randn(len(real), self.latent))).mean()
        generator_loss.backward()
        self.generator_optimizer.step()
        return loss.item(), generator_loss.item()

    def _penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        epsilon = torch.rand(len(real), 1, 1, 1)
        between = (epsilon * real + (1.0 - epsilon) * fake).requires_grad_(True)
        scores = self.critic(between)
        (slope,) = torch.autograd.grad(scores, between, grad_outputs=torch.ones_like(scores), create_graph=True)
        return ((slope.view(len(real), -1).norm(2, dim=1) - 1.0) ** 2).mean()


def penalty_weight(job: Job) -> float:
    (penalty,) = job.config["model"]["penalties"].values()
    return float(penalty["weight"])


# ---------------------------------------------------------------- torchgan


def has_torchgan() -> bool:
    return importlib.util.find_spec("torchgan") is not None


@cache
def _quiet_trainer() -> type[Any]:
    from torchgan.trainer import Trainer  # type: ignore[import-not-found]

    class Quiet(Trainer):  # type: ignore[misc]
        """Without the checkpoint at the end of an epoch. Its pictures are left out in ``TorchGAN``: they would stop at
        ``make_grid(range=...)``, which torchvision has no more."""

        def save_model(self, *arguments: Any, **options: Any) -> None: ...

    return Quiet


class TorchGAN:
    """torchgan's ``Trainer`` on its own DCGAN, with the runner's first weights in it and images that are float already.

    An epoch a round, without its checkpoint and its pictures. Its logging of losses and gradients belongs to a step."""

    differs = (
        "its critic's last layer has no bias (one parameter fewer)",
        "generator: a transposed convolution of 1x1 noise in place of a dense layer (the same numbers)",
        "its generator moves on samples of its own (a pass more; bare_fresh does so too), the runner's and bare's on "
        "those that the critic has just seen, as in the DCGAN authors' code",
        "it keeps no average of the generator",
        "its images are float32 in memory; the runner's are bytes",
    )

    def __init__(self, job: Job, place: str, number_format: precision.Precision = "32-true") -> None:
        from torchgan.losses import (  # type: ignore[import-not-found]
            MinimaxDiscriminatorLoss,
            MinimaxGeneratorLoss,
        )
        from torchgan.models import DCGANDiscriminator, DCGANGenerator  # type: ignore[import-not-found]

        self.batch, self.images = job.batch, to_signed(job.pixels)
        width, channels, size = int(job.config["model"]["net"]["width"]), job.data.spec.channels, job.data.spec.size
        shape = {"step_channels": width, "batchnorm": True}
        models = {
            "discriminator": {
                "name": DCGANDiscriminator,
                "args": {**shape, "in_size": size, "in_channels": channels, "last_nonlinearity": nn.Identity()},
                "optimizer": {"name": torch.optim.Adam, "args": job.adam("critic")},
            },
            "generator": {
                "name": DCGANGenerator,
                "args": {
                    **shape,
                    "encoding_dims": job.latent,
                    "out_size": size,
                    "out_channels": channels,
                    "nonlinearity": nn.ReLU(),
                },
                "optimizer": {"name": torch.optim.Adam, "args": job.adam("generator")},
            },
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = _quiet_trainer()(
                models,
                [MinimaxDiscriminatorLoss(), MinimaxGeneratorLoss()],
                device=CPU,
                epochs=1,
                checkpoints=f"{place}/model/gan",
                recon=f"{place}/images",
            )
        self.trainer.logger.logger_end_epoch.clear()
        copy_weights(job.nets["generator"], self.trainer.generator)
        critic = self.trainer.discriminator
        copy_weights(job.nets["critic"], nn.Sequential(critic.model, critic.disc))

    @property
    def parameters(self) -> dict[str, int]:
        nets: Mapping[str, nn.Module] = {"generator": self.trainer.generator, "critic": self.trainer.discriminator}
        return {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}

    def run(self, steps: int) -> None:
        sampler = RandomSampler(self.images, num_samples=steps * self.batch)  # type: ignore[arg-type]
        loader = DataLoader(self.images, self.batch, sampler=sampler)  # type: ignore[arg-type]
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer(loader)

    def losses(self, batch: Images) -> Losses:
        self.trainer.batch_size, self.trainer.real_inputs = len(batch), batch.signed
        generator_loss, critic_loss, *_ = self.trainer.train_iter()
        return critic_loss, generator_loss


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Fill ``target`` with the numbers of ``source``, layer by layer. A dense layer stands for a convolution over the
    whole of a map, or a transposed one from a 1x1 map: its numbers are in another order. ``target`` may lack biases."""
    pairs = zip(_weighted(source), _weighted(target), strict=True)
    for own, other in pairs:
        weight: Tensor = own.weight  # type: ignore[assignment]
        if isinstance(other, nn.ConvTranspose2d) and weight.ndim == 2:
            weight = weight.T
        other.weight.copy_(weight.reshape(other.weight.shape))  # type: ignore[operator,union-attr,arg-type]
        if other.bias is not None:
            other.bias.copy_(own.bias)  # type: ignore[operator,union-attr,arg-type]


def _weighted(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)]
