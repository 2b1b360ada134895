"""Features for labels: how much a classifier learns from few labels when it sees codes instead of pixels.

The encoder is frozen; a linear classifier and nearest neighbours are fitted to the codes of a few labelled training
images, and both are held against raw pixels, as many principal components as a code has numbers, and the codes of the
same network before its training.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.study import Found, Seen, Study, generator_of, spread_of
from gentrain.report.charts import errorbars

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEFAULT = ("10", "100", "all")
KINDS = {"logistic": "logistic regression", "knn": "k nearest neighbours"}


def explore(
    study: Study, path: Path, *, per_class: str, labels: str, repeats: int, k: int, train: int, n: int
) -> Found:
    """``per_class``: labelled images of each class, ``labels``: of all classes together (one of the two, or neither:
    10, 100 and all of each class, as far as there are so many). ``train``, ``n``: training images that labels are
    drawn from, and test images, spread over their splits. Writes accuracy against number of labels."""
    pool, test = study.look("train", train), study.look("test", n)
    known = torch.unique(study.classes(pool, "probe"))  # a class left out of training has no labels to learn from
    asked = torch.isin(study.classes(test, "probe"), known)
    test = Seen(test.index[asked], test.x[asked], study.classes(test, "probe")[asked])
    y, target = study.classes(pool, "probe").numpy(), study.classes(test, "probe").numpy()
    budgets = _budgets(per_class, labels, np.bincount(y)[known.numpy()], k)
    features = {name: standardised(*both) for name, both in _features(study, pool, test).items()}
    curves: dict[str, dict[str, dict[str, Any]]] = {kind: {name: {} for name in features} for kind in KINDS}
    unconverged = 0
    for budget in budgets:
        counts = [_drawn(y, budget, study.seed, repeat) for repeat in range(1 if budget is None else repeats)]
        for name, (fitted, held) in features.items():
            scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for chosen in counts:
                found, converged = accuracies(fitted[chosen], y[chosen], held, target, k)
                unconverged += not converged
                for kind, value in found.items():
                    scores[kind].append(value)
            for kind, values in scores.items():
                entry = {"mean": float(np.mean(values)), "sd": spread_of(values), "values": values}
                curves[kind][name][str(len(counts[0]))] = entry
    sizes = [int(size) for size in next(iter(curves["logistic"].values()))]
    panels = {KINDS[kind]: {name: _means(by) for name, by in names.items()} for kind, names in curves.items()}
    errorbars(panels, sizes, path, across="labelled training images", up="accuracy on test images")
    result = {
        "protocol": {
            "labelled": sizes, "repeats": repeats, "classes": [study.data.spec.class_names[i] for i in known.tolist()],
            "neighbours": k, "pool": len(pool), "test": len(test), "code": features["codes"][0].shape[1],
            "pca": features["PCA"][0].shape[1], "standardised": "on the training images looked at",
            "logistic_regression": "C=1, lbfgs, at most 1000 iterations", "unconverged": unconverged,
        },
        "accuracy": curves,
    }  # fmt: skip
    return Found(result, _lines(curves, sizes))


def accuracies(x: Floats, y: Ints, held: Floats, target: Ints, k: int) -> tuple[dict[str, float], bool]:
    """Accuracy on ``held`` [M D] of logistic regression and of ``k`` neighbours fitted to x [N D], labels y [N], and
    whether the regression converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        logistic = LogisticRegression(C=1.0, max_iter=1000).fit(x, y)
    neighbours = KNeighborsClassifier(k).fit(x, y)
    found = {"logistic": float(logistic.score(held, target)), "knn": float(neighbours.score(held, target))}
    return found, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def standardised(fitted: Floats, held: Floats) -> tuple[Floats, Floats]:
    """Both [* D] by the mean and deviation of ``fitted``. These are all images of the pool, labelled or not: of a few
    labelled ones alone, a pixel that is nearly always black has a deviation near 0, and raw pixels would lose to any
    code for that."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fitted)
    return scaler.transform(fitted), scaler.transform(held)


def principal_components(fitted: Tensor, held: Tensor, dimensions: int, seed: int) -> tuple[Floats, Floats]:
    """Both [* D] along the first ``dimensions`` principal components of ``fitted`` (fewer where there are fewer)."""
    from sklearn.decomposition import PCA

    pca = PCA(min(dimensions, *fitted.shape), random_state=seed % 2**32).fit(fitted.double().numpy())
    return pca.transform(fitted.double().numpy()), pca.transform(held.double().numpy())


def _features(study: Study, pool: Seen, test: Seen) -> dict[str, tuple[Floats, Floats]]:
    codes = [study.encode(seen.x) for seen in (pool, test)]
    untrained = study.untrained()
    random = [study.encode(seen.x, untrained) for seen in (pool, test)]
    pca = principal_components(pool.flat, test.flat, codes[0].shape[1], study.seed)
    as_arrays = {"codes": codes, "untrained codes": random, "pixels": [pool.flat, test.flat]}
    found = {name: (a.double().numpy(), b.double().numpy()) for name, (a, b) in as_arrays.items()}
    return {"codes": found["codes"], "PCA": pca, "pixels": found["pixels"], "untrained codes": found["untrained codes"]}


def _budgets(per_class: str, labels: str, there: Ints, k: int) -> list[tuple[int, bool] | None]:
    """(number, whether of each class), None for all of the pool. UserError for what cannot be drawn."""
    if per_class and labels:
        raise UserError(f"per_class={per_class} and labels={labels}: one of the two")
    key, each = ("labels", False) if labels else ("per_class", True)
    words = (labels or per_class).split(",") if labels or per_class else list(DEFAULT)
    classes, least, found = len(there), int(there.min()), list[tuple[int, bool] | None]()
    if classes < 2:
        raise UserError("explore probe: one class alone among the training images: there is nothing to tell apart")
    for word in dict.fromkeys(word.strip() for word in words):
        if word == "all":
            found.append(None)
            continue
        if not word.isdecimal() or not int(word):
            raise UserError(f"{key}={word}: numbers of labelled images, or all, e.g. {key}=10,100,all")
        number = int(word)
        total, share = (number * classes, number) if each else (number, -(-number // classes))
        if share > least or total < max(classes, k):
            if not labels and not per_class:
                continue
            why = (
                f"the rarest class has {least} training images (train= looks at more)"
                if share > least
                else f"at least one of each of the {classes} classes, and k={k} in all"
            )
            raise UserError(f"{key}={word}: {why}")
        found.append((number, each))
    return found


def _drawn(y: Ints, budget: tuple[int, bool] | None, seed: int, repeat: int) -> Ints:
    """Places of the labelled images, as many of each class as can be. Larger draws of a repeat hold the smaller."""
    if budget is None:
        return np.arange(len(y))
    number, each = budget
    rng = generator_of(seed, repeat)
    classes = rng.permutation(np.unique(y))
    share, over = (number, 0) if each else divmod(number, len(classes))
    parts = [rng.permutation(np.flatnonzero(y == c))[: share + (i < over)] for i, c in enumerate(classes)]
    return np.sort(np.concatenate(parts))


def _means(by_size: Mapping[str, Mapping[str, Any]]) -> tuple[Sequence[float], Sequence[float]]:
    return [entry["mean"] for entry in by_size.values()], [entry["sd"] for entry in by_size.values()]


def _lines(curves: Mapping[str, Mapping[str, Mapping[str, Any]]], sizes: Sequence[int]) -> list[str]:
    lines = [f"accuracy of logistic regression with {', '.join(map(str, sizes))} labels (mean ± sd)"]
    for name, by_size in curves["logistic"].items():
        shown = "  ".join(f"{entry['mean']:.3f} ± {entry['sd']:.3f}" for entry in by_size.values())
        lines.append(f"  {name:<16} {shown}")
    return lines
