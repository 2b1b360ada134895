"""What the critic and the generator of an adversarial game minimise.

    name                  critic minimises                       generator minimises    critic's output
    minimax               sp(-r) + sp(f)                         -sp(f)                 logit of P(real)
    nonsaturating         sp(-r) + sp(f)                         sp(-f)                 logit of P(real)
    maximum_likelihood    sp(-r) + sp(f)                         -exp(f)                logit of P(real)
    least_squares         (r - 1)^2 / 2 + f^2 / 2                (f - 1)^2 / 2          target value
    hinge                 relu(1 - r) + relu(1 + f)              -f                     score
    wasserstein           f - r                                  -f                     score

with r, f the critic's outputs [B] or [B 1] on real and generated samples, sp the softplus, and a mean over the batch.
All is computed in float32 whatever the networks ran in: the exponentials of half-precision logits overflow at 11, and a
difference of two bfloat16 scores near 100 has steps of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from gentrain.types import Terms


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


@dataclass(frozen=True)
class AdversarialLoss:
    """Both sides of one game without state.

    ``critic(real, fake)`` has the terms ``real`` and ``fake``; ``generator(fake, real)`` has the term ``adversarial``,
    where ``real`` is None unless the loss is ``relative``: it compares fake scores with real ones.
    ``probabilistic``: the critic's output is the logit of P(real), so that its sigmoid may be logged as a probability.
    ``needs_lipschitz``: the game is meant for a critic of bounded slope; without a bound its loss has no minimum.
    ``needs_energy``: the critic's scores must be minus an energy, never above 0; on others its loss has no minimum.
    """

    critic: Callable[[Tensor, Tensor], Terms]
    generator: GeneratorLoss
    probabilistic: bool
    needs_lipschitz: bool = False
    relative: bool = False
    needs_energy: bool = False


def minimax() -> AdversarialLoss:
    """The zero-sum game of Goodfellow et al. 2014 (arXiv 1406.2661, eq. 1).

    The generator's gradient dies as the critic wins: sigmoid(f) with respect to the logit f, 4.5e-5 at f = -10.
    """
    return AdversarialLoss(critic=_cross_entropy, generator=_minimax, probabilistic=True)


def nonsaturating() -> AdversarialLoss:
    """Goodfellow et al. 2014, section 3: the generator maximises log D(G(z)), so that its gradient is near 1 where the
    critic wins."""
    return AdversarialLoss(critic=_cross_entropy, generator=_nonsaturating, probabilistic=True)


def maximum_likelihood() -> AdversarialLoss:
    """Goodfellow 2016 (arXiv 1701.00160, section 3.2.3): with an optimal critic exp(f) is p_data / p_g, and the
    generator's expected gradient is that of maximum likelihood.

    The variance is as large as the ratio's, and exp overflows float32 above a logit of 88.
    """
    return AdversarialLoss(critic=_cross_entropy, generator=_maximum_likelihood, probabilistic=True)


def least_squares() -> AdversarialLoss:
    """LSGAN (Mao et al. 2017, arXiv 1611.04076, eq. 9): targets 1 for real, 0 for fake, 1 for the generator."""
    return AdversarialLoss(critic=_least_squares_critic, generator=_least_squares, probabilistic=False)


def hinge() -> AdversarialLoss:
    """Geometric GAN (Lim and Ye 2017, arXiv 1705.02894): scores beyond the margins -1 and 1 no longer train the
    critic."""
    return AdversarialLoss(critic=_hinge_critic, generator=_raise_score, probabilistic=False)


def wasserstein() -> AdversarialLoss:
    """WGAN (Arjovsky et al. 2017, arXiv 1701.07875, eq. 2-3). The critic must be kept Lipschitz by something else:
    weight clipping or a gradient penalty. Minus the critic's loss is the estimate of the distance."""
    return AdversarialLoss(
        critic=_wasserstein_critic, generator=_raise_score, probabilistic=False, needs_lipschitz=True
    )


def _cross_entropy(real: Tensor, fake: Tensor) -> Terms:
    # -log sigmoid(r) = sp(-r) and -log(1 - sigmoid(f)) = sp(f): finite for every logit, unlike log(sigmoid).
    return {"real": F.softplus(-real.float()).mean(), "fake": F.softplus(fake.float()).mean()}


def _minimax(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -F.softplus(fake.float()).mean()}


def _nonsaturating(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": F.softplus(-fake.float()).mean()}


def _maximum_likelihood(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -fake.float().exp().mean()}


def _least_squares_critic(real: Tensor, fake: Tensor) -> Terms:
    return {"real": 0.5 * (real.float() - 1.0).square().mean(), "fake": 0.5 * fake.float().square().mean()}


def _least_squares(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": 0.5 * (fake.float() - 1.0).square().mean()}


def _hinge_critic(real: Tensor, fake: Tensor) -> Terms:
    return {"real": F.relu(1.0 - real.float()).mean(), "fake": F.relu(1.0 + fake.float()).mean()}


def _wasserstein_critic(real: Tensor, fake: Tensor) -> Terms:
    return {"real": -real.float().mean(), "fake": fake.float().mean()}


def _raise_score(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -fake.float().mean()}
