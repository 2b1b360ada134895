"""Losses of how much more real the real samples look than the generated ones; a constant on all scores changes nothing.

    name       critic minimises                          generator minimises
    paired     phi(r - f)                                phi(f - r)
    average    phi(r - mean f) + phi(mean r - f)         phi(f - mean r) + phi(mean f - r)

with r, f the scores [B] or [B 1] of real and generated samples and a mean over the batch. phi, what one is lost when a
difference d ought to be large:

    softplus         log(1 + exp(-d))      the standard GAN's
    hinge            relu(1 - d)
    least_squares    (d - 1)^2 / 2
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from gentrain.config import nearest
from gentrain.errors import UserError
from gentrain.objectives.adversarial import AdversarialLoss
from gentrain.types import Terms

Phi = Callable[[Tensor], Tensor]

FORMS: dict[str, Phi] = {
    "softplus": lambda d: F.softplus(-d),
    "hinge": lambda d: F.relu(1.0 - d),
    "least_squares": lambda d: 0.5 * (d - 1.0).square(),
}


def paired(form: str = "softplus") -> AdversarialLoss:
    """Each real sample against the generated one of its row (RGAN; Jolicoeur-Martineau 2018, arXiv 1807.00734); with
    ``softplus`` the loss of R3GAN (Huang et al. 2025, arXiv 2501.05441). The two of a row are of one class in a
    conditional game."""
    phi = _form(form)
    return AdversarialLoss(
        critic=partial(_paired_critic, phi), generator=partial(_paired, phi), probabilistic=False, relative=True
    )


def average(form: str = "softplus") -> AdversarialLoss:
    """Each sample against the mean of the other kind (RaGAN; Jolicoeur-Martineau 2018, arXiv 1807.00734); RaLSGAN is
    twice ``least_squares``. Real and generated samples need not be as many."""
    phi = _form(form)
    return AdversarialLoss(
        critic=partial(_average_critic, phi), generator=partial(_average, phi), probabilistic=False, relative=True
    )


def _paired_critic(phi: Phi, real: Tensor, fake: Tensor) -> Terms:
    return {"pair": _of_pairs(phi, real, fake)}


def _paired(phi: Phi, fake: Tensor, real: Tensor | None = None) -> Terms:
    return {"adversarial": _of_pairs(phi, fake, _given(real))}


def _average_critic(phi: Phi, real: Tensor, fake: Tensor) -> Terms:
    of_real, of_fake = _of_means(phi, real, fake)
    return {"real": of_real, "fake": of_fake}


def _average(phi: Phi, fake: Tensor, real: Tensor | None = None) -> Terms:
    of_fake, of_real = _of_means(phi, fake, _given(real))
    return {"adversarial": of_fake + of_real}


def _of_pairs(phi: Phi, upper: Tensor, lower: Tensor) -> Tensor:
    if upper.shape != lower.shape:  # [B] and [B 1] would be broadcast to all B^2 pairs
        raise ValueError(f"scores {tuple(upper.shape)} and {tuple(lower.shape)} must have one shape")
    return phi(upper.float() - lower.float()).mean()


def _of_means(phi: Phi, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    upper, lower = upper.float(), lower.float()
    return phi(upper - lower.mean()).mean(), phi(upper.mean() - lower).mean()


def _given(real: Tensor | None) -> Tensor:
    if real is None:
        raise ValueError("a relativistic loss needs the real samples' scores in the generator's turn too")
    return real


def _form(name: str) -> Phi:
    if name in FORMS:
        return FORMS[name]
    raise UserError(f"loss.form={name}: unknown{nearest(name, FORMS)}")
