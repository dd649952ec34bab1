"""All that is asked of Optuna by names it does not promise to keep: one place to look at when its version changes.

Each part says what is used and why no public name does. `tests/pretune/core/test_optuna_private.py` fails, with both
versions in its message, as soon as a name is gone, takes other arguments, or does something else.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import CmaEsSampler
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.sampler import default_gamma, default_weights
from optuna.storages.journal._storage import JournalOperation
from optuna.study import StudyDirection
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState

CHECKED_WITH = "5.0.0"

Numbers = NDArray[np.float64]

# ---- TPE -------------------------------------------------------------------------------------------------------------


def good_trials(finished: int) -> int:
    """How many of `finished` trials are the good ones: a tenth, 25 at most. `TPESampler` has no attribute for it."""
    return int(default_gamma(finished))


def weights_by_age(count: int) -> Numbers:
    """How much each of so many points weighs, oldest first: the newest 25 whole, older ones less and less."""
    found: Numbers = default_weights(count)
    return found


def log_mass(low: Numbers, high: Numbers) -> Numbers:
    """The logarithm of the standard normal's mass between two bounds, as TPE's draws have it."""
    found: Numbers = _truncnorm._log_gauss_mass(low, high)
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


@cache
def _cma_es() -> CmaEsSampler:
    """For its methods; its generator has no part in what is learned."""
    return CmaEsSampler(seed=0)


def notes_after(notes: Mapping[str, Any], trials: Sequence[FrozenTrial], *, maximize: bool) -> dict[str, Any]:
    """What CMA-ES notes on a trial that begins a generation, whichever trial that is. It follows from what it noted on
    the one that began the last generation (`notes`, empty before the first), and from the last generation's `trials`,
    as many as a generation has, all drawn from the same distributions.

    `CmaEsSampler` finds the same at an ask, of a study, and then draws: four times as long, and what it draws is known.
    """
    varied = {name: one for name, one in sorted(trials[0].distributions.items()) if not one.single()}
    space = _SearchSpaceTransform(varied, transform_step=True, transform_0_1=True)
    sampler = _cma_es()
    state = {name: text for name, text in notes.items() if name.startswith(_OPTIMIZER)}
    if state:
        optimizer = pickle.loads(bytes.fromhex(sampler._concat_optimizer_attrs(state)))
    else:
        optimizer = sampler._init_optimizer(space, StudyDirection.MINIMIZE)
    told = []
    for trial in trials:
        assert trial.value is not None, "only those with a value make a generation"
        told.append((space.transform(trial.params), -trial.value if maximize else trial.value))
    optimizer.tell(told)
    return sampler._split_optimizer_str(pickle.dumps(optimizer).hex()) | notes_of(optimizer.generation)


# ---- a study's file --------------------------------------------------------------------------------------------------


def log_study(name: str, maximize: Sequence[bool]) -> dict[str, Any]:
    """The first line of a journal of Optuna's, that of its one study; `maximize` by objective.

    Optuna writes such lines as well, but each after it has read the file, under a lock, and waits for the disk: at
    10,000 trials a minute.
    """
    directions = [StudyDirection.MAXIMIZE if one else StudyDirection.MINIMIZE for one in maximize]
    return _line(JournalOperation.CREATE_STUDY, study_name=name, directions=directions)


def log_trial(
    *,
    state: TrialState,
    worth: Sequence[float] | None,
    params: Mapping[str, float],
    distributions: Mapping[str, str],
    values: Mapping[int, float],
    infeasible: bool,
    started_s: float | None,
    ended_s: float | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The line of a new trial as it is now; trials are numbered by their lines. `params` are internal numbers,
    `distributions` as of `as_json`, `values` the intermediate ones, `worth` the final ones by objective, times in Unix
    seconds (a trial that waits has not started), `about` what else is told of it.
    """
    return _line(
        JournalOperation.CREATE_TRIAL,
        study_id=0,
        state=state,
        value=worth[0] if worth is not None and len(worth) == 1 else None,
        values=worth if worth is not None and len(worth) > 1 else None,
        datetime_start=None if started_s is None else _iso(started_s),
        **({} if ended_s is None else {"datetime_complete": _iso(ended_s)}),
        params=params,
        distributions=distributions,
        user_attrs=about,
        system_attrs=_VIOLATED if infeasible else {},
        intermediate_values=values,
    )


def log_value(number: int, step: int, value: float) -> dict[str, Any]:
    """The line of an intermediate value of a running trial."""
    return _line(JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE, trial_id=number, step=step, intermediate_value=value)


def log_constraint(number: int) -> dict[str, Any]:
    """The line that says that a running trial violates a constraint."""
    return _line(JournalOperation.SET_TRIAL_SYSTEM_ATTR, trial_id=number, system_attr=_VIOLATED)


def log_start(number: int, started_s: float) -> dict[str, Any]:
    """The line that says that a trial that waited runs."""
    return _line(
        JournalOperation.SET_TRIAL_STATE_VALUES,
        trial_id=number,
        state=TrialState.RUNNING,
        values=None,
        datetime_start=_iso(started_s),
    )


def log_about(number: int, name: str, value: Any) -> dict[str, Any]:
    """The line of one thing more that is told of a running trial."""
    return _line(JournalOperation.SET_TRIAL_USER_ATTR, trial_id=number, user_attr={name: value})


def log_end(number: int, state: TrialState, worth: Sequence[float] | None, ended_s: float) -> dict[str, Any]:
    """The line of a running trial's end."""
    return _line(
        JournalOperation.SET_TRIAL_STATE_VALUES,
        trial_id=number,
        state=state,
        values=worth,
        datetime_complete=_iso(ended_s),
    )


@lru_cache(maxsize=4096)
def as_json(distribution: BaseDistribution) -> str:
    """A distribution as such lines have it."""
    return distribution_to_json(distribution)


_VIOLATED = {f"{_CONSTRAINTS_KEY}:feasible": 1.0}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _line(operation: JournalOperation, **values: Any) -> dict[str, Any]:
    return {"op_code": operation, "worker_id": "pretune", **values}
