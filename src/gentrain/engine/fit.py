"""Run the job of a run folder: from its frozen config to a trained system, its scores and its run card."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import lightning
import torch

import gentrain
from gentrain.config import Node, build
from gentrain.data.dataset import DataSet
from gentrain.data.stream import stream
from gentrain.engine import checkpoint
from gentrain.engine.assemble import assemble, build_system, check_config, rehearse, say_left_out
from gentrain.engine.conductor import Conductor
from gentrain.engine.finite import NonFiniteError
from gentrain.engine.loggers import MetricsCsv
from gentrain.engine.loop import Blocks, Hurried, Signals
from gentrain.engine.progress import RichProgress
from gentrain.engine.ranks import leave, lost_a_rank
from gentrain.engine.session import Session, place
from gentrain.engine.strategy import count_devices, ranks_strategy
from gentrain.engine.system import System
from gentrain.errors import LostRankError, UserError
from gentrain.folder import RunFolder
from gentrain.lock import only_one
from gentrain.types import Images

ROLLBACKS = 3
"""How often a run goes back to a checkpoint before it is given up."""


def fit(folder: RunFolder, config: Node, *, resume: bool = False, trusted: bool = True, quiet: bool = False) -> int:
    """Train. Returns the process's exit code: 0, or 130/143 when a signal stopped it after a checkpoint."""
    rank, world = place()
    with only_one(folder.path) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            _file_log(folder)
        _silence()
        if config["trainer"].get("threads") is not None:
            torch.set_num_threads(config["trainer"]["threads"])
        session, system = _begin(folder, config, rank, world, resume=resume, trusted=trusted, quiet=quiet)
        try:
            return _train(session, system)
        except BaseException as error:
            # Up to here nothing of the run was touched; a resume that is refused leaves its card as it was.
            if rank == 0 and folder.card().get("status") != "created":
                status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
                folder.update_card(status=status, error=str(error) or type(error).__name__)
                with folder.log_file.open("a", encoding="utf-8") as log:
                    log.write(traceback.format_exc())
            if world > 1 and lost_a_rank(error):
                limit = config["trainer"]["timeout"]
                raise LostRankError(f"rank {rank}: another rank has gone, or said nothing for {limit:g} s") from error
            raise


def _begin(
    folder: RunFolder, config: Node, rank: int, world: int, *, resume: bool, trusted: bool, quiet: bool
) -> tuple[Session, System]:
    parts = assemble(config, trusted=trusted)
    resumed = _last_state(folder, parts.data) if resume else None
    first = rank == 0
    say_left_out(parts.left_out if first else [])
    own_logger = build(config["logger"], trusted=trusted, where="logger") if config["logger"] and first else None
    session = Session(
        folder=folder,
        config=config,
        data=parts.data,
        budget=parts.budget,
        scoring=parts.scoring,
        loggers=[MetricsCsv(), *([own_logger] if own_logger is not None else [])] if first else [],
        progress=RichProgress(quiet=quiet or not first),
        health=parts.health,
        seed=config["seed"],
        rank=rank,
        world=world,
        identity=folder.card().get("id"),
        resumed=resumed,
        seconds_before=0.0 if resumed is None else resumed["seconds"],
    )
    return session, parts.system


def _train(session: Session, system: System) -> int:
    checkpoint.sweep(session.folder.checkpoints)
    status = "failed"
    with Signals() as signals:
        if session.world == 1:  # several ranks stop together, at the end of a block
            system.interrupted = lambda: signals.received is not None
        conductor = Conductor(session, signals)
        try:
            while True:
                try:
                    _play(session, system, conductor)
                    break
                except NonFiniteError as error:
                    session.resumed = _set_back(session, system, error)
                    conductor = Conductor(session, signals)
            status = "finished" if system.clock.finished and not conductor.owed else "stopped"
            leave()
        finally:
            session.progress.stop()
            if session.is_first and session.folder.card().get("status") != "created":  # else it never began
                _write_results(session, conductor.results(system), status)
    return signals.exit_code if status == "stopped" else 0


def _play(session: Session, system: System, conductor: Conductor) -> None:
    """Train from where ``session.resumed`` says to the end of the budget, or to a signal."""
    budget, settings, resumed = session.budget, session.config["trainer"], session.resumed
    system.clock.total = budget.iterations
    if resumed is not None:
        system.clock.iteration = resumed["system"]["clock"]["iteration"]
    scoring = budget.scoring_interval(session.scoring)
    intervals = [budget.log_every, budget.validation_interval, budget.checkpoint_interval, scoring]

    def batches(start: int) -> Iterator[Images]:
        return stream(
            session.data.train,
            batch_size=budget.batch_size,
            seed=session.seed,
            start=start,
            rank=session.rank,
            world=session.world,
            flip=budget.flip,
            workers=settings["workers"],
            device=system.device,
        )

    trainer = _lightning_trainer(session, conductor)
    try:
        trainer.fit(system, train_dataloaders=Blocks(batches, system.clock, intervals))
    except (Hurried, SystemExit) as ended:
        if isinstance(ended, Hurried) or isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from ended
        raise


def _set_back(session: Session, system: System, error: NonFiniteError) -> dict[str, Any]:
    """The last checkpoint, to go on from with a smaller step; or the error, which then says where the last one is."""
    found = checkpoint.newest_whole(session.folder.checkpoints, session.identity)
    if found is None:
        raise NonFiniteError(f"{error}; no checkpoint was written yet") from error
    path, state, _ = found
    if session.budget.on_nonfinite == "stop":
        raise NonFiniteError(
            f"{error}; the last good checkpoint is {path.name} (train.on_nonfinite=rollback goes back to it by itself)"
        ) from error
    if system.setbacks == ROLLBACKS:
        raise NonFiniteError(f"{error}; given up after {ROLLBACKS} rollbacks, the last to {path.name}") from error
    state["system"]["setbacks"] = system.setbacks + 1
    if session.is_first:
        said = f"{error}; back to {path.name} with {0.5 ** (system.setbacks + 1):g} times the learning rate"
        session.progress.line(f"rollback: {said}")
        session.folder.update_card(rollbacks=[*session.folder.card().get("rollbacks", []), said])
        for logger in session.loggers:
            logger.finish("rolled back")
    return state


def _lightning_trainer(session: Session, conductor: Conductor) -> lightning.Trainer:
    settings = session.config["trainer"]
    kind, _ = count_devices(settings["accelerator"], 1)
    strategy: Any = "auto"
    if session.world > 1:
        strategy = ranks_strategy(settings["backend"], settings["timeout"])
    return lightning.Trainer(
        accelerator=kind,
        devices=session.world,
        strategy=strategy,
        max_epochs=1,
        callbacks=[conductor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        deterministic="warn" if settings["deterministic"] else None,
        default_root_dir=str(session.folder.path),
    )


def _write_results(session: Session, results: dict[str, Any], status: str) -> None:
    session.folder.update_card(status=status, **results)
    summary = {f"final/{name}": value for name, value in (results["final"] or {}).items()}
    if results["best"] is not None:
        summary |= {f"best/{name}": value for name, value in results["best"]["scores"].items()}
    for logger in session.loggers:
        logger.summary({**summary, "images_per_second": results["images_per_second"] or 0.0})
        logger.finish(status)


def _last_state(folder: RunFolder, data: DataSet) -> dict[str, Any] | None:
    found = checkpoint.newest_whole(folder.checkpoints, folder.card().get("id"))
    if found is None:
        return None
    path, state, passed_over = found
    rank, world = place()
    if passed_over and rank == 0:
        print(f"gentrain: passed over {'; '.join(passed_over)}: resuming from {path.name}", file=sys.stderr)
    if state["world_size"] != world:
        raise UserError(
            f"{folder.path}: was trained on {state['world_size']} ranks and would go on with {world}, which would share"
            f" the data and the noise otherwise; put devices: {state['world_size']} into its config.yaml, under trainer"
        )
    if state["data"] != data.fingerprint:
        raise UserError(f"{folder.path}: the data are no longer those it was trained on (fingerprint differs)")
    return state


def refuse_foreign_launcher() -> None:
    """gentrain starts the ranks of a job itself; under another launcher every rank would start them again."""
    if "RANK" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "RANK or WORLD_SIZE is set: run gentrain without torchrun, it starts its ranks itself"
            " (trainer=ddp trainer.devices=N)"
        )


def card_for(config: Node, command: str) -> dict[str, Any]:
    """The run card at the start: what is known before anything ran."""
    return {
        "status": "created",
        "id": secrets.token_hex(8),
        "command": command,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "choices": config["choices"],
        "about": config.get("about"),
        "seed": config["seed"],
        "versions": {
            "gentrain": gentrain.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
    }


def _file_log(folder: RunFolder) -> None:
    root = logging.getLogger("gentrain")
    for old in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(old)
        old.close()
    handler = logging.FileHandler(folder.log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _silence() -> None:
    """Lightning's notices about things that are done on purpose here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    for text in (".*configure_optimizers.*", ".*does not have many workers.*", ".*is not an instance of.*DataLoader.*"):
        warnings.filterwarnings("ignore", message=text)


__all__ = [
    "build_system",
    "card_for",
    "check_config",
    "count_devices",
    "fit",
    "refuse_foreign_launcher",
    "rehearse",
]
