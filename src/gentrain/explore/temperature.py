"""The same noise at several temperatures: samples side by side, how much they differ, and how likely they are."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gentrain.evaluation.likelihood import likelihood_on
from gentrain.evaluation.temperature import tempered
from gentrain.explore.judge import judge
from gentrain.explore.study import Found, Study, mean_square
from gentrain.report.strips import stack, strip_block


def explore(study: Study, path: Path, *, at: tuple[float, ...], n: int, show: int) -> Found:
    """``at``: temperatures; ``n``: samples at each, from one and the same noise. ``show``: so many are in the picture.
    Where a domain extractor serves the data it judges them; a system with a likelihood is asked for theirs."""
    study.require_images("temperature")
    temperatures = sorted(at)
    labels, judged = study.draw_classes(n), judge(study)
    x = {}
    for temperature in temperatures:
        with tempered(study.system, temperature):
            x[temperature] = study.sample(n, labels)
    measured = {}
    for temperature, images in x.items():
        found = {"difference": difference(images)}
        if judged is not None:
            found["confidence"] = float(judged(images).amax(1).mean())
        if study.can("log_likelihood") and (key := likelihood_on(study.system, study.data).bits_key) is not None:
            bits = study.log_likelihood(images) / (-math.log(2.0) * study.data.spec.numel)
            found[key] = float(bits.mean())
        measured[f"{temperature:g}"] = found
    stack([("", strip_block([(f"T = {t:g}", images[:show]) for t, images in x.items()]))], path)
    result = {
        "protocol": {"samples": n, "temperatures": temperatures, "judge": judged.facts if judged else None},
        "measured": measured,
    }
    return Found(result, _lines(measured, n))


def difference(x: Tensor) -> float:
    """Root of the mean squared difference of two samples next to each other, pixels in [0, 1]."""
    return float(mean_square(x, torch.roll(x, 1, 0)).mean().sqrt())


def _lines(measured: dict[str, dict[str, float]], n: int) -> list[str]:
    words = {"difference": "rms difference", "confidence": "classifier's confidence"}
    return [
        f"{n} samples at each temperature",
        *(
            f"  T = {temperature:<6}" + ", ".join(f"{words.get(key, key)} {value:.3f}" for key, value in of.items())
            for temperature, of in measured.items()
        ),
    ]
