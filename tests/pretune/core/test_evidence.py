"""Paired tests, looks and Holm: what a verdict rests on, held to scipy and statsmodels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pretune.core import evidence
from pretune.core.design import Design, DesignLevel
from pretune.core.outcomes import Outcomes


def outcomes(values: Mapping[int, Sequence[float | None]], **options: Any) -> Outcomes:
    """By level, the values of seeds 0, 1, …; the base is level 0."""
    most = max(map(len, values.values()))
    design = Design(
        levels=tuple(DesignLevel(changes={"level": at} if at else {}) for at in values), **({"seeds": most} | options)
    )
    return Outcomes(design, 0, {(at, seed): value for at, own in values.items() for seed, value in enumerate(own)})


def findings(found: Outcomes, *, metric: str = "probe/linear", maximize: bool = True) -> list[str]:
    judged = evidence.standings(found, metric=metric, maximize=maximize)
    return [standing.finding for standing in judged.values()]


def test_p_value_and_interval_are_those_of_a_paired_t_test() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    for count in (2, 3, 7, 40):
        base, level = rng.normal(size=count), rng.normal(0.3, 1.0, size=count)
        found = evidence.paired(list(level - base))
        assert found is not None
        assert found.interval is not None
        wanted = stats.ttest_rel(level, base)
        assert found.p == pytest.approx(wanted.pvalue)
        assert found.interval == pytest.approx(tuple(wanted.confidence_interval(0.95)))


def test_holm_is_that_of_statsmodels_and_counts_what_has_no_p_value_yet() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(1)
    for count in (1, 2, 5, 12):
        p_values = list(rng.uniform(size=count) ** 3)
        adjusted = evidence.holm(p_values)
        assert adjusted == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert evidence.holm([0.01, None, 0.04]) == pytest.approx([0.03, None, 0.08])
    assert evidence.holm([]) == []


def test_looks_grow_and_spend_the_whole_error_most_of_it_late() -> None:
    levels = (DesignLevel(),)
    assert Design(levels=levels, seeds=4).looks == (4,)
    looks = Design(levels=levels, seeds=3, max_seeds=20).looks
    assert looks == (3, 5, 8, 12, 18, 20)
    assert sum(evidence.shares(looks)) == pytest.approx(1.0)
    assert Design(levels=levels, seeds=1, max_seeds=2).looks == (2,)
    # A p value of 0.02 is enough at the end of 3 or 6 seeds, but not at the first look.
    assert evidence.sequential([0.02], (3, 6)) == pytest.approx(0.08)
    assert evidence.sequential([0.9, 0.02], (3, 6)) == pytest.approx(0.02 / 0.75)
    assert evidence.sequential([], (3, 6)) is None


def test_a_clear_difference_helps_or_hurts_by_the_direction() -> None:
    found = outcomes({0: [0.80, 0.82, 0.81, 0.83], 1: [0.90, 0.91, 0.92, 0.93], 2: [0.70, 0.71, 0.72, 0.73]})
    assert findings(found) == ["helps", "hurts"]
    assert findings(found, maximize=False) == ["hurts", "helps"]


def test_no_evidence_is_said_only_where_a_difference_worth_having_would_have_been_seen() -> None:
    base = [0.80, 0.82, 0.81, 0.83, 0.80]
    near = [value + change for value, change in zip(base, [0.001, -0.001, 0.002, -0.002, 0.001], strict=True)]
    loose = [value + change for value, change in zip(base, [0.02, -0.03, 0.01, -0.02, 0.03], strict=True)]
    assert findings(outcomes({0: base, 1: near, 2: loose})) == ["no evidence", "not enough seeds"]
    # What is worth having is told, or follows from the metric.
    assert findings(outcomes({0: base, 1: near}, smallest_effect=0.001)) == ["not enough seeds"]
    assert findings(outcomes({0: base, 1: loose}, smallest_effect=0.1)) == ["no evidence"]
    assert evidence.smallest_effect(outcomes({0: [10.0, 12.0]}), "loss/total") == pytest.approx(0.22)
    assert evidence.smallest_effect(outcomes({0: [10.0, None]}), "loss/total") == pytest.approx(0.2)
    assert evidence.smallest_effect(outcomes({0: [None]}), "loss/total") is None


@pytest.mark.parametrize(
    ("level", "finding"),
    [
        ([0.9], "not enough seeds"),
        ([0.9, 0.9], "not enough seeds"),
        ([0.9] * 5, "not enough seeds"),
        ([0.9] * 6, "helps"),
        ([0.8] * 5, "not enough seeds"),
        ([0.8] * 6, "no evidence"),
        ([None] * 6, "not enough seeds"),
    ],
)
def test_equal_differences_and_single_seeds_give_no_false_certainty(level: list[float | None], finding: str) -> None:
    assert findings(outcomes({0: [0.8] * len(level), 1: level})) == [finding]


def test_nothing_is_said_between_looks() -> None:
    whole = outcomes({0: [0.80, 0.82, 0.81], 1: [0.90, 0.92, 0.911]})
    assert findings(whole) == ["helps"]
    for running in ((0, 2), (1, 0)):
        ended = {place: value for place, value in whole.ended.items() if place != running}
        assert findings(Outcomes(whole.design, 0, ended)) == ["not enough seeds"]


def test_a_level_that_cannot_be_built_is_no_comparison() -> None:
    design = Design(
        levels=(DesignLevel(), DesignLevel(changes={"a": 1}, refused="no"), DesignLevel(changes={"a": 2})), seeds=2
    )
    found = evidence.standings(Outcomes(design, 0, {}), metric="probe/linear", maximize=True)
    assert list(found) == [2]


def test_only_undecided_comparisons_get_more_seeds_and_the_base_as_many_as_any() -> None:
    options: dict[str, Any] = {"metric": "probe/linear", "maximize": True}
    base: list[float | None] = [0.80, 0.82, 0.81]
    found = outcomes({0: base, 1: [0.95, 0.9701, 0.9602], 2: [0.85, 0.80, 0.82], 3: [None] * 3}, seeds=3, max_seeds=12)
    assert evidence.seeds_wanted(found, **options) == {0: 5, 1: 3, 2: 5, 3: 3}
    assert evidence.seeds_wanted(outcomes({0: [None] * 3, 1: base}, seeds=3, max_seeds=12), **options) == {0: 3, 1: 3}
    assert evidence.seeds_wanted(outcomes({0: [0.8], 1: []}, seeds=2, max_seeds=12), **options) == {0: 2, 1: 2}
