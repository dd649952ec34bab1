"""Nearest neighbors of rows that come in batches are those that scikit-learn finds among all."""

from __future__ import annotations

import numpy as np
import pytest

from pretune.analysis.nearest import Nearest


def test_neighbors_are_scikit_learns_however_the_rows_come() -> None:
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(500, 24)).astype(np.float32) * generator.uniform(0.01, 100, (500, 1)).astype("f4")
    queries = generator.normal(size=(7, 24)).astype(np.float32)
    distances, wanted = NearestNeighbors(n_neighbors=10, metric="cosine").fit(rows).kneighbors(queries)
    for cuts in ([], [1, 3, 499], [256]):
        nearest = Nearest(queries, 10)
        for batch in np.split(rows, cuts):
            nearest.add(batch)
        assert np.array_equal(nearest.rows, wanted)
        assert np.abs(nearest.similarities - (1 - distances)).max() < 1e-6


def test_a_query_is_not_its_own_neighbor_and_of_equal_ones_the_earlier_is_first() -> None:
    rows = np.array([[1, 0], [2, 0], [3, 0], [0, 1]], np.float32)
    nearest = Nearest(rows[:2], 2, left_out=[0, None])
    nearest.add(rows[:3])
    nearest.add(rows[3:])
    assert nearest.rows.tolist() == [[1, 2], [0, 1]]


def test_rows_without_length_or_not_finite_are_no_near_ones() -> None:
    nearest = Nearest(np.array([[1.0, 1.0]]), 5)
    nearest.add(np.array([[np.nan, 1], [0, 0], [-1, -1], [1e300, 1e300], [np.inf, 0]]))
    assert nearest.rows.tolist() == [[3, 1, 2, -1, -1]]
    assert nearest.similarities[0, :3].tolist() == pytest.approx([1, 0, -1])


def test_fewer_rows_than_neighbors_are_all_there_are_and_a_diverged_query_is_refused() -> None:
    nearest = Nearest(np.ones((1, 2)), 10)
    nearest.add(np.ones((3, 2)))
    assert nearest.rows.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="features of query 1 are not finite"):
        Nearest(np.array([[1.0], [np.nan]]), 1)
