"""How much too good the searched score is: the intervals hold where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks import simulate_optimism
from pretune.analysis import optimism


@pytest.mark.parametrize(
    ("spread", "trials", "images"), [("zero", 5, 200), ("zero", 50, 200), ("large", 50, 5_000), ("falling", 50, 200)]
)
def test_both_intervals_cover_the_truth_of_simulated_searches(spread: str, trials: int, images: int) -> None:
    found = {
        name.rpartition(": ")[2]: float(seen.rstrip("%"))
        for name, _, seen, _ in simulate_optimism.setting(spread, trials, images, 60, np.random.default_rng(0))
    }
    assert found["gap, from report"] >= 88.0
    assert found["gap, expected"] >= 85.0
    if (spread, trials) == ("zero", 50):
        assert found["select as if fresh"] < 80.0, "what does not account for the choice does not cover"


@pytest.mark.parametrize(("right", "images"), [(0, 20), (3, 40), (180, 200), (500, 500)])
def test_the_gap_is_told_against_wilsons_interval_of_the_score_on_report(right: int, images: int) -> None:
    told = binomtest(right, images).proportion_ci(0.95, method="wilson")
    low, high = optimism.observed(0.9, right / images, images)
    assert (low, high) == pytest.approx((0.9 - told.high, 0.9 - told.low), abs=1e-6)


@pytest.mark.parametrize(("spread", "images"), [("falling", 5_000), ("outliers", 5_000), ("large", 200)])
def test_what_choosing_adds_is_covered_where_the_best_of_many_trials_are_no_normal_law_and_near_1(
    spread: str, images: int
) -> None:
    rng = np.random.default_rng(3)
    found = [simulate_optimism.search(spread, 500, images, rng) for _ in range(60)]
    covered = sum(one.expected_low <= truth <= one.expected_high for truth, one in found)
    assert covered >= 54, "95 % of 60 are 57; the normal law of the upper quarter covered 45 of outliers"


def test_more_trials_more_noise_of_their_own_and_fewer_images_are_more_optimism() -> None:
    def gap(trials: int, images: int, shared: float = 0.0) -> float:
        error = math.sqrt(0.16 / 200)
        scores = 0.8 + error * np.linspace(-1, 1, trials)
        return optimism.expected(scores.tolist(), trials - 1, images, shared).mean

    assert optimism.expected([0.8], 0, 200).mean == 0.0, "what was alone was not chosen"
    assert gap(5, 200) < gap(100, 200) * 1.5
    assert gap(50, 200, 0.9) < gap(50, 200, 0.5) < gap(50, 200)
    assert gap(50, 20_000) < gap(50, 200) / 4


def test_a_winner_far_above_the_others_is_hardly_optimistic_however_bad_they_are() -> None:
    ahead = optimism.expected([0.3, 0.31, 0.5, 0.55, 0.6, 0.7, 0.75, 0.9], 7, 5_000)
    crowd = optimism.expected([0.899, 0.9, 0.9, 0.901, 0.898, 0.9, 0.902, 0.904], 7, 5_000)
    assert abs(ahead.mean) < 0.001 < crowd.mean
    bad = optimism.expected([0.1] * 24 + [0.899, 0.9, 0.9, 0.901, 0.898, 0.9, 0.902, 0.904], 31, 5_000)
    assert bad.mean > 0.5 * crowd.mean, "weak trials say nothing about luck at the top"


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [0.0, 0.0], [0.5] * 9, [1.0], [0.0, 1.0], [0.7, 0.7001]])
def test_scores_at_the_ends_and_equal_ones_give_numbers(scores: list[float]) -> None:
    found = optimism.expected(scores, len(scores) - 1, 50, 0.3)
    assert all(math.isfinite(value) for value in (found.mean, found.low, found.high))
    assert found.low <= found.high


def test_shared_noise_is_the_correlation_of_what_is_told_right() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(4_000) < 0.7
    assert optimism.shared_noise([first, first]) == pytest.approx(1.0)
    assert optimism.shared_noise([first, rng.random(4_000) < 0.7]) == pytest.approx(0.0, abs=0.05)
    assert optimism.shared_noise([first]) is None
    assert optimism.shared_noise([first, np.ones(4_000, dtype=np.bool_)]) is None, "it tells all right"


def test_a_gain_that_is_no_more_than_luck_is_warned_of() -> None:
    scores = [0.80, 0.80, 0.81, 0.79, 0.80, 0.82, 0.78, 0.83]
    told = {"reported": 0.80, "select_images": 200, "report_images": 200}
    baselines = {"raw pixels": 0.81, "the same encoder untrained": 0.5}
    small = optimism.gap("probe/linear", scores, 7, baselines=baselines, **told)  # type: ignore[arg-type]
    assert small.gain_over == "raw pixels"
    assert small.gain == pytest.approx(0.02)
    assert "no less than the 0.020 that it claims over raw pixels" in small.warning
    large = optimism.gap("probe/linear", scores, 7, baselines={"raw pixels": 0.3}, **told)  # type: ignore[arg-type]
    assert large.warning == ""
    below = optimism.gap("probe/linear", scores, 7, baselines={"raw pixels": 0.9}, **told)  # type: ignore[arg-type]
    assert below.warning == "", "no gain is claimed"
    assert optimism.gap("probe/linear", scores, 7, **told).gain is None  # type: ignore[arg-type]
