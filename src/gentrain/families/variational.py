"""An encoder and a decoder trained on a bound on the likelihood."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast, final

import torch
from torch import Tensor, nn

from gentrain.engine.ema import Ema
from gentrain.engine.player import Moves, Player
from gentrain.engine.turns import Turns
from gentrain.errors import UserError
from gentrain.families.autoencoder import EncoderDecoder
from gentrain.nets.architecture import Architecture
from gentrain.objectives.autoencoding import Bound, Coupling, DataLikelihood, Evidence, Mixture, Posterior, summed
from gentrain.types import Images, LikelihoodOn, Spec, Terms


class LatentVariable(EncoderDecoder, ABC):
    """A latent-variable model p(x|z) p(z), trained on a bound on log p(x).

    ``bound``: which (``ELBO``, importance-weighted). ``bound_samples``: draws behind ``log_likelihood``. ``coupling``:
    what ties the codes of a batch together, made for the data and ``latent``. ``sample`` shows the decoder's mean, as
    papers do; pixel noise is not drawn.
    """

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: DataLikelihood,
        posterior: Callable[[int], Posterior],
        bound: Bound,
        players: Mapping[str, Moves],
        latent: int = 20,
        bound_samples: int = 64,
        coupling: Callable[[Spec, int], Coupling] | None = None,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, net, loss, posterior, players, latent, None, None, turns, ema)
        if bound_samples < 1:
            raise UserError(f"model.bound_samples={bound_samples}: at least 1")
        if not hasattr(loss, "likelihood_on"):
            raise UserError(
                "model.loss: this model needs a likelihood of the data (loss=bernoulli, gaussian, logistic; "
                "loss=density for vectors), and this loss is none"
            )
        self.likelihood: DataLikelihood = loss
        self.bound = bound
        self.bound_samples = bound_samples
        self.coupling = None if coupling is None else coupling(spec, latent)
        if isinstance(self._code, nn.Module):
            self.nets["prior"] = self._code
            del self._code  # it lives where checkpoints and averages find it, and nowhere else
            self.sampled = (*self.sampled, "prior")

    @property
    def posterior(self) -> Posterior:
        return cast("Posterior", self.nets["prior"] if "prior" in self.nets else self._code)  # noqa: SIM401

    @property
    def code(self) -> Posterior:
        return self.posterior

    def players(self) -> Sequence[Player]:
        return (Player("autoencoder", nets=tuple(self.nets), loss=self.objective),)

    def objective(self, batch: Images) -> Terms:
        draws, posterior = self.bound.draws, self.posterior
        output = self.nets["encoder"](batch.signed).float()
        output, tied = (output, {}) if self.coupling is None else self.coupling(output, batch)
        output = output if draws == 1 else output.repeat(draws, 1)
        latents = posterior.draw(output)
        decoded = self.nets["decoder"](posterior.decoded(latents))
        target = self.likelihood.prepare(batch.x)
        error = self.likelihood.error(decoded, target if draws == 1 else target.repeat(draws, *[1] * (target.ndim - 1)))
        evidence = Evidence(error.view(draws, -1), output, latents, posterior, self.clock.iteration + 1)
        terms = self.bound(evidence)
        self.watch(evidence)
        return terms | tied

    def watch(self, evidence: Evidence) -> None:
        """Log what nobody minimises. From codes that are tied to each other there is no bound on anything to log."""
        if self.coupling is None:
            self.note("elbo/nats", evidence.elbo)

    # ---------------------------------------------------------------- capabilities

    @property
    def likelihood_on(self) -> LikelihoodOn:
        """That of the data, and no more than a bound on it."""
        return replace(self.likelihood.likelihood_on, exact=False)

    def prior_codes(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ p(z) [n Z] on the system's device."""
        return self.posterior.prior(n, self.device, generator)

    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.decode(self.prior_codes(n, generator))

    def latent_kl(self, x: Tensor) -> Tensor:
        """KL of each dimension of the code, mean over the images [Z] nats: near 0 where a dimension carries nothing."""
        output = self.encoder_output(x)
        return next(iter(self.posterior.divergences(output, self.posterior.draw(output)).values())).mean(0)

    def elbo(self, x: Tensor) -> Tensor:
        """Evidence lower bound [B] nats of each image, from one draw of z (Kingma and Welling 2014, eq. 3)."""
        output = self.encoder_output(x)
        latents = self.posterior.draw(output)
        error = self._error(latents, self.likelihood.prepare(x, fixed=True))
        return -error - summed(self.posterior.divergences(output, latents))

    def importance_bound(self, x: Tensor, samples: int = 64) -> Tensor:
        """Importance-weighted bound [B] nats from ``samples`` draws: at least the ELBO in expectation, and rising with
        their number towards log p(x) (Burda et al. 2016, arXiv 1509.00519, eq. 8)."""
        output, target = self.encoder_output(x), self.likelihood.prepare(x, fixed=True)
        weights = []
        for _ in range(samples):
            latents = self.posterior.draw(output)
            weights.append(self.posterior.log_weight(output, latents) - self._error(latents, target))
        return torch.logsumexp(torch.stack(weights).float(), 0) - math.log(samples)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """A lower bound, not the likelihood itself: ``importance_bound`` with ``bound_samples`` draws."""
        return self.importance_bound(x, self.bound_samples)

    def _error(self, latents: Tensor, target: Tensor) -> Tensor:
        return self.likelihood.error(self.nets["decoder"](self.posterior.decoded(latents)), target)


@final
class Variational(LatentVariable):
    """One without clusters of its own."""


@final
class MixtureVariational(LatentVariable):
    """One whose prior is a mixture: data belong to its components more or less, which makes them clusters."""

    def __init__(
        self,
        spec: Spec,
        net: Architecture,
        loss: DataLikelihood,
        posterior: Callable[[int], Mixture],
        bound: Bound,
        players: Mapping[str, Moves],
        latent: int = 20,
        bound_samples: int = 64,
        turns: Turns | None = None,
        ema: Ema | None = None,
    ) -> None:
        super().__init__(spec, net, loss, posterior, bound, players, latent, bound_samples, None, turns, ema)
        if not hasattr(self.posterior, "probabilities"):
            raise UserError(
                "model.posterior: its prior is no mixture; gentrain.families.variational.Variational is due"
            )

    @property
    def mixture(self) -> Mixture:
        return cast("Mixture", self.posterior)

    def watch(self, evidence: Evidence) -> None:
        """``components/used``: exp of the mutual information of sample and component in the batch, from 1 (all samples
        belong to one component, or each to all alike: what over-regularisation leaves) to K."""
        super().watch(evidence)
        with torch.no_grad():
            p = self.mixture.responsibilities(evidence.latents)  # [B K]
            nats = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
            self.note("components/used", nats.exp())

    def cluster(self, x: Tensor) -> Tensor:
        """Probability of each component [B K]."""
        return self.mixture.probabilities(self.encoder_output(x))

    def sample_components(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """[K*n C H W] in [-1, 1]: n samples of each component, one component after the other; the first of all share
        what is no component, and so do the others."""
        return self.decode(self.mixture.of_each(n, self.device, generator).flatten(0, 1))
