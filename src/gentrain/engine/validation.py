"""What is looked at between iterations: grids from fixed noise, reconstructions, scores. Training is not touched."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gentrain.capabilities import CAPABILITIES
from gentrain.data.dataset import DataSet
from gentrain.engine.sampling import at_rest, draw
from gentrain.engine.session import Session
from gentrain.engine.system import System
from gentrain.evaluation.metric import Metric
from gentrain.evaluation.protocol import Report, evaluate
from gentrain.evaluation.subject import FeatureCache, Subject
from gentrain.evaluation.temperature import tempered
from gentrain.evaluation.trial import Cost, Trial
from gentrain.evaluation.truncation import truncated
from gentrain.report import pictures
from gentrain.types import to_bytes

GRID = 64
OF_EACH = 10
"""Samples of each component of a mixture."""

CHAINS, STATES = 10, 16
"""Markov chains in a picture, and states of each."""

TOY_POINTS = 2000
SLOW_SECONDS = 10.0
"""Pictures of one moment that take longer than this are spoken of."""

FIXED_SEED = 0x5EED
"""Noise of the grids: the same in every run, so that grids compare across iterations, runs and machines."""


def true_density(data: DataSet) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None:
    """p(x) of toy data as a function of points [n 2], for contours; None for other data."""
    density = data.density
    if density is None:
        return None
    return lambda points: density.log_prob(torch.from_numpy(points).float()).double().exp().numpy()


def can(system: System, capability: str) -> bool:
    return isinstance(system, CAPABILITIES[capability])


class Validation:
    """Pictures and scores of one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.samples_now: Tensor | None = None
        self.features = FeatureCache.on_disk()
        self._said_slow = False

    def real_grid(self) -> None:
        """One picture of the data, to hold the samples against."""
        path = self.session.folder.samples / "real.png"
        data = self.session.data
        if data.spec.is_image and not path.exists():
            pictures.grid(data.train.take(torch.arange(min(GRID, len(data.train)))).x, path)

    def draw_pictures(self, system: System) -> list[tuple[str, Path]]:
        """(logger key, file) of each picture of this iteration."""
        made, began = [], time.perf_counter()
        if can(system, "sample"):
            made.append(("samples/fixed", self._samples(system)))
        if can(system, "encode") and hasattr(system, "reconstruct") and system.spec.is_image:
            made.append(("samples/reconstructions", self._reconstructions(system)))
        if hasattr(system, "sample_components") and system.spec.is_image:
            made.append(("samples/components", self._components(system)))
        if can(system, "chain") and system.spec.is_image:
            made.append(("samples/chains", self._chains(system)))
        for _, path in made:
            shutil.copyfile(path, path.with_name(path.name.split("-")[0] + "-latest.png"))
        seconds = time.perf_counter() - began
        if seconds > SLOW_SECONDS and not self._said_slow:
            self._said_slow = True
            self.session.progress.line(
                f"pictures: about {seconds:.0f} s each time (train.validate_every says how often)"
            )
        return made

    def _samples(self, system: System) -> Path:
        folder, iteration = self.session.folder, system.clock.iteration
        path = folder.samples / f"samples-{iteration:09d}.png"
        count = GRID if system.spec.is_image else TOY_POINTS
        kinds = ["ema", "raw"] if system.average is not None else ["raw"]
        drawn = {kind: draw(system, count, seed=FIXED_SEED, weights=kind) for kind in kinds}
        self.samples_now = drawn[kinds[0]]
        if not system.spec.is_image:
            real = self.session.data.test.all(TOY_POINTS).x
            pictures.scatter(real, drawn[kinds[0]], path, density=true_density(self.session.data))
            return path
        facts = {"iteration": str(iteration), "seed": str(FIXED_SEED), "weights": "+".join(kinds)}
        as_bytes = {kind: to_bytes(x) for kind, x in drawn.items()}
        if len(kinds) == 1:
            pictures.grid(as_bytes["raw"], path, metadata=facts)
        else:
            pictures.side_by_side(list(as_bytes.items()), path, metadata=facts)
        return path

    def _reconstructions(self, system: System) -> Path:
        path = self.session.folder.samples / f"reconstructions-{system.clock.iteration:09d}.png"
        x = self.session.data.test.all(16).x
        with at_rest(system):
            back = system.reconstruct(x.to(system.device))  # type: ignore[operator]
        pictures.reconstructions(x, to_bytes(back).cpu(), path)
        return path

    def _components(self, system: System) -> Path:
        """One row for each component of the prior; all that is no component is the same down a column."""
        path = self.session.folder.samples / f"components-{system.clock.iteration:09d}.png"
        generator = torch.Generator(system.device).manual_seed(FIXED_SEED)
        with at_rest(system):
            x = system.sample_components(OF_EACH, generator=generator)  # type: ignore[operator]
        return pictures.grid(to_bytes(x).cpu(), path, columns=OF_EACH)

    def _chains(self, system: System) -> Path:
        """One chain to a row, from noise at the left to a sample at the right: how it mixes."""
        path = self.session.folder.samples / f"chains-{system.clock.iteration:09d}.png"
        generator = torch.Generator(system.device).manual_seed(FIXED_SEED)
        stride = max(system.steps // STATES, 1)  # type: ignore[operator]
        with at_rest(system):
            film = system.chain(CHAINS, length=STATES, stride=stride, generator=generator)  # type: ignore[operator]
        return pictures.grid(to_bytes(film.flatten(0, 1)).cpu(), path, columns=STATES)

    def latent_kl(self, system: System) -> Tensor | None:
        """KL of each latent dimension on test images [Z] nats, where the system has one."""
        if not hasattr(system, "latent_kl"):
            return None
        with at_rest(system):
            result: Tensor | None = system.latent_kl(self.session.data.test.all(256).x.to(system.device))  # type: ignore[operator]
            return None if result is None else result.float().cpu()

    def score(self, system: System) -> Report | None:
        """Scores in training, on few samples, or None if the run has no metrics."""
        scoring = self.session.scoring
        return self._score(system, scoring.scores, scoring.during_samples or scoring.samples, scoring.during_samples)

    def score_at_end(self, system: System) -> Report | None:
        """Scores under the run's whole protocol."""
        scoring = self.session.scoring
        return self._score(system, scoring.all, scoring.samples, None)

    def _score(self, system: System, metrics: Mapping[str, Metric], n: int, limit: int | None) -> Report | None:
        if not metrics:
            return None
        session = self.session
        kind = "ema" if system.average is not None else "raw"
        return score_system(
            system, session.data, metrics, n=n, limit=limit, seed=session.seed, weights=kind, cache=self.features
        )

    def costs(self, system: System) -> tuple[Cost, Cost]:
        """Of the scores of one moment in training and of those of the end, by a small trial."""
        scoring = self.session.scoring
        with at_rest(system):
            trial = Trial(self.session.data, system, lambda n: draw(system, n, seed=FIXED_SEED), self.features)
            few = scoring.during_samples or scoring.samples
            return (
                trial.cost(scoring.scores, few, scoring.during_samples),
                trial.cost(scoring.all, scoring.samples, None),
            )


def score_system(
    system: System,
    data: DataSet,
    metrics: Mapping[str, Metric],
    *,
    n: int,
    seed: int,
    weights: str,
    limit: int | None = None,
    cache: FeatureCache | None = None,
    truncation: float | None = None,
    temperature: float | None = None,
) -> Report:
    """Scores of one set of weights, of ``n`` samples and the likelihood of ``limit`` images (None: as the metrics say).
    ``truncation``: of the latents that samples are drawn from (``evaluation.truncation``); ``temperature``: of the
    samples (``evaluation.temperature``), which no likelihood has. The same system, seed and
    counts give the same numbers; training is not touched."""

    def some(count: int) -> Tensor:
        return draw(system, count, seed=seed, weights=weights, labels=labels)

    labels = asked(system, data, n, seed)
    subject = Subject(
        data=data,
        system=system,
        draw=some,
        labels=labels,
        n=n,
        seed=seed,
        device=system.device,
        precision=system.precision_name,
        limit=limit,
        cache=cache,
    )
    with at_rest(system, weights), tempered(system, temperature), truncated(system, truncation, seed=seed):
        return evaluate(metrics, subject, weights)


def asked(system: System, data: DataSet, n: int, seed: int) -> Tensor | None:
    """The classes that ``n`` samples are asked to be, int64 [n]: drawn with the frequencies of the training labels (a
    fake of another marginal would be told by its labels alone). None for a system or data without classes."""
    labels = data.train.y
    if not getattr(system, "conditional", False) or labels is None or labels.ndim != 1 or n < 1:
        return None
    generator = torch.Generator().manual_seed(seed)
    return labels[torch.randint(len(labels), (n,), generator=generator)]
