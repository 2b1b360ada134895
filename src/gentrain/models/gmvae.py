"""Gaussian mixture variational autoencoder: a VAE whose prior is a mixture, so that its codes fall into clusters.

Paper: Dilokthanakul et al. 2016, Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, arXiv
1611.02648: p(x, z, w, c) = p(w) p(c) p(z|w, c) p(x|z) with w ~ N(0, I), c uniform over K components, z of N(mu_c(w),
diag sigma_c^2(w)) from a network of w; q(z|x) q(w|x) p(c|z, w), the last in closed form. (The paper calls the data y,
the code x and the component z.)
Adds to the VAE: that prior and its network, three divergences, and a floor under the last of them (the paper's minimum
information constraint: ``ELBO.free_nats``), without which all components may become one early on.
Departs: binarised pixels for cross-entropy with grey ones; q(z|x) q(w|x) come out of one encoder, as in the authors'
code.
Checked by: tests/test_gmvae.py (each divergence against torch.distributions, both bounds against log p(x) by
quadrature, one component without w against the VAE), tests/test_contract.py.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.objectives.divergences import (
    bounded_log_variance,
    kl_standard_normal_terms,
    log_normal,
    log_standard_normal,
)


@final
class MixturePosterior(nn.Module):
    """q(z|x) q(w|x), diagonal Gaussians, against p(z|w) p(w) (a ``Posterior`` with networks, and a ``Mixture``).

    ``latent``: Z. ``components``: K. ``style``: dimensions W of w; 0 for none, which leaves a mixture with free means
    and variances. ``hidden``: tanh units of the network of w. The encoder gives mu and log sigma^2 of z, then of w
    [B 2Z+2W]; ``latents`` are z and w [B Z+W]; the component is summed over everywhere.
    """

    def __init__(self, latent: int, components: int, style: int, hidden: int) -> None:
        super().__init__()
        for name, value, least in (("components", components, 1), ("style", style, 0), ("hidden", hidden, 1)):
            if value < least:
                raise UserError(f"model.posterior.{name}={value}: at least {least}")
        self.latent, self.components, self.style = latent, components, style
        self.outputs = 2 * (latent + style)
        numbers = 2 * components * latent
        self.network: nn.Module = (
            nn.Sequential(nn.Linear(style, hidden), nn.Tanh(), nn.Linear(hidden, numbers)) if style else Free(numbers)
        )

    def mean(self, output: Tensor) -> Tensor:
        return output[:, : self.latent]

    def draw(self, output: Tensor) -> Tensor:
        drawn = [
            torch.addcmul(mu, torch.randn_like(mu), (0.5 * log_variance).exp())
            for mu, log_variance in self._given_data(output)
        ]
        return torch.cat(drawn, 1)

    def decoded(self, latents: Tensor) -> Tensor:
        return latents[:, : self.latent]

    def divergences(self, output: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """``kl``: sum over c of p(c|z, w) KL(q(z|x) || p(z|w, c)) [B Z], the paper's conditional prior term; ``kl_w``
        [B W]; ``kl_components``: KL(p(c|z, w) || p(c)) [B 1]; z and w drawn.

        With more than one component the paper weighs a KL over all z by the p(c|z, w) of one: in expectation that is
        not less than KL(q(z, w|x) || p(z, w)), as p(c|z, w) averaged over z is one choice of q(c|x) among all. So the
        bound of these terms is a bound, and lower than that of ``log_weight`` with one draw.
        """
        (mu, log_variance), (mu_w, log_variance_w) = self._given_data(output)
        z, w = self._parts(latents)
        means, log_variances = self.given_style(w)
        log_p = self._log_components(z, means, log_variances)
        p = log_p.exp()  # [B K]
        nats = kl_normal_terms(mu[:, None], log_variance[:, None], means, log_variances)  # [B K Z]
        found = {"kl": torch.einsum("bk,bkz->bz", p, nats)}
        if self.style:
            found["kl_w"] = kl_standard_normal_terms(mu_w, log_variance_w)
        # One component has nothing to tell: log 1 + log 1.
        return found | {"kl_components": (p * (log_p + math.log(self.components))).sum(1, keepdim=True)}

    def log_weight(self, output: Tensor, latents: Tensor) -> Tensor:
        (mu, log_variance), (mu_w, log_variance_w) = self._given_data(output)
        z, w = self._parts(latents)
        each = log_normal(z[:, None], *self.given_style(w))  # [B K]
        prior = torch.logsumexp(each, 1) - math.log(self.components) + log_standard_normal(w)
        return prior - log_normal(z, mu, log_variance) - log_normal(w, mu_w, log_variance_w)

    def prior(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        component = torch.randint(self.components, (n,), device=device, generator=generator)
        w = torch.randn(n, self.style, device=device, generator=generator)
        return self._of_component(component, w, torch.randn(n, self.latent, device=device, generator=generator))

    # ---------------------------------------------------------------- the components

    def probabilities(self, output: Tensor) -> Tensor:
        """p(c|z, w) at the means of q [B K]: to which component x belongs."""
        (mu, _), (mu_w, _) = self._given_data(output)
        return self._log_components(mu, *self.given_style(mu_w)).exp()

    def responsibilities(self, latents: Tensor) -> Tensor:
        """p(c|z, w) [B K] of latents [B Z+W]."""
        z, w = self._parts(latents)
        return self._log_components(z, *self.given_style(w)).exp()

    def of_each(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """z ~ p(z|w, c) [K n Z] for every c, with one w and one noise for the n-th of all."""
        w = torch.randn(n, self.style, device=device, generator=generator).repeat(self.components, 1)
        noise = torch.randn(n, self.latent, device=device, generator=generator).repeat(self.components, 1)
        component = torch.arange(self.components, device=device).repeat_interleave(n)
        return self._of_component(component, w, noise).view(self.components, n, self.latent)

    def given_style(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances [B K Z] of p(z|w, c) for w [B W]."""
        numbers = self.network(w).float().view(len(w), 2, self.components, self.latent)
        return numbers[:, 0], numbers[:, 1]

    def _given_data(self, output: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Mean and log variance of z [B Z], and of w [B W]."""
        sizes = [self.latent, self.latent, self.style, self.style]
        mu, log_variance, mu_w, log_variance_w = torch.split(output, sizes, 1)
        return (mu, bounded_log_variance(log_variance)), (mu_w, bounded_log_variance(log_variance_w))

    def _parts(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """z [B Z] and w [B W]."""
        return latents[:, : self.latent], latents[:, self.latent :]

    @staticmethod
    def _log_components(z: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
        """log p(c|z, w) [B K]; the uniform p(c) drops out."""
        return log_normal(z[:, None], means, log_variances).log_softmax(1)

    def _of_component(self, component: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """z [n Z] for components int64 [n], w [n W] and noise [n Z] of N(0, I)."""
        means, log_variances = self.given_style(w)
        rows = torch.arange(len(component), device=component.device)
        return means[rows, component] + noise * (0.5 * log_variances[rows, component]).exp()


@final
class Free(nn.Module):
    """So many free parameters, the same for each row: what is left of a network of nothing."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.value = nn.Parameter(0.1 * torch.randn(numbers))  # not all alike, or the components would stay one

    def forward(self, rows: Tensor) -> Tensor:
        return self.value.expand(len(rows), -1)


def kl_normal_terms(mu: Tensor, log_variance: Tensor, prior_mu: Tensor, prior_log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)) of each dimension [... Z] nats; shapes are broadcast."""
    mu, log_ratio = mu.float(), log_variance.float() - prior_log_variance.float()
    moved = (mu - prior_mu.float()).square() * torch.exp(-prior_log_variance.float())
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + moved)
