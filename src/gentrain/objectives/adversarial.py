"""What the critic and the generator of an adversarial game minimise.

    name                  critic minimises                       generator minimises    critic's output
    minimax               sp(-r) + sp(f)                         -sp(f)                 logit of P(real)
    nonsaturating         sp(-r) + sp(f)                         sp(-f)                 logit of P(real)
    maximum_likelihood    sp(-r) + sp(f)                         -exp(f)                logit of P(real)
    least_squares         (r - 1)^2 / 2 + f^2 / 2                (f - 1)^2 / 2          target value
    hinge                 relu(1 - r) + relu(1 + f)              -f                     score
    wasserstein           f - r                                  -f                     score

with r, f the critic's outputs [B] or [B 1] on real and generated samples, sp the softplus, and a mean over the batch.
Losses of differences of the two are in ``objectives.relativistic``.
All is computed in float32 whatever the networks ran in: the exponentials of half-precision logits overflow at 11, and a
difference of two bfloat16 scores near 100 has steps of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.errors import UserError
from gentrain.types import Terms

Target = float | Sequence[float]
"""A number in [0, 1], or two: the ends of a range that each sample's own is drawn from."""


class GeneratorLoss(Protocol):
    def __call__(self, fake: Tensor, real: Tensor | None = None) -> Terms: ...


class GameLoss(Protocol):
    """Both sides of one game: an ``AdversarialLoss``, or an ``nn.Module`` where a loss has state of its own (as with a
    ``game.Aim``)."""

    @property
    def critic(self) -> Callable[[Tensor, Tensor], Terms]: ...

    @property
    def generator(self) -> GeneratorLoss: ...

    @property
    def probabilistic(self) -> bool: ...

    @property
    def needs_lipschitz(self) -> bool: ...

    @property
    def relative(self) -> bool: ...

    @property
    def needs_energy(self) -> bool: ...

    @property
    def centred(self) -> bool: ...


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of one game without state.

    ``critic(real, fake)`` has the terms ``real`` and ``fake``; ``generator(fake, real)`` has the term ``adversarial``,
    where ``real`` is None unless the loss is ``relative``: it compares fake scores with real ones. A loss that cannot
    tell the two apart calls the critic's one term ``pair``.
    ``probabilistic``: the critic's output is the logit of P(real), so that its sigmoid may be logged as a probability.
    ``needs_lipschitz``: the game is meant for a critic of bounded slope; without a bound its loss has no minimum.
    ``needs_energy``: the critic's scores must be minus an energy, never above 0; on others its loss has no minimum.
    ``centred``: a score above 0 says "real", one below it "generated".
    """

    critic: Callable[[Tensor, Tensor], Terms]
    generator: GeneratorLoss
    probabilistic: bool
    needs_lipschitz: bool = False
    relative: bool = False
    needs_energy: bool = False
    centred: bool = False


@dataclass(frozen=True)
class Targets:
    """What the critic is told of P(real): soft and noisy labels.

    ``real`` 0.9 alone is the one-sided smoothing of Salimans et al. 2016 (arXiv 1606.03498, section 3.4): with softened
    targets for fakes too, the best critic would hold on to samples where there are no data. Ranges may reach beyond
    [0, 1] (0.7 to 1.2), their middle may not: the loss would have no minimum. ``flip``: probability that a sample is
    told the other one's target. Drawn for each sample from torch's global generator; 1, 0 and no flips draw nothing.
    """

    real: Target = 1.0
    fake: Target = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("real", "fake"):
            low, high = _ends(getattr(self, name))
            if not (low <= high and 0.0 <= (low + high) / 2 <= 1.0):
                raise UserError(
                    f"loss.{name}={getattr(self, name)}: a number in [0, 1], or a range around one, is needed"
                )
        if not 0.0 <= self.flip < 0.5:
            raise UserError(f"loss.flip={self.flip}: a probability below 0.5 is needed")

    def critic(self, real: Tensor, fake: Tensor) -> Terms:
        """Cross-entropy of the logits with their targets."""
        if self == Targets():
            # -log sigmoid(r) = sp(-r) and -log(1 - sigmoid(f)) = sp(f): finite for every logit, unlike log(sigmoid).
            return {"real": F.softplus(-real.float()).mean(), "fake": F.softplus(fake.float()).mean()}
        told_real, told_fake = self._draw(real, self.real, self.fake), self._draw(fake, self.fake, self.real)
        return {
            "real": F.binary_cross_entropy_with_logits(real.float(), told_real),
            "fake": F.binary_cross_entropy_with_logits(fake.float(), told_fake),
        }

    def _draw(self, scores: Tensor, own: Target, other: Target) -> Tensor:
        told = _uniform(own, scores)
        if self.flip == 0.0:
            return told
        flipped = torch.rand(scores.shape, device=scores.device) < self.flip
        return torch.where(flipped, _uniform(other, scores), told)


def minimax(real: Target = 1.0, fake: Target = 0.0, flip: float = 0.0) -> AdversarialLoss:
    """The zero-sum game of Goodfellow et al. 2014 (arXiv 1406.2661, eq. 1); the critic's ``Targets`` are free.

    The generator's gradient dies as the critic wins: sigmoid(f) with respect to the logit f, 4.5e-5 at f = -10. With
    ``turns=simultaneous`` it is gradient reversal: one backward pass that turns the sign between critic and generator.
    """
    return AdversarialLoss(
        critic=Targets(real, fake, flip).critic, generator=_minimax, probabilistic=True, centred=True
    )


def nonsaturating(real: Target = 1.0, fake: Target = 0.0, flip: float = 0.0) -> AdversarialLoss:
    """Goodfellow et al. 2014, section 3: the generator maximises log D(G(z)), so that its gradient is near 1 where the
    critic wins. "Flip the labels when training the generator" is this loss, and so are the "softplus" and the
    "logistic" loss of later papers. ``Targets`` are the critic's."""
    return AdversarialLoss(
        critic=Targets(real, fake, flip).critic, generator=_nonsaturating, probabilistic=True, centred=True
    )


def maximum_likelihood(real: Target = 1.0, fake: Target = 0.0, flip: float = 0.0) -> AdversarialLoss:
    """Goodfellow 2016 (arXiv 1701.00160, section 3.2.3): with an optimal critic exp(f) is p_data / p_g, and the
    generator's expected gradient is that of maximum likelihood; not so with other ``Targets`` than 1 and 0.

    The variance is as large as the ratio's, and exp overflows float32 above a logit of 88.
    """
    return AdversarialLoss(
        critic=Targets(real, fake, flip).critic, generator=_maximum_likelihood, probabilistic=True, centred=True
    )


def least_squares(real: float = 1.0, fake: float = 0.0, wanted: float = 1.0) -> AdversarialLoss:
    """LSGAN (Mao et al. 2017, arXiv 1611.04076): ``fake``, ``real`` and ``wanted`` are a, b and c, the targets of
    generated samples, of real ones and of the generator. 0, 1, 1 is their eq. 9; -1, 1, 0 their eq. 8, in which the
    generator minimises a Pearson chi^2 divergence (b - c = 1 and b - a = 2)."""
    if not (real > fake and wanted > fake):
        raise UserError(f"loss: real={real} and wanted={wanted} must lie above fake={fake}")
    return AdversarialLoss(
        critic=partial(_least_squares_critic, low=fake, high=real),
        generator=partial(_least_squares, wanted=wanted),
        probabilistic=False,
        centred=real == -fake,
    )


def hinge() -> AdversarialLoss:
    """Geometric GAN (Lim and Ye 2017, arXiv 1705.02894): scores beyond the margins -1 and 1 no longer train the
    critic."""
    return AdversarialLoss(critic=_hinge_critic, generator=_raise_score, probabilistic=False, centred=True)


def wasserstein() -> AdversarialLoss:
    """WGAN (Arjovsky et al. 2017, arXiv 1701.07875, eq. 2-3). The critic must be kept Lipschitz by something else:
    weight clipping or a gradient penalty. Minus the critic's loss is the estimate of the distance."""
    return AdversarialLoss(
        critic=_wasserstein_critic, generator=_raise_score, probabilistic=False, needs_lipschitz=True
    )


def _ends(target: Target) -> tuple[float, float]:
    if not isinstance(target, Sequence):
        return target, target
    if len(target) != 2:
        raise UserError(f"loss: target {list(target)}: one number, or the two ends of a range, are needed")
    return target[0], target[1]


def _uniform(target: Target, like: Tensor) -> Tensor:
    """A target for each score, float32 of their shape; a single number draws nothing."""
    low, high = _ends(target)
    told = torch.full(like.shape, low, dtype=torch.float32, device=like.device)
    return told if low == high else told.add_(torch.rand(like.shape, device=like.device), alpha=high - low)


def _minimax(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -F.softplus(fake.float()).mean()}


def _nonsaturating(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": F.softplus(-fake.float()).mean()}


def _maximum_likelihood(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -fake.float().exp().mean()}


def _least_squares_critic(real: Tensor, fake: Tensor, *, low: float, high: float) -> Terms:
    return {"real": 0.5 * (real.float() - high).square().mean(), "fake": 0.5 * (fake.float() - low).square().mean()}


def _least_squares(fake: Tensor, real: Tensor | None = None, *, wanted: float) -> Terms:
    return {"adversarial": 0.5 * (fake.float() - wanted).square().mean()}


def _hinge_critic(real: Tensor, fake: Tensor) -> Terms:
    return {"real": F.relu(1.0 - real.float()).mean(), "fake": F.relu(1.0 + fake.float()).mean()}


def _wasserstein_critic(real: Tensor, fake: Tensor) -> Terms:
    return {"real": -real.float().mean(), "fake": fake.float().mean()}


def _raise_score(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -fake.float().mean()}
