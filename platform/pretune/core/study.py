"""Trials' histories as Optuna sees them: a study in memory, built anew whenever one is needed, and never read back.

Optuna is told the honest end of each trial:

* COMPLETE with the last value of the metric (the best over epochs would reward luck).
* PRUNED: stopped early, with its intermediate values by epoch; TPE ranks it by how far it got, then by its last value.
* INFEASIBLE: diverged, collapsed, out of memory, or refused by the space; to Optuna it is pruned with a violated
  constraint, which TPE puts behind everything else.
* FAIL: a failure of the machine; it teaches the sampler nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from pretune.core.experiment import Experiment
from pretune.core.history import State, TrialHistory
from pretune.core.parameters import Names, flat, parsed
from trainers.files import opened_whole

_STATES: dict[State, TrialState] = {
    "WAITING": TrialState.RUNNING,
    "RUNNING": TrialState.RUNNING,
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "INFEASIBLE": TrialState.PRUNED,
    "FAIL": TrialState.FAIL,
}
_NO_NOTES: Mapping[int, dict[str, Any]] = {}


def empty(experiment: Experiment, sampler: BaseSampler | None = None) -> optuna.Study:
    """A study of no trials, in the direction of `experiment`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        sampler=sampler or RandomSampler(), direction="maximize" if experiment.maximize else "minimize"
    )


def of(
    experiment: Experiment,
    trials: Sequence[TrialHistory],
    *,
    sampler: BaseSampler | None = None,
    notes: Mapping[int, dict[str, Any]] = _NO_NOTES,
    at: int | None = None,
) -> optuna.Study:
    """A study of `trials` as they were just before record `at` (None: as they are).

    `notes` are a sampler's own on each trial, by its number; `sampler` is what asks of this study, if anything does.
    Parameters have the names that `names` of these trials gives them.
    """
    study, called = empty(experiment, sampler), Names()
    study.add_trials(
        [
            _frozen(
                experiment,
                trial,
                running=at is not None and not _ended_before(trial, at),
                notes=notes.get(trial.number),
                called=called,
            )
            for trial in trials
        ]
    )
    return study


def names(trials: Sequence[TrialHistory]) -> Names:
    """What Optuna calls the parameters of a sweep after `trials`."""
    called = Names()
    for trial in trials:
        for name, distribution in distributions(trial).items():
            called.of(name, distribution)
    return called


def write(study: optuna.Study, name: str, path: Path) -> None:
    """Writes `study` to `path` anew, as a journal of Optuna's own, for optuna-dashboard. Never read here."""
    with opened_whole(path) as file:
        storage = JournalStorage(JournalFileBackend(file.name))
        copy = optuna.create_study(storage=storage, study_name=name, direction=study.direction)
        copy.add_trials(study.trials)


def distributions(trial: TrialHistory) -> dict[str, BaseDistribution]:
    """What the trial's parameters were drawn from, by name."""
    return {name: parsed(text) for name, text in trial.distributions.items()}


def _frozen(
    experiment: Experiment, trial: TrialHistory, *, running: bool, notes: dict[str, Any] | None, called: Names
) -> FrozenTrial:
    drawn = distributions(trial)
    alias = {name: called.of(name, distribution) for name, distribution in drawn.items()}
    state = TrialState.RUNNING if running else _STATES[trial.state]
    infeasible = trial.state == "INFEASIBLE" and not running
    values: dict[int, float] = {}
    # CMA-ES knows no constraints and would take the last value of a trial that went on to diverge for its worth.
    if state.is_finished() and not (infeasible and experiment.sampler == "cmaes"):
        metric = experiment.metric
        values = {epoch: metrics[metric] for epoch, metrics in trial.epochs.items() if metric in metrics}
    return create_trial(
        state=state,
        value=trial.value if state == TrialState.COMPLETE else None,
        params={alias.get(name, name): flat(value) for name, value in trial.params.items()},
        distributions={alias[name]: distribution for name, distribution in drawn.items()},
        intermediate_values=values,
        constraints={"feasible": 1.0} if infeasible else None,
        system_attrs=dict(notes or {}),  # a copy: Optuna writes constraints into it
    )


def _ended_before(trial: TrialHistory, position: int) -> bool:
    return trial.ended_at is not None and trial.ended_at < position
