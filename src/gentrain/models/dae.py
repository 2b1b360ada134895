"""Denoising autoencoder: it is shown a corrupted input and must give back the clean one.

Paper: Vincent, Larochelle, Bengio, Manzagol 2008, Extracting and Composing Robust Features with Denoising Autoencoders
(masking noise); Vincent, Larochelle, Lajoie, Bengio, Manzagol 2010, Stacked Denoising Autoencoders, JMLR 11 (additive
Gaussian and salt-and-pepper noise); Bengio, Yao, Alain, Vincent 2013, Generalized Denoising Auto-Encoders as Generative
Models, arXiv 1305.6663, section 3 (the chain that samples).
Adds to the autoencoder: a corruption, drawn anew in each step and absent when it encodes for others; the score that a
denoiser has learned; samples, by corrupting and restoring in turn.
Departs: one network trained at once for layers trained one by one; ReLU and untied weights for sigmoids; squared error
in [-1, 1] (loss=cross_entropy is the paper's for grey pixels). All numbers count alike, corrupted or not.
The chain takes the mean that the network gives for a draw from P(X | corrupted X): the squared error leaves open how
wide that is. So the corruption alone moves it, and its pictures are smoother than draws would be; no walkback training.
There is a score, and no Langevin chain along it.
Noise in units of the data here, which are [-1, 1] for images: a standard deviation s of the paper's [0, 1] is 2 s.
Checked by: tests/test_autoencoders.py (shares and moments of the noise, the clean target, the score of a Gaussian, the
chain by its stationary variance).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.errors import UserError

BLACK, WHITE = -1.0, 1.0


@dataclass(frozen=True)
class AdditiveGaussian:
    """x + sigma e, e ~ N(0, I). ``sigma``: in units of [-1, 1] for images, twice what it is in [0, 1]; in the data's
    own for vectors. Not clipped: clipping would move the mean, and ``score`` with it."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise UserError(f"model.corruption.sigma={self.sigma}: a number above 0")

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.empty_like(x).normal_(generator=generator)
        return x + self.sigma * noise


@dataclass(frozen=True)
class Masking:
    """Each number is wiped out with probability ``share`` (nu of the papers): black in images, 0 in vectors."""

    share: float

    def __post_init__(self) -> None:
        _require_share(self.share)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        hit = torch.empty_like(x).uniform_(generator=generator) < self.share
        return x.masked_fill(hit, BLACK if x.ndim == 4 else 0.0)


@dataclass(frozen=True)
class SaltAndPepper:
    """Each number goes with probability ``share`` to one end of its range, by a fair coin: black or white in images,
    the least or the greatest value in the batch in vectors."""

    share: float

    def __post_init__(self) -> None:
        _require_share(self.share)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # One draw decides both: below half the share pepper, up to the share salt.
        u = torch.empty_like(x).uniform_(generator=generator)
        low, high = (BLACK, WHITE) if x.ndim == 4 else (x.amin(0), x.amax(0))
        seen = torch.where(u < 0.5 * self.share, low, x)
        return torch.where((u >= 0.5 * self.share) & (u < self.share), high, seen)


@dataclass(frozen=True)
class Alternation:
    """``steps`` times: corrupt, then restore (arXiv 1305.6663, section 3: a Markov chain whose stationary distribution
    is that of the data as far as the denoiser has learned it). The last restored state is the sample."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"model.sampler.steps={self.steps}: at least 1")

    def __call__(self, x: Tensor, corrupt: Callable[[Tensor], Tensor], restore: Callable[[Tensor], Tensor]) -> Tensor:
        for _ in range(self.steps):
            x = restore(corrupt(x))
        return x


def score(reconstruct: Callable[[Tensor], Tensor], x: Tensor, sigma: float) -> Tensor:
    """grad_x log p_sigma(x) as a denoiser sees it, (r(x) - x) / sigma^2: the shape of x, per unit of x.

    ``reconstruct``: r of an autoencoder trained with ``AdditiveGaussian(sigma)`` and the squared error;
    ``x``: float, [B C H W] in [-1, 1] or [B D]. p_sigma is the data's density blurred by that noise: the best r is
    x + sigma^2 grad log p_sigma(x) at any sigma (Alain and Bengio 2014, arXiv 1211.4246, for sigma -> 0, where it is
    the score of the data). Another loss or another noise has no such meaning. UserError for sigma not above 0.
    """
    if not sigma > 0:
        raise UserError(f"score: sigma={sigma}: that of the noise trained with, above 0")
    return (reconstruct(x) - x) / sigma**2


def _require_share(share: float) -> None:
    if not 0 < share < 1:
        raise UserError(f"model.corruption.share={share}: between 0 and 1")
