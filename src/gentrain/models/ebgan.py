"""EBGAN: the critic is an autoencoder and its error an energy, low at images, at least a margin at samples.

Paper: Zhao, Mathieu, LeCun 2017, Energy-Based Generative Adversarial Networks, arXiv 1609.03126: eq. 1 and 2 (the
losses), section 2.4 (the pull-away term, EBGAN-PT).
Adds to the adversarial family: the loss with its margin, and the pull-away term on the critic's codes of samples; the
critic itself is ``nets.energy``, which BEGAN shares.
Departs: the energy is a mean over pixels of images in [-1, 1] (the paper's margins, in the tens, are for sums), and its
default margin 1 is about the energy of a rebuilt image that is grey everywhere; critic and generator are DCGAN's
encoder and decoder; scores are minus the energy.
Checked by: tests/test_ebgan.py (both losses and the pull-away term by hand, gradients through both occurrences of a
sample, none beyond the margin), tests/test_contract.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gentrain.errors import UserError
from gentrain.game import Round
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.types import Spec, Terms


def energy(margin: float) -> AdversarialLoss:
    """Critic: E(x) + relu(margin - E(G(z))); generator: E(G(z)) (eq. 1, 2), with scores that are minus the energy E.

    ``margin`` is in units of the energy: energies of samples above it no longer train the critic. UserError unless it
    is above 0.
    """
    if not margin > 0:
        raise UserError(f"loss.margin={margin}: above 0")
    return AdversarialLoss(
        critic=partial(_critic, margin), generator=_generator, probabilistic=False, needs_energy=True
    )


def _critic(margin: float, real: Tensor, fake: Tensor) -> Terms:
    return {"real": -real.float().mean(), "fake": F.relu(margin + fake.float()).mean()}


def _generator(fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": -fake.float().mean()}


def pull_away(codes: Tensor) -> Tensor:
    """f_PT: mean over pairs i != j of the squared cosine between codes [B Z]: 0 for orthogonal ones, 1 for parallel
    ones. float32. ValueError for fewer than two."""
    count = len(codes)
    if count < 2:
        raise ValueError("a pull-away term needs two samples or more")
    directions = F.normalize(codes.float(), dim=1)
    with torch.autocast(codes.device.type, enabled=False):
        cosines = directions @ directions.T  # [B B]
    others = cosines.square().sum() - cosines.diagonal().square().sum()
    return others / (count * (count - 1))


@dataclass(frozen=True)
class PullAway:
    """An ``Aim``: ``weight`` times f_PT of the critic's codes of the samples, for the generator. UserError for a weight
    below 0."""

    weight: float = 0.1
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"model.aims: pull-away: weight={self.weight}: 0 or more")

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        return {}

    def critic(self, seen: Round) -> Terms:
        return {}

    def generator(self, seen: Round) -> Terms:
        if len(seen.fake) < 2:
            raise UserError("train.batch_size: the pull-away term compares samples: two or more in each part")
        return {"pull_away": self.weight * pull_away(seen.on_fake.features)}
