"""Several objectives: what TPE reads, whom early stopping spares, which trials no other one beats."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pretune.cli import kinds
from pretune.core import results, stopping, study_log
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment, Objective, StoppingConfig
from pretune.core.journal import read
from pretune.core.records import Ended
from pretune.core.search import Search
from pretune.request import request
from tests import toys
from tests.pretune.core.decisions import optuna_study
from tests.toys import Executor, again, begin, row, space
from trainers.config import TrialConfig

BASE = toys.BASE.model_copy(update={"epochs": 9})
SPEED = Objective(metric="time/images_per_s")
SIZE = Objective(metric="model/parameters", maximize=False)


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def experiment(*beside: Objective, **changes: Any) -> Experiment:
    settings: dict[str, Any] = {"name": "s", "space": "mine", "base": BASE, "trials": 30, "startup_trials": 6}
    return Experiment(**(settings | {"beside": beside or (SPEED,)} | changes))


class Measured(Executor):
    """Each epoch also tells how fast it was: the higher the rate, the faster; and how large the network is."""

    def step(self, number: int, handout: Any, epoch: int) -> bool:
        config = TrialConfig.model_validate(handout.config)
        rate = config.optimizer.learning_rate
        more = {"time/images_per_s": 1000.0 * rate, "model/parameters": 100.0 + round(10.0 * rate)}
        if epoch > config.epochs:
            self.conductor.ended(row(handout, epoch - 1, outcome="complete", metrics=more))
            return False
        self.running[number] = (handout, epoch)
        return self.conductor.reported(row(handout, epoch, metrics=more))


def run(folder: Path, made: Experiment, *, slots: int = 1) -> Conductor:
    conductor = begin(folder, made, space)
    Measured(conductor, slots=slots, seed=0).run()
    return conductor


def test_tpe_is_asked_as_optuna_asks_its_own_and_told_each_value(tmp_path: Path) -> None:
    conductor = run(tmp_path, experiment(stopping=StoppingConfig(enabled=False)), slots=3)
    trials = conductor.history.trials
    asked = Search(conductor.experiment, space).ask(trials)
    assert asked is not None
    study = optuna_study(conductor.experiment, trials, Search(conductor.experiment, space)._sampler(len(trials)))
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    assert study.ask().suggest_float("rate", 1e-3, 10.0, log=True) == asked.params["rate"]
    for told, trial in zip(study.trials, trials, strict=False):
        if trial.state == "COMPLETE":
            assert told.values == [trial.value, trial.last("time/images_per_s")]
        assert told.intermediate_values == {}


def test_killed_after_any_record_the_next_driver_asks_and_stops_the_same(tmp_path: Path) -> None:
    run(tmp_path / "whole", experiment(trials=16))._journal.close()
    for cut in range(9, len(read(tmp_path / "whole")), 23):
        folder = toys.cut_after(tmp_path / "whole", cut)
        conductor = again(folder, space)
        conductor.settle()
        Measured(conductor, slots=1, seed=0).run()
        assert toys.decisions(folder) == toys.decisions(tmp_path / "whole")


def test_the_front_is_what_no_other_trial_beats(tmp_path: Path) -> None:
    conductor = run(tmp_path, experiment(SPEED, SIZE, sampler="random"))
    conductor._journal.close()
    found = results.read(tmp_path)
    complete = {trial.id: trial for trial in found.trials if trial.state == "COMPLETE"}
    assert len(complete) > 3

    def beats(one: results.TrialResult, other: results.TrialResult) -> bool:
        mine, its = ((*trial.values[:2], -trial.values[2]) for trial in (one, other))
        return mine != its and all(left >= right for left, right in zip(mine, its, strict=True))

    wanted = {
        number for number, trial in complete.items() if not any(beats(other, trial) for other in complete.values())
    }
    assert {trial.id for trial in found.front} == wanted
    assert found.front[0].id == found.best, "the best of the first objective is one of them"
    told = kinds.of(found.experiment).as_json(found)
    assert told["front"] == [trial.id for trial in found.front]
    assert told["objectives"] == [
        {"metric": "probe/linear", "direction": "maximize"},
        {"metric": "time/images_per_s", "direction": "maximize"},
        {"metric": "model/parameters", "direction": "minimize"},
    ]
    assert told["trials"][found.front[0].id]["values"] == list(found.front[0].values)


def test_a_trial_that_no_other_one_beats_is_spared() -> None:
    made = experiment(SPEED, stopping=StoppingConfig(grace=1.0, reduction_factor=2.0))
    rule, alone = stopping.of(made), stopping.of(made.model_copy(update={"beside": ()}))
    assert rule is not None
    assert alone is not None
    reports = [(0.9, 10.0), (0.5, 20.0), (0.4, 15.0), (0.3, 30.0), (0.2, 5.0)]
    stops = {}
    for which in (rule, alone):
        stops[which] = [
            which.observe(number, 1, {"probe/linear": score, "time/images_per_s": speed}, last_epoch=8) is not None
            for number, (score, speed) in enumerate(reports)
        ]
    assert stops[alone] == [False, True, True, True, True]
    assert stops[rule] == [False, False, True, False, True], "1 and 3 were faster than all that score better"


def test_what_is_spared_agrees_with_comparing_all_pairs() -> None:
    rng = random.Random(0)
    rule = stopping.of(experiment(SPEED, SIZE, stopping=StoppingConfig(grace=1.0)))
    alone = stopping.of(experiment(stopping=StoppingConfig(grace=1.0)).model_copy(update={"beside": ()}))
    assert rule is not None
    assert alone is not None
    seen: list[tuple[float, float, float]] = []
    for number in range(200):
        score, speed, size = (rng.choice([0.1, 0.2, 0.3, rng.random()]) for _ in range(3))
        metrics = {"probe/linear": score, "time/images_per_s": speed, "model/parameters": size}
        mine = (score, speed, -size)
        beaten = any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in seen)
        condemned = alone.observe(number, 1, metrics, last_epoch=8) is not None
        assert (rule.observe(number, 1, metrics, last_epoch=8) is not None) == (condemned and beaten)
        seen.append(mine)


def test_a_trial_that_never_told_an_objective_has_failed(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(), space)
    handout = conductor.next()
    assert handout is not None
    conductor.reported(row(handout, 1))
    conductor.ended(row(handout, 1, outcome="complete"))
    trial = conductor.history.trials[0]
    assert (trial.state, trial.reason) == ("FAIL", "the metric 'time/images_per_s' was never reported")


def test_the_file_for_optuna_dashboard_has_all_values(tmp_path: Path) -> None:
    conductor = run(tmp_path / "s", experiment())
    study_log.write(conductor.experiment, conductor.history.trials, tmp_path / "study.log")
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.log"))))
    assert len(study.directions) == 2
    ends = [record for record in read(tmp_path / "s") if isinstance(record, Ended) and record.state == "COMPLETE"]
    assert ends
    for end in ends:
        assert study.trials[end.number].values[0] == end.value
        assert len(study.trials[end.number].values) == 2


# ---- what is asked for -----------------------------------------------------------------------------------------------


def test_each_metric_has_its_direction_or_the_usual_one() -> None:
    assert request.objectives(None, None) == [Objective(metric="probe/linear")]
    assert request.objectives("loss/total", None) == [Objective(metric="loss/total", maximize=False)]
    assert request.objectives(["probe/linear", "model/parameters"], None) == [Objective(metric="probe/linear"), SIZE]
    assert request.objectives(["probe/linear", "time/images_per_s"], ["maximize", "minimize"]) == [
        Objective(metric="probe/linear"),
        Objective(metric="time/images_per_s", maximize=False),
    ]
    assert request.objectives(["memory/host_peak_bytes"], [])[0].maximize is False


@pytest.mark.parametrize(
    ("metric", "direction", "message"),
    [
        (["a", "b", "c", "d"], None, r"--metric may be given up to 3 times, but was given 4 times \(a, b, c, d\)"),
        (["a", "b"], ["maximize"], r"--direction must be given once for each --metric, .*there are 1 for 2 \(a, b\)"),
        ("a", "up", "--direction must be maximize or minimize, but is 'up'"),
    ],
)
def test_a_wrong_choice_of_objectives_is_refused(metric: Any, direction: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request.objectives(metric, direction)


def test_one_metric_twice_and_a_sampler_of_one_objective_are_refused() -> None:
    with pytest.raises(
        ValueError, match="each objective must be another metric, but they are probe/linear, probe/linear"
    ):
        experiment(Objective(metric="probe/linear"))
    with pytest.raises(ValueError, match="sampler 'cmaes' takes one objective, but there are 2"):
        experiment(sampler="cmaes")
