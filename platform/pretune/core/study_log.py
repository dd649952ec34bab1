"""What Optuna was told, in a file that optuna-dashboard opens, while the sweep runs and after. Never read here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from pydantic_core import to_json

from pretune.core import optuna_private
from pretune.core.alike import Alike
from pretune.core.conductor import Conductor, Listener
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.parameters import Names, flat
from pretune.core.records import Asked, Ended, Epoch, Extended, Record, Started
from pretune.core.study import STATES, distributions, values, worth
from trainers.files import opened_whole

logger = logging.getLogger(__name__)

FILE = "study.log"
"""In a sweep's folder, a journal of Optuna's own."""


class StudyLog:
    """A listener that keeps `study.log` up to date while the sweep runs, and passes on what it hears.

    Optuna can not take up a trial that has ended: one that trains longer is in the file again as a whole, when it is
    written anew at the end.
    """

    def __init__(self, conductor: Conductor, listener: Listener | None, path: Path) -> None:
        self._conductor, self._listener, self._path = conductor, listener, path
        self._called, self._hash_of = Names(), conductor.alike.hash_of
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
            write(self._conductor.experiment, self._conductor.history.trials, self._path, self._called, self._hash_of)
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
        if not isinstance(record, Asked | Started | Epoch | Ended):
            return
        experiment, trial = self._conductor.experiment, self._conductor.history.trials[record.number]
        if isinstance(record, Asked):
            yield _created(experiment, trial, self._called, self._hash_of)
        elif isinstance(record, Started):
            if trial.attempts == 1:
                yield optuna_private.log_start(trial.number, record.time)
        elif isinstance(record, Epoch):
            if experiment.metric in record.metrics and not experiment.beside:
                yield optuna_private.log_value(trial.number, record.epoch, record.metrics[experiment.metric])
        else:
            if trial.started_s is None:
                yield optuna_private.log_start(trial.number, record.time)
            if record.result_of is not None:
                for epoch, value in values(experiment, trial).items():
                    yield optuna_private.log_value(trial.number, epoch, value)
            if record.state == "INFEASIBLE":
                yield optuna_private.log_constraint(trial.number)
            for name, said in _outcome(trial).items():
                yield optuna_private.log_about(trial.number, name, said)
            yield optuna_private.log_end(trial.number, STATES[record.state], _worth(experiment, trial), record.time)


HashOf = Callable[[TrialHistory], str]
"""The hash of a trial's config."""


def write(
    experiment: Experiment,
    trials: Sequence[TrialHistory],
    path: Path,
    called: Names | None = None,
    hash_of: HashOf | None = None,
) -> None:
    """Writes what Optuna was told of `trials` to `path` anew, as a journal of its own. `called` meets their names;
    `hash_of` may know what it would take long to compute again.
    """
    called = Names() if called is None else called
    hash_of = hash_of or Alike().hash_of
    with opened_whole(path) as file:
        file.write(_text([optuna_private.log_study(experiment.name, [one.maximize for one in experiment.objectives])]))
        for trial in trials:
            file.write(_text([_created(experiment, trial, called, hash_of)]))


def _created(experiment: Experiment, trial: TrialHistory, called: Names, hash_of: HashOf) -> dict[str, Any]:
    """The trial as it is now, as one line of Optuna's journal."""
    drawn = distributions(trial)
    alias = {name: called.of(name, distribution) for name, distribution in drawn.items()}
    started_s = trial.started_s
    if trial.ended and started_s is None:  # it was not run
        started_s = trial.ended_s
    return optuna_private.log_trial(
        state=STATES[trial.state] if trial.ended or started_s is not None else TrialState.WAITING,
        worth=_worth(experiment, trial),
        params={alias[name]: drawn[name].to_internal_repr(flat(value)) for name, value in trial.params.items()},
        distributions={alias[name]: optuna_private.as_json(one) for name, one in drawn.items()},
        values=values(experiment, trial),
        infeasible=trial.state == "INFEASIBLE",
        started_s=started_s,
        ended_s=trial.ended_s if trial.ended else None,
        about={**_asked(trial, hash_of), **_outcome(trial)},
    )


def _worth(experiment: Experiment, trial: TrialHistory) -> list[float] | None:
    """What Optuna itself has as a trial's values: of one that was stopped its last one, or no history has it. With
    several objectives complete trials alone have any.
    """
    if trial.state != "PRUNED" or experiment.beside:
        return worth(experiment, trial)
    last = trial.last(experiment.metric)
    return [last] if last is not None and math.isfinite(last) else None


def _asked(trial: TrialHistory, hash_of: HashOf) -> dict[str, Any]:
    if trial.config is None:
        return {}
    return {"seed": trial.config.get("seed"), "config_hash": hash_of(trial)}


def _outcome(trial: TrialHistory) -> dict[str, Any]:
    """Of a trial that has ended: why, and the seconds of its epochs."""
    if not trial.ended:
        return {}
    own = [] if trial.result_of is not None else trial.epochs.values()
    seconds = sum(metrics.get("time/epoch_s", 0.0) for metrics in own)
    return {"reason": trial.reason, "seconds": seconds}


def _text(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(to_json(line, inf_nan_mode="constants") + b"\n" for line in lines)
