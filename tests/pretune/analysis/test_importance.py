"""Importances rank what is known right, their intervals hold, and what cannot be said is not said."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pretune.analysis import importance
from pretune.core.history import TrialHistory


@pytest.fixture(scope="module")
def simulate() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "simulate_importance.py"
    spec = importlib.util.spec_from_file_location("simulate_importance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _few_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "HALVES", 20)
    monkeypatch.setattr(importance, "HALVES_OF_FOREST", 5)


def trials(simulate: ModuleType, count: int, seed: int = 0) -> list[TrialHistory]:
    found: list[TrialHistory] = simulate.study(simulate.summed, count, np.random.default_rng(seed))
    return found


def test_what_matters_comes_first_and_intervals_lie_around_their_values(simulate: ModuleType) -> None:
    found = importance.evaluate(simulate.experiment(), trials(simulate, 120))
    assert [one.name for one in found.parameters][:2] == ["large", "middle"]
    assert sum(one.ped_anova.value for one in found.parameters) == pytest.approx(1.0)
    for one in found.parameters:
        assert one.fanova is not None
        for interval in (one.ped_anova, one.fanova):
            assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    assert not found.parameters[0].can_be_fixed
    assert (found.complete, found.looked_at, found.problem) == (120, 120, "")


def test_equal_trials_and_seeds_give_equal_importances(simulate: ModuleType) -> None:
    one, other = (importance.evaluate(simulate.experiment(), trials(simulate, 30), seed=4) for _ in range(2))
    assert one == other


def test_minimizing_the_opposite_is_the_same(simulate: ModuleType) -> None:
    points = trials(simulate, 40)
    negated = [dataclasses.replace(trial, value=-(trial.value or 0.0)) for trial in points]
    found = importance.evaluate(simulate.experiment(), points)
    assert importance.evaluate(simulate.experiment(maximize=False), negated).parameters == found.parameters


def test_of_few_trials_no_number_is_told(simulate: ModuleType) -> None:
    found = importance.evaluate(simulate.experiment(), trials(simulate, 9))
    assert found.parameters == ()
    assert "too few trials" in found.problem
    assert "9 were completed" in found.problem


def test_trials_that_say_nothing_of_their_settings_are_left_out_and_counted(simulate: ModuleType) -> None:
    points = trials(simulate, 24)
    points[0].state, points[1].state, points[2].state = "INFEASIBLE", "FAIL", "RUNNING"
    points[3].result_of = 0
    points[4].value = math.nan
    found = importance.evaluate(simulate.experiment(), points)
    assert (found.infeasible, found.failed, found.reused, found.looked_at) == (1, 1, 1, 19)


def test_a_stopped_trial_ranks_behind_all_completed_ones_by_how_far_it_got(simulate: ModuleType) -> None:
    points = trials(simulate, 12)
    points[0].state, points[0].epochs = "PRUNED", {1: {"probe/linear": 99.0}}
    points[1].state, points[1].epochs = "PRUNED", {1: {"probe/linear": 1.0}, 3: {"probe/linear": 2.0}}
    seen = importance._seen(simulate.experiment(), points)
    scores = importance._scores(seen)
    assert scores[0] == 0.0
    assert scores[1] == pytest.approx(1 / 11)
    assert importance.evaluate(simulate.experiment(), points).stopped == 2


def test_a_conditional_parameter_is_judged_by_the_trials_that_have_it(simulate: ModuleType) -> None:
    points = simulate.study(simulate.branching, 80, np.random.default_rng(0))
    found = {one.name: one for one in importance.evaluate(simulate.experiment(), points).parameters}
    having = sum("bandwidth" in trial.params for trial in points)
    assert (found["bandwidth"].trials, found["bandwidth"].of) == (having, 80)
    assert found["bandwidth"].conditional
    assert not found["kernel"].conditional
    fanova = found["bandwidth"].fanova
    assert fanova is not None
    assert fanova.value > 0.7, "of the trials that have it, it decides nearly all"
    assert found["none"].ped_anova.value < min(found["kernel"].ped_anova.value, found["bandwidth"].ped_anova.value)


def test_of_very_many_trials_a_part_is_drawn(simulate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "MOST", 30)
    found = importance.evaluate(simulate.experiment(), trials(simulate, 60))
    assert (found.complete, found.looked_at) == (60, 30)
    assert found.parameters[0].name == "large"


def test_a_best_value_on_the_edge_of_its_range_is_told_and_one_inside_is_not(simulate: ModuleType) -> None:
    points = trials(simulate, 60)
    best = max(points, key=lambda trial: trial.value or 0.0)
    best.params["large"] = 0.995
    [said] = [text for text in importance.evaluate(simulate.experiment(), points).advice if "widen" in text]
    assert "the best value of large (0.995) sits on the edge" in said
    assert "above 1" in said
    best.params["large"] = 0.9
    assert not [t for t in importance.evaluate(simulate.experiment(), points).advice if "value of large" in t]


def test_a_parameter_below_the_threshold_with_its_whole_interval_can_be_fixed() -> None:
    low, high = importance.Interval(0.01, 0.0, 0.04), importance.Interval(0.02, 0.0, 0.2)
    assert importance.Parameter("a", "a", 10, 10, low, low).can_be_fixed
    assert importance.Parameter("a", "a", 10, 10, low, None).can_be_fixed
    assert not importance.Parameter("a", "a", 10, 10, low, high).can_be_fixed
    assert not importance.Parameter("a", "a", 10, 10, high, low).can_be_fixed


def test_without_parameters_or_differences_the_reason_is_told(simulate: ModuleType) -> None:
    alike = [dataclasses.replace(trial, params={}, distributions={}) for trial in trials(simulate, 12)]
    assert "no parameter varies" in importance.evaluate(simulate.experiment(), alike).problem
    equal = [dataclasses.replace(trial, value=0.5) for trial in trials(simulate, 12)]
    assert "equally good" in importance.evaluate(simulate.experiment(), equal).problem


def test_a_small_simulation_holds(simulate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "LARGE", 120)
    monkeypatch.setattr(importance, "HALVES", 8)
    monkeypatch.setattr(importance, "HALVES_OF_FOREST", 2)
    rows = list(simulate.rows(1, 0, sizes=(60,)))
    seen = {what: (int(count), int(of)) for what, _, count, of in rows}
    assert seen["sum, 60 trials: the largest first"] == (1, 1)
    assert seen["minimized: the same numbers"] == (1, 1)
    assert seen["sum, 60 trials: large could be fixed"][0] == 0
