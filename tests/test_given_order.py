"""Numbers that stray from their range by a little, and files numbered without leading zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gentrain.data.fit import Said
from gentrain.data.given import read
from gentrain.data.sources import digits
from gentrain.errors import UserError

DATA = digits()
X = DATA.train.x.take(torch.arange(25)).numpy()  # [25 1 8 8]
UNIT = X / 255.0


@pytest.mark.parametrize(
    ("values", "said", "hint"),
    [
        (UNIT - 0.01, "-1..1", "hardly a value is below 0"),
        (UNIT, "-1..1", "no value is below 0"),
        (UNIT * 1.02, "0..255", "an eighth"),
        (UNIT * 2 - 1, "0..1", "outside"),
    ],
)
def test_a_stray_value_does_not_make_another_range(
    values: NDArray[np.float64], said: str, hint: str, workplace: Path
) -> None:
    np.save("x.npy", values)
    with pytest.raises(UserError, match=hint):
        read(Path("x.npy"), Said(range=said), "samples", DATA.spec.shape)
    np.save("x.npy", UNIT * 2 - 1)
    assert np.array_equal(read(Path("x.npy"), Said(range="-1..1"), "samples", DATA.spec.shape).x, X)


def test_numbered_files_come_in_the_order_of_their_array(workplace: Path) -> None:
    for folder in ("png", "npy"):
        Path(folder).mkdir()
    for i, picture in enumerate(X):
        Image.fromarray(picture[0]).save(f"png/picture_{i}.png")
        np.save(f"npy/{i}.npy", picture[None])
    np.save("all.npy", X)
    Path("png/١.txt").write_text("a number in another script", encoding="utf-8")
    found = [read(Path(place), Said(), "samples", DATA.spec.shape) for place in ("all.npy", "png", "npy")]
    for other in found:
        assert np.array_equal(other.x, X)
        assert other.facts["fingerprint"] == found[0].facts["fingerprint"]
