"""The file for optuna-dashboard grows while the sweep runs, says what happened, and is nobody's concern but its own."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from pretune.core import study_log
from pretune.core.alike import Keys
from pretune.core.conductor import Conductor
from pretune.core.records import Extended, Record, StopRequested
from pretune.core.study_log import FILE, StudyLog
from tests.toys import Ear, Executor, again, begin, branching, experiment, row, space


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def told(folder: Path) -> list[FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(folder / FILE)))).trials


def facts(trial: FrozenTrial) -> dict[str, Any]:
    names = ("number", "state", "values", "params", "intermediate_values", "distributions", "constraints")
    times = ("datetime_start", "datetime_complete")
    return {name: getattr(trial, name) for name in (*names, *times, "user_attrs")}


def followed(conductor: Conductor, folder: Path) -> StudyLog:
    log = StudyLog(conductor, conductor.listener, folder / FILE)
    conductor.listener = log
    return log


def test_it_grows_record_by_record_into_what_a_whole_writing_gives(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=30), branching)
    ear = conductor.listener = Ear()
    log = followed(conductor, tmp_path)
    assert told(tmp_path) == []

    sizes: list[int] = []

    class Watching(Executor):
        def step(self, *arguments: Any) -> bool:
            sizes.append((tmp_path / FILE).stat().st_size)
            return super().step(*arguments)

    Watching(conductor, slots=3, seed=0).run()
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 30
    log.close()
    grown = [facts(trial) for trial in told(tmp_path)]
    study_log.write(conductor.experiment, conductor.history.trials, tmp_path / FILE)
    assert grown == [facts(trial) for trial in told(tmp_path)]
    assert {trial["state"] for trial in grown} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert any(trial["constraints"] for trial in grown)
    # What stood before it hears everything, and in the same order.
    assert [record.kind for record in ear.heard] == [record.kind for record in conductor._journal.records[1:]]


def test_a_trial_that_runs_is_there_with_its_curve_so_far(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), branching)
    followed(conductor, tmp_path)
    handout = conductor.next()
    assert handout is not None
    conductor.started(handout.number)
    conductor.reported(row(handout, 1))
    trial = told(tmp_path)[handout.number]
    assert (trial.state, list(trial.intermediate_values)) == (TrialState.RUNNING, [1])
    assert trial.params == handout.params


def test_each_trial_has_its_own_start_and_end_and_a_stopped_one_its_last_value_and_why(tmp_path: Path) -> None:
    ticks = itertools.count(1_700_000_000, 60)
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=12), space, clock=lambda: float(next(ticks)))
    followed(conductor, tmp_path)
    first, second = conductor.next(), conductor.next()
    assert first is not None
    assert second is not None
    assert told(tmp_path)[1].state == TrialState.WAITING, "no slot has taken it"
    conductor.started(0)
    conductor.reported(row(first, 1, metrics={"time/epoch_s": 2.5}))
    conductor.request(StopRequested(request="r", number=0, reason="no hope"))
    conductor.reported(row(first, 2, metrics={"time/epoch_s": 3.0}))
    grown = told(tmp_path)[0]
    study_log.write(conductor.experiment, conductor.history.trials, tmp_path / FILE)
    for trial in (grown, told(tmp_path)[0]):
        assert trial.state == TrialState.PRUNED
        assert trial.value == trial.intermediate_values[2]
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        # The journal's own times: opened, two asked, then started; two epochs and the request before the end.
        assert trial.datetime_start.timestamp() == 1_700_000_000 + 3 * 60
        assert trial.datetime_complete.timestamp() == 1_700_000_000 + 7 * 60
        assert trial.user_attrs == {
            "seed": 0,
            "config_hash": Keys().of(first.config).hex(),
            "reason": "stopped by hand: no hope",
            "seconds": 5.5,
        }


def test_a_driver_that_takes_the_sweep_up_writes_it_anew(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=4), branching)
    Executor(conductor, slots=1, seed=0).run()
    conductor._journal.close()
    (tmp_path / FILE).write_text("half a li")
    resumed = again(tmp_path / "s", branching)
    followed(resumed, tmp_path)
    assert len(told(tmp_path)) == 4


def test_a_trial_that_trains_longer_is_told_anew_in_the_end(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=4), branching)
    Executor(conductor, slots=1, seed=0).run()
    log = followed(conductor, tmp_path)
    trial = next(trial for trial in conductor.history.trials if trial.state == "COMPLETE")
    assert trial.config is not None
    checkpoint = trial.checkpoints[4]
    conductor.extend(Extended(number=trial.number, config=trial.config | {"epochs": 9}, checkpoint=checkpoint))
    handout = conductor.next()
    assert handout is not None
    for epoch in range(5, 10):
        conductor.reported(row(handout, epoch))
    conductor.ended(row(handout, 9, outcome="complete"))
    log.close()
    found = told(tmp_path)[trial.number]
    assert (found.state, max(found.intermediate_values)) == (TrialState.COMPLETE, 9)
    assert found.value == conductor.history.trials[trial.number].value


def test_a_sweep_does_not_end_because_the_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=3), branching)
    ear = conductor.listener = Ear()
    log = followed(conductor, tmp_path)
    real = Path.open

    def full(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == FILE:
            raise OSError(28, "No space left on device")
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    with caplog.at_level(logging.WARNING):
        Executor(conductor, slots=1, seed=0).run()
    assert caplog.text.count("is written when the sweep ends") == 1
    heard: list[Record] = ear.heard
    assert len(heard) == len(conductor._journal.records) - 1
    monkeypatch.undo()
    log.close()
    assert len(told(tmp_path)) == 3
