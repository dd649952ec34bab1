"""How much too good is the score by which the winner was chosen? The best of N trials is chosen on the images of
`select`, so part of its score there is luck with them: the optimism gap.

Two answers, which do not use each other's numbers:

* `observed`: the score on `select` against that on `report`, whose images had no part in any choice. The 95 % interval
  is of how far the searched score lies above the encoder's accuracy on endless images. What was searched is known; it
  is `report` that is a sample. So it holds however many trials there were, and however alike they are. (The interval
  that takes both scores for fresh samples does not: it is centered right and says nothing of the choice.)
* `expected`: what choosing the best of N on so many images is expected to add by itself, before `report` is read, by a
  parametric bootstrap. Its interval is at least a 95 % one: it holds for several notions of how unlike trials are.

What the bootstrap assumes: a trial's score, as the angle s = arcsin sqrt(score), is that of its accuracy, μ, plus noise
of variance σ² = 1 / (4 n) over the n images of `select` (of angles it does not depend on the accuracy). All trials are
scored on the same images, so the noise is shared to a part ρ, the mean correlation of which images two trials tell
right, measured on the best few (0 where that could not be measured, which makes the optimism larger than it is). The
shared part moves all scores alike and chooses nobody; the other, of variance v = (1 - ρ) σ², does.

How much of the scores' spread is noise is not known either. The best √N scores (eight at least) are taken for the upper
end of a normal law of mean m and variance v + τ², the rest only for being below it: weak trials, of which a search has
many, say nothing about luck at the top, and the deeper one looks, the less is any upper end that of a normal law. (m,
τ) are drawn from their posterior on a grid; then the winner's noise given its score is of mean (s - m) v / (v + τ²) and
variance v τ² / (v + τ²). What accuracy a score lies so many errors above is told by angles and by Wilson's formula.

Whether trials that look alike are equally good or nearly so the scores do not tell, and the prior decides: the mean is
that under a probability of 0.3 of τ = 0, and each end of the interval is the farthest out under all of `PRIORS` (robust
Bayes; Berger 1985, 4.7) and both formulas. `benchmarks/simulate_optimism.py` says how often the intervals cover the
truth.

Trials that were stopped early are not among the N, though they were sorted out on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pretune.core.records import Stored

Floats = NDArray[np.float64]
DRAWS = 4000
"""Of the bootstrap. The ends of its interval are then off by about 4 % of its width."""
SEED = 0
NORMAL_95 = 1.959964
_TAILS = (0.025, 0.975)
FEWEST_OF_TOP = 8
"""At least so many scores are the upper end that the spread is judged by."""
MOST_SHARED = 0.99
"""Trials that tell exactly the same images right leave nothing to choose by."""


class Optimism(Stored):
    """The optimism gap of one read of the report split, in units of the metric."""

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
    """At least 95 %: where the gap to endless images was to be expected before `report` was read."""
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
    """What choosing the best adds: mean, and an interval of at least 95 %."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float


def expected(scores: Sequence[float], winner: int, images: int, shared: float = 0.0) -> Expected:
    """The optimism of trial `winner` among `scores` [N], accuracies on the same `images`, whose noise is `shared` (ρ).

    See the module. A trial that was alone was not chosen: the mean is 0.
    """
    rng = np.random.default_rng(SEED)
    rho, variance = min(max(shared, 0.0), MOST_SHARED), 1.0 / (4.0 * images)
    angles = np.arcsin(np.sqrt(np.asarray(scores, dtype=np.float64)))
    own = math.sqrt((1.0 - rho) * variance) * rng.standard_normal(DRAWS)
    common = math.sqrt(rho * variance) * rng.standard_normal(DRAWS)

    score, error = scores[winner], math.sqrt(variance)
    if len(angles) == 1:
        low, high = np.quantile(_gaps(score, (own + common) / error, images), _TAILS, axis=1)
        return Expected(mean=0.0, low=float(low.min()), high=float(high.max()))
    end = _upper_end(angles, (1.0 - rho) * variance)
    at = rng.random(DRAWS)
    found = {}
    for name, prior in PRIORS.items():
        law = np.searchsorted(np.cumsum(end.weights(prior))[:-1], at)
        noise = end.noise[law]
        chosen = noise * (angles[winner] - end.mean[law]) + np.sqrt(1.0 - noise) * own
        found[name] = _gaps(score, (chosen + common) / error, images)
    lows, highs = np.quantile(list(found.values()), _TAILS, axis=2)
    return Expected(mean=float(found[_OF_THE_MEAN][0].mean()), low=float(lows.min()), high=float(highs.max()))


def _gaps(score: float, errors: Floats, images: int) -> Floats:
    """How far `score` lies above the accuracies that it lies so many standard errors above, [2, errors]: by angles, of
    which the mean is right, and by Wilson, whose tails are right near 0 and 1 too.
    """
    angles = math.asin(math.sqrt(score)) - errors / (2.0 * math.sqrt(images))
    return score - np.array([np.square(np.sin(np.clip(angles, 0.0, math.pi / 2))), _wilson(score, errors, images)])


def _wilson(score: float, errors: Floats, images: int) -> Floats:
    """The accuracies that `score` lies so many standard errors above, an error being that of the accuracy."""
    squares = np.square(errors) / images
    half = errors * np.sqrt(score * (1.0 - score) / images + np.square(errors / (2 * images)))
    found: Floats = (score + squares / 2.0 - half) / (1.0 + squares)
    return found


class _Prior(NamedTuple):
    """Of the scores' standard deviation sd = √(v + τ²)."""

    no_spread: float
    """The probability that all trials are equally good."""
    power: float
    """The rest is of density sd ** power over the logarithm of sd: even over it for 0, over sd itself for 1."""


PRIORS = {
    "some alike": _Prior(0.3, 0.0),
    "alike": _Prior(0.5, 0.0),
    "unlike": _Prior(0.0, 0.0),
    "far": _Prior(0.0, 1.0),
}
"""Notions of how unlike trials are. The first one is that of the mean; that trials are alike makes what choosing adds
larger, that they are not makes it smaller.
"""
_OF_THE_MEAN = "some alike"


class _UpperEnd(NamedTuple):
    """The normal laws whose upper end the best scores may be: a grid of means by deviations, the latter ascending."""

    mean: Floats
    noise: Floats
    """v / (v + τ²)."""
    likelihood: Floats
    """[means, deviations]; the largest is 1."""
    deviations: Floats

    def weights(self, prior: _Prior) -> Floats:
        """Posterior probabilities, flat as `mean` and `noise` are; their sum is 1."""
        before = self.deviations**prior.power
        before *= (1.0 - prior.no_spread) / before.sum()
        before[0] += prior.no_spread
        weight: Floats = (self.likelihood * before).ravel()
        weight /= weight.sum()
        return weight


def _upper_end(scores: Floats, v: float) -> _UpperEnd:
    """What the best of `scores` are the upper end of, each being at least of variance `v`; the others are known to be
    below the last one of them (type II censoring).
    """
    from scipy.special import log_ndtr

    count = len(scores)
    k = min(count, max(FEWEST_OF_TOP, round(math.sqrt(count))))
    top = np.sort(scores)[::-1][:k]
    least, first, last = math.sqrt(v), top[0], top[-1]
    width = first - last + least
    deviations = np.geomspace(least, max(2.0 * least, 10.0 * width), 60)
    mean, sd = np.meshgrid(np.linspace(last - 4.0 * width, first + least, 161), deviations, indexing="ij")
    squares = np.square(top).sum() - 2.0 * mean * top.sum() + k * np.square(mean)
    logs = -k * np.log(sd) - squares / (2.0 * np.square(sd)) + (count - k) * log_ndtr((last - mean) / sd)
    noise = np.minimum(v / np.square(sd), 1.0)
    return _UpperEnd(mean.ravel(), noise.ravel(), np.exp(logs - logs.max()), deviations)


def shared_noise(correct: Sequence[NDArray[np.bool_]]) -> float | None:
    """ρ: the mean correlation between trials of which images [n] they tell right. None for fewer than two trials that
    tell some images right and some wrong.
    """
    rows = np.array([row for row in correct if 0 < row.sum() < len(row)], dtype=np.float64)
    if len(rows) < 2:
        return None
    between = np.atleast_2d(np.corrcoef(rows))[np.triu_indices(len(rows), k=1)]
    return float(between.mean())


def observed(searched: float, reported: float, images: int) -> tuple[float, float]:
    """The 95 % interval of `searched` minus the accuracy on endless images, `reported` being of `images` that had no
    part in the choice: Wilson's interval.
    """
    low, high = searched - _wilson(reported, np.array([-NORMAL_95, NORMAL_95]), images)
    return float(low), float(high)


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
