"""Trials as Optuna sees them: the study that one ask is put to, and the file that optuna-dashboard opens.

Optuna is told the honest end of each trial:

* COMPLETE with the last value of the metric (the best over epochs would reward luck).
* PRUNED: stopped early, with its intermediate values by epoch; TPE ranks it by how far it got, then by its last value.
* INFEASIBLE: diverged, collapsed, out of memory, or refused by the space; to Optuna it is pruned with a violated
  constraint, which TPE puts behind everything else.
* FAIL: a failure of the machine; it teaches the sampler nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from pretune.core import optuna_private
from pretune.core.experiment import Experiment
from pretune.core.history import State, TrialHistory
from pretune.core.journal import Asked, Ended, Epoch, Extended, Record
from pretune.core.parameters import Names, flat, parsed
from trainers.files import opened_whole

if TYPE_CHECKING:
    from pretune.core.conductor import Conductor, Listener

logger = logging.getLogger(__name__)

FILE = "study.log"
"""What Optuna was told, as a journal of its own in a sweep's folder, which optuna-dashboard opens. Never read here."""

_STATES: dict[State, TrialState] = {
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
    return optuna.create_study(sampler=sampler or RandomSampler(), direction=experiment.direction)


def distributions(trial: TrialHistory) -> dict[str, BaseDistribution]:
    """What the trial's parameters were drawn from, by name."""
    return {name: parsed(text) for name, text in trial.distributions.items()}


def frozen(experiment: Experiment, trial: TrialHistory, called: Names) -> FrozenTrial:
    """The trial as Optuna's own, its parameters under the names that Optuna calls them by."""
    drawn = distributions(trial)
    alias = {name: called.of(name, distribution) for name, distribution in drawn.items()}
    state = _STATES[trial.state]
    infeasible = trial.state == "INFEASIBLE"
    values: dict[int, float] = {}
    # CMA-ES knows no constraints and would take the last value of a trial that went on to diverge for its worth.
    if state.is_finished() and not (infeasible and experiment.sampler == "cmaes"):
        values = _values(experiment, trial)
    return create_trial(
        state=state,
        value=trial.value if state == TrialState.COMPLETE else None,
        params={alias.get(name, name): flat(value) for name, value in trial.params.items()},
        distributions={alias[name]: distribution for name, distribution in drawn.items()},
        intermediate_values=values,
        constraints={"feasible": 1.0} if infeasible else None,
    )


def _values(experiment: Experiment, trial: TrialHistory) -> dict[int, float]:
    metric = experiment.metric
    return {epoch: metrics[metric] for epoch, metrics in trial.epochs.items() if metric in metrics}


# ---- one ask ---------------------------------------------------------------------------------------------------------


class OneAsk(BaseStorage):
    """The storage of a study that is there for one ask: the trials that its sampler has to see, and the one that is
    asked. Where Optuna's own storages copy each trial that they are told, this one holds what it is given.
    """

    def __init__(self, experiment: Experiment, told: Sequence[FrozenTrial], number: int) -> None:
        """`number` is that of the trial that is asked."""
        self._direction = StudyDirection.MAXIMIZE if experiment.maximize else StudyDirection.MINIMIZE
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
        return [self._direction]

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


# ---- optuna-dashboard ------------------------------------------------------------------------------------------------


class StudyLog:
    """A listener that keeps `study.log` up to date while the sweep runs, and passes on what it hears.

    Optuna can not take up a trial that has ended: one that trains longer is in the file again as a whole, when it is
    written anew at the end.
    """

    def __init__(self, conductor: Conductor, listener: Listener | None, path: Path) -> None:
        self._conductor, self._listener, self._path = conductor, listener, path
        self._called = Names()
        self._stale = False
        self._write()

    def on_event(self, record: Record) -> None:
        if self._listener is not None:
            self._listener.on_event(record)
        lines = list(self._lines(record))
        if lines and not self._stale:
            try:
                with self._path.open("ab", buffering=0) as file:
                    file.write(_text(lines))
            except OSError as error:  # a sweep does not end because somebody's view of it does
                self._give_up(error)

    def close(self) -> None:
        """At the end of a driver."""
        if self._stale:
            self._write()

    def _write(self) -> None:
        try:
            write(self._conductor.experiment, self._conductor.history.trials, self._path, self._called)
        except OSError as error:
            self._give_up(error)
        else:
            self._stale = False

    def _give_up(self, error: OSError) -> None:
        logger.warning("%s is written when the sweep ends, not before: %s", self._path, error)
        self._stale = True

    def _lines(self, record: Record) -> Iterator[dict[str, Any]]:
        if isinstance(record, Extended):
            self._stale = True
        if not isinstance(record, Asked | Epoch | Ended):
            return
        experiment, trial = self._conductor.experiment, self._conductor.history.trials[record.number]
        if isinstance(record, Asked):
            yield _created(experiment, trial, self._called)
        elif isinstance(record, Epoch):
            if experiment.metric in record.metrics:
                yield optuna_private.log_value(trial.number, record.epoch, record.metrics[experiment.metric])
        else:
            if record.result_of is not None:
                for epoch, value in _values(experiment, trial).items():
                    yield optuna_private.log_value(trial.number, epoch, value)
            if record.state == "INFEASIBLE":
                yield optuna_private.log_constraint(trial.number)
            yield optuna_private.log_end(trial.number, _STATES[record.state], _worth(trial))


def write(experiment: Experiment, trials: Sequence[TrialHistory], path: Path, called: Names | None = None) -> None:
    """Writes what Optuna was told of `trials` to `path` anew, as a journal of its own. `called` meets their names."""
    called = Names() if called is None else called
    with opened_whole(path) as file:
        file.write(_text([optuna_private.log_study(experiment.name, maximize=experiment.maximize)]))
        for trial in trials:
            file.write(_text([_created(experiment, trial, called)]))


def _created(experiment: Experiment, trial: TrialHistory, called: Names) -> dict[str, Any]:
    """The trial as it is now, as one line of Optuna's journal."""
    drawn = distributions(trial)
    alias = {name: called.of(name, distribution) for name, distribution in drawn.items()}
    return optuna_private.log_trial(
        state=_STATES[trial.state],
        value=_worth(trial),
        params={alias[name]: drawn[name].to_internal_repr(flat(value)) for name, value in trial.params.items()},
        distributions={alias[name]: optuna_private.as_json(one) for name, one in drawn.items()},
        values=_values(experiment, trial),
        infeasible=trial.state == "INFEASIBLE",
    )


def _worth(trial: TrialHistory) -> float | None:
    return trial.value if trial.state == "COMPLETE" else None


def _text(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
