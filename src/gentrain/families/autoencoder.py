"""An encoder and a decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, final

import torch
from torch import Tensor, nn

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.nets.architecture import Architecture
from gentrain.objectives.likelihoods import PixelLikelihood
from gentrain.types import Images, LikelihoodOn, Spec, Terms, to_signed


class Posterior(Protocol):
    """What the encoder's output means: q(z|x) against the prior p(z)."""

    def outputs(self, latent: int) -> int:
        """Numbers the encoder must give for Z latent dimensions."""
        ...

    def mean(self, code: Tensor) -> Tensor:
        """[B Z] for the encoder's output [B outputs]."""
        ...

    def draw(self, code: Tensor) -> Tensor:
        """A reparameterised draw z [B Z]."""
        ...

    def kl(self, code: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) of each latent dimension, [B Z] nats."""
        ...

    def log_weight(self, code: Tensor, z: Tensor) -> Tensor:
        """log p(z) - log q(z|x) [B] nats."""
        ...

    def prior(self, n: int, latent: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """z ~ p(z) [n Z]."""
        ...


@final
class Autoencoder(System):
    """One player that minimises reconstruction plus ``beta`` times the divergence of its codes from the prior.

    Both terms are nats per image, summed over pixels and latent dimensions, mean over the batch: minus their sum at
    ``beta`` = 1 is the ELBO. ``sample`` shows the decoder's mean, as papers do; pixel noise is not drawn.
    """

    sampled = ("encoder", "decoder")

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: PixelLikelihood,
        posterior: Posterior,
        players: Mapping[str, Moves],
        latent: int = 20,
        beta: float = 1.0,
        bound_samples: int = 64,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        if not spec.is_image:
            raise UserError("this autoencoder models the 256 levels of images; data= gives vectors, choose images")
        if latent < 1:
            raise UserError(f"model.latent={latent}: at least 1")
        if beta < 0:
            raise UserError(f"model.beta={beta}: 0 or more")
        if bound_samples < 1:
            raise UserError(f"model.bound_samples={bound_samples}: at least 1")
        self.loss = loss
        self.posterior = posterior
        self.latent = latent
        self.beta = beta
        self.bound_samples = bound_samples
        self.nets["encoder"] = net.encoder(spec, posterior.outputs(latent))
        decoder = net.decoder(spec, latent, channels=loss.channels(spec.channels), bounded=False)
        self.nets["decoder"] = nn.Sequential(decoder, loss.head())

    def players(self) -> Sequence[Player]:
        return (Player("autoencoder", nets=("encoder", "decoder"), loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        code = self.nets["encoder"](batch.signed).float()
        output = self.nets["decoder"](self.posterior.draw(code))
        reconstruction = -self.loss.log_prob(output, self.loss.prepare(batch.x)).mean()
        divergence = self.posterior.kl(code).sum(1).mean()
        self.note("elbo/nats", -(reconstruction + divergence))
        return {"reconstruction": reconstruction, "kl": self.beta * divergence}

    # ---------------------------------------------------------------- capabilities

    @property
    def likelihood_on(self) -> LikelihoodOn:
        """That of the pixels, and no more than a bound on it."""
        return replace(self.loss.likelihood_on, exact=False)

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior.mean(self._code(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.loss.mean(self.nets["decoder"](z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """[B C H W] in [-1, 1] for x uint8 [B C H W]."""
        return self.decode(self.encode(x))

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.decode(self.posterior.prior(n, self.latent, self.device, generator))

    def latent_kl(self, x: Tensor) -> Tensor:
        """KL of each latent dimension, mean over the images [Z] nats: near 0 where a dimension carries nothing."""
        return self.posterior.kl(self._code(x)).mean(0)

    def elbo(self, x: Tensor) -> Tensor:
        """Evidence lower bound [B] nats of each image, from one draw of z (Kingma and Welling 2014, eq. 3)."""
        code = self._code(x)
        output = self.nets["decoder"](self.posterior.draw(code))
        return self.loss.log_prob(output, self.loss.prepare(x, fixed=True)) - self.posterior.kl(code).sum(1)

    def importance_bound(self, x: Tensor, samples: int = 64) -> Tensor:
        """Importance-weighted bound [B] nats from ``samples`` draws: at least the ELBO in expectation, and rising with
        their number towards log p(x) (Burda et al. 2016, arXiv 1509.00519, eq. 8)."""
        code, target = self._code(x), self.loss.prepare(x, fixed=True)
        weights = []
        for _ in range(samples):
            z = self.posterior.draw(code)
            log_joint = self.loss.log_prob(self.nets["decoder"](z), target)
            weights.append(log_joint + self.posterior.log_weight(code, z))
        return torch.logsumexp(torch.stack(weights).float(), 0) - math.log(samples)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """A lower bound, not the likelihood itself: ``importance_bound`` with ``bound_samples`` draws."""
        return self.importance_bound(x, self.bound_samples)

    def _code(self, x: Tensor) -> Tensor:
        code: Tensor = self.nets["encoder"](to_signed(x))
        return code.float()
