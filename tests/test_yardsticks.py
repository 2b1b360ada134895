"""Bits of means that know little of pictures: against closed forms, noise and constants."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fixtures_data import idx_set
from test_demonstrations import script


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_independent_pixels_are_told_by_their_frequencies_at_each_place() -> None:
    train = torch.tensor([[7, 1], [7, 2], [7, 1], [7, 1]], dtype=torch.uint8).view(4, 1, 1, 2)
    test = torch.tensor([[7, 2], [0, 1]], dtype=torch.uint8).view(2, 1, 1, 2)
    shares = [4.5 / 132, 1.5 / 132, 0.5 / 132, 3.5 / 132]
    expected = -sum(math.log2(share) for share in shares) / 4
    assert script("yardsticks").independent(train, test) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_packers_take_all_images_and_win_nothing_on_noise(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("yardsticks")
    monkeypatch.setattr(module, "TALLEST", 100)  # several pictures
    images = noise(30, channels, 16, 16)
    for pack in (module.packed, module.webp):
        assert 8.0 <= pack(images) < 10.0
        assert pack(torch.zeros_like(images)) < 0.5
    assert module.webp(noise(10, 4, 8, 8)) is None
    assert module.webp(noise(10, 64)) is None


def test_yardsticks_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    idx_set(tmp_path / "data" / "fashion_mnist", train=20, test=10)
    assert script("yardsticks").main(["--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "yardsticks.json").read_text(encoding="utf-8"))
    assert found["test_images"] == 10
    assert list(found["bits_per_dim"]) == ["uniform", "independent", "webp", "lzma"]
