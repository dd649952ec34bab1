"""Trials as Optuna sees them, and the study that one ask is put to.

Optuna is told the honest end of each trial:

* COMPLETE with the last value of the metric (the best over epochs would reward luck).
* PRUNED: stopped early, with its intermediate values by epoch; TPE ranks it by how far it got, then by its last value.
* INFEASIBLE: diverged, collapsed, out of memory, or refused by the space; to Optuna it is pruned with a violated
  constraint, which TPE puts behind everything else.
* FAIL: a failure of the machine; it teaches the sampler nothing.

Of a sweep with several objectives a complete trial has a value of each, and no other one has any: Optuna compares
intermediate values of one objective only.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from pretune.core.experiment import Experiment, PriorTrial
from pretune.core.history import State, TrialHistory
from pretune.core.parameters import Names, flat, parsed

STATES: dict[State, TrialState] = {
    "WAITING": TrialState.RUNNING,
    "RUNNING": TrialState.RUNNING,
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "INFEASIBLE": TrialState.PRUNED,
    "FAIL": TrialState.FAIL,
}
_NAME = "asked"


def empty(experiment: Experiment, sampler: BaseSampler | None = None) -> optuna.Study:
    """A study of no trials, in the direction of `experiment`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [objective.direction for objective in experiment.objectives]
    return optuna.create_study(sampler=sampler or RandomSampler(), directions=directions)


def distributions(trial: TrialHistory | PriorTrial) -> dict[str, BaseDistribution]:
    """What the trial's parameters were drawn from, by name."""
    return {name: parsed(text) for name, text in trial.distributions.items()}


def frozen(experiment: Experiment, trial: TrialHistory, called: Names | Mapping[str, str]) -> FrozenTrial:
    """The trial as Optuna's own, its parameters under the names that Optuna calls them by; `called` may be those of
    this trial's.
    """
    drawn = distributions(trial)
    alias = called
    if isinstance(alias, Names):
        alias = {name: alias.of(name, distribution) for name, distribution in drawn.items()}
    state = STATES[trial.state]
    infeasible = trial.state == "INFEASIBLE"
    told: dict[int, float] = {}
    # CMA-ES knows no constraints and would take the last value of a trial that went on to diverge for its worth.
    if state.is_finished() and not (infeasible and experiment.sampler == "cmaes"):
        told = values(experiment, trial)
    asked = datetime.fromtimestamp(trial.asked_s)  # no sampler looks at the times; there must be some
    # Not by `create_trial`: that looks at each parameter again, which takes half a second at 10,000 trials.
    found = FrozenTrial(
        number=trial.number,
        trial_id=-1,
        state=state,
        value=None,
        values=worth(experiment, trial),
        datetime_start=None if state == TrialState.WAITING else asked,
        datetime_complete=asked if state.is_finished() else None,
        params={alias.get(name, name): flat(value) for name, value in trial.params.items()},
        distributions={alias[name]: distribution for name, distribution in drawn.items()},
        user_attrs={},
        system_attrs={},
        intermediate_values=told,
    )
    if infeasible:
        found.set_constraint("feasible", 1.0)
    return found


def untold(number: int) -> FrozenTrial:
    """In the place of a trial of which nothing is to be learned."""
    found = create_trial(state=TrialState.FAIL)
    found.number = number
    return found


def values(experiment: Experiment, trial: TrialHistory) -> dict[int, float]:
    """The searched metric by epoch; nothing where there are several."""
    metric = experiment.metric
    if experiment.beside:
        return {}
    return {epoch: metrics[metric] for epoch, metrics in trial.epochs.items() if metric in metrics}


def worth(experiment: Experiment, trial: TrialHistory) -> list[float] | None:
    """What a complete trial is worth, by objective; None for any other."""
    if trial.state != "COMPLETE" or trial.value is None:
        return None
    others = [trial.last(objective.metric) for objective in experiment.beside]
    return [trial.value, *(math.nan if value is None else value for value in others)]


# ---- one ask ---------------------------------------------------------------------------------------------------------


class OneAsk(BaseStorage):
    """The storage of a study that is there for one ask: the trials that its sampler has to see, and the one that is
    asked. Where Optuna's own storages copy each trial that they are told, this one holds what it is given.
    """

    def __init__(self, experiment: Experiment, told: Sequence[FrozenTrial], number: int) -> None:
        """`number` is that of the trial that is asked."""
        self._directions = [
            StudyDirection.MAXIMIZE if objective.maximize else StudyDirection.MINIMIZE
            for objective in experiment.objectives
        ]
        self._told = told
        self._number = number
        self.asked: FrozenTrial

    def study(self, sampler: BaseSampler) -> optuna.Study:
        """The study of these trials; it is asked once."""
        return optuna.load_study(study_name=_NAME, storage=self, sampler=sampler, pruner=NopPruner())

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        assert template_trial is None, "it is told when it is made"
        self.asked = create_trial(state=TrialState.RUNNING)
        self.asked.number = self._number
        return self._number

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.asked

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [*self._told, self.asked] if hasattr(self, "asked") else list(self._told)
        return found if states is None else [trial for trial in found if trial.state in states]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self.asked.params[param_name] = distribution.to_external_repr(param_value_internal)
        self.asked.distributions[param_name] = distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.asked.system_attrs[key] = value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.asked.user_attrs[key] = value

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.asked.intermediate_values[step] = intermediate_value

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self.asked.state, self.asked.values = state, values
        return True

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return _NAME

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> NoReturn:
        raise NotImplementedError("one study, there from the beginning")

    def delete_study(self, study_id: int) -> NoReturn:
        raise NotImplementedError("one study, for one ask")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> NoReturn:
        raise NotImplementedError("what is said of a study is in the journal")

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> NoReturn:
        raise NotImplementedError("what is said of a study is in the journal")

    def get_all_studies(self) -> NoReturn:
        raise NotImplementedError("one study, for one ask")
