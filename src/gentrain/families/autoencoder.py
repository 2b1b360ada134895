"""An encoder and a decoder: what all autoencoders share, and those that have no likelihood."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.nets.architecture import Architecture, Tying
from gentrain.objectives.autoencoding import (
    Chain,
    Code,
    Corruption,
    Pass,
    Reconstruction,
    Regulariser,
    SeededCorruption,
)
from gentrain.objectives.divergences import CodeDivergence
from gentrain.objectives.penalties import refuse_mixing
from gentrain.objectives.priors import Prior
from gentrain.types import Images, Spec, Terms, to_signed


class EncoderDecoder(System, ABC):
    """An encoder, a decoder, and one player that minimises the reconstruction error plus regularisers.

    All terms are sums over pixels and latent dimensions and means over the batch.
    """

    sampled: tuple[str, ...] = ("encoder", "decoder")

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        code: Callable[[int], Code],
        players: Mapping[str, Moves],
        latent: int,
        regularisers: Mapping[str, Regulariser] | None,
        corruption: Corruption | None,
        turns: Turns | None,
        ema: Ema | None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        if latent < 1:
            raise UserError(f"model.latent={latent}: at least 1")
        loss.require(spec)
        self.loss = loss
        if isinstance(loss, nn.Module):  # it holds a frozen network: what that must be on a resume goes with the run
            self.keeps = (*self.keeps, "loss")
        self.latent = latent
        self.regularisers = dict(regularisers or {})
        self.corruption = corruption
        self._code = code(latent)
        encoder = net.encoder(spec, self._code.outputs)
        decoder = net.decoder(spec, latent, channels=loss.channels(spec.channels), bounded=False)
        if isinstance(net, Tying):
            net.tie(encoder, decoder)
        if any(getattr(regulariser, "per_sample", False) for regulariser in self.regularisers.values()):
            refuse_mixing(encoder, what="encoder", penalty="a regulariser")
        self.nets["encoder"] = encoder
        self.nets["decoder"] = nn.Sequential(decoder, loss.head())

    @property
    def code(self) -> Code:
        return self._code

    def players(self) -> Sequence[Player]:
        return (Player("autoencoder", nets=("encoder", "decoder"), loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        way = self.forward_pass(batch)
        terms = {"reconstruction": way.error.mean()}
        return terms | {name: regulariser(way) for name, regulariser in self.regularisers.items()}

    def remarks(self) -> dict[str, str]:
        said: dict[str, str] = self.loss.remarks() if hasattr(self.loss, "remarks") else {}
        return said

    def forward_pass(self, batch: Images) -> Pass:
        """Corrupt, encode, draw, decode, compare with the clean data."""
        x, seen = batch.signed, self.corrupted(batch)
        encoder, decoder = self.nets["encoder"], self.nets["decoder"]
        output = encoder(seen).float()
        z = self.code.draw(output)
        decoded = decoder(z)
        error = self.loss.error(decoded, self.loss.prepare(batch.x))
        return Pass(batch, x, seen, output, z, decoded, error, encoder, decoder, self.code)

    def corrupted(self, batch: Images) -> Tensor:
        """What the encoder is shown in training: float data in [-1, 1], drawn anew at each call."""
        return batch.signed if self.corruption is None else self.corruption(batch.signed)

    # ---------------------------------------------------------------- capabilities

    def encode(self, x: Tensor) -> Tensor:
        return self.code.mean(self.encoder_output(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.loss.mean(self.nets["decoder"](z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """[B C H W] in [-1, 1] for x uint8 [B C H W]; vectors for vectors."""
        return self.decode(self.encode(x))

    def latent_kl(self, x: Tensor) -> Tensor | None:
        """KL of each dimension of the code, mean over the images [Z] nats: near 0 where a dimension carries nothing.
        None where no regulariser is such a divergence."""
        for regulariser in self.regularisers.values():
            if isinstance(regulariser, CodeDivergence):
                output = self.encoder_output(x)
                nats = regulariser.divergences(self.code, output, self.code.draw(output))
                return next(iter(nats.values())).mean(0)
        return None

    def encoder_output(self, x: Tensor) -> Tensor:
        output: Tensor = self.nets["encoder"](to_signed(x))
        return output.float()


@final
class Autoencoder(EncoderDecoder):
    """An autoencoder without a distribution over its codes: it encodes and decodes, and cannot sample."""

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        code: Callable[[int], Code],
        players: Mapping[str, Moves],
        latent: int = 20,
        regularisers: Mapping[str, Regulariser] | None = None,
        corruption: Corruption | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, net, loss, code, players, latent, regularisers, corruption, turns, ema)


@final
class DenoisingAutoencoder(EncoderDecoder):
    """An autoencoder that has learned to undo a corruption: it samples by ``sampler``, a chain that goes back and forth
    between corrupted and restored data, from uniform noise on [-1, 1]; it has no likelihood. UserError without a
    corruption."""

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        code: Callable[[int], Code],
        corruption: SeededCorruption | None,
        sampler: Chain,
        players: Mapping[str, Moves],
        latent: int = 20,
        regularisers: Mapping[str, Regulariser] | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, net, loss, code, players, latent, regularisers, corruption, turns, ema)
        if corruption is None:
            raise UserError("model/corruption=null: a denoiser needs one (gaussian, masking, ...); or use model=ae")
        self.seeded, self.sampler = corruption, sampler

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        noise = 2.0 * torch.rand(n, *self.spec.shape, device=self.device, generator=generator) - 1.0
        return self.sampler(noise, lambda x: self.seeded(x, generator), self.restored)

    def restored(self, x: Tensor) -> Tensor:
        """What is made of corrupted float data, the shape of x."""
        return self.decode(self.code.mean(self.nets["encoder"](x).float()))


@final
class PriorAutoencoder(EncoderDecoder):
    """An autoencoder whose codes a regulariser holds against a prior: it samples by decoding draws from the prior, and
    has no likelihood."""

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: Reconstruction,
        code: Callable[[int], Code],
        prior: Prior,
        players: Mapping[str, Moves],
        latent: int = 20,
        regularisers: Mapping[str, Regulariser] | None = None,
        corruption: Corruption | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, net, loss, code, players, latent, regularisers, corruption, turns, ema)
        prior.require(latent)
        self.prior = prior

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z from the prior [n Z] on the system's device."""
        return self.prior.draw(n, self.latent, self.device, generator)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.decode(self.prior_codes(n, generator))
