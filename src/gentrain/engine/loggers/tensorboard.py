"""TensorBoard event files in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentrain.engine.loggers.base import Guard
from gentrain.errors import UserError
from gentrain.masking import mask_secrets


class TensorBoard:
    """Writes ``tensorboard/`` in the run folder; look at it with ``tensorboard --logdir outputs``.

    TensorBoard has one x-axis: iterations. Images seen are a curve of their own, ``images``.
    """

    def __init__(self) -> None:
        self._writer: Any = None
        self._guard = Guard("tensorboard")

    def start(
        self, config: Mapping[str, Any], folder: Path, name: str, resume_at: int = 0, again: bool = False
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logger=tensorboard: the package tensorboard is missing; pip install 'gentrain[tensorboard]'"
            ) from error

        def open_writer() -> None:
            # Events of the killed run that are younger than the checkpoint disappear from view.
            purge = resume_at + 1 if resume_at > 0 else None
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
            text = json.dumps(mask_secrets(config), indent=2, default=str).replace("\n", "\n    ")
            self._writer.add_text("config", f"    {text}", resume_at)

        self._guard = Guard("tensorboard")
        self._guard(open_writer)

    def scalars(self, values: Mapping[str, float], iteration: int, images: int) -> None:
        def write() -> None:
            for key, value in values.items():
                self._writer.add_scalar(key, float(value), iteration)
            self._writer.add_scalar("images", images, iteration)

        if self._writer is not None and values:
            self._guard(write)

    def picture(self, key: str, path: Path, iteration: int, images: int) -> None:
        def write() -> None:
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))  # [H W C]
            self._writer.add_image(key, pixels, iteration, dataformats="HWC")

        if self._writer is not None:
            self._guard(write)

    def summary(self, values: Mapping[str, float | str]) -> None:
        def write() -> None:
            rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
            self._writer.add_text("summary", f"| | |\n|---|---|\n{rows}")

        if self._writer is not None:
            self._guard(write)

    def finish(self, status: str) -> None:
        if self._writer is not None:
            self._guard(self._writer.close)
        self._writer = None
