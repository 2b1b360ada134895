"""The one Lightning callback of a run: what happens at its start, between blocks of iterations, and at its end."""

from __future__ import annotations

import io
import math
import time
from dataclasses import asdict
from typing import Any

import lightning
import torch
import torch.distributed as dist

from gentrain.engine import checkpoint, precision
from gentrain.engine.loop import Signals
from gentrain.engine.session import Session
from gentrain.engine.state import rng_state, seed_all, set_rng_state
from gentrain.engine.system import NonFiniteError, System, world_size
from gentrain.engine.validation import Validation
from gentrain.evaluation.protocol import Report


class Conductor(lightning.Callback):
    """Reads the system's clock; every interval is in iterations."""

    def __init__(self, session: Session, signals: Signals) -> None:
        self.session = session
        self.signals = signals
        self.validation = Validation(session)
        self.best: dict[str, Any] | None = None
        self.last_report: Report | None = None
        self._scored_at = -1
        self._logged: tuple[float, int] = (time.monotonic(), 0)
        self._training_seconds = 0.0
        self._images_at_start = 0

    # ---------------------------------------------------------------- start

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        system = _system(pl_module)
        session, budget = self.session, self.session.budget
        choice = precision.resolve(session.config["precision"], system.device)
        system.prepare(total=budget.iterations, precision=choice, accumulate=budget.accumulate)
        if session.resumed is not None:
            system.restore(session.resumed["system"])
            self.best = session.resumed["best"]
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
            parameters={name: sum(p.numel() for p in net.parameters()) for name, net in system.nets.items()},
            data={
                "name": session.data.name,
                "fingerprint": session.data.fingerprint,
                "train": len(session.data.train),
                "test": len(session.data.test),
            },
            spec=asdict(session.data.spec),
        )
        for logger in session.loggers:
            logger.start(session.config, session.folder.path, name, resume_at=system.clock.iteration)
        self.validation.real_grid()
        session.progress.start(session.budget.iterations, system.clock.iteration, name)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.signals.hold()  # the Trainer has put its own handlers over ours by now
        session = self.session
        # After the weights are made (equal on all ranks): from here on each rank draws its own noise.
        if session.resumed is not None:
            set_rng_state(session.resumed["rng"][session.rank])
        else:
            seed_all(session.seed, session.rank)
        self._logged = (time.monotonic(), _system(pl_module).clock.images)

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
        validating = not stopping and clock.due(budget.validation_interval)
        if clock.due(budget.log_every) or validating or stopping:
            self._log(system, look=validating)
        if validating:
            self._validate(system)
        improved = self.best is not None and self.best["iteration"] == clock.iteration
        if clock.due(budget.checkpoint_interval) or clock.finished or stopping or any_rank(improved, system.device):
            self._save(system)
        if stopping:
            trainer.should_stop = True

    def _log(self, system: System, *, look: bool) -> None:
        session, clock = self.session, system.clock
        values = system.report()
        now = time.monotonic()
        seconds, images = now - self._logged[0], clock.images - self._logged[1]
        self._training_seconds += seconds
        speed = images / seconds if seconds > 0 else 0.0
        bad = next((key for key, value in values.items() if not math.isfinite(value)), None)
        if bad is not None:
            player = bad.split("/")[1]
            raise NonFiniteError(
                f"iteration {clock.iteration}: {bad} is not finite; a smaller model.players.{player}.optimizer.lr or"
                f" ++model.players.{player}.clip=1 usually helps"
            )
        if session.is_first:
            values["speed/images_per_second"] = speed
            if look:
                self._pictures(system)
            values |= self._signs(system, values, look=look)
            for logger in session.loggers:
                logger.scalars(values, clock.iteration, clock.images)
            session.progress.update(clock.iteration, speed, _short_terms(values))
        self._logged = (time.monotonic(), clock.images)

    def _signs(self, system: System, values: dict[str, float], *, look: bool) -> dict[str, float]:
        health = self.session.health
        if health is None:
            return {}
        terms: dict[str, dict[str, float]] = {}
        norms = {}
        for key, value in values.items():
            kind, _, rest = key.partition("/")
            if kind == "loss":
                player, _, term = rest.partition("/")
                terms.setdefault(player, {})[term] = value
            elif kind == "grad_norm":
                norms[rest] = value
        samples = self.validation.samples_now if look else None
        reference = self.session.data.train.all(64).signed if samples is not None else None
        kl = self.validation.latent_kl(system) if look else None
        found = health.observe(system.clock.iteration, terms, norms, samples=samples, reference=reference, latent_kl=kl)
        for warning in found:
            self.session.progress.line(str(warning))
        return dict(health.values)

    def _pictures(self, system: System) -> None:
        clock = system.clock
        for key, path in self.validation.draw_pictures(system):
            for logger in self.session.loggers:
                logger.picture(key, path, clock.iteration, clock.images)

    def _validate(self, system: System) -> None:
        if self.session.is_first:
            report = self.validation.score(system)
            if report is not None:
                self._keep_scores(system, report)
        self._scored_at = system.clock.iteration
        if world_size() > 1:
            dist.barrier()
        self._logged = (time.monotonic(), system.clock.images)  # the time of an evaluation is not training time

    def _keep_scores(self, system: System, report: Report) -> None:
        session, clock = self.session, system.clock
        self.last_report = report
        values = {f"metric/{name}": value for name, value in report.scores.items()}
        for logger in session.loggers:
            logger.scalars(values, clock.iteration, clock.images)
        monitor = session.scoring.monitor
        if monitor is None or monitor not in report.scores:
            return
        value = report.scores[monitor]
        session.progress.score(monitor, value)
        if session.scoring.better(value, None if self.best is None else self.best["value"]):
            self.best = {"monitor": monitor, "value": value, "iteration": clock.iteration, "scores": report.scores}

    # ---------------------------------------------------------------- saving

    def _save(self, system: System) -> None:
        session, clock = self.session, system.clock
        rngs = gather(rng_state())
        if session.is_first:
            folder = session.folder.checkpoints
            path = folder / checkpoint.file_name(clock.iteration)
            state = {
                "system": system.state(),
                "rng": rngs,
                "best": self.best,
                "seed": session.seed,
                "world_size": session.world,
                "seconds": session.seconds,
                "data": session.data.fingerprint,
                "config": session.config,
            }
            refuse_non_finite(state["system"], clock.iteration)
            checkpoint.save(state, path)
            checkpoint.link(path, "last.ckpt")
            if self.best is not None and self.best["iteration"] == clock.iteration:
                checkpoint.link(path, "best.ckpt")
            checkpoint.retire(folder, session.budget.keep)
        if world_size() > 1:
            dist.barrier()
        self._logged = (time.monotonic(), clock.images)

    def results(self, system: System) -> dict[str, Any]:
        """What the run card says at the end."""
        report, clock = self.last_report, system.clock
        trained = clock.images - self._images_at_start
        return {
            "iteration": clock.iteration,
            "images": clock.images,
            "seconds": round(self.session.seconds, 1),
            "images_per_second": round(trained / self._training_seconds, 1) if self._training_seconds else None,
            "final": None if report is None else report.scores,
            "best": self.best,
            "protocol": None if report is None else report.protocol,
        }


def gather(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of every rank, in their order."""
    if world_size() == 1:
        return [state]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    packed: list[Any] = [None] * world_size()
    dist.all_gather_object(packed, buffer.getvalue())  # bytes: gathering tensors as objects fails over gloo
    return [torch.load(io.BytesIO(data), weights_only=True) for data in packed]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on any rank: all must save and stop at the same iteration."""
    if world_size() == 1:
        return flag
    raised = torch.tensor([float(flag)], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def refuse_non_finite(state: Any, iteration: int, where: str = "") -> None:
    """NonFiniteError if any tensor of a state holds NaN or infinity: such a state is never written."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and not torch.isfinite(state).all():
            raise NonFiniteError(f"iteration {iteration}: {where} holds NaN or infinity; the checkpoint is not written")
    elif isinstance(state, dict):
        for key, value in state.items():
            refuse_non_finite(value, iteration, f"{where}.{key}" if where else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            refuse_non_finite(value, iteration, f"{where}[{i}]")


def _system(module: lightning.LightningModule) -> System:
    assert isinstance(module, System)
    return module


def _short_terms(values: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("loss/"): value for key, value in values.items() if key.startswith("loss/")}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
