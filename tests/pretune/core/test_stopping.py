"""Stopping decisions are functions of numbers: feed numbers, assert decisions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from pretune.core import stopping
from pretune.core.experiment import Experiment, StoppingConfig
from pretune.core.stopping import SuccessiveHalving, rung_of, survives
from trainers.config import ScheduleConfig, TrialConfig
from trainers.terms import Alignment


def halving(**changes: object) -> SuccessiveHalving:
    return SuccessiveHalving(**({"metric": "probe/linear", "grace": 1.0} | changes))  # type: ignore[arg-type]


def feed(rule: SuccessiveHalving, number: int, epoch: int, value: float, *, last_epoch: int = 80) -> bool:
    """Whether the trial goes on."""
    return rule.observe(number, epoch, {"probe/linear": value}, last_epoch=last_epoch) is None


def test_the_first_trials_go_on_whatever_they_score() -> None:
    rule = halving(reduction_factor=3.0)
    assert feed(rule, 0, 1, 0.1)
    assert feed(rule, 1, 1, 0.05)


def test_only_the_best_third_of_a_rung_goes_on() -> None:
    rule = halving(reduction_factor=3.0)
    decisions = [feed(rule, number, 1, value) for number, value in enumerate([0.5, 0.4, 0.3, 0.6, 0.55, 0.58, 0.59])]
    #            two for free; 3rd of 3; best of 4; 2nd of 5; 2nd of 6 (two pass); 2nd of 7
    assert decisions == [True, True, False, True, False, True, True]


def test_a_stop_says_where_and_why() -> None:
    rule = halving(reduction_factor=2.0, grace=2.0)
    feed(rule, 0, 4, 0.9)
    stop = rule.observe(1, 4, {"probe/linear": 0.123456}, last_epoch=8)
    assert stop is not None
    assert stop.rung == 1
    assert stop.reason == "probe/linear 0.1235 at 4 epochs is not among the best 1 of 2"


def test_decisions_agree_with_an_independent_sort() -> None:
    rng = np.random.default_rng(0)
    for factor in (1.5, 2.0, 3.0, 4.0):
        rule, seen = halving(reduction_factor=factor), []
        for number, value in enumerate(rng.integers(0, 12, size=60) / 10):
            seen.append(value)
            kept = sorted(seen, reverse=True)[: max(1, int(len(seen) / factor))]
            assert feed(rule, number, 1, value) == (len(seen) < factor or value >= min(kept))


def test_rungs_lie_at_grace_times_powers_and_between_them_nothing_is_decided() -> None:
    assert [rung_of(used, 2.0, 3.0) for used in (1, 2, 3, 5.99, 6, 17, 18, 54)] == [None, 0, 0, 0, 1, 1, 2, 3]
    rule = halving(reduction_factor=3.0)
    for number in range(3):
        feed(rule, number, 1, 0.9 - number / 100, last_epoch=9)
    assert feed(rule, 0, 2, 0.0)
    assert sorted(rule.rungs) == [0]
    assert feed(rule, 0, 3, 0.0)
    assert sorted(rule.rungs) == [0, 1]


def test_nothing_is_decided_in_the_decay() -> None:
    rule = halving(reduction_factor=2.0)
    for number in range(10):
        assert feed(rule, number, 9, 0.9 - number / 10, last_epoch=8)
    assert not rule.rungs


def test_each_trial_counts_once_on_a_rung() -> None:
    rule = halving(reduction_factor=3.0, grace=1.0)
    for epoch in (3, 4, 5):
        feed(rule, 0, epoch, epoch / 10)
    assert rule.rungs == {1: {0: 0.3}}


def test_a_report_that_jumps_over_rungs_counts_on_the_highest_only() -> None:
    rule = halving(reduction_factor=3.0)
    feed(rule, 0, 9, 0.5)
    feed(rule, 0, 10, 0.5)
    assert rule.rungs == {2: {0: 0.5}}


def test_a_report_without_the_metric_is_passed_over_and_the_next_one_counts() -> None:
    rule = halving(reduction_factor=2.0)
    assert rule.observe(0, 1, {"loss/total": 1.0}, last_epoch=8) is None
    assert rule.observe(0, 2, {"probe/linear": 0.4}, last_epoch=8) is None
    assert rule.rungs == {1: {0: 0.4}}


def test_not_a_number_is_worse_than_anything_and_does_not_spoil_the_others() -> None:
    rule = halving(reduction_factor=2.0)
    assert feed(rule, 0, 1, 0.1)
    assert not feed(rule, 1, 1, math.nan)
    assert feed(rule, 2, 1, 0.2)


def test_a_metric_to_minimize_is_judged_the_other_way_round() -> None:
    rule = halving(reduction_factor=2.0, maximize=False)
    assert feed(rule, 0, 1, 0.5)
    assert not feed(rule, 1, 1, 0.6)
    assert feed(rule, 2, 1, 0.4)


def test_ties_with_the_last_survivor_go_on() -> None:
    assert survives(0.5, [0.5, 0.5, 0.5, 0.5], 2.0)
    assert not survives(0.4, [0.5, 0.5, 0.5, 0.4], 2.0)


@pytest.mark.parametrize(("budget", "metric"), [("views", "budget/views"), ("seconds", "budget/seconds")])
def test_a_budget_of_views_or_seconds_is_read_from_the_reports(budget: str, metric: str) -> None:
    rule = halving(budget=budget, grace=100.0, reduction_factor=3.0)
    for number, value in enumerate([0.9, 0.8]):
        assert rule.observe(number, 1, {"probe/linear": value, metric: 99.0}, last_epoch=8) is None
        assert rule.observe(number, 2, {"probe/linear": value, metric: 150.0}, last_epoch=8) is None
    stop = rule.observe(2, 1, {"probe/linear": 0.1, metric: 120.0}, last_epoch=8)
    assert stop is not None
    assert stop.reason == f"probe/linear 0.1 at 100 {budget} is not among the best 1 of 3"
    with pytest.raises(
        ValueError, match=f"needs the metric {metric!r} in each report.*run a new sweep with --budget epochs"
    ):
        rule.observe(3, 1, {"probe/linear": 0.1}, last_epoch=8)


def test_without_a_grace_the_first_rung_is_what_a_fifth_of_the_epochs_used() -> None:
    rule = SuccessiveHalving(metric="probe/linear", budget="views", grace_epochs=2)
    assert rule.observe(0, 1, {"probe/linear": 0.1, "budget/views": 500.0}, last_epoch=8) is None
    assert rule.grace is None
    assert rule.observe(0, 2, {"probe/linear": 0.2, "budget/views": 1000.0}, last_epoch=8) is None
    assert rule.grace == 1000.0
    assert rule.rungs == {0: {0: 0.2}}


def test_the_last_rung_lies_before_the_decay_of_the_schedule() -> None:
    constant = ScheduleConfig(kind="constant", warmup_share=0.0, decay_share=0.2)
    assert [constant.last_epoch_before_decay(epochs) for epochs in (1, 3, 5, 10, 100)] == [0, 2, 4, 8, 80]
    assert constant.model_copy(update={"decay_share": 0.0}).last_epoch_before_decay(10) == 9
    assert ScheduleConfig(kind="cosine").last_epoch_before_decay(10) == 9
    assert ScheduleConfig(kind="step", drops=(0.5, 0.75)).last_epoch_before_decay(10) == 5
    # Exact on paper, inexact in floating point: 1 - 0.9 is a little less than a tenth.
    assert constant.model_copy(update={"decay_share": 0.9}).last_epoch_before_decay(10) == 1


def test_the_rule_of_an_experiment_follows_its_settings() -> None:
    base = TrialConfig(objective={"alignment": Alignment()}, epochs=40)
    rule = SuccessiveHalving.of(Experiment(name="s", space="x", base=base))
    assert rule is not None
    assert (rule.grace, rule.grace_epochs, rule.reduction_factor) == (None, 8, 3.0)
    off = Experiment(name="s", space="x", base=base, stopping=StoppingConfig(enabled=False))
    assert stopping.of(off) is None


def test_a_report_is_judged_by_a_search_among_the_scores_as_by_comparing_it_with_each() -> None:
    rng, rule, scores = random.Random(0), halving(), list[float]()
    for number in range(300):
        score = rng.choice([0.1, 0.2, rng.random(), math.nan])
        scores.append(-math.inf if math.isnan(score) else score)
        stop = rule.observe(number, 1, {"probe/linear": score}, last_epoch=9)
        assert (stop is None) == survives(scores[-1], scores, rule.reduction_factor)
