"""PED-ANOVA (Watanabe et al. 2023; for conditional parameters arXiv 2601.20800): how differently the best trials and
all trials are spread over each parameter, by the Pearson divergence of two densities on a grid.

The numbers are those of Optuna's evaluator to rounding. It builds kernels and trials anew for each set of trials; here
a trial is its place on each parameter's grid, and a density is one product of a matrix of kernels with how many trials
lie where, which takes a ninth of the time (200 trials, four parameters). The intervals need a hundred sets.

A parameter that is asked for in several ways, or under a condition only, is judged within each way i by itself: with
α_i the share of the best trials that have it so and β_i that of all trials, it counts as Σ α_i² / β_i times the
divergence there. A density is a mixture of normal kernels, cut off at the grid's ends, one for each trial and one as
wide as the grid; their width is Scott's rule. Of a choice it is a mixture over its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Numbers = NDArray[np.float64]
Positions = NDArray[np.int64]
STEPS = 50
"""Of the grid, at most."""
PRIOR = 1.0
"""Weight of the kernel as wide as the grid; each trial's is 1."""
NARROWEST = 0.5 / 1.64
"""A kernel's width in steps, at least: nine tenths of it lie within its own step."""
FEWEST = 2
"""Of fewer trials that have a parameter in one way nothing is said."""
_NONE = 1e-12


class _Way(NamedTuple):
    """One range that a parameter is asked from."""

    size: int
    """Of its grid."""
    numeric: bool
    places: Positions
    """Each trial's place on the grid; -1 where the trial does not have the parameter in this way."""


class Trials:
    """Some trials, to be asked what the best of them have in common."""

    def __init__(
        self,
        points: Sequence[Mapping[str, Any]],
        distributions: Sequence[Mapping[str, BaseDistribution]],
        names: Sequence[str],
    ) -> None:
        """Of each trial its parameters, and what they were drawn from; `names` are what it is asked about."""
        self._ways = [list(_ways(name, points, distributions)) for name in names]

    def importances(self, of: Positions, scores: Numbers, best_share: float) -> Numbers:
        """Of each parameter, not as shares, among the trials at the positions `of`; the larger of `scores` [of], the
        better. 0 for one that none of the trials has.
        """
        cut = np.partition(-scores, (last := math.ceil(best_share * len(of)) - 1))[last]
        best = -scores <= cut
        share = best.mean()
        found = []
        for ways in self._ways:
            value = 0.0
            for way in ways:
                places = way.places[of]
                there, among_best = places[places >= 0], places[best & (places >= 0)]
                if len(there) < FEWEST or not len(among_best):
                    continue
                weight = (len(among_best) / best.sum()) ** 2 / (len(there) / len(of))
                value += weight * _divergence(_density(among_best, way), _density(there, way))
            found.append(value * share**2)
        return np.array(found)


def _ways(
    name: str, points: Sequence[Mapping[str, Any]], distributions: Sequence[Mapping[str, BaseDistribution]]
) -> list[_Way]:
    trials: dict[BaseDistribution, list[int]] = {}
    for number, drawn in enumerate(distributions):
        if name in drawn:
            trials.setdefault(drawn[name], []).append(number)
    found = []
    for distribution, numbers in trials.items():
        if distribution.single():
            continue
        size, on_grid = _on_grid(distribution, [points[number][name] for number in numbers])
        places = np.full(len(points), -1, dtype=np.int64)
        places[numbers] = on_grid
        found.append(_Way(size, not isinstance(distribution, CategoricalDistribution), places))
    return found


def _on_grid(distribution: BaseDistribution, values: Sequence[Any]) -> tuple[int, Positions]:
    """The grid's size, and the place of each value on it; halfway it is the lower one."""
    if isinstance(distribution, CategoricalDistribution):
        places = [int(distribution.to_internal_repr(value)) for value in values]
        return len(distribution.choices), np.array(places, dtype=np.int64)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    size = STEPS
    low, high, at = float(distribution.low), float(distribution.high), np.array(values, dtype=np.float64)
    if distribution.log:
        if isinstance(distribution, IntDistribution):
            size = min(size, math.ceil(math.log(high - low + 1) / math.log(2)) + 1)
        low, high, at = math.log(low), math.log(high), np.log(at)
    elif distribution.step is not None:
        size = min(size, round((high - low) / distribution.step) + 1)
    step = (high - low) / (size - 1)
    return size, np.clip(np.ceil((at - low) / step - 0.5), 0, size - 1).astype(np.int64)


def _density(places: Positions, way: _Way) -> Numbers:
    """On the grid [size]; its sum is 1."""
    counts = np.bincount(places, minlength=way.size).astype(np.float64)
    met = np.flatnonzero(counts)
    if not way.numeric:
        # Each value met is one kernel, of its trials' weight, which is spread over all values a little.
        spread = PRIOR / (len(met) + 1)
        kernels = np.full((len(met) + 1, way.size), spread)
        kernels[np.arange(len(met)), met] += 1.0
        kernels /= kernels.sum(axis=1, keepdims=True)
    else:
        width = max(_scott(met, counts[met]), NARROWEST)
        centers = np.append(met, (way.size - 1) / 2.0)
        widths = np.append(np.full(len(met), width), float(way.size))
        kernels = _kernels(centers, widths, way.size)
    weights = np.append(counts[met], PRIOR)
    found: Numbers = weights @ kernels / weights.sum()
    return found


def _scott(at: Positions, weights: Numbers) -> float:
    """The width of kernels by Scott's rule, from the smaller of standard deviation and quartiles' distance."""
    total = weights.sum()
    mean = at @ weights / total
    deviation = math.sqrt(np.square(at - mean) @ weights / max(1.0, total - 1.0))
    below = np.cumsum(weights)
    first = int(np.searchsorted(below, total // 4, side="left"))
    third = min(len(at) - 1, int(np.searchsorted(below, total * 3 // 4, side="right")))
    return float(1.059 * min((at[third] - at[first]) / 1.34, deviation) * total**-0.2)


def _kernels(centers: Numbers, widths: Numbers, size: int) -> Numbers:
    """Normal masses of each step of the grid, [kernels, size], cut off at its ends."""
    from scipy.special import ndtr

    edges = np.arange(size + 1) - 0.5
    below = ndtr((edges - centers[:, None]) / widths[:, None])
    found: Numbers = np.diff(below, axis=1) / (below[:, -1:] - below[:, :1])
    return found


def _divergence(best: Numbers, whole: Numbers) -> float:
    """Pearson's, of the best from all."""
    best, whole = best + _NONE, whole + _NONE
    return float(whole @ np.square(best / whole - 1.0))
