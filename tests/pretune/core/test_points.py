"""The fixed points of an ablation: each is proposed once, in order, and what a driver does with them is a sweep's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pretune.core import points, study_log
from pretune.core.design import Design, DesignLevel
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import FILE, read
from pretune.core.points import FixedPoints, UndecidedPoints
from pretune.core.records import Asked, Ended
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


# --- until it is decided ----------------------------------------------------------------------------------------------


def undecided(storage: Path, *, seeds: int = 2, max_seeds: int = 9) -> Experiment:
    """A rate that is clearly worse, and one that changes nothing the toys can see: batch size."""
    levels: tuple[dict[str, Any], ...] = ({}, {RATE: 0.001}, {"batch_size": 32}, {RATE: 9.0})
    design = Design(levels=[DesignLevel(changes=change) for change in levels], seeds=seeds, max_seeds=max_seeds)
    return experiment(storage, design.points(0), design=design, trials=len(design.points(0)))


def test_seeds_are_added_only_until_each_comparison_is_decided(tmp_path: Path) -> None:
    made = undecided(tmp_path)
    assert isinstance(points.proposer(made, points.unvaried), UndecidedPoints)
    conductor = begin(tmp_path / "s", made, points.unvaried)
    Executor(conductor, slots=3, seed=0).run()
    seeds: dict[str, int] = {}
    for trial in conductor.history.trials:
        change = next((path for path in trial.params if path != "seed"), "base")
        seeds[f"{change}={trial.params.get(change)}"] = seeds.get(f"{change}={trial.params.get(change)}", 0) + 1
    # Equal differences are judged by their signs: 2 ** (1 - 8) is small enough at the look of 8, 2 ** (1 - 5) was not.
    assert conductor.exhausted
    assert seeds[f"{RATE}=9.0"] == 2, "what always diverges gets no more seeds"
    assert 5 < seeds[f"{RATE}=0.001"] <= 9
    assert seeds["base=None"] == max(seeds.values())


def test_a_driver_that_is_killed_adds_the_same_seeds(tmp_path: Path) -> None:
    Executor(begin(tmp_path / "whole", undecided(tmp_path), points.unvaried), slots=1, seed=0).run()
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for kept in (len(lines) // 4, len(lines) // 2, len(lines) - 3):
        folder = tmp_path / f"killed-{kept}"
        folder.mkdir()
        (folder / FILE).write_bytes(b"".join(lines[:kept]))
        conductor = again(folder, points.unvaried)
        conductor.settle()
        Executor(conductor, slots=1, seed=0).run()
        assert decisions(folder) == decisions(tmp_path / "whole")


def test_with_free_slots_it_waits_for_the_trials_that_decide(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", undecided(tmp_path), points.unvaried)
    handouts = [conductor.next() for _ in range(9)]
    assert [handout is None for handout in handouts] == [False] * 8 + [True]
    assert not conductor.finished
    assert not conductor.all_handed_out
    for handout in handouts[:8]:
        assert handout is not None
        conductor.ended(toys.row(handout, 6, outcome="complete"))
    assert conductor.next() is not None


# --- seconds ----------------------------------------------------------------------------------------------------------


def timed(storage: Path, **changes: Any) -> Experiment:
    return experiment(storage, ({"seed": 0}, {"seed": 1}), budget="seconds", trial_seconds=25.0, **changes)


def test_a_trial_is_complete_with_the_first_value_after_its_seconds(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", timed(tmp_path), points.unvaried)
    handout = conductor.next()
    assert handout is not None
    assert conductor.reported(toys.row(handout, 1, metrics={"budget/seconds": 12.0}))
    late = toys.row(handout, 2, metrics={"budget/seconds": 26.0})
    unprobed = {name: value for name, value in late.metrics.items() if name != "probe/linear"}
    assert conductor.reported(replace(late, metrics=unprobed)), "it has no value yet"
    assert not conductor.reported(toys.row(handout, 3, metrics={"budget/seconds": 39.0}))
    trial = conductor.history.trials[0]
    assert (trial.state, trial.value, trial.last_epoch) == ("COMPLETE", trial.epochs[3]["probe/linear"], 3)
    assert trial.reason == "its 25 seconds of training were used by the end of epoch 3 (39.0)"


def test_the_end_of_its_seconds_that_a_killed_driver_did_not_write_is_written_by_the_next(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", timed(tmp_path), points.unvaried)
    handout = conductor.next()
    assert handout is not None
    conductor.started(handout.number)
    assert not conductor.reported(toys.row(handout, 1, metrics={"budget/seconds": 30.0}))
    records = read(tmp_path / "s")
    lines = (tmp_path / "s" / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / FILE).write_bytes(b"".join(lines[:-1]))
    again(tmp_path / "killed", points.unvaried).settle()
    assert read(tmp_path / "killed")[-1] == records[-1]
    assert isinstance(records[-1], Ended)
    assert records[-1].state == "COMPLETE"


def test_weights_to_start_from_that_go_while_a_sweep_runs_end_it_and_no_trial_is_refused_for_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "file.pth").write_bytes(b"weights")
    values = toys.BASE.model_dump(mode="json")
    values["model"]["backbone"] = {"kind": "resnet18", "init": str(tmp_path / "file.pth")}
    base = TrialConfig.model_validate(values).completed()
    proposers = FixedPoints(experiment(tmp_path, base=base)), Search(toys.experiment(tmp_path, base=base), toys.space)
    assert all(proposer.ask([]) is not None for proposer in proposers)
    (tmp_path / "file.pth").unlink()
    for proposer in proposers:
        with pytest.raises(RequestError, match=r"model\.backbone\.init: there is no file"):
            proposer.ask([])
