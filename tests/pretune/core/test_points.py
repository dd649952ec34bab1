"""The fixed points of an ablation: each is proposed once, in order, and what a driver does with them is a sweep's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pretune.core import points, study_log
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import FILE, Asked, Ended, read
from pretune.core.points import FixedPoints
from pretune.core.search import Search
from tests import toys
from tests.pretune.core.decisions import optuna_study
from tests.toys import Executor, again, begin, decisions
from trainers.config import TrialConfig

RATE = "optimizer.learning_rate"
POINTS: tuple[dict[str, Any], ...] = (
    {"seed": 0},
    {"seed": 0, RATE: 0.01},
    {"seed": 0, RATE: 9.0},
    {"seed": 1},
    {"seed": 1, RATE: 0.01},
    {"seed": 1, RATE: 9.0},
)


def experiment(storage: Path, wanted: tuple[dict[str, Any], ...] = POINTS, **changes: Any) -> Experiment:
    settings = {"space": "ablation", "points": wanted, "trials": len(wanted), "stopping": {"enabled": False}}
    return toys.experiment(storage, **(settings | changes))


def test_points_come_in_their_order_and_then_no_more(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), points.unvaried)
    Executor(conductor, slots=2, seed=0).run()
    trials = conductor.history.trials
    assert [trial.params for trial in trials] == list(POINTS)
    configs = [TrialConfig.model_validate(trial.config) for trial in trials]
    assert [config.seed for config in configs] == [0, 0, 0, 1, 1, 1]
    assert [config.optimizer.learning_rate for config in configs] == [toys.BASE.optimizer.learning_rate, 0.01, 9.0] * 2
    assert [trial.state for trial in trials] == ["COMPLETE", "COMPLETE", "INFEASIBLE"] * 2
    assert FixedPoints(experiment(tmp_path)).ask(trials) is None


def test_a_driver_that_is_killed_proposes_the_rest(tmp_path: Path) -> None:
    Executor(begin(tmp_path / "whole", experiment(tmp_path), points.unvaried), slots=1, seed=0).run()
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / FILE).write_bytes(b"".join(lines[: len(lines) // 2]))
    conductor = again(tmp_path / "killed", points.unvaried)
    conductor.settle()
    Executor(conductor, slots=1, seed=0).run()
    assert decisions(tmp_path / "killed") == decisions(tmp_path / "whole")


def test_a_point_that_cannot_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    odd = FixedPoints(experiment(tmp_path, ({"seed": 0}, {"batch_size": 63}), workers_per_trial=2))
    with pytest.raises(RequestError, match=r"'batch_size': 63.*must be a multiple of the 2 workers"):
        odd.check()
    unknown = FixedPoints(experiment(tmp_path, ({"optimizer.learning_rat": 1},)))
    with pytest.raises(RequestError, match=r"did you mean 'optimizer\.learning_rate'"):
        unknown.check()
    FixedPoints(experiment(tmp_path)).check()


def test_a_point_that_is_refused_all_the_same_is_an_infeasible_trial_with_the_reason(tmp_path: Path) -> None:
    asked = experiment(tmp_path, ({"batch_size": 63}, {"seed": 0}), workers_per_trial=2)
    conductor = begin(tmp_path / "s", asked, points.unvaried)
    handout = conductor.next()
    assert handout is not None
    assert handout.number == 1
    refused = conductor.history.trials[0]
    assert (refused.state, refused.config) == ("INFEASIBLE", None)
    assert "must be a multiple of the 2 workers" in refused.reason
    # The end that a killed driver did not write is written by the next one, in the same words.
    records = read(tmp_path / "s")
    assert isinstance(records[1], Asked)
    assert isinstance(records[2], Ended)
    lines = (tmp_path / "s" / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / FILE).write_bytes(b"".join(lines[:2]))
    again(tmp_path / "killed", points.unvaried).settle()
    assert read(tmp_path / "killed")[-1] == records[2]


def test_optuna_is_told_of_an_ablation_as_of_a_search(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), points.unvaried)
    Executor(conductor, slots=2, seed=0).run()
    study_log.write(conductor.experiment, conductor.history.trials, tmp_path / study_log.FILE)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    written = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.params for trial in written] == list(POINTS)
    assert [trial.state for trial in written] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED] * 2
    # A parameter's choices are the levels of all points.
    assert written[1].distributions[RATE] == optuna.distributions.CategoricalDistribution([0.01, 9.0])
    seen = optuna_study(experiment(tmp_path), conductor.history.trials).trials
    assert [trial.values for trial in written] == [trial.values for trial in seen]


def test_an_experiment_without_points_is_searched(tmp_path: Path) -> None:
    assert isinstance(points.proposer(experiment(tmp_path), points.unvaried), FixedPoints)
    assert isinstance(points.proposer(toys.experiment(tmp_path), toys.space), Search)
