"""All that is asked of Optuna by names it does not promise to keep: one place to look at when its version changes.

Each part says what is used and why no public name does. `tests/pretune/core/test_optuna_private.py` fails, with both
versions in its message, as soon as a name is gone, takes other arguments, or does something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions
from optuna.samplers._tpe.sampler import default_gamma, default_weights
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import TrialState
from scipy.special import log_ndtr

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


class Density:
    """TPE's density over observed points, which are columns of Optuna's internal numbers by name, oldest first: a sum of
    products, in which each point is a kernel, a truncated normal in each number.

    The public `TPESampler` makes its own at each draw, from a study whose trials it reads and sorts again each time.
    Its sampling is used as it is, to the last bit. Its logarithm is written anew, as it goes through the tails of the
    normal number by number.
    """

    def __init__(self, points: Samples, space: Mapping[str, BaseDistribution]) -> None:
        self._estimator = _ParzenEstimator(points, dict(space), _PARAMETERS)
        self._mixture = self._estimator._mixture_distribution

    def sample(self, rng: np.random.RandomState) -> Samples:
        """`CANDIDATES` points."""
        drawn: Samples = self._estimator.sample(rng, CANDIDATES)
        return drawn

    def log(self, samples: Samples) -> Numbers:
        """The density's logarithm at each of the points `samples`."""
        of_kernels = np.log(self._mixture.weights)
        of_both = np.zeros((len(next(iter(samples.values()))), len(of_kernels)))
        for values, kernels in zip(samples.values(), self._mixture.distributions, strict=True):
            if isinstance(kernels, _BatchedCategoricalDistributions):
                of_both += np.log(kernels.weights.T)[values.astype(np.int64)]
                continue
            mean, deviation, step = kernels.mu, kernels.sigma, kernels.step
            low, high = kernels.adapted_low, kernels.adapted_high
            of_kernels -= _log_mass((low - mean) / deviation, (high - mean) / deviation)
            if step == 0.0:
                distance = np.subtract.outer(np.log(values) if kernels.is_log else values, mean)
                distance /= deviation
                distance *= distance
                distance *= 0.5
                of_both -= distance
                of_kernels -= np.log(deviation) + _LOG_ROOT_OF_2_PI
            else:
                met, position = np.unique(values, return_inverse=True)
                ends = met - step / 2, met + step / 2
                left, right = (np.subtract.outer(np.log(end) if kernels.is_log else end, mean) for end in ends)
                of_both += _log_mass(left / deviation, right / deviation)[position]
        of_both += of_kernels
        highest = of_both.max(axis=1)
        found: Numbers = np.log(np.exp(of_both - highest[:, None]).sum(axis=1)) + highest
        return found


_LOG_ROOT_OF_2_PI = 0.5 * math.log(2.0 * math.pi)


def _log_mass(left: Numbers, right: Numbers) -> Numbers:
    """The logarithm of the standard normal's mass between two bounds, `left` < `right`, also far out."""
    # On the right the two tails are almost 1 and their difference is lost: look from the other side there.
    flipped = left > 0.0
    near, far = np.where(flipped, -left, right), np.where(flipped, -right, left)
    near, far = log_ndtr(near), log_ndtr(far)
    found: Numbers = near + np.log1p(-np.exp(far - near))
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
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
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
        datetime_complete=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
    )


@lru_cache(maxsize=4096)
def as_json(distribution: BaseDistribution) -> str:
    """A distribution as such lines have it."""
    return distribution_to_json(distribution)


_VIOLATED = {f"{_CONSTRAINTS_KEY}:feasible": 1.0}


def _line(operation: JournalOperation, **values: Any) -> dict[str, Any]:
    return {"op_code": operation, "worker_id": "pretune", **values}
