"""What the conductor's seams into Ray Tune ask of Tune's controller."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pretune.core.rows import Handout
from pretune.execution.interruption import Interruption
from pretune.execution.tuning import ConductedScheduler, ConductedSearch
from tests.toys import begin, experiment, row, space


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
