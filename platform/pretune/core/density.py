"""TPE's density of the good trials and of the others: what it draws from, and how likely a point is.

A kernel for each point, in each number a normal that is truncated to its range, in each category a choice that is
likelier than the others; kernels are summed up, numbers and categories multiplied (Bergstra et al. 2011, "Algorithms
for Hyper-Parameter Optimization", section 4). It is Optuna's `_ParzenEstimator`, written for all numbers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pretune.core.optuna_private import log_mass, weights_by_age

Numbers = NDArray[np.float64]
Samples = dict[str, Numbers]

CANDIDATES = 24
"""So many points TPE draws, of which it takes the best; `n_ei_candidates` of `TPESampler`."""

FEW_VALUES = 64
"""Of so few values of a number many points have the same."""

_LOG_ROOT_OF_2_PI = math.log(math.sqrt(2 * math.pi))
_LOGISTIC = math.sqrt(3) / math.pi
"""A logistic distribution of this scale is nearly normal."""


def uniforms(numbers: int) -> int:
    """How many uniform numbers `Density.sample` takes, where a point has so many numbers."""
    return CANDIDATES * (1 + numbers)


class Density:
    """TPE's density over observed points, which are columns of Optuna's internal numbers by name, oldest first: a sum
    of products, in which each point is a kernel, a truncated normal in each number; one kernel more is the whole space.

    The public `TPESampler` makes its own at each draw, from a study whose trials it reads and sorts again each time.
    This one is the same but for rounding, written for all numbers at once.
    """

    def __init__(self, points: Samples, space: Mapping[str, BaseDistribution]) -> None:
        self._names = tuple(space)
        self._categories: dict[str, Numbers] = {}
        """By category's name, the probabilities by kernel and choice."""
        self._numbers: dict[str, FloatDistribution | IntDistribution] = {}
        for name, distribution in space.items():
            if isinstance(distribution, CategoricalDistribution):
                self._categories[name] = _choices(points[name], len(distribution.choices))
            else:
                assert isinstance(distribution, FloatDistribution | IntDistribution)
                self._numbers[name] = distribution
        count = len(points[self._names[0]])
        weights = np.append(weights_by_age(count), 1.0) if count else np.array([1.0])
        self._weights = weights / weights.sum()
        self._ranges = [_range_of(one) for one in self._numbers.values()]
        if self._ranges:
            rows = [np.log(points[name]) if one.log else points[name] for name, one in self._numbers.items()]
            self._means, self._deviations = _normals(np.array(rows), self._ranges)

    def sample(self, uniform: Numbers) -> Samples:
        """`CANDIDATES` points of so many numbers, each from 0 to below 1, as `uniforms` says: for each point a kernel,
        then by name a category, then all numbers at once.
        """
        rows = iter(uniform.reshape(-1, CANDIDATES))
        # As `RandomState.choice` does.
        chances = self._weights.cumsum()
        chances /= chances[-1]
        chosen = chances.searchsorted(next(rows), side="right")
        drawn: Samples = {}
        for name, probabilities in self._categories.items():
            shares = np.cumsum(probabilities[chosen, :], axis=-1)
            shares[:, -1] = 1.0
            drawn[name] = (shares < next(rows)[:, None]).sum(axis=-1).astype(float)
        if self._numbers:
            means, deviations = self._means[:, chosen], self._deviations[:, chosen]
            low, mass, tail = (of_kernels[:, chosen] for of_kernels in self._truncated)
            points = _quantile(np.array(list(rows)), low, mass, tail) * deviations + means
            for (name, distribution), row in zip(self._numbers.items(), points, strict=True):
                values, step = np.exp(row) if distribution.log else row, distribution.step
                if step is not None:
                    steps = np.round((values - distribution.low) / step)
                    values = np.clip(distribution.low + steps * step, distribution.low, distribution.high)
                drawn[name] = values
        return {name: drawn[name] for name in self._names}

    def log(self, samples: Samples) -> Numbers:
        """The density's logarithm at each of the points `samples`."""
        of_both = np.zeros((len(samples[self._names[0]]), len(self._weights)))
        for name, probabilities in self._categories.items():
            of_both += np.log(probabilities.T)[samples[name].astype(np.int64)]
        for position, (name, distribution) in enumerate(self._numbers.items()):
            if distribution.step is not None:
                of_both += _log_mass_of_steps(
                    samples[name], self._means[position], self._deviations[position], distribution
                )
        of_kernels, weight, weighted_mean = self._terms
        if len(weight):
            names = [(name, one) for name, one in self._numbers.items() if one.step is None]
            values = np.array([np.log(samples[name]) if one.log else samples[name] for name, one in names])
            low, width, _ = self._continuous
            at = (values - low) / width
            of_both -= (at**2).T @ weight
            of_both += 2.0 * at.T @ weighted_mean
        of_both += of_kernels
        highest = of_both.max(axis=1)
        found: Numbers = np.log(np.exp(of_both - highest[:, None]).sum(axis=1)) + highest
        return found

    @cached_property
    def _truncated(self) -> tuple[Numbers, Numbers, Numbers]:
        """By number and kernel, of its normal in the standard one's place: where the range begins, the logarithm of the
        mass within, and of that beyond on the side where the tail is.
        """
        low, high = ((end - self._means) / self._deviations for end in self._ends())
        left = low < 0
        return low, log_mass(low, high), _log_normal(np.where(left, low, -high))

    @cached_property
    def _terms(self) -> tuple[Numbers, Numbers, Numbers]:
        """What of the logarithm does not depend on the point: by kernel a summand, and by number without steps and
        kernel two factors.

        By number and point, by number and kernel, as shares of the number's range: the square of their difference is
        three products of matrices, and nothing that counts is lost.
        """
        of_kernels: Numbers = np.log(self._weights)
        if not self._numbers:
            return of_kernels, np.empty((0, 0)), np.empty((0, 0))
        low, high = self._ends()
        of_kernels -= _log_mass((low - self._means) / self._deviations, (high - self._means) / self._deviations).sum(
            axis=0
        )
        low, width, positions = self._continuous
        if not len(positions):
            return of_kernels, np.empty((0, 0)), np.empty((0, 0))
        deviations, mean = self._deviations[positions], (self._means[positions] - low) / width
        weight = 0.5 * (width / deviations) ** 2
        of_kernels -= (weight * mean**2 + np.log(deviations) + _LOG_ROOT_OF_2_PI).sum(axis=0)
        return of_kernels, weight, weight * mean

    @cached_property
    def _continuous(self) -> tuple[Numbers, Numbers, list[int]]:
        """Of the numbers without steps where the range begins and how wide it is, as columns; their positions."""
        positions = [position for position, one in enumerate(self._numbers.values()) if one.step is None]
        low, high = self._ends()
        return low[positions], (high - low)[positions], positions

    def _ends(self) -> tuple[Numbers, Numbers]:
        """Where each number's range begins and ends, half a step beyond its values, as columns."""
        low, high = np.array([(one.low, one.high) for one in self._ranges]).T[:, :, None]
        return low, high


class _Range(NamedTuple):
    """Of a number, or its logarithm. Python's logarithm and NumPy's may differ in the last bit, and both are used."""

    low: float
    high: float
    numpy_low: float
    numpy_high: float


def _range_of(distribution: FloatDistribution | IntDistribution) -> _Range:
    half = 0.0 if distribution.step is None else distribution.step / 2
    low, high = distribution.low - half, distribution.high + half
    if distribution.log:
        return _Range(math.log(low), math.log(high), float(np.log(low)), float(np.log(high)))
    return _Range(low, high, low, high)


def _choices(observed: Numbers, count: int) -> Numbers:
    """The probabilities of each of `count` choices, by kernel: mostly the one that was observed."""
    if not len(observed):
        return np.full((1, count), 1.0 / count)
    kernels = len(observed) + 1
    found = np.full((kernels, count), 1.0 / kernels)
    found[np.arange(len(observed)), observed.astype(int)] += 1
    found /= found.sum(axis=1, keepdims=True)
    return found


def _normals(observed: Numbers, ranges: Sequence[_Range]) -> tuple[Numbers, Numbers]:
    """Means and deviations by number and kernel: a kernel is as wide as its wider gap to a neighbor, within bounds."""
    low, high = np.array([(one.numpy_low, one.numpy_high) for one in ranges]).T[:, :, None]
    count = observed.shape[1]
    order = np.argsort(observed, axis=1)
    in_order = np.concatenate([low, np.take_along_axis(observed, order, axis=1), high], axis=1)
    gaps = np.diff(in_order, axis=1)
    widths = np.maximum(gaps[:, :-1], gaps[:, 1:])
    if count >= 2:  # to the end of the range is no gap
        widths[:, 0], widths[:, -1] = gaps[:, 1], gaps[:, -2]
    deviations = np.empty_like(widths)
    np.put_along_axis(deviations, order, widths, axis=1)
    deviations = np.clip(deviations, (high - low) / min(100.0, 2.0 + count), high - low)
    means = np.concatenate([observed, 0.5 * (low + high)], axis=1)
    return means, np.concatenate([deviations, high - low], axis=1)


def _quantile(quantiles: Numbers, low: Numbers, mass: Numbers, tail: Numbers) -> Numbers:
    """Of standard normals that are truncated, as of `Density._truncated`."""
    found = np.empty_like(quantiles)
    left = low < 0
    found[left] = _log_quantile(np.logaddexp(tail[left], np.log(quantiles[left]) + mass[left]))
    right = ~left
    if right.any():
        found[right] = -_log_quantile(np.logaddexp(tail[right], np.log1p(-quantiles[right]) + mass[right]))
    found[quantiles == 0] = low[quantiles == 0]
    return found


def _log_quantile(logarithms: Numbers) -> Numbers:
    """Where the logarithm of the normal's distribution function has these values: Newton's method, all together, each
    step as Optuna takes it.
    """
    flipped = logarithms > -1e-2
    goal = logarithms.copy()
    goal[flipped] = np.log(-np.expm1(logarithms[flipped]))
    far = goal < -5
    found = np.empty_like(goal)
    found[far] = -np.sqrt(-2.0 * (goal[far] + _LOG_ROOT_OF_2_PI))
    found[~far] = -_LOGISTIC * np.log(np.expm1(-goal[~far]))
    for _ in range(100):
        at = _log_normal(found)
        step = (at - goal) * np.exp(at - (-0.5 * found**2 - _LOG_ROOT_OF_2_PI))
        found -= step
        if np.all(np.abs(step) < 1e-8 * np.abs(found)):
            break
    found[flipped] *= -1
    return found


def _log_normal(numbers: Numbers) -> Numbers:
    """The logarithm of the normal's distribution function."""
    # Here, as it takes a while to import, and a request that is refused asks for no density.
    from scipy.special import log_ndtr

    found: Numbers = log_ndtr(numbers)
    return found


def _log_mass_of_steps(
    values: Numbers, means: Numbers, deviations: Numbers, distribution: FloatDistribution | IntDistribution
) -> Numbers:
    """By point and kernel, the logarithm of the normal's mass within half a step of each value."""
    step = distribution.step
    assert step is not None

    def masses(at: Numbers, means: Numbers, deviations: Numbers) -> Numbers:
        left, right = (
            np.subtract.outer(np.log(end) if distribution.log else end, means) / deviations
            for end in (at - step / 2, at + step / 2)
        )
        return _log_mass(left, right)

    if (distribution.high - distribution.low) / step >= FEW_VALUES:
        return masses(values, means, deviations)
    # Of few values there are few kernels that differ.
    met, of_point = np.unique(values, return_inverse=True)
    pairs, of_kernel = np.unique(means + 1j * deviations, return_inverse=True)
    return masses(met, pairs.real, pairs.imag)[np.ix_(of_point, of_kernel)]


def _log_mass(left: Numbers, right: Numbers) -> Numbers:
    """The logarithm of the standard normal's mass between two bounds, `left` < `right`, also far out."""
    # On the right the two tails are almost 1 and their difference is lost: look from the other side there.
    flipped = left > 0.0
    near, far = np.where(flipped, -left, right), np.where(flipped, -right, left)
    from scipy.special import log_ndtr, ndtr

    mass: Numbers = ndtr(near) - ndtr(far)
    lost = mass < 1e-290
    found: Numbers = np.log(mass, where=~lost, out=np.empty_like(mass))
    if lost.any():
        nearer = log_ndtr(near[lost])
        found[lost] = nearer + np.log1p(-np.exp(log_ndtr(far[lost]) - nearer))
    return found
