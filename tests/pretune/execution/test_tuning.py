"""What the conductor's seams into Ray Tune ask of Tune's controller."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from pretune import sweep
from pretune.core import results
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.journal import read
from pretune.core.records import Resumed
from pretune.core.rows import Handout
from pretune.execution import cluster, tuning
from pretune.execution.interruption import Interruption
from pretune.execution.tuning import ConductedScheduler, ConductedSearch
from tests.toys import BASE, Executor, begin, experiment, row, space
from trainers.config import TrialConfig


class Controller:
    def __init__(self) -> None:
        self.emptied = 0

    def _cleanup_cached_actors(self, force_all: bool) -> None:
        assert force_all
        self.emptied += 1


def tune_trial(handout: Handout) -> Any:
    return SimpleNamespace(config=handout.to_config())


def test_idle_slots_go_once_no_trial_waits_for_one(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(tmp_path, trials=2), space)
    calm = Interruption()
    scheduler, controller = ConductedScheduler(conductor, ConductedSearch(conductor, 2, calm), calm), Controller()
    first = conductor.next()
    assert first is not None
    scheduler.on_trial_result(controller, tune_trial(first), row(first, 1).to_result())
    assert controller.emptied == 0, "the second trial has not been asked for"
    second = conductor.next()
    assert second is not None
    scheduler.on_trial_result(controller, tune_trial(first), row(first, 2).to_result())
    assert controller.emptied == 1


def test_trials_that_wait_for_one_of_an_equal_config_run_once_it_has_failed_though_no_slot_asked(
    tmp_path: Path,
) -> None:
    def alone(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_float("of no use", 0.0, 1.0)
        return base

    conductor = begin(tmp_path, experiment(tmp_path, trials=3, max_failures=0), alone)
    search = ConductedSearch(conductor, 2, Interruption())

    def suggested(trial_id: str) -> Handout:
        config = search.suggest(trial_id)
        assert isinstance(config, dict)
        return Handout.from_config(config)

    first = suggested("a")
    assert search.suggest("b") is None, "the other two wait for the first, and the search is not over"
    assert conductor.held == [1, 2]
    conductor.started(first.number)
    search.on_trial_complete("a", error=True)  # its actor died
    assert not conductor.all_handed_out
    second = suggested("c")
    assert second.number == 1
    assert search.suggest("d") is None, "the third waits for the second"
    conductor.started(second.number)
    search.on_trial_complete("c", row(second, BASE.epochs, outcome="complete").to_result())
    assert search.suggest("e") == Searcher.FINISHED
    assert [trial.state for trial in conductor.history.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_resumed_sweep_runs_as_many_trials_at_once_as_it_is_then_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"CPU": 8.0}
    at_once: list[int] = []

    def execute(conductor: Conductor, *_: object, slots: int, **__: object) -> None:
        executor = Executor(conductor, slots=slots, seed=0)
        executor.fill()
        at_once.append(conductor.live)
        executor.run()

    monkeypatch.setattr(tuning, "execute", execute)
    monkeypatch.setattr(sweep, "_cluster", lambda *_: nullcontext())
    monkeypatch.setattr(cluster, "nodes", lambda address: [machine])
    monkeypatch.setattr(cluster, "head_bytes", lambda: math.inf)
    asked = experiment(tmp_path, trials=4, slots=2)
    served: Any = {"trainable": lambda *_: None}
    sweep.run(asked, space=space, **served)
    sweep.resume(asked.folder, space=space, trials=12, slots=5, **served)
    sweep.resume(asked.folder, space=space, trials=20, **served)
    assert at_once == [2, 5, 2], "as asked, as asked anew, and as before where nothing is said"
    assert [record.trials for record in read(asked.folder) if isinstance(record, Resumed)] == [12, 20]
    with pytest.raises(RequestError, match=r"9 x 1 workers .* do not fit: the cluster .* holds 8 such workers"):
        sweep.resume(asked.folder, space=space, trials=30, slots=9, **served)
    assert len(results.read(asked.folder).trials) == 20, "nothing was run, and the sweep goes on as before"
