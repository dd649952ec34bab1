"""All that is asked of Optuna by names it does not promise to keep: one place to look at when its version changes.

Each part says what is used and why no public name does. `tests/pretune/core/test_optuna_private.py` fails, with both
versions in its message, as soon as a name is gone, takes other arguments, or does something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions
from optuna.samplers._tpe.sampler import default_gamma, default_weights
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import TrialState
from scipy.special import log_ndtr, ndtr  # type: ignore[import-untyped]

CHECKED_WITH = "5.0.0"

Numbers = NDArray[np.float64]
Samples = dict[str, Numbers]

# ---- TPE -------------------------------------------------------------------------------------------------------------

CANDIDATES = 24
"""So many points TPE draws, of which it takes the best; `n_ei_candidates` of `TPESampler`."""
_PARAMETERS = _ParzenEstimatorParameters(
    prior_weight=1.0,
    consider_magic_clip=True,
    consider_endpoints=False,
    weights=default_weights,
    multivariate=True,
)
"""The defaults of `TPESampler`."""


def good_trials(finished: int) -> int:
    """How many of `finished` trials are the good ones: a tenth, 25 at most. `TPESampler` has no attribute for it."""
    return int(default_gamma(finished))


def uniforms(numbers: int) -> int:
    """How many uniform numbers `Density.sample` takes from its generator, where a point has so many numbers."""
    return CANDIDATES * (1 + numbers)


class Density:
    """TPE's density over observed points, which are columns of Optuna's internal numbers by name, oldest first: a sum
    of products, in which each point is a kernel, a truncated normal in each number.

    The public `TPESampler` makes its own at each draw, from a study whose trials it reads and sorts again each time.
    Of that one come the kernels. Its draws are written anew, equal to the last bit, and so is its logarithm, equal but
    for rounding: both go through the normal's tails number by number, which is most of what a draw takes.
    """

    def __init__(self, points: Samples, space: Mapping[str, BaseDistribution]) -> None:
        self._space = tuple(space)
        self._mixture = _ParzenEstimator(points, dict(space), _PARAMETERS)._mixture_distribution

    def sample(self, rng: np.random.RandomState) -> Samples:
        """`CANDIDATES` points: for each a kernel, then by number a category, then all others at once."""
        weights, distributions = self._mixture
        chosen = rng.choice(len(weights), p=weights, size=CANDIDATES)
        drawn: dict[int, Numbers] = {}
        numeric: list[int] = []
        for position, kernels in enumerate(distributions):
            if isinstance(kernels, _BatchedCategoricalDistributions):
                shares = np.cumsum(kernels.weights[chosen, :], axis=-1)
                shares[:, -1] = 1.0
                drawn[position] = (shares < rng.rand(CANDIDATES)[:, None]).sum(axis=-1).astype(float)
            else:
                numeric.append(position)
        if numeric:
            all_kernels: list[Any] = [distributions[position] for position in numeric]
            means = np.array([one.mu[chosen] for one in all_kernels])
            deviations = np.array([one.sigma[chosen] for one in all_kernels])
            low = (np.array([[one.adapted_low] for one in all_kernels]) - means) / deviations
            high = (np.array([[one.adapted_high] for one in all_kernels]) - means) / deviations
            quantiles = rng.uniform(low=0, high=1, size=means.shape)
            values = _quantile(quantiles, low, high) * deviations + means
            for position, kernels, found in zip(numeric, all_kernels, values, strict=True):
                number = np.exp(found) if kernels.is_log else found
                if kernels.step != 0.0:
                    steps = np.round((number - kernels.low) / kernels.step)
                    number = np.clip(kernels.low + steps * kernels.step, kernels.low, kernels.high)
                drawn[position] = number
        return {name: drawn[position] for position, name in enumerate(self._space)}

    def log(self, samples: Samples) -> Numbers:
        """The density's logarithm at each of the points `samples`."""
        of_kernels = np.log(self._mixture.weights)
        of_both = np.zeros((len(next(iter(samples.values()))), len(of_kernels)))
        continuous: list[tuple[Numbers, Any]] = []
        for values, kernels in zip(samples.values(), self._mixture.distributions, strict=True):
            if isinstance(kernels, _BatchedCategoricalDistributions):
                of_both += np.log(kernels.weights.T)[values.astype(np.int64)]
            elif kernels.step == 0.0:
                continuous.append((np.log(values) if kernels.is_log else values, kernels))
            else:
                of_both += _log_mass_of_steps(values, kernels)
                of_kernels -= _log_mass_in_range([kernels])[0]
        if continuous:
            all_kernels = [kernels for _, kernels in continuous]
            low = np.array([[one.adapted_low] for one in all_kernels])
            width = np.array([[one.adapted_high] for one in all_kernels]) - low
            deviations = np.array([one.sigma for one in all_kernels])
            # By number and point, by number and kernel, as shares of the number's range: the square of their difference
            # is three products of matrices, and nothing that counts is lost.
            at = (np.array([values for values, _ in continuous]) - low) / width
            mean = (np.array([one.mu for one in all_kernels]) - low) / width
            weight = 0.5 * (width / deviations) ** 2
            of_both -= (at**2).T @ weight
            of_both += 2.0 * at.T @ (weight * mean)
            of_kernels -= (weight * mean**2).sum(axis=0)
            of_kernels -= (_log_mass_in_range(all_kernels) + np.log(deviations) + _LOG_ROOT_OF_2_PI).sum(axis=0)
        of_both += of_kernels
        highest = of_both.max(axis=1)
        found: Numbers = np.log(np.exp(of_both - highest[:, None]).sum(axis=1)) + highest
        return found


def _quantile(quantiles: Numbers, low: Numbers, high: Numbers) -> Numbers:
    """Of standard normals that are truncated to `low` and `high`, from the side where the tail is."""
    mass = _truncnorm._log_gauss_mass(low, high)
    found = np.empty_like(quantiles)
    left = low < 0
    found[left] = _log_quantile(np.logaddexp(_log_normal(low[left]), np.log(quantiles[left]) + mass[left]))
    right = ~left
    if right.any():
        found[right] = -_log_quantile(
            np.logaddexp(_log_normal(-high[right]), np.log1p(-quantiles[right]) + mass[right])
        )
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
    found[far] = -np.sqrt(-2.0 * (goal[far] + _truncnorm._norm_pdf_logC))
    found[~far] = -_truncnorm._ndtri_exp_approx_C * np.log(np.expm1(-goal[~far]))
    for _ in range(100):
        at = _log_normal(found)
        step = (at - goal) * np.exp(at - (-0.5 * found**2 - _truncnorm._norm_pdf_logC))
        found -= step
        if np.all(np.abs(step) < 1e-8 * np.abs(found)):
            break
    found[flipped] *= -1
    return found


_NEAR = 1 / 2**0.5


def _log_normal(numbers: Numbers) -> Numbers:
    """The logarithm of the normal's distribution function, by the mathematics of Python's own library."""
    log, erf, erfc = math.log, math.erf, math.erfc
    found = [
        (log(0.5 * erfc(-x)) if x < -_NEAR else log(0.5 + 0.5 * erf(x)) if x < _NEAR else log(1.0 - 0.5 * erfc(x)))
        if -14.0 < x < 4.2
        else _truncnorm._log_ndtr_single(number)
        for number, x in zip(numbers.tolist(), (numbers / 2**0.5).tolist(), strict=True)
    ]
    return np.array(found)


_LOG_ROOT_OF_2_PI = 0.5 * math.log(2.0 * math.pi)


def _log_mass_of_steps(values: Numbers, kernels: Any) -> Numbers:
    """By point and kernel, the logarithm of the normal's mass within half a step of each value. Of few values there are
    few kernels that differ.
    """
    met, of_point = np.unique(values, return_inverse=True)
    pairs, of_kernel = np.unique(kernels.mu + 1j * kernels.sigma, return_inverse=True)
    left, right = (
        np.subtract.outer(np.log(end) if kernels.is_log else end, pairs.real) / pairs.imag
        for end in (met - kernels.step / 2, met + kernels.step / 2)
    )
    return _log_mass(left, right)[np.ix_(of_point, of_kernel)]


def _log_mass_in_range(kernels: list[Any]) -> Numbers:
    """By number and kernel, the logarithm of the normal's mass within the number's range, to which it is truncated."""
    means, deviations = np.array([one.mu for one in kernels]), np.array([one.sigma for one in kernels])
    left = (np.array([[one.adapted_low] for one in kernels]) - means) / deviations
    right = (np.array([[one.adapted_high] for one in kernels]) - means) / deviations
    return _log_mass(left, right)


def _log_mass(left: Numbers, right: Numbers) -> Numbers:
    """The logarithm of the standard normal's mass between two bounds, `left` < `right`, also far out."""
    # On the right the two tails are almost 1 and their difference is lost: look from the other side there.
    flipped = left > 0.0
    near, far = np.where(flipped, -left, right), np.where(flipped, -right, left)
    mass: Numbers = ndtr(near) - ndtr(far)
    lost = mass < 1e-290
    found: Numbers = np.log(mass, where=~lost, out=np.empty_like(mass))
    if lost.any():
        nearer = log_ndtr(near[lost])
        found[lost] = nearer + np.log1p(-np.exp(log_ndtr(far[lost]) - nearer))
    return found


# ---- CMA-ES ----------------------------------------------------------------------------------------------------------

_GENERATION, _OPTIMIZER = "cma:generation", "cma:optimizer"


def generation_of(notes: Mapping[str, Any]) -> int | None:
    """Of which generation CMA-ES drew a trial, by what it noted on it; None where it was drawn at random."""
    found: int | None = notes.get(_GENERATION)
    return found


def has_state(notes: Mapping[str, Any]) -> bool:
    """Whether CMA-ES noted its whole state on a trial: it does where a generation begins."""
    return any(name.startswith(_OPTIMIZER) for name in notes)


def notes_of(generation: int) -> dict[str, Any]:
    """What CMA-ES notes on a trial of a generation that has begun."""
    return {_GENERATION: generation}


# ---- a study's file --------------------------------------------------------------------------------------------------


def log_study(name: str, *, maximize: bool) -> dict[str, Any]:
    """The first line of a journal of Optuna's, that of its one study.

    Optuna writes such lines as well, but each after it has read the file, under a lock, and waits for the disk: at
    10,000 trials a minute.
    """
    direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
    return _line(JournalOperation.CREATE_STUDY, study_name=name, directions=[direction])


def log_trial(
    *,
    state: TrialState,
    value: float | None,
    params: Mapping[str, float],
    distributions: Mapping[str, str],
    values: Mapping[int, float],
    infeasible: bool,
) -> dict[str, Any]:
    """The line of a new trial as it is now; trials are numbered by their lines. `params` are internal numbers,
    `distributions` as of `as_json`, `values` the intermediate ones.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return _line(
        JournalOperation.CREATE_TRIAL,
        study_id=0,
        state=state,
        value=value,
        values=None,
        datetime_start=now,
        **({"datetime_complete": now} if state.is_finished() else {}),
        params=params,
        distributions=distributions,
        user_attrs={},
        system_attrs=_VIOLATED if infeasible else {},
        intermediate_values=values,
    )


def log_value(number: int, step: int, value: float) -> dict[str, Any]:
    """The line of an intermediate value of a running trial."""
    return _line(JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE, trial_id=number, step=step, intermediate_value=value)


def log_constraint(number: int) -> dict[str, Any]:
    """The line that says that a running trial violates a constraint."""
    return _line(JournalOperation.SET_TRIAL_SYSTEM_ATTR, trial_id=number, system_attr=_VIOLATED)


def log_end(number: int, state: TrialState, value: float | None) -> dict[str, Any]:
    """The line of a running trial's end."""
    return _line(
        JournalOperation.SET_TRIAL_STATE_VALUES,
        trial_id=number,
        state=state,
        values=None if value is None else [value],
        datetime_complete=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


@lru_cache(maxsize=4096)
def as_json(distribution: BaseDistribution) -> str:
    """A distribution as such lines have it."""
    return distribution_to_json(distribution)


_VIOLATED = {f"{_CONSTRAINTS_KEY}:feasible": 1.0}


def _line(operation: JournalOperation, **values: Any) -> dict[str, Any]:
    return {"op_code": operation, "worker_id": "pretune", **values}
