"""Pictures of one's own to project, read as ``gentrain evaluate samples=`` reads them, in the place of test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.data import given
from gentrain.data.dataset import spread
from gentrain.data.fit import Said
from gentrain.data.leave_out import class_number
from gentrain.errors import UserError
from gentrain.explore.study import Seen, Study


@dataclass(frozen=True)
class Own:
    """``place``: a file or folder. ``resize``, ``channels``, ``levels`` (``range=``): what may be done to them, empty
    for nothing; see ``data.fit.Said``. ``label``: the class of all, for a system that is asked by class."""

    place: str
    resize: str = ""
    channels: str = ""
    levels: str = ""
    label: str = ""

    def seen(self, study: Study, n: int) -> tuple[Seen, dict[str, Any]]:
        """At most ``n`` of them, spread over all, with their places among these, and what was read.

        UserError for pictures that are not like the data's, and where classes are due and nothing tells them.
        """
        said = Said(resize=self.resize or None, channels=self._channels, range=self.levels or None)
        found = given.read(Path(self.place), said, "pictures", study.data.spec.shape, single=True)
        index = spread(len(found), min(n, len(found)))
        y = self._labels(study, found)
        return Seen(index, found.x[index], None if y is None else y[index]), found.facts

    @property
    def _channels(self) -> int | None:
        return int(self.channels) if self.channels else None

    def _labels(self, study: Study, found: given.Pictures) -> Tensor | None:
        names = study.data.spec.class_names
        if self.label:
            return torch.full((len(found),), class_number(self.label, names, "class"))
        y = found.labels(study.data.spec)
        if y is None and study.told_classes:
            raise UserError(
                f"pictures={self.place}: the system makes images of a class, and nothing says theirs: give class=..., "
                f"or put them into folders called after classes (one of {', '.join(names)})"
            )
        return y


def one_picture(study: Study, place: str, key: str, resize: str, channels: int) -> Tensor:
    """uint8 [C H W], as large as the data's, from an image file. UserError that begins with ``key``."""
    path = Path(place)
    if not path.expanduser().is_file():
        raise UserError(f"{key}={place}: there is no such file")
    shape = (channels, *study.data.spec.shape[1:])
    # A mask is grey whatever it is stored as, and may be all black, which would else be asked about.
    said = Said(resize=resize or None, channels=channels if key == "mask" else None, range="0..255")
    x = given.read(path, said, key, shape, single=True).x
    if len(x) > 1:
        raise UserError(f"{key}={place}: {len(x)} pictures, and one is needed")
    return x[0]
