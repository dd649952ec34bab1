"""The nearest images, searched by parts, and their votes, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from trainers.evaluation import neighbors
from trainers.evaluation.neighbors import Nearest, nearest, votes


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("weighting", ["similarity", "none"])
def test_votes_are_scikit_learns(k: int, weighting: neighbors.Weighting, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    monkeypatch.setattr(neighbors, "SIMILARITIES", 10_000)  # many blocks of queries
    digits = load_digits()
    x, y, queries = digits.data[:1000] + 0.1, digits.target[:1000], digits.data[1000:]
    weigh = "uniform" if weighting == "none" else lambda distance: np.exp((1 - distance) / 0.07)
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weigh).fit(x, y)
    found = nearest(torch.split(torch.from_numpy(x), 300), torch.from_numpy(queries), neighbors=20)
    counted = votes(
        found, torch.from_numpy(y.astype(np.int64)), class_count=10, neighbors=k, weighting=weighting, temperature=0.07
    )
    assert np.array_equal(counted.argmax(1).numpy(), reference.predict(queries))
    shares = counted / counted.sum(1, keepdim=True)
    np.testing.assert_allclose(shares.numpy(), reference.predict_proba(queries), rtol=0, atol=1e-6)


def test_where_there_are_fewer_images_than_neighbors_all_of_them_vote() -> None:
    rows = torch.eye(3)
    found = nearest([rows[:1], rows[1:]], torch.tensor([[1.0, 0.1, 0.0]]), neighbors=200)
    assert isinstance(found, Nearest)
    assert found.rows.tolist() == [[0, 1, 2]]
