"""fANOVA's single shares (Hutter et al. 2014): how much of the variance of a random forest each parameter makes alone.

The trees are scikit-learn's, encoded as Optuna's evaluator does, and where all ranges are even the numbers are Optuna's
to rounding. Two things are otherwise. A range in logarithm is weighed by the logarithm, as it is drawn from; weighed
evenly, its upper decade is nearly all of it, and a loss weight that decides everything below that would seem to do
nothing. And a choice is exactly one of its values, where a box over columns of zeros and ones counts two at once.

Optuna walks each tree from its root for each value of a parameter. Here a tree is its leaves' boxes, and all values are
one product of matrices, a fifth of the time with the fit of 100 trials, for intervals need dozens of forests. With y_l
the value of leaf l, and E_l(q) the share of parameter q's range that its box has, the tree predicts at a value x of p,
in the mean over everything else, a(x) = Σ y_l Π E_l(q) over q ≠ p and the leaves whose box has x. The share of p is the
variance of a over x, divided by that of all predictions. Splits cut a range into pieces on which a is constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Numbers = NDArray[np.float64]
HALF = 0.5
"""Between the zeros and ones of a choice's columns."""


class _Columns(NamedTuple):
    """Where a parameter is encoded: one column from `low` to `high`, or one of zeros and ones for each choice."""

    start: int
    low: float
    high: float
    choices: int
    """0 for a number."""


class Encoding:
    """Points of some parameters as rows of numbers."""

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Each of `distributions` with more than one value."""
        self._distributions = dict(distributions)
        self._columns: list[_Columns] = []
        self._width = 0
        for distribution in self._distributions.values():
            if isinstance(distribution, CategoricalDistribution):
                columns = _Columns(self._width, 0.0, 1.0, len(distribution.choices))
            else:
                assert isinstance(distribution, FloatDistribution | IntDistribution)
                low, high = _scaled(distribution, distribution.low), _scaled(distribution, distribution.high)
                columns = _Columns(self._width, low, high, choices=0)
            self._columns.append(columns)
            self._width += max(columns.choices, 1)

    def rows(self, points: Sequence[Mapping[str, Any]]) -> Numbers:
        """[points, columns]."""
        found = np.zeros((len(points), self._width))
        for (name, distribution), columns in zip(self._distributions.items(), self._columns, strict=True):
            for row, point in zip(found, points, strict=True):
                if isinstance(distribution, CategoricalDistribution):
                    row[columns.start + int(distribution.to_internal_repr(point[name]))] = 1.0
                else:
                    row[columns.start] = _scaled(distribution, point[name])
        return found

    def shares(self, rows: Numbers, values: Numbers, *, trees: int, depth: int, seed: int) -> Numbers:
        """Each parameter's share of the variance of `values` [n] over `rows` [n, columns], in the mean of the trees; 0
        where none of them has a split.
        """
        from sklearn.ensemble import RandomForestRegressor

        forest = RandomForestRegressor(n_estimators=trees, max_depth=depth, random_state=seed)
        forest.fit(rows, values)
        found = [self._of_tree(one.tree_) for one in forest.estimators_]
        split = [one for one in found if one is not None]
        mean: Numbers = np.mean(split, axis=0) if split else np.zeros(len(self._columns))
        return mean

    def _of_tree(self, tree: Any) -> Numbers | None:
        """Of one tree; None where it has no split, or predicts the same everywhere."""
        boxes, value = self._leaves(tree)
        parts = [_pieces(boxes, columns) for columns in self._columns]
        extents = np.array([size @ inside for inside, size in parts])
        whole = _variance(value, extents.prod(axis=0))
        if whole <= 0.0:
            return None
        alone = [
            _variance(inside @ (np.delete(extents, number, axis=0).prod(axis=0) * value), size)
            for number, (inside, size) in enumerate(parts)
        ]
        return np.array(alone) / whole

    def _leaves(self, tree: Any) -> tuple[Numbers, Numbers]:
        """Boxes [leaves, columns, 2] and values [leaves]."""
        bounds = np.array([[0.0, 1.0]] * self._width)
        for columns in self._columns:
            bounds[columns.start] = columns.low, columns.high
        boxes = np.repeat(bounds[None], tree.node_count, axis=0)
        feature, threshold = tree.feature, tree.threshold
        for node, (left, right) in enumerate(zip(tree.children_left, tree.children_right, strict=True)):
            if feature[node] >= 0:  # children have larger numbers than their node
                boxes[left], boxes[right] = boxes[node], boxes[node]
                boxes[left, feature[node], 1] = boxes[right, feature[node], 0] = threshold[node]
        leaf = feature < 0
        return boxes[leaf], tree.value[leaf].reshape(-1)


def _pieces(boxes: Numbers, columns: _Columns) -> tuple[Numbers, Numbers]:
    """The pieces of a parameter's range on which nothing changes: whether each leaf's box has them [pieces, leaves],
    and which share of the range they are [pieces].
    """
    if columns.choices:
        of = boxes[:, columns.start : columns.start + columns.choices]
        may_be, may_not_be = of[:, :, 1] > HALF, of[:, :, 0] < HALF
        others = np.array([np.delete(may_not_be, choice, axis=1).all(axis=1) for choice in range(columns.choices)])
        chosen: Numbers = (may_be.T & others).astype(np.float64)
        return chosen, np.full(columns.choices, 1.0 / columns.choices)
    low, high = boxes[:, columns.start, 0], boxes[:, columns.start, 1]
    cuts = np.unique(boxes[:, columns.start])
    middle, size = HALF * (cuts[1:] + cuts[:-1]), np.diff(cuts)
    inside = ((low < middle[:, None]) & (middle[:, None] < high)).astype(np.float64)
    return inside, size / size.sum()


def _scaled(distribution: BaseDistribution, value: float) -> float:
    """A number in its range's own scale."""
    return math.log(value) if getattr(distribution, "log", False) else float(value)


def _variance(values: Numbers, weights: Numbers) -> float:
    return float(np.average(np.square(values - np.average(values, weights=weights)), weights=weights))
