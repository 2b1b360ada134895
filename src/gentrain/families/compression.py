"""Lossy compression: an analysis and a synthesis transform and a density of the rounded latents, as one player."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gentrain import coding
from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.system import System
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.types import Images, Spec, Terms, to_bytes, to_signed

CPU = torch.device("cpu")


class Transforms(Protocol):
    """Builds the networks between pixels and latents (M channels)."""

    def latent_shape(self, spec: Spec, channels: int) -> tuple[int, int, int]:
        """(M, h, w)."""
        ...

    def analysis(self, spec: Spec, channels: int) -> nn.Module:
        """x in [-1, 1] [B C H W] -> [B M h w]."""
        ...

    def synthesis(self, spec: Spec, channels: int) -> nn.Module:
        """[B M h w] -> [B C H W], unbounded."""
        ...


class Distortion(Protocol):
    """How far pictures that come back are from what was given."""

    def require(self, spec: Spec) -> None:
        """UserError for data that it is not made for."""
        ...

    def distortion(self, back: Tensor, x: Tensor) -> Tensor:
        """[B] for ``back`` about [-1, 1], unbounded, and the data x uint8, both [B C H W]."""
        ...


@final
class Compression(System):
    """Rate plus ``distortion_weight`` (lambda) times distortion: bits per pixel of the latents under ``density``, with
    noise U(-1/2, 1/2) for rounding in training, and ``loss`` of the pictures (Balle et al. 2017, arXiv 1611.01704).

    ``channels``: M of the latents. All that is no training (rounding, decoding, rates, tables of the coder) is computed
    in float64: a picture does not depend on the batch it is in, nor on the precision of the run.
    """

    sampled: tuple[str, ...] = ("analysis", "synthesis", "density")

    def __init__(
        self,
        spec: Spec,
        net: Transforms,
        loss: Distortion,
        density: Callable[[int], nn.Module],
        players: Mapping[str, Moves],
        distortion_weight: float,
        channels: int = 192,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, players, turns, ema)
        if channels < 1:
            raise UserError(f"model.channels={channels}: at least 1")
        if not distortion_weight > 0:
            raise UserError(f"model.distortion_weight={distortion_weight}: above 0")
        loss.require(spec)
        self.loss, self.distortion_weight = loss, distortion_weight
        self.latent_shape = net.latent_shape(spec, channels)
        self.latent = self.latent_shape[0] * self.latent_shape[1] * self.latent_shape[2]
        self.pixels = spec.shape[1] * spec.shape[2]
        self.nets["analysis"] = net.analysis(spec, channels)
        self.nets["synthesis"] = net.synthesis(spec, channels)
        self.nets["density"] = density(channels)

    def players(self) -> Sequence[Player]:
        return (Player("coder", nets=("analysis", "synthesis", "density"), loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        y = self.nets["analysis"](batch.signed)
        noisy = y + torch.rand_like(y) - 0.5
        rate = self._bits(noisy).flatten(1).sum(1).mean() / self.pixels
        distortion = self.loss.distortion(self.nets["synthesis"](noisy).float(), batch.x).mean()
        self.note("distortion/unweighted", distortion)
        return {"rate_bpp": rate, "distortion": self.distortion_weight * distortion}

    # ---------------------------------------------------------------- capabilities

    def encode(self, x: Tensor) -> Tensor:
        """The rounded latents as one row [B M*h*w], for x uint8 [B C H W]."""
        return self._placed(self._symbols(x)).flatten(1).float()

    def decode(self, z: Tensor) -> Tensor:
        back = self._exactly("synthesis", z.view(-1, *self.latent_shape))
        return back.clamp(-1.0, 1.0).float()

    def reconstruct(self, x: Tensor) -> Tensor:
        """[B C H W] in [-1, 1] for x uint8 [B C H W]; ``to_bytes`` of it are the pixels that ``decompress`` gives."""
        return self.decode(self.encode(x))

    def code_bits(self, x: Tensor) -> Tensor:
        """Bits [B] float64 of the rounded latents by the density: what a perfect coder of it would need."""
        return self._bits(self._placed(self._symbols(x))).flatten(1).sum(1)

    def compress(self, x: Tensor) -> list[bytes]:
        """One range-coded string for each of x uint8 [B C H W]. UserError without the coder's library."""
        tables = self.tables()
        return [tables.encode(symbols) for symbols in self._symbols(x).flatten(2).cpu().numpy()]

    def decompress(self, streams: Sequence[bytes]) -> Tensor:
        """uint8 [B C H W] of the strings. UserError for one that was not written with these weights, where it shows."""
        tables, (m, h, w) = self.tables(), self.latent_shape
        parts = [torch.from_numpy(tables.decode(stream, h * w)) for stream in streams]
        symbols = torch.stack(parts) if parts else torch.empty(0, m, h * w, dtype=torch.int64)
        z = self._placed(symbols.view(-1, m, h, w).to(self.device))
        return to_bytes(self.decode(z.flatten(1).float())).cpu()

    def tables(self) -> coding.Tables:
        """The coder's integer frequencies, computed on the CPU in float64 from a copy of the density, wherever the
        system is and whatever its precision: devices differ in the last digits, and writer and reader may not."""
        density = self._density_on_cpu()
        return coding.tables(density.bits, coding.medians(density.logits, self.latent_shape[0], CPU))  # type: ignore[arg-type]

    def fingerprint(self) -> bytes:
        """8 bytes that weights and tables must have in common with those a file was written with."""
        digest = hashlib.sha256(self.tables().digest)
        for name, value in sorted(self.nets["synthesis"].state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()[:8]

    # ---------------------------------------------------------------- exact arithmetic

    def _bits(self, y: Tensor) -> Tensor:
        bits: Tensor = self.nets["density"].bits(y)  # type: ignore[operator]
        return bits

    def _density_on_cpu(self) -> nn.Module:
        return copy.deepcopy(self.nets["density"]).to(CPU, torch.float64)

    def _medians(self) -> Tensor:
        """Those of the tables, float64 [M], on the system's device."""
        logits: Callable[[Tensor], Tensor] = self._density_on_cpu().logits  # type: ignore[assignment]
        return coding.medians(logits, self.latent_shape[0], CPU).to(self.device)

    def _symbols(self, x: Tensor) -> Tensor:
        """int64 [B M h w]: steps from the median of each channel."""
        y = self._exactly("analysis", to_signed(x).double())
        return torch.round(y - self._medians()[:, None, None]).clamp_(-coding.FARTHEST, coding.FARTHEST).long()

    def _placed(self, symbols: Tensor) -> Tensor:
        """The latents that symbols stand for, float64; float32 holds them exactly too."""
        return symbols.double() + self._medians()[:, None, None]

    def _exactly(self, name: str, x: Tensor) -> Tensor:
        """A network in float64."""
        net = self.nets[name]
        state = {key: value.double() for key, value in (*net.named_parameters(), *net.named_buffers())}
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = partial(functional_call, net, state)((x.double(),))
        return result
