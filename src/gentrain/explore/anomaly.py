"""One class as the anomaly: does the model find it strange?

Scores of test images by reconstruction error and by minus log-likelihood (or free energy, which is that but for a
constant), and how well each tells the class from the
others. That answers the question only for a model that was trained without the class (``data.leave_out``). A
likelihood may well find a strange but simple image likelier than a usual one (Nalisnick et al. 2019, arXiv 1810.09136).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gentrain.data.leave_out import class_number
from gentrain.errors import UserError
from gentrain.explore.study import Found, Seen, Study, mean_square
from gentrain.report.charts import histograms


def explore(study: Study, path: Path, *, anomaly: str, n: int, train: int) -> Found:
    """``anomaly``: the class, by name or number. ``n``: test images spread over the split; ``train``: training images
    that the principal components of the baseline are fitted to. Writes the histograms of all scores."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    seen, names = study.look("test", n), study.data.spec.class_names
    y = study.classes(seen, "anomaly")
    if not anomaly:
        raise UserError(f"explore anomaly: class= is missing, the class to find: one of {', '.join(names)}")
    number = class_number(anomaly, names, "class")
    strange = (y == number).numpy()
    if not strange.any() or strange.all():
        raise UserError(f"class={anomaly}: {int(strange.sum())} of {len(y)} test images are of it; raise n=")
    labels = study.data.train.y
    trained = 0 if labels is None else int((labels == number).sum())
    scores = _scores(study, seen, train)
    found: dict[str, Any] = {}
    for name, score in scores.items():
        found[name] = {
            "auroc": float(roc_auc_score(strange, score)),
            "average_precision": float(average_precision_score(strange, score)),
            "mean_of_class": float(score[strange].mean()),
            "mean_of_others": float(score[~strange].mean()),
        }
    title = names[number]
    panels = {
        f"{name.replace('_', ' ')} (AUROC {found[name]['auroc']:.3f})": {"others": s[~strange], title: s[strange]}
        for name, s in scores.items()
    }
    histograms(panels, path)
    said = (
        f"class {title!r} was in training ({trained} images): this says how it differs, not whether news are found; "
        f"train with data.leave_out=[{title}]"
        if trained
        else f"class {title!r} was not in training"
    )
    result = {
        "protocol": {
            "class": title, "class_in_training": trained > 0, "training_images_of_class": trained,
            "images": len(seen), "images_of_class": int(strange.sum()), "split": "test",
            "positive": "the class; higher scores are stranger",
            "reconstruction_error": "mean squared error per number, images in [0, 1], 256 levels",
        },
        "scores": found,
    }  # fmt: skip
    lines = [f"  {name:<22} AUROC {of['auroc']:.3f}" for name, of in found.items()]
    return Found(result, [said, *lines])


def _scores(study: Study, seen: Seen, train: int) -> dict[str, Any]:
    """float64 [N] by name, higher is stranger."""
    scores: dict[str, Any] = {}
    if study.can("free_energy"):  # the likelihood but for a constant that may be dear
        scores["free_energy"] = study.free_energy(seen.x).numpy()
    elif study.can("log_likelihood"):
        scores["minus_log_likelihood"] = -study.log_likelihood(seen.x).numpy()
    if study.can("encode") and study.can("decode"):
        codes = study.encode(seen.x)
        scores["reconstruction_error"] = mean_square(seen.x, study.decode(codes)).numpy()
        scores["pca_error"] = pca_errors(study.look("train", train), seen, codes.shape[1], study.seed)
    return scores


def pca_errors(fitted: Seen, seen: Seen, dimensions: int, seed: int) -> Any:
    """float64 [N]: mean squared error of what the first principal components of ``fitted`` keep of each sample."""
    from sklearn.decomposition import PCA

    x, held = fitted.flat.double().numpy(), seen.flat.double().numpy()
    pca = PCA(min(dimensions, *x.shape), random_state=seed % 2**32).fit(x)
    back = pca.inverse_transform(pca.transform(held))
    return np.square(held - back).mean(axis=1)
