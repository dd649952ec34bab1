"""The plane of a map: scikit-learn's PCA, and UMAP by its seed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretune.analysis import projection
from pretune.core.errors import RequestError


@pytest.mark.parametrize("solver", ["full", "arpack"])
def test_pca_is_scikit_learns(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    if solver == "arpack":
        monkeypatch.setattr(projection, "ALL_COMPONENTS", 3)
    rows = (np.random.default_rng(0).normal(size=(200, 12)) * np.arange(1, 13)).astype(np.float32)
    wanted = PCA(2, svd_solver="full").fit(rows.astype(np.float64))
    plane = projection.project(rows, "pca")
    assert np.abs(plane.points - wanted.transform(rows.astype(np.float64))).max() < 1e-6
    shares = wanted.explained_variance_ratio_
    assert plane.axes == tuple(f"component {i + 1}: {100 * shares[i]:.0f}% of the variance" for i in range(2))


def test_pca_takes_what_has_no_second_direction_or_none() -> None:
    line = projection.project(np.arange(5, dtype=np.float32)[:, None], "pca")
    assert np.ptp(line.points[:, 0]) == pytest.approx(4)
    assert not line.points[:, 1].any()
    for width in (1, 300):
        assert not projection.project(np.ones((300, width), np.float32), "pca").points.any()


@pytest.mark.slow
def test_umap_is_a_function_of_features_and_seed_and_keeps_groups_together() -> None:
    generator = np.random.default_rng(0)
    centers = np.eye(3, 10) * 20
    labels = np.repeat(np.arange(3), 20)
    rows = (centers[labels] + generator.normal(size=(60, 10))).astype(np.float32)
    one, again = (projection.project(rows, "umap", seed=3).points for _ in range(2))
    assert np.array_equal(one, again)
    middles = np.stack([one[labels == label].mean(0) for label in range(3)])
    nearest = ((one[:, None] - middles) ** 2).sum(2).argmin(1)
    assert (nearest == labels).all()
    few = projection.project(rows[:3], "umap").points
    assert few.shape == (3, 2)
    assert np.isfinite(few).all()


def test_umap_is_asked_with_the_seed_on_one_thread_and_with_no_more_neighbors_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    class Umap:
        def __init__(self, **settings: Any) -> None:
            asked.append(settings)

        def fit_transform(self, rows: Any) -> Any:
            return rows[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    for count in (3, 16, 40):
        assert projection.project(np.ones((count, 4), np.float32), "umap", seed=7).points.shape == (count, 2)
    assert [one["n_neighbors"] for one in asked] == [2, 15, 15]
    assert [one["init"] for one in asked] == ["random", "spectral", "spectral"]
    assert {(one["random_state"], one["n_jobs"], one["metric"]) for one in asked} == {(7, 1, "cosine")}


def test_what_cannot_be_on_a_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 3 images, but there are 2"):
        projection.project(np.ones((2, 4)), "pca")
    with pytest.raises(ValueError, match="those of 1 of 3 images are not"):
        projection.project(np.array([[1.0, 2], [np.nan, 0], [0, 1]]), "umap")
    with pytest.raises(RequestError, match="pca, umap"):
        projection.check("tsne")
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'pretune\[embed\]'"):
        projection.check("umap")
