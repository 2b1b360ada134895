"""The one Lightning callback of a run: what happens at its start, between blocks of iterations, and at its end."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import lightning
import torch

from gentrain.engine import checkpoint, precision
from gentrain.engine.clock import Stopwatch
from gentrain.engine.finite import diverged, refuse_non_finite
from gentrain.engine.loop import Interrupted, Signals
from gentrain.engine.player import parameter_counts
from gentrain.engine.ranks import Patience, any_rank, gather
from gentrain.engine.scores import Found, Scores
from gentrain.engine.session import Session
from gentrain.engine.state import rng_state, seed_all, set_rng_state
from gentrain.engine.system import System
from gentrain.engine.validation import Validation
from gentrain.evaluation.classes import asks_by_class, labels_seen


class Conductor(lightning.Callback):
    """Reads the system's clock; every interval is in iterations.

    A validation saves first and looks afterwards, so that nothing that goes wrong in an evaluation costs an iteration;
    a checkpoint remembers whether its scores are still owed, and a resumed run begins by making up for them.
    """

    def __init__(self, session: Session, signals: Signals) -> None:
        self.session = session
        self.signals = signals
        self.validation = Validation(session)
        self.patience: Patience | None = None
        self.scores = Scores(session, self.validation)
        self.owed = False
        """Whether the scores of the last checkpoint's iteration are still to be made."""
        self._watch = Stopwatch()
        self._logged: tuple[float, int] = (0.0, 0)
        self._images_at_start = 0

    # ---------------------------------------------------------------- start

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        system = _system(pl_module)
        session, budget, resumed = self.session, self.session.budget, self.session.resumed
        # What "auto" meant when the run began stays true for all of it, wherever it goes on.
        choice = precision.resolve(
            session.config["precision"] if resumed is None else resumed["precision"], system.device
        )
        system.prepare(total=budget.iterations, precision=choice, accumulate=budget.accumulate)
        if resumed is not None:
            system.restore(resumed["system"])
            system.restore_pending(resumed["pending"])
            if session.health is not None and resumed["health"] is not None:
                session.health.restore(resumed["health"])
            self.scores.restore(resumed["scores"])
            self.owed = resumed["owed"]
        self.patience = Patience(session.config["trainer"]["timeout"])
        if resumed is None:
            with self.patience.while_first_works(session.is_first):
                every = {"every": self.scores.plan(system) if session.is_first else 0}
            self.scores.every = gather(every)[0]["every"]
        self._images_at_start = system.clock.images
        if session.is_first:
            self._announce(system, choice)

    def _announce(self, system: System, choice: str) -> None:
        session = self.session
        name = f"{session.config['choices']['model']} on {session.config['choices']['data']}"
        session.folder.update_card(
            status="running",
            precision=choice,
            device=_device_name(system.device),
            world_size=session.world,
            parameters=parameter_counts(dict(system.nets.items())),
            data={
                "name": session.data.name,
                "fingerprint": session.data.fingerprint,
                "train": len(session.data.train),
                "test": len(session.data.test),
            },
            spec=asdict(session.data.spec),
            conditional=asks_by_class(system, session.data),
            labels_seen=labels_seen(system, session.data),
        )
        remarks = system.remarks()
        if remarks:
            session.folder.update_card(remarks=remarks)
            for what, text in remarks.items():
                session.progress.line(f"{what}: {text}")
        for logger in session.loggers:
            logger.start(session.config, session.folder.path, name, resume_at=system.clock.iteration, again=self.owed)
        self.validation.real_grid()
        session.progress.start(session.budget.iterations, system.clock.iteration, name)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.signals.hold()  # the Trainer has put its own handlers over ours by now
        session, system = self.session, _system(pl_module)
        # After the weights are made (equal on all ranks): from here on each rank draws its own noise.
        if session.resumed is None:
            seed_all(session.seed, session.rank)
        else:
            set_rng_state(session.resumed["rng"][session.rank])
            if (self._look(system) if self.owed else False) or self._ends_early(system):
                trainer.should_stop = True
        self._watch = Stopwatch()
        self._logged = (0.0, system.clock.images)

    # ---------------------------------------------------------------- between blocks

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        system, budget = _system(pl_module), self.session.budget
        clock = system.clock
        stopping = any_rank(self.signals.received is not None, system.device)
        validating = clock.due(budget.validation_interval) or self.scores.due(clock)
        if clock.due(budget.log_every) or validating:
            self._log(system)
        if validating or clock.due(budget.checkpoint_interval) or clock.finished or stopping:
            with self._watch.paused():
                self._save(system, owed=validating)
                if validating and not stopping:
                    stopping = self._look(system)
        if stopping:
            trainer.should_stop = True

    def _log(self, system: System) -> None:
        session, clock = self.session, system.clock
        values = system.report()
        bad = next((key for key, value in values.items() if not math.isfinite(value)), "")
        if any_rank(bool(bad), system.device):
            kind, _, rest = bad.partition("/")
            player = rest.split("/")[0] if kind in ("loss", "grad_norm") else None
            raise diverged(clock.iteration, bad or "what another rank computes", player)
        if not session.is_first:
            return
        seconds = self._watch.seconds
        passed, images = seconds - self._logged[0], clock.images - self._logged[1]
        self._logged = (seconds, clock.images)
        speed = images / passed if passed > 0 else 0.0
        values["speed/images_per_second"] = speed
        self._observe(clock.iteration, *_by_player(values))
        values |= session.health.values if session.health is not None else {}
        for logger in session.loggers:
            logger.scalars(values, clock.iteration, clock.images)
        session.progress.update(clock.iteration, speed, _short_terms(values))

    def _observe(self, *facts: Any, **more: Any) -> None:
        if self.session.health is not None:
            for warning in self.session.health.observe(*facts, **more):
                self.session.progress.line(str(warning))

    # ---------------------------------------------------------------- looking

    def _look(self, system: System) -> bool:
        """Pictures and scores of this iteration, whose checkpoint is there already. Returns whether to stop."""
        session = self.session
        assert self.patience is not None
        with self.patience.while_first_works(session.is_first):
            done = self._first_looks(system) if session.is_first else True
        if any_rank(not done, system.device):
            return True
        self._save(system, owed=False)
        return self._ends_early(system)

    def _ends_early(self, system: System) -> bool:
        """Whether the scores have been no better for long enough; the budget then ends here, on all ranks."""
        if not any_rank(self.scores.gives_up, system.device):
            return False
        why = self.scores.why(system.clock)
        system.clock.total = system.clock.iteration
        if why is not None and self.session.is_first:
            self.session.progress.line(f"early stop at {why}")
        return True

    def _first_looks(self, system: System) -> bool:
        """False if a signal ended it: the scores are then owed."""
        session, clock = self.session, system.clock
        try:
            with self.signals.at_once():  # nothing in here changes the training
                pictures = self.validation.draw_pictures(system)
                latent_kl = self.validation.latent_kl(system)
                found = self.scores.measure(system)
        except Interrupted:
            return False
        samples = self.validation.samples_now
        reference = None if samples is None else session.data.train.all(64).signed
        score = self._followed(found)
        self._observe(clock.iteration, {}, {}, samples=samples, reference=reference, latent_kl=latent_kl, score=score)
        signs = dict(session.health.values) if session.health is not None else {}
        for logger in session.loggers:
            if signs:
                logger.scalars(signs, clock.iteration, clock.images)
            for key, path in pictures:
                logger.picture(key, path, clock.iteration, clock.images)
        self.scores.keep(found, clock)
        return True

    def _followed(self, found: Found) -> float | None:
        """The score that ``best`` follows, turned so that smaller is better."""
        scoring, report = self.session.scoring, found.in_training
        if report is None or scoring.monitor is None or scoring.monitor not in report.scores:
            return None
        value = report.scores[scoring.monitor]
        return value if scoring.better(0.0, 1.0) else -value

    # ---------------------------------------------------------------- saving

    def _save(self, system: System, *, owed: bool) -> None:
        session = self.session
        self.owed = owed
        state = system.state()
        refuse_non_finite(state, system.clock.iteration)  # on all ranks, which hold the same: they go back together
        rngs = gather(rng_state())
        assert self.patience is not None
        with self.patience.while_first_works(session.is_first):
            if session.is_first:
                self._write(system, state, rngs)

    def _write(self, system: System, state: dict[str, Any], rngs: list[dict[str, Any]]) -> None:
        session, iteration = self.session, system.clock.iteration
        folder = session.folder.checkpoints
        path = folder / checkpoint.file_name(iteration)
        whole = {
            "system": state,
            "rng": rngs,
            "pending": system.pending(),
            "health": None if session.health is None else session.health.state(),
            "scores": self.scores.state(),
            "owed": self.owed,
            "run": session.identity,
            "seed": session.seed,
            "precision": system.precision_name,
            "world_size": session.world,
            "seconds": session.seconds,
            "data": session.data.fingerprint,
            "config": session.config,
        }
        checkpoint.save(whole, path)
        checkpoint.link(path, "last.ckpt")
        if self.scores.best_at == iteration:
            checkpoint.link(path, "best.ckpt")
        checkpoint.retire(folder, session.budget.keep)

    def results(self, system: System) -> dict[str, Any]:
        """What the run card says at the end, beside its status."""
        clock, seconds = system.clock, self._watch.seconds
        trained = clock.images - self._images_at_start
        return {
            "iteration": clock.iteration,
            "images": clock.images,
            "seconds": round(self.session.seconds, 1),
            "images_per_second": round(trained / seconds, 1) if seconds and trained else None,
            "stopped_early": self.scores.why(clock),
            **self.scores.results(),
        }


def _system(module: lightning.LightningModule) -> System:
    assert isinstance(module, System)
    return module


def _by_player(values: dict[str, float]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Terms by player and name, and gradient norms by player."""
    terms: dict[str, dict[str, float]] = {}
    norms = {}
    for key, value in values.items():
        kind, _, rest = key.partition("/")
        if kind == "loss":
            player, _, term = rest.partition("/")
            terms.setdefault(player, {})[term] = value
        elif kind == "grad_norm":
            norms[rest] = value
    return terms, norms


def _short_terms(values: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("loss/"): value for key, value in values.items() if key.startswith("loss/")}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
