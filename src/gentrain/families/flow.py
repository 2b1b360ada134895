"""Normalising flows: an invertible map from data to codes, trained on the exact density that it gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import cast, final

import torch
from torch import Tensor

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.families.of_classes import OfClasses
from gentrain.nets.flows.base import Base, MakesBase
from gentrain.nets.flows.bijection import Bijection, MakesBijection
from gentrain.nets.flows.dequantisation import Dequantiser, MakesDequantiser
from gentrain.types import Images, LikelihoodOn, Spec, Terms


@final
class Flow(OfClasses):
    """z = f(x) with z ~ ``base``: log p(x) = log p(z) + log |det df/dx|.

    ``net``: of f, for images in [0, 1) or for vectors. ``base``: of the codes; one that is conditional makes samples of
    a class, and the density is then a mixture over classes with their frequencies in training. ``dequantisation``: of
    the levels of images; vectors have none. Codes are [B Z] with Z the numbers in a sample; encoding takes the middle
    of each pixel's level, so that decoding gives the image back. All but training computes in float32: a code must lead
    back to where it came from.
    """

    sampled: tuple[str, ...] = ("flow", "base", "dequantiser")

    def __init__(
        self,
        spec: Spec,
        net: MakesBijection,
        base: MakesBase,
        players: Mapping[str, Moves],
        dequantisation: MakesDequantiser | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        self.nets["flow"] = net.build(spec)
        self.nets["base"] = base.build(spec, self.flow)
        if spec.is_image:
            if dequantisation is None:
                raise UserError(
                    "model.dequantisation=null: levels of pixels have no density: choose uniform or variational"
                )
            self.nets["dequantiser"] = dequantisation.build(spec)
        self.sampled = tuple(name for name in type(self).sampled if name in self.nets)
        self.latent = spec.numel
        self.conditional = self.base.conditional
        self.temperature: float | None = None

    @property
    def flow(self) -> Bijection:
        return cast("Bijection", self.nets["flow"])

    @property
    def base(self) -> Base:
        return cast("Base", self.nets["base"])

    @property
    def dequantiser(self) -> Dequantiser:
        return cast("Dequantiser", self.nets["dequantiser"])

    def players(self) -> Sequence[Player]:
        moving = tuple(name for name, net in self.nets.items() if any(True for _ in net.parameters()))
        return (Player("flow", nets=moving, loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        """``nll``: nats per dimension of the data."""
        self.take_first_values(lambda: self._first_pass(batch))
        y = batch.y if self.conditional else None
        z, nats = self._encoded(batch.x)
        per_dimension = -(self.base.log_prob(z, y) + nats).mean() / self.latent
        if self.spec.is_image:
            self.note("likelihood/bits_per_dim", per_dimension.detach() / math.log(2.0))
        return {"nll": per_dimension, **self.base.terms(z, y)}

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z [B Z] and what log p(z) lacks to log p(x), [B] nats."""
        if not self.spec.is_image:
            z, logdet = self.flow(x)
            return z, logdet
        y, cost = self.dequantiser(x)
        z, logdet = self.flow(y)
        return z, logdet - cost

    def _first_pass(self, batch: Images) -> None:
        with self._float32():
            self._encoded(batch.x)

    # ---------------------------------------------------------------- capabilities

    @property
    def likelihood_on(self) -> LikelihoodOn:
        if not self.spec.is_image:
            return LikelihoodOn(bits=None)
        return LikelihoodOn(bits=self.dequantiser.bits, dequantisation=self.dequantiser.kind, exact=False)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """[B] nats; of images a lower bound, with one draw of the noise within levels."""
        with self._float32():
            z, nats = self._encoded(x)
            if not self.conditional:
                return self.base.log_prob(z) + nats
            return nats + self.over_classes(lambda k: self.base.log_prob(z, torch.full((len(z),), k, device=z.device)))

    def class_log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y) [B] nats for classes y int64 [B], of a conditional system; a bound as ``log_likelihood``."""
        with self._float32():
            z, nats = self._encoded(x)
            return self.base.log_prob(z, y) + nats

    def encode(self, x: Tensor) -> Tensor:
        """Codes [B Z]: the map itself, from the middle of each pixel's level."""
        with self._float32():
            z: Tensor = self.flow(self.dequantiser.centre(x) if self.spec.is_image else x)[0]
            return z

    def decode(self, z: Tensor) -> Tensor:
        """The inverse: [B C H W] in [-1, 1] at levels of pixels, or [B D]."""
        with self._float32():
            x = self.flow.inverse(z)
            return self.dequantiser.pixels(x) if self.spec.is_image else x

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """[n Z] from the base, at the temperature that is set."""
        return self._drawn(n, self._classes(n, None, generator), generator)

    @property
    def round_codes(self) -> int:
        """So many first numbers of ``prior_codes`` are N(0, I)."""
        return self.latent if self.base.is_round else 0

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.decode(self._drawn(n, self._classes(n, labels, generator), generator))

    def temper(self, at: float | None) -> None:
        """From now on the noise that samples are made of is multiplied by ``at`` (Kingma and Dhariwal 2018, arXiv
        1807.03039, section 6); None: 1."""
        self.temperature = at

    def _drawn(self, n: int, y: Tensor | None, generator: torch.Generator | None) -> Tensor:
        noise = self.base.draw(n, self.latent, self.device, generator)
        return self.base.at(noise if self.temperature is None else self.temperature * noise, y)

    def _classes(self, n: int, labels: Tensor | None, generator: torch.Generator | None) -> Tensor | None:
        """Those asked for; else int64 [n], each class as often as in the training split. None where it has none."""
        if not self.conditional or labels is not None:
            return labels if self.conditional else None
        return self.draw_labels(n, generator)

    def _float32(self) -> AbstractContextManager[object]:
        """Neither autocast nor the short mantissas that convolutions on a GPU have by default."""
        stack = ExitStack()
        stack.enter_context(torch.autocast(self.device.type, enabled=False))
        if self.device.type == "cuda":
            own = torch.backends.cudnn
            held = {"enabled": own.enabled, "benchmark": own.benchmark, "deterministic": own.deterministic}
            stack.enter_context(own.flags(**held, allow_tf32=False))
        return stack
