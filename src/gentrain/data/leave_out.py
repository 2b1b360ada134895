"""Training without some classes, so that they are news to the model: for the detection of anomalies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentrain.config import nearest
from gentrain.data.dataset import DataSet, Rows, Split, TensorRows, content_hash
from gentrain.errors import UserError


@dataclass(frozen=True, eq=False)
class PartRows:
    """Those of ``rows`` at int64 ``index`` [N], in that order."""

    rows: Rows
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor) -> Tensor:
        return self.rows.take(self.index[index])

    def complaints(self) -> Iterator[str]:
        """As those of the whole: what is wrong with each file that is read while training, one line each."""
        yield from getattr(self.rows, "complaints", list)()


def leaving_out(data: DataSet, classes: Sequence[Any]) -> DataSet:
    """The data with none of ``classes`` (names, or numbers from 0) among the training samples; the test split and the
    names of the classes stay as they are. UserError for a class that is not there, and if nothing would be left."""
    if not classes:
        return data
    y = data.train.y
    if y is None or y.ndim != 1 or not data.spec.classes:
        raise UserError(f"data.leave_out: data {data.name!r} have no class labels")
    out = sorted({class_number(str(name), data.spec.class_names, "data.leave_out") for name in classes})
    kept = (~torch.isin(y, torch.tensor(out))).nonzero().flatten()
    if not len(kept):
        raise UserError("data.leave_out: no training sample would be left; name fewer classes")
    x = data.train.x
    rows = TensorRows(x.take(kept)) if isinstance(x, TensorRows) else PartRows(x, kept)
    fingerprint = content_hash([data.fingerprint, "leave_out", *map(str, out)])
    return DataSet(data.name, data.spec, Split(rows, y[kept]), data.test, fingerprint, data.density)


def class_number(name: str, names: Sequence[str], key: str) -> int:
    """Of a class by its name, or by its number where no class is called so. UserError says the names."""
    if name in names:
        return list(names).index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UserError(f"{key}={name}: no such class{nearest(name, names)}")
