"""How much too good is the score by which the winner was chosen? The best of N trials is chosen on the images of
`select`, so part of its score there is luck with them: the optimism gap.

Two answers, which do not use each other's numbers:

* `observed`: the score on `select` against that on `report`, whose images had no part in any choice. The 95 % interval
  is of how far the searched score lies above the encoder's accuracy on endless images. What was searched is known; it
  is `report` that is a sample. So it holds however many trials there were, and however alike they are. (The interval
  that takes both scores for fresh samples does not: it is centered right and says nothing of the choice.)
* `expected`: what choosing the best of N on so many images is expected to add by itself, before `report` is read, by a
  parametric bootstrap.

What the bootstrap assumes: a trial's score s is its accuracy μ plus noise of variance σ² = s (1 - s) / n over the n
images of `select`. All trials are scored on the same images, so the noise is shared to a part ρ, the mean correlation
of which images two trials tell right, measured on the best few (0 where that could not be measured, which makes the
optimism larger than it is). The shared part moves all scores alike and chooses nobody; the other, of variance v = (1 -
ρ) σ², does. The accuracies of trials are spread as a normal law; how widely is drawn from what the scores allow, the
share v / (v + τ²) of their variance that is noise being uncertain with few trials. Each draw has its own accuracy of
the winner given its score.

Trials that were stopped early are not among the N, though they were sorted out on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Floats = NDArray[np.float64]
DRAWS = 4000
"""Of the bootstrap. The ends of its interval are then off by about 4 % of its width."""
SEED = 0
NORMAL_95 = 1.959964
MOST_SHARED = 0.99
"""Trials that tell exactly the same images right leave nothing to choose by."""


class Optimism(BaseModel):
    """The optimism gap of one read of the report split, in units of the metric."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    metric: str
    trials: int
    """That the winner was chosen among."""
    select_images: int
    report_images: int
    searched: float
    """The winner's score in the search."""
    reported: float
    gap: float
    """`searched` - `reported`."""
    gap_low: float
    gap_high: float
    """95 %: how far the searched score lies above the accuracy on endless images."""
    expected: float
    """What choosing the best of `trials` adds by itself, in the mean."""
    expected_low: float
    expected_high: float
    """95 %: where the gap to endless images was to be expected before `report` was read."""
    shared_noise: float | None = None
    """ρ: how much of the trials' noise is the same, as their images are; None where it was taken for 0."""
    judged: int = 0
    """Trials that it was measured on."""
    gain: float | None = None
    """What is claimed: the searched score over the best of `gain_over`, each on `report`."""
    gain_over: str = ""
    warning: str = ""
    """Where what choosing adds is as large as the gain; else empty."""


class Expected(BaseModel):
    """What choosing the best adds: mean and 95 % interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float


def expected(scores: Sequence[float], winner: int, images: int, shared: float = 0.0) -> Expected:
    """The optimism of trial `winner` among `scores` [N], accuracies on the same `images`, whose noise is `shared` (ρ).

    See the module. A trial that was alone was not chosen: the mean is 0.
    """
    rng = np.random.default_rng(SEED)
    s = np.asarray(scores, dtype=np.float64)
    rho = min(max(shared, 0.0), MOST_SHARED)
    variance = _noise(s, images)
    common = math.sqrt(rho * variance[winner]) * rng.standard_normal(DRAWS)
    own = _own_part(s, winner, float((1.0 - rho) * variance.mean()), rng)
    drawn = own + common
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Expected(mean=float(own.mean()), low=float(low), high=float(high))


def _own_part(s: Floats, winner: int, v: float, rng: np.random.Generator) -> Floats:
    """Draws [DRAWS] of the winner's noise that is not shared, of variance `v`, given the scores `s` [N]."""
    from scipy.stats import chi2

    count = len(s)
    if count == 1:
        return math.sqrt(v) * rng.standard_normal(DRAWS)
    spread = float(np.square(s - s.mean()).sum())
    # spread / (v + τ²) is χ² with N - 1 degrees of freedom; τ² is not negative, so that χ² is at most spread / v.
    drawn = chi2.ppf(rng.random(DRAWS) * chi2.cdf(spread / v, count - 1), count - 1)
    noise = np.clip(v * drawn / spread, 0.0, 1.0) if spread > 0.0 else np.ones(DRAWS)
    excess = float(s[winner] - s.mean())
    error = np.sqrt(v * (1.0 - noise) + noise * v / count)
    return noise * excess + error * rng.standard_normal(DRAWS)


def _noise(scores: Floats, images: int) -> Floats:
    """σ² of each score; one that is 0 or 1 is taken for one that is half an image away."""
    inside = np.clip(scores, 0.5 / images, 1.0 - 0.5 / images)
    return inside * (1.0 - inside) / images


def shared_noise(correct: Sequence[NDArray[np.bool_]]) -> float | None:
    """ρ: the mean correlation between trials of which images [n] they tell right. None for fewer than two trials that
    tell some images right and some wrong.
    """
    rows = np.array([row for row in correct if 0 < row.sum() < len(row)], dtype=np.float64)
    if len(rows) < 2:
        return None
    between = np.corrcoef(rows)[np.triu_indices(len(rows), k=1)]
    return float(between.mean())


def observed(searched: float, reported: float, images: int) -> tuple[float, float]:
    """The 95 % interval of `searched` minus the accuracy on endless images, `reported` being of `images` that had no
    part in the choice: Wilson's, which holds near accuracies of 0 and 1 too.
    """
    z = NORMAL_95
    shrunk = 1.0 + z * z / images
    center = (reported + z * z / (2 * images)) / shrunk
    half = z / shrunk * math.sqrt(reported * (1.0 - reported) / images + z * z / (4 * images * images))
    return searched - (center + half), searched - (center - half)


def gap(
    metric: str,
    scores: Sequence[float],
    winner: int,
    *,
    reported: float,
    select_images: int,
    report_images: int,
    correct: Sequence[NDArray[np.bool_]] = (),
    baselines: dict[str, float] | None = None,
) -> Optimism:
    """The optimism gap of trial `winner` among `scores`; `correct` as of `shared_noise`, `baselines` by name what the
    claimed gain is over, on `report`.
    """
    searched = scores[winner]
    shared = shared_noise(correct)
    choosing = expected(scores, winner, select_images, shared or 0.0)
    low, high = observed(searched, reported, report_images)
    told: dict[str, Any] = {}
    if baselines:
        over = max(baselines, key=lambda name: baselines[name])
        told = {"gain": searched - baselines[over], "gain_over": over}
        told["warning"] = _warning(len(scores), select_images, told["gain"], over, choosing.mean, searched - reported)
    return Optimism(
        metric=metric,
        trials=len(scores),
        select_images=select_images,
        report_images=report_images,
        searched=searched,
        reported=reported,
        gap=searched - reported,
        gap_low=low,
        gap_high=high,
        expected=choosing.mean,
        expected_low=choosing.low,
        expected_high=choosing.high,
        shared_noise=shared,
        judged=len(correct) if shared is not None else 0,
        **told,
    )


def _warning(trials: int, images: int, gain: float, over: str, choosing: float, seen: float) -> str:
    """Where the claimed gain is no more than the luck in it."""
    if gain <= 0.0 or max(choosing, seen) < gain:
        return ""
    what = (
        f"choosing the best of {trials} trials on {images:,} images is expected to add {choosing:.3f} by itself"
        if choosing >= gain
        else f"the searched score is {seen:.3f} above the one on report"
    )
    return (
        f"{what}, no less than the {gain:.3f} that it claims over {over}: the search's score is no evidence of a gain; "
        "tell the one on report, and search with more images in select (pretune data … --select) or fewer trials"
    )
