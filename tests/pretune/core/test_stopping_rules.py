"""Hyperband, the median rule, and the trials that live on for an audit of whichever rule."""

from __future__ import annotations

import math
import os
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from pretune.core import results, stopping
from pretune.core.experiment import Experiment, StoppingConfig
from pretune.core.journal import read
from pretune.core.records import Condemned, Ended, Epoch, Record
from pretune.core.stopping import Hyperband, MedianRule, SuccessiveHalving
from tests import toys
from tests.pretune.core.decisions import optuna_study
from tests.toys import Executor, again, begin, decisions, follow, space

BASE = toys.BASE.model_copy(update={"epochs": 9})
METRIC = "probe/linear"


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def experiment(rule: StoppingConfig, **changes: Any) -> Experiment:
    settings = {"name": "s", "space": "mine", "base": BASE, "trials": 24, "startup_trials": 4, "stopping": rule}
    return Experiment(**(settings | changes))


def score(value: float) -> dict[str, float]:
    return {METRIC: value}


# ---- which rule ------------------------------------------------------------------------------------------------------


def test_a_sweep_that_says_nothing_of_a_kind_halves_as_before() -> None:
    old = StoppingConfig.model_validate({"enabled": True, "reduction_factor": 3.0, "grace": None})
    assert isinstance(stopping.of(experiment(old)), SuccessiveHalving)
    assert stopping.of(experiment(StoppingConfig.model_validate({"enabled": False}))) is None


def test_each_kind_has_its_rule() -> None:
    assert isinstance(stopping.of(experiment(StoppingConfig(kind="hyperband"))), Hyperband)
    assert isinstance(stopping.of(experiment(StoppingConfig(kind="median"))), MedianRule)


# ---- Hyperband -------------------------------------------------------------------------------------------------------


def test_trials_are_dealt_to_brackets_by_number_in_the_shares_of_hyperband() -> None:
    rule = Hyperband(3, SuccessiveHalving(metric=METRIC, reduction_factor=3.0, grace=1.0))
    dealt = [rule.bracket_of(number) for number in range(1100)]
    assert [dealt.count(bracket) for bracket in range(3)] == [600, 300, 200], "as 9/3 to 3/2 to 1"
    other = Hyperband(3, SuccessiveHalving(metric=METRIC, reduction_factor=3.0, grace=1.0))
    assert [other.bracket_of(number) for number in reversed(range(1100))][::-1] == dealt, (
        "in whichever order it is asked"
    )
    assert set(dealt[:4]) == {0, 1, 2}, "few trials see all brackets"


def test_each_bracket_halves_among_its_own_trials_and_a_later_one_begins_later() -> None:
    rule = Hyperband(2, SuccessiveHalving(metric=METRIC, reduction_factor=2.0, grace=1.0))
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for number in range(12):
        numbers[rule.bracket_of(number)].append(number)
    first, second = numbers[0][:2], numbers[1][:2]
    assert rule.observe(first[0], 1, score(0.9), last_epoch=8) is None
    stop = rule.observe(first[1], 1, score(0.5), last_epoch=8)
    assert stop is not None
    assert stop.rung == 0
    assert stop.reason == "probe/linear 0.5 at 1 epoch is not among the best 1 of 2 in bracket 0"
    for number, value in zip(second, (0.4, 0.3), strict=True):
        assert rule.observe(number, 1, score(value), last_epoch=8) is None, "its bracket has no rung here"
    assert rule.observe(second[0], 2, score(0.4), last_epoch=8) is None
    late = rule.observe(second[1], 2, score(0.3), last_epoch=8)
    assert late is not None
    assert late.rung == 1, "rung 1 lies at 2 epochs in both brackets"


def test_hyperband_has_no_more_brackets_than_differ() -> None:
    assert experiment(StoppingConfig(kind="hyperband", grace=1.0)).brackets == 3
    assert experiment(StoppingConfig(kind="hyperband", grace=4.0)).brackets == 2, "one rung, and a bracket without"
    assert experiment(StoppingConfig(kind="hyperband"), budget="views").brackets == 3
    with pytest.raises(
        ValueError, match=r"stopping\.brackets must be at most 2, as the first rung of the next one lies"
    ):
        experiment(StoppingConfig(kind="hyperband", grace=4.0, brackets=3))


# ---- the median rule -------------------------------------------------------------------------------------------------


def test_the_median_rule_agrees_with_a_computation_from_all_curves() -> None:
    rng = random.Random(0)
    for maximize in (True, False):
        rule = MedianRule(metric=METRIC, maximize=maximize, grace=2.0, min_trials=3)
        complete: list[list[float]] = []
        stopped = 0
        for number in range(60):
            curve = [rng.gauss(number % 5, 1.0) for _ in range(6)]
            for epoch in range(1, 7):
                so_far = curve[:epoch]
                stop = rule.observe(number, epoch, score(so_far[-1]), last_epoch=6)
                averages = [statistics.mean(other[:epoch]) for other in complete]
                best = max(so_far) if maximize else min(so_far)
                wanted = epoch >= 2 and len(averages) >= 3
                if wanted:
                    median = statistics.median(averages)
                    wanted = best < median if maximize else best > median
                assert (stop is not None) == wanted
                if wanted:
                    stopped += 1
                    break
            else:
                rule.completed(number)
                complete.append(curve)
        assert 5 < stopped < 55


def test_the_median_rule_says_what_it_compared() -> None:
    rule = MedianRule(metric=METRIC, grace=1.0, min_trials=2)
    for number, value in enumerate((0.5, 0.7)):
        rule.observe(number, 1, score(value), last_epoch=3)
        rule.completed(number)
    stop = rule.observe(2, 1, score(0.3), last_epoch=3)
    assert stop is not None
    assert stop.reason == ("probe/linear 0.3 at best by 1 epochs is worse than 0.6, the median of 2 complete trials")
    assert rule.observe(3, 1, score(0.6), last_epoch=3) is None, "as good is not worse"
    assert rule.observe(4, 3, score(0.1), last_epoch=2) is None, "nothing is judged in the decay"


def test_the_median_rule_compares_by_what_was_used_where_epochs_do_not_cost_the_same() -> None:
    rule = MedianRule(metric=METRIC, budget="views", grace=100.0, min_trials=1)

    def report(number: int, epoch: int, value: float, views: float) -> bool:
        return rule.observe(number, epoch, {METRIC: value, "budget/views": views}, last_epoch=9) is None

    assert all(report(0, epoch, 0.1 * epoch, 100.0 * epoch) for epoch in range(1, 7))
    rule.completed(0)
    # One epoch of trial 1 costs as much as three of trial 0, which had 0.1, 0.2 and 0.3 by then.
    assert not report(1, 1, 0.19, 300.0)
    assert report(2, 1, 0.21, 300.0)
    rule.completed(2)
    assert rule.averages[3] == [pytest.approx(0.2), pytest.approx(0.21)]
    assert report(3, 1, math.nan, 50.0), "below the grace nothing is judged"


# ---- the audit -------------------------------------------------------------------------------------------------------


def test_who_is_audited_depends_on_seed_and_number_alone_and_the_share_is_kept() -> None:
    made = experiment(StoppingConfig(audit=0.2))
    drawn = [stopping.is_audited(made, number) for number in range(5000)]
    assert 900 < sum(drawn) < 1100
    assert drawn == [stopping.is_audited(made, number) for number in range(5000)]
    assert drawn != [stopping.is_audited(made.model_copy(update={"seed": 1}), number) for number in range(5000)]
    more = made.model_copy(update={"stopping": StoppingConfig(audit=0.4)})
    assert all(stopping.is_audited(more, number) for number in range(5000) if drawn[number])
    assert not any(stopping.is_audited(experiment(StoppingConfig()), number) for number in range(100))
    everyone = experiment(StoppingConfig(audit=1.0))
    assert all(stopping.is_audited(everyone, number) for number in range(100))


def test_a_condemned_trial_that_is_audited_runs_to_its_end_and_is_told_with_its_value(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(StoppingConfig(audit=0.5), sampler="random", trials=40), space)
    Executor(conductor, slots=3, seed=0).run()
    conductor._journal.close()
    trials = conductor.history.trials
    audited = [trial for trial in trials if trial.condemned is not None]
    assert len(audited) >= 4
    for trial in audited:
        assert trial.condemned is not None
        if trial.state == "COMPLETE":
            assert (trial.last_epoch, trial.value) == (9, trial.epochs[9][METRIC])
            assert trial.reason == (
                f"audited, would have been stopped at epoch {trial.condemned.epoch}: {trial.condemned.reason}"
            )
    stopped = [trial for trial in trials if trial.state == "PRUNED"]
    assert stopped
    assert not any(stopping.is_audited(conductor.experiment, trial.number) for trial in stopped)
    told = optuna_study(conductor.experiment, trials).trials
    assert [one.value for one in told] == [trial.value for trial in trials]
    shown = results.read(tmp_path).to_json()["trials"]
    assert [one["id"] for one in shown if "condemned" in one] == [trial.number for trial in audited]


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median"])
def test_what_is_audited_changes_nothing_for_the_others(tmp_path: Path, kind: str) -> None:
    ends: list[dict[int, Record]] = []
    for share in (0.0, 0.5):
        rule = StoppingConfig.model_validate({"kind": kind, "audit": share, "min_trials": 2})
        folder = tmp_path / str(share)
        conductor = begin(folder, experiment(rule, sampler="random", trials=30), space)
        Executor(conductor, slots=1, seed=0).run()  # one after another: the order of reports is the same
        ends.append({record.number: record for record in read(folder) if isinstance(record, Ended)})
    audited = {record.number for record in read(tmp_path / "0.5") if isinstance(record, Condemned)}
    assert len(audited) >= 3
    for number, end in ends[0].items():
        if number not in audited:
            assert ends[1][number] == end, f"trial {number}"


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median"])
def test_killed_after_any_record_the_next_driver_condemns_and_stops_the_same(tmp_path: Path, kind: str) -> None:
    rule = StoppingConfig.model_validate({"kind": kind, "audit": 0.4, "min_trials": 2})
    made = experiment(rule, sampler="random")
    Executor(begin(tmp_path / "whole", made, space), slots=3, seed=1).run()
    whole = decisions(tmp_path / "whole")
    records = read(tmp_path / "whole")
    condemned = [position for position, record in enumerate(records) if isinstance(record, Condemned)]
    stopped = [position for position, record in enumerate(records) if getattr(record, "state", "") == "PRUNED"]
    assert condemned
    assert stopped
    # Right before such a record, right after it, and later.
    for cut in sorted({condemned[0], condemned[0] + 1, condemned[-1], stopped[-1], (3 * len(records)) // 4}):
        folder = toys.cut_after(tmp_path / "whole", cut)
        follow(again(folder, space), records[cut:])
        assert decisions(folder) == whole, f"killed after record {cut} ({records[cut - 1].kind})"


def test_a_trial_that_is_condemned_is_written_so_before_anything_else(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(StoppingConfig(audit=1.0)), space)
    Executor(conductor, slots=1, seed=0).run()
    records = read(tmp_path)
    for position, record in enumerate(records):
        if isinstance(record, Condemned):
            before = records[position - 1]
            assert isinstance(before, Epoch)
            assert (before.number, before.epoch) == (record.number, record.epoch)
