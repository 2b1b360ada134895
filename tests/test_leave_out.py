"""Classes that are not trained on: gone from the training split alone, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Run
from PIL import Image

from gentrain.data.leave_out import PartRows, class_number
from gentrain.data.sources import digits, fashion_mnist, folder
from gentrain.errors import UserError


def test_the_training_split_loses_the_classes_and_nothing_else() -> None:
    whole, part = digits(), digits(leave_out=[3, "7"])
    assert whole.train.y is not None
    assert part.train.y is not None
    assert part.test.y is not None
    kept = (whole.train.y != 3) & (whole.train.y != 7)
    assert 0 < int(kept.sum()) < len(whole.train)
    assert torch.equal(part.train.all().x, whole.train.all().x[kept])
    assert torch.equal(part.train.y, whole.train.y[kept])
    assert torch.equal(part.test.all().x, whole.test.all().x)
    assert {3, 7} <= set(part.test.y.tolist())
    assert part.spec == whole.spec
    assert part.fingerprint != whole.fingerprint
    assert digits(leave_out=[]).fingerprint == whole.fingerprint
    assert digits(leave_out=["7", 3]).fingerprint == part.fingerprint != digits(leave_out=[3]).fingerprint


def test_images_in_files_lose_them_too(tmp_path: Path) -> None:
    for name, grey in (("cat", 10), ("dog", 200)):
        for i in range(40):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (8, 8), grey + i).save(tmp_path / name / f"{i}.png")
    asked = {"root": str(tmp_path), "size": 8, "channels": 1, "cache_dir": str(tmp_path / "cache"), "cache": False}
    part = folder(**asked, in_memory_bytes=0, leave_out=["dog"])
    assert isinstance(part.train.x, PartRows)
    assert part.train.y is not None
    assert part.test.y is not None
    assert list(part.train.x.complaints()) == []
    (tmp_path / "cat" / "5.png").write_bytes(b"no picture")
    assert ["cat/5.png" in line for line in part.train.x.complaints()] == [True]
    Image.new("L", (8, 8), 15).save(tmp_path / "cat" / "5.png")
    whole = folder(**asked)
    assert whole.train.y is not None
    assert torch.equal(part.train.all().x, whole.train.all().x[whole.train.y == 0])
    assert set(part.train.y.tolist()) == {0}
    assert set(part.test.y.tolist()) == {0, 1}


def test_classes_are_called_by_name_or_number_and_others_refused(tmp_path: Path, run: Run) -> None:
    assert [class_number(name, ("5", "6", "x"), "k") for name in ("6", "x", "0", "5")] == [1, 2, 0, 0]
    with pytest.raises(UserError, match=r"data\.leave_out=Bags: no such class \(did you mean Bag\?\)"):
        fashion_mnist(str(tmp_path), download=False, leave_out=["Bags"])
    with pytest.raises(UserError, match="no training sample would be left"):
        digits(leave_out=list(range(10)))
    y = digits().train.y
    assert y is not None
    done = run("check", "model=ae", "data=digits", "size=tiny", "data.leave_out=[3]")
    assert done.code == 0, done.err
    assert f"{int((y != 3).sum())} training samples" in done.out
    done = run("check", "model=ae", "data=digits", "size=tiny", "data.leave_out=[eleven]")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "data.leave_out=eleven: no such class" in done.err
