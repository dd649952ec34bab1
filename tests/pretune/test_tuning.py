"""What the conductor's seams into Ray Tune ask of Tune's controller."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretune.group import GroupStartError, NoRoomError
from pretune.tuning import ConductedScheduler, ConductedSearch
from tests.toys import begin, experiment, row, space


class Controller:
    def __init__(self) -> None:
        self.emptied = 0

    def _cleanup_cached_actors(self, force_all: bool) -> None:
        assert force_all
        self.emptied += 1


def tune_trial(handout: dict[str, Any], error: Exception | None = None) -> Any:
    cause = SimpleNamespace(cause=error)
    return SimpleNamespace(config=handout, trial_id="a", get_pickled_error=lambda: cause, get_error=lambda: None)


def test_idle_slots_go_once_no_trial_waits_for_one(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(tmp_path, trials=2), space)
    scheduler, controller = ConductedScheduler(conductor, ConductedSearch(conductor, 2)), Controller()
    first = conductor.next()
    assert first is not None
    scheduler.on_trial_result(controller, tune_trial(first), row(first, 1))
    assert controller.emptied == 0, "the second trial has not been asked for"
    second = conductor.next()
    assert second is not None
    scheduler.on_trial_result(controller, tune_trial(first), row(first, 2))
    assert controller.emptied == 1


@pytest.mark.parametrize(("error", "failures"), [(NoRoomError("no room"), 0), (GroupStartError("broken"), 1)])
def test_a_slot_without_room_gives_its_trial_back_and_a_broken_one_failed(
    tmp_path: Path, error: Exception, failures: int
) -> None:
    conductor = begin(tmp_path, experiment(tmp_path), space)
    search = ConductedSearch(conductor, 1)
    handout = search.suggest("a")
    assert isinstance(handout, dict)
    ConductedScheduler(conductor, search).on_trial_error(None, tune_trial(handout, error))
    search.on_trial_complete("a", error=True)
    assert conductor.history.trials[0].failures == failures
    again = search.suggest("b")
    assert isinstance(again, dict)
    assert again["number"] == 0
