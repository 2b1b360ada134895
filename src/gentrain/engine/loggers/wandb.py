"""Weights & Biases: one run per job, and never a reason for a job to fail."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from gentrain.engine.loggers.base import FINISHED, Guard, log, one_line
from gentrain.masking import mask_secrets, mask_words

START_SECONDS = 5.0
"""A server that does not answer delays the start by this much at most."""

FINISH_SECONDS = 60.0
"""What is not uploaded by then stays on disk for ``wandb sync``."""


class Wandb:
    """Scalars, sample grids, the config and the final scores as one run of a project.

    ``mode``: ``auto`` is ``online`` where an API key is configured (WANDB_API_KEY or ``wandb login``), else
    ``offline``; an offline run is uploaded later with ``wandb sync``. If the service cannot be reached at the start,
    the run is kept offline. If it dies later, one line says so and the training goes on.
    """

    def __init__(
        self,
        project: str = "gentrain",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.project = project
        self.entity = entity
        self.mode = mode
        self.group = group
        self.tags = [str(tag) for tag in tags]
        self._run: Any = None
        self._guard = Guard("wandb")

    def start(
        self, config: Mapping[str, Any], folder: Path, name: str, resume_at: int = 0, again: bool = False
    ) -> None:
        self._guard = Guard("wandb")
        self._guard(lambda: self._start(mask_secrets(config), folder, name, resume_at))

    def scalars(self, values: Mapping[str, float], iteration: int, images: int) -> None:
        if self._run is not None and values:
            row = {key: float(value) for key, value in values.items()}
            self._guard(lambda: self._run.log({**row, "iteration": iteration, "images": images}))

    def picture(self, key: str, path: Path, iteration: int, images: int) -> None:
        def send() -> None:
            import wandb

            self._run.log({key: wandb.Image(str(path)), "iteration": iteration, "images": images})

        if self._run is not None:
            self._guard(send)

    def summary(self, values: Mapping[str, float | str]) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(dict(values)))

    def finish(self, status: str) -> None:
        """Also after a failure: without it the next job of this process would write into this run."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=0 if status == FINISHED else 1)
        except Exception as error:
            if not self._guard.quiet:
                self._guard.fail(error)

    def _start(self, config: dict[str, Any], folder: Path, name: str, resume_at: int) -> None:
        import wandb

        if wandb.run is not None:
            wandb.finish()
        mode, ask = self._chosen_mode(), {"config": config, "name": name, "dir": str(folder)}
        note = folder / "wandb" / "run-id.txt"
        if mode == "online":
            # Only the server can continue a run; offline, the rest of it is a second run of the same name.
            again = {"id": note.read_text().strip(), "resume": "allow"} if resume_at > 0 and note.exists() else {}
            try:
                self._run = self._open(mode, ask | again)
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(self._run.id)
            except Exception as error:
                log.warning("wandb is offline (%s); upload later with: wandb sync %s", one_line(error), note.parent)
                mode = "offline"
        if self._run is None:
            self._run = self._open(mode, ask)
        self._run.define_metric("iteration")
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="iteration")

    def _open(self, mode: Any, ask: dict[str, Any]) -> Any:
        import wandb

        wanted = {
            # The output belongs to the progress display; the working copy and the command line may hold secrets.
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_code": True,
            "init_timeout": START_SECONDS,
            "login_timeout": START_SECONDS,
            "finish_timeout": FINISH_SECONDS,
        }
        known = getattr(wandb.Settings, "model_fields", wanted)
        settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
        with _masked_command_line():
            return wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                tags=self.tags,
                mode=mode,
                settings=settings,
                **ask,
            )

    def _chosen_mode(self) -> str:
        mode = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE", "auto")
        if mode == "online" and not has_key():
            log.warning("wandb is offline: no API key is configured; run `wandb login` or set WANDB_API_KEY")
            return "offline"
        if mode != "auto":
            return mode
        return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether an API key is configured: WANDB_API_KEY, or an entry in netrc for the server. Asks nobody, ever."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            hosts = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
        if any("wandb" in host or host == server or host in _default_hosts() for host in hosts):
            return True
    return False


def _default_hosts() -> set[str]:
    import wandb

    return {urlsplit(str(getattr(wandb.Settings(), "base_url", ""))).netloc} - {""}


@contextmanager
def _masked_command_line() -> Iterator[None]:
    """The service records the command line of the process, ``some.api_key=...`` included."""
    real = sys.argv
    sys.argv = mask_words(real)
    try:
        yield
    finally:
        sys.argv = real
