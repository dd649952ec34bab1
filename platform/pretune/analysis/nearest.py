"""The nearest neighbors of a few images among many, whose features come batch by batch.

Letters: m = queries, n = images, p = features, k = neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.floating[Any]]


class Nearest:
    """The k rows whose cosine with each query is largest, of all that were added; of equal ones the earlier.

    A row of zeros has similarity 0 to all; a row that is not finite is nobody's neighbor.
    """

    def __init__(self, queries: Rows, count: int, *, left_out: Sequence[int | None] = ()) -> None:
        """`queries` [m, p]; `count` is k; `left_out`: for each query the row that is the query itself, if any is.

        ValueError where a query is not finite.
        """
        if not np.isfinite(queries).all():
            bad = int(np.flatnonzero(~np.isfinite(queries).all(1))[0])
            raise ValueError(
                f"the features of query {bad} are not finite: it has no neighbors; its network has diverged"
            )
        self._queries = _unit(queries)
        self._count = count
        self._left_out = np.array([-1 if row is None else row for row in left_out or [None] * len(queries)])
        self._seen = 0
        self.similarities = np.zeros((len(queries), 0))
        """Cosines, the largest first, [m, k]; [m, n] where fewer rows were added."""
        self.rows = np.zeros((len(queries), 0), dtype=np.int64)
        """Which rows these are, counted from the first that was added, [m, k]; -1 where there is none."""

    def add(self, features: Rows) -> None:
        """The next rows [n, p]."""
        here = np.arange(self._seen, self._seen + len(features))
        self._seen += len(features)
        finite: NDArray[np.bool_] = np.atleast_1d(np.isfinite(features).all(axis=1))
        cosines: NDArray[np.float64] = np.dot(self._queries, _unit(np.where(finite[:, None], features, 0)).T)
        cosines[:, ~finite] = -np.inf
        cosines[self._left_out[:, None] == here[None, :]] = -np.inf
        similarities = np.concatenate([self.similarities, cosines], axis=1)
        rows = np.concatenate([self.rows, np.broadcast_to(here, cosines.shape)], axis=1)
        best = np.argsort(-similarities, axis=1, kind="stable")[:, : self._count]
        self.similarities = np.take_along_axis(similarities, best, axis=1)
        self.rows = np.where(np.isneginf(self.similarities), -1, np.take_along_axis(rows, best, axis=1))


def _unit(rows: Rows) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    wide /= np.where(largest > 0, largest, 1.0)  # squares of large numbers overflow
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: NDArray[np.float64] = wide / np.where(lengths > 0, lengths, 1.0)
    return unit
