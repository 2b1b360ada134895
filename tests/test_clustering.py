"""Scores of clusters against hand-made tables and enumeration; k-means that repeats; labels that are not there."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from conftest import Run, words
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn

from gentrain.data.dataset import DataSet, in_memory
from gentrain.data.sources import digits
from gentrain.errors import UserError
from gentrain.evaluation.clustering import (
    Clustering,
    class_labels,
    cluster_scores,
    confident_accuracy,
    kmeans,
    principal_components,
)
from gentrain.evaluation.protocol import evaluate, promised
from gentrain.evaluation.subject import Subject
from gentrain.folder import RunFolder
from gentrain.types import Spec


def of_table(table: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Clusters and labels with so many samples of each class (row) in each cluster (column)."""
    cells = [(cluster, label) for label, row in enumerate(table) for cluster, n in enumerate(row) for _ in range(n)]
    clusters, labels = torch.tensor(cells).T
    return clusters, labels


# --- scores of clusters


def test_the_accuracy_is_that_of_the_best_assignment() -> None:
    """Greedy assignment would take 5 and then 0; the best takes 4 and 4."""
    clusters, labels = of_table([[5, 4], [4, 0]])
    assert cluster_scores(clusters, labels)["accuracy"] == pytest.approx(8 / 13)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3)])
def test_the_accuracy_equals_that_of_all_assignments_tried(shape: tuple[int, int]) -> None:
    table = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(1))
    wide = table if shape[0] <= shape[1] else table.T
    choices = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    best = max(sum(int(wide[row, column]) for row, column in enumerate(columns)) for columns in choices)
    found = cluster_scores(*of_table(table.tolist()))
    assert found["accuracy"] == pytest.approx(best / int(table.sum()))


def test_information_and_pairs_equal_their_definitions() -> None:
    clusters, labels = of_table([[7, 1, 0], [2, 5, 3]])
    counts = torch.tensor([[7, 1, 0], [2, 5, 3]])
    joint = counts.double() / 18
    rows, columns = joint.sum(1), joint.sum(0)
    entropy = [-(p * p.log()).sum() for p in (rows, columns)]
    information = torch.special.xlogy(joint, joint / rows[:, None] / columns).sum()
    pairs = [sum(math.comb(int(n), 2) for n in of.flatten()) for of in (counts, counts.sum(1), counts.sum(0))]
    chance = pairs[1] * pairs[2] / math.comb(18, 2)
    found = cluster_scores(clusters, labels)
    assert found["nmi"] == pytest.approx(float(2 * information / sum(entropy)))
    assert found["ari"] == pytest.approx((pairs[0] - chance) / ((pairs[1] + pairs[2]) / 2 - chance))


def test_names_of_clusters_mean_nothing() -> None:
    clusters, labels = of_table([[7, 1, 0], [2, 5, 3], [0, 0, 6]])
    plain = cluster_scores(clusters, labels)
    for names in itertools.permutations([40, 7, 0]):
        assert cluster_scores(torch.tensor(names)[clusters], labels) == pytest.approx(plain)
    assert cluster_scores(labels, labels) == {"accuracy": 1.0, "nmi": 1.0, "ari": 1.0}
    one = cluster_scores(torch.zeros_like(labels), labels)
    assert one == pytest.approx({"accuracy": 10 / 24, "nmi": 0.0, "ari": 0.0})


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    for clusters, labels in ((torch.zeros(3), torch.zeros(2)), (torch.zeros(2, 2), torch.zeros(2, 2)),
                             (torch.zeros(0), torch.zeros(0))):  # fmt: skip
        with pytest.raises(ValueError, match="one number per sample"):
            cluster_scores(clusters.long(), labels.long())


def test_the_most_confident_member_speaks_for_its_cluster() -> None:
    """Cluster 0 holds labels 1 1 0 and its surest member is the 0; clusters 1 and 2 both stand for label 1; the surest
    of cluster 3, which nobody is in, changes nothing."""
    probabilities = torch.tensor(
        [[0.6, 0.4, 0.0, 0.0], [0.5, 0.0, 0.4, 0.1], [0.9, 0.1, 0.0, 0.0], [0.0, 0.8, 0.2, 0.0], [0.1, 0.0, 0.7, 0.2]]
    )
    labels = torch.tensor([1, 1, 0, 1, 1])
    assert confident_accuracy(probabilities, labels) == pytest.approx(3 / 5)
    assert cluster_scores(probabilities.argmax(1), labels)["accuracy"] == pytest.approx(2 / 5)
    assert confident_accuracy(probabilities, torch.ones(5).long()) == 1.0


# --- k-means


def test_kmeans_finds_what_is_apart_and_repeats_its_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    apart = 10.0 * torch.eye(3)[labels] + torch.randn(60, 3, generator=generator)
    assert cluster_scores(kmeans(apart, 3, seed=0), labels)["accuracy"] == 1.0
    mixed = torch.randn(300, 5, generator=generator)
    first = kmeans(mixed, 8, seed=4)
    assert first.dtype == torch.int64
    torch.manual_seed(9)
    assert torch.equal(first, kmeans(mixed, 8, seed=4))
    assert not torch.equal(first, kmeans(mixed, 8, seed=5))
    expected = KMeans(8, n_init=10, random_state=4).fit_predict(mixed.double().numpy())
    assert cluster_scores(first, torch.from_numpy(expected))["ari"] == pytest.approx(1.0)


def test_codes_that_cannot_be_clustered_are_named() -> None:
    with pytest.raises(UserError, match="clusters=4: 1 to 3"):
        kmeans(torch.randn(3, 2), 4, seed=0)
    with pytest.raises(UserError, match="nan"):
        kmeans(torch.tensor([[0.0], [math.nan]]), 1, seed=0)
    same = kmeans(torch.zeros(6, 2), 3, seed=0)  # a collapsed encoder is scored, not refused, and says nothing
    assert len(same.unique()) == 1


def test_principal_components_are_those_of_the_covariance() -> None:
    x = torch.randn(40, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    centred = x - x.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    kept = principal_components(x, 3, seed=0)
    assert kept.shape == (40, 3)
    torch.testing.assert_close(kept.T @ kept, torch.diag(values[:3]), rtol=1e-9, atol=1e-8)
    assert principal_components(x, 99, seed=0).shape == (40, 6)


# --- the metric


class Half(nn.Module):
    """Encodes the class in one number, and is sure of as many clusters as there are classes."""

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1].float()

    def cluster(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.encode(x)[:, 0].long() // 80, 3).float()


class Plain(nn.Module):
    encode = Half.encode


def three_classes(n: int = 30, *, y: Tensor | None = None) -> DataSet:
    labels = torch.arange(n) % 3
    x = torch.randint(0, 3, (n, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x[:, 0, 0, 0] = (80 * labels).to(torch.uint8)
    given = labels if y is None else y
    return in_memory("three", Spec((1, 2, 2), ("a", "b", "c")), (x, given), (x, given))


def measured(metric: Clustering, system: nn.Module, seed: int = 0) -> dict[str, float]:
    data = three_classes()
    subject = Subject(data, system, lambda n: torch.zeros(n), n=0, seed=seed)
    found = evaluate({"clustering": metric}, subject, "raw")
    assert found.protocol["splits"] == {"clustering": f"test {metric.limit or 30}"}
    assert list(found.scores) == promised({"clustering": metric}, system, data)
    return found.scores


def test_the_metric_scores_codes_data_and_own_clusters_alike() -> None:
    found = measured(Clustering(batch=7), Half())
    for of in ("", "_pixels", "_pca", "_own"):
        assert [found[f"cluster_{name}{of}"] for name in ("accuracy", "nmi", "ari")] == pytest.approx([1.0] * 3)
    assert found["cluster_accuracy_confident"] == 1.0
    assert found["clusters_used"] == 3.0
    assert set(measured(Clustering(baselines=False, limit=12), Plain())) == {
        "cluster_accuracy", "cluster_nmi", "cluster_ari"
    }  # fmt: skip
    assert measured(Clustering(clusters=1), Plain())["cluster_accuracy"] == pytest.approx(1 / 3)


def test_pixels_and_components_are_scored_by_the_same_protocol() -> None:
    """On real digits, against scikit-learn called by hand."""
    data = digits()
    subject = Subject(data, Plain(), lambda n: torch.zeros(n), n=0, seed=3)
    found = evaluate({"clustering": Clustering(limit=200)}, subject, "raw").scores
    chosen = data.test.all(200)
    pixels = (chosen.x.flatten(1).double() / 255).numpy()
    for of, values in (("_pixels", pixels), ("_pca", PCA(1).fit_transform(pixels))):
        clusters = KMeans(10, n_init=10, random_state=3).fit_predict(values)
        expected = cluster_scores(torch.from_numpy(clusters), chosen.y)  # type: ignore[arg-type]
        assert {name: found[f"cluster_{name}{of}"] for name in expected} == pytest.approx(expected)
    assert found["cluster_accuracy_pixels"] > found["cluster_accuracy_pca"] > found["cluster_accuracy"]


def test_labels_that_are_missing_or_many_are_one_line() -> None:
    spec = Spec((1, 2, 2))
    x = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    without = in_memory("bare", spec, (x, None), (x, None))
    with pytest.raises(UserError, match="split=test of data 'bare' has no class labels"):
        class_labels(without, "test")
    several = in_memory("faces", Spec((1, 2, 2), (), ("hat", "grin")), (x, x[:, 0, 0]), (x, x[:, 0, 0]))
    with pytest.raises(UserError, match="2 attributes a sample"):
        Clustering().check(several)
    with pytest.raises(UserError, match="5 clusters of 4 samples"):
        Clustering(clusters=5).check(in_memory("few", Spec((1, 2, 2), ("a",)), (x, x[:, 0, 0, 0].long()),
                                               (x, x[:, 0, 0, 0].long())))  # fmt: skip
    for wrong in ("limit", "clusters", "restarts", "batch"):
        with pytest.raises(UserError, match=f"clustering.{wrong}=0"):
            Clustering(**{wrong: 0})


def test_runs_score_their_codes_and_repeat_them(run: Run, workplace: Path) -> None:
    for name in ("one", "two"):
        assert run(*words("model=ae", "metrics=clustering", "train.iterations=4", f"name={name}")).code == 0
    first, second = (RunFolder.open(workplace / "outputs" / name).card()["final"] for name in ("one", "two"))
    keys = [key for key in first if key.startswith("cluster")]
    assert [first[key] for key in keys] == [second[key] for key in keys]
    assert len(keys) == 9
    refused = run(*words("model=ae", "data=swissroll", "model/net=mlp", "metrics=clustering", "name=three"))
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)
    assert "no class labels" in refused.err
