"""How well clusters that nobody labelled agree with the classes: of codes by k-means, and a model's own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gentrain.capabilities import Clusterer
from gentrain.errors import UserError
from gentrain.evaluation.subject import Subject, counted, split_of

if TYPE_CHECKING:
    from gentrain.data.dataset import DataSet


def cluster_scores(clusters: Tensor, labels: Tensor) -> dict[str, float]:
    """Agreement of clusters int64 [N] with labels int64 [N]; names and order of the clusters mean nothing.

    ``accuracy``: share of samples on the best assignment of clusters to classes, each to at most one (Hungarian
    method); clusters beyond the number of classes are left over and count as wrong. ``nmi``: mutual information over
    the mean of the two entropies, 0..1. ``ari``: adjusted Rand index, 0 for chance, at most 1 (Hubert and Arabie 1985).
    Raises ValueError unless both are one number per sample, at least one.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    if clusters.ndim != 1 or clusters.shape != labels.shape or not len(labels):
        raise ValueError(f"clusters {tuple(clusters.shape)} and labels {tuple(labels.shape)}: one number per sample")
    found, true = clusters.cpu().numpy(), labels.cpu().numpy()
    table = contingency_matrix(true, found)  # [classes, clusters]
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {
        "accuracy": float(table[rows, columns].sum()) / len(true),
        "nmi": float(normalized_mutual_info_score(true, found)),
        "ari": float(adjusted_rand_score(true, found)),
    }


def confident_accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of samples whose label is that of the most confident member of their cluster (Makhzani et al. 2016, arXiv
    1511.05644, section 6; the criterion of Dilokthanakul et al. 2016, arXiv 1611.02648).

    ``probabilities`` [N K] of the clusters; ``labels`` int64 [N]. Several clusters may stand for one class, so that
    more clusters make it easier; one sample decides for a cluster, so that it jumps. Reads K labels.
    """
    assigned = probabilities.argmax(1)  # [N]
    speaks = labels[probabilities.argmax(0)]  # [K]
    return float((speaks[assigned] == labels).double().mean())


def kmeans(codes: Tensor, k: int, seed: int, restarts: int = 10) -> Tensor:
    """int64 [N]: clusters of codes [N Z] by Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii 2007), the best
    of ``restarts`` by its sum of squares. Codes are taken as they are, not standardised. One thread in float64: the
    same seed gives the same clusters. Raises UserError for fewer codes than clusters, and for codes not finite."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    if not 1 <= k <= len(codes):
        raise UserError(f"clusters={k}: 1 to {len(codes)}, the number of samples")
    if not bool(codes.isfinite().all()):
        raise UserError("codes are nan or inf: the model has diverged; take an earlier checkpoint")
    values = codes.detach().cpu().double().numpy()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct codes than clusters: the scores say so
        found = KMeans(k, n_init=restarts, random_state=seed % 2**32).fit_predict(values)
    return torch.from_numpy(found).long()


def principal_components(x: Tensor, dimensions: int, seed: int) -> Tensor:
    """float64 [N min(dimensions, N, D)]: x [N D] along its first principal components, what a linear code would keep;
    not whitened."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        pca = PCA(min(dimensions, *x.shape), random_state=seed % 2**32)
        return torch.from_numpy(pca.fit_transform(x.double().numpy()))


def class_labels(data: DataSet, split: str) -> Tensor:
    """int64 [N]: the class of each sample. UserError where the split has none, or several attributes for each."""
    y = split_of(data, split).y
    if y is None:
        raise UserError(f"split={split} of data {data.name!r} has no class labels to hold clusters against")
    if y.ndim != 1:
        raise UserError(
            f"split={split} of data {data.name!r} has {y.shape[1]} attributes a sample: clusters are held against one "
            "class each"
        )
    return y


def _require_classes(data: DataSet, split: str, name: str) -> None:
    """UserError that names the metric, where the split has not one class for each sample."""
    try:
        class_labels(data, split)
    except UserError as error:
        raise UserError(f"metrics.scores.{name}: {error}") from error


def one_class_each(data: DataSet, split: str) -> Tensor | None:
    """int64 [N], or None where the split has no labels, or attributes."""
    y = split_of(data, split).y
    return None if y is None or y.ndim != 1 else y


@dataclass(frozen=True)
class Clustering:
    """Clusters of a split against its classes, which nothing here was fitted to (config target).

    ``cluster_accuracy``, ``cluster_nmi``, ``cluster_ari`` (``cluster_scores``): k-means on the codes. The same with
    ``_pixels`` and ``_pca``: on the data themselves, and on as many of their principal components as a code has
    numbers; a code that does not beat them has learned nothing for this. Of a system with clusters of its own
    (capability ``cluster``), the same with ``_own``; ``cluster_accuracy_confident``: the other criterion,
    ``confident_accuracy``; ``clusters_used``: how many are the likeliest for any sample.

    ``split``, ``limit``: so many samples spread over it, None for all; fitted and scored on the same samples.
    ``clusters``: of k-means, None for as many as classes. ``restarts``: of k-means. ``baselines``: pixels and PCA too;
    they depend on data and seed alone. ``batch``: per call. ``optional``: data without one class a sample get no such
    scores; else they are refused.
    """

    split: str = "test"
    limit: int | None = None
    clusters: int | None = None
    restarts: int = 10
    baselines: bool = True
    batch: int = 250
    optional: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"encode"})

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("clusters", self.clusters), ("restarts", self.restarts),
                            ("batch", self.batch)):  # fmt: skip
            if value is not None and value < 1:
                raise UserError(f"metrics.scores.clustering.{name}={value}: at least 1")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        if self._left_out(data):
            return ()
        keys = [f"cluster_{score}{of}" for of in self._kinds(system) for score in ("accuracy", "nmi", "ari")]
        return (*keys, "cluster_accuracy_confident", "clusters_used") if isinstance(system, Clusterer) else tuple(keys)

    def check(self, data: DataSet, n: int | None = None) -> None:
        if self._left_out(data):
            return
        _require_classes(data, self.split, "clustering")
        k, count = self._k(data), self.looks_at(data, None)
        if k > count:
            raise UserError(
                f"metrics.scores.clustering: {k} clusters of {count} samples: lower .clusters or raise .limit"
            )

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        if self._left_out(data):
            return 0
        return counted(data, self.split, self.limit, limit)

    def probe(self, system: object, x: Tensor) -> None:
        system.encode(x.to(getattr(system, "device", "cpu")))  # type: ignore[attr-defined]

    def measure(self, subject: Subject) -> dict[str, float]:
        if self._left_out(subject.data):
            return {}
        count = max(self.looks_at(subject.data, subject.limit), self._k(subject.data))
        index = subject.reference_index(self.split, count)
        rows, labels = split_of(subject.data, self.split), class_labels(subject.data, self.split)[index]
        codes, own, raw = [], [], []
        for part in torch.split(index, self.batch):
            x = rows.take(part).x
            on_device = x.to(subject.device)
            codes.append(subject.system.encode(on_device).cpu())  # type: ignore[attr-defined]
            if isinstance(subject.system, Clusterer):
                own.append(subject.system.cluster(on_device).cpu())
            if self.baselines:
                raw.append(x.flatten(1).float() / 255.0 if x.dtype == torch.uint8 else x)
        code = torch.cat(codes)
        found = self._k_means(code, labels, subject, "")
        if raw:
            pixels = torch.cat(raw)
            found |= self._k_means(pixels, labels, subject, "_pixels")
            found |= self._k_means(principal_components(pixels, code.shape[1], subject.seed), labels, subject, "_pca")
        return found | (_own(torch.cat(own), labels) if own else {})

    def _left_out(self, data: DataSet) -> bool:
        return self.optional and one_class_each(data, self.split) is None

    def _kinds(self, system: object) -> list[str]:
        return [
            "",
            *(["_pixels", "_pca"] if self.baselines else []),
            *(["_own"] if isinstance(system, Clusterer) else []),
        ]

    def _k(self, data: DataSet) -> int:
        return self.clusters or max(data.spec.classes, 1)

    def _k_means(self, codes: Tensor, labels: Tensor, subject: Subject, of: str) -> dict[str, float]:
        try:
            clusters = kmeans(codes, self._k(subject.data), subject.seed, self.restarts)
        except UserError as error:
            raise UserError(f"metrics.scores.clustering: {error}") from error
        return _named(cluster_scores(clusters, labels), of)


@dataclass(frozen=True)
class OwnClusters:
    """A system's own clusters alone, for one without codes of images, such as InfoGAN (config target):
    ``cluster_accuracy_own``, ``cluster_nmi_own``, ``cluster_ari_own``, ``cluster_accuracy_confident`` and
    ``clusters_used`` as of ``Clustering``, whose settings these are."""

    split: str = "test"
    limit: int | None = None
    batch: int = 250
    optional: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"cluster"})

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("batch", self.batch)):
            if value is not None and value < 1:
                raise UserError(f"metrics.scores.own_clusters.{name}={value}: at least 1")

    def scores(self, system: object, data: DataSet) -> tuple[str, ...]:
        if self._left_out(data):
            return ()
        named = [f"cluster_{score}_own" for score in ("accuracy", "nmi", "ari")]
        return (*named, "cluster_accuracy_confident", "clusters_used")

    def check(self, data: DataSet, n: int | None = None) -> None:
        if not self._left_out(data):
            _require_classes(data, self.split, "own_clusters")

    def looks_at(self, data: DataSet, limit: int | None) -> int:
        return 0 if self._left_out(data) else counted(data, self.split, self.limit, limit)

    def probe(self, system: object, x: Tensor) -> None:
        system.cluster(x.to(getattr(system, "device", "cpu")))  # type: ignore[attr-defined]

    def measure(self, subject: Subject) -> dict[str, float]:
        if self._left_out(subject.data):
            return {}
        index = subject.reference_index(self.split, self.looks_at(subject.data, subject.limit))
        rows, labels = split_of(subject.data, self.split), class_labels(subject.data, self.split)[index]
        found = [
            subject.system.cluster(rows.take(part).x.to(subject.device)).cpu()  # type: ignore[attr-defined]
            for part in torch.split(index, self.batch)
        ]
        return _own(torch.cat(found), labels)

    def _left_out(self, data: DataSet) -> bool:
        return self.optional and one_class_each(data, self.split) is None


def _own(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    if not bool(probabilities.isfinite().all()):
        raise UserError("metrics.scores.clustering: probabilities of clusters are nan or inf: the model has diverged")
    clusters = probabilities.argmax(1)
    return _named(cluster_scores(clusters, labels), "_own") | {
        "cluster_accuracy_confident": confident_accuracy(probabilities, labels),
        "clusters_used": float((clusters.bincount() > 0).sum()),
    }


def _named(scores: dict[str, float], of: str) -> dict[str, float]:
    return {f"cluster_{name}{of}": value for name, value in scores.items()}
