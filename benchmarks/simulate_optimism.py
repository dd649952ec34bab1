"""Do the optimism gap's intervals hold? Searches are simulated of which the truth is known.

    python benchmarks/simulations.py optimism

Each has N trials, scored on the same images of `select`; the best one is scored on as many images of `report`. Images
are hard or easy for all trials alike (a probit model: half of the variance behind an answer is the image's), so the
noise of the scores is shared in part. Accuracies are equal (zero spread), or spread by one or four standard errors, or
fall off from a best one, or half of the trials are bad; or they are even over eight errors, or one in twenty is far
better than the rest, or of heavy tails (Student's t of three degrees). The truth is how far the winner's searched score
lies above its accuracy.

Printed: how often the interval from `report` covers it, which is to be 93 to 97 %; how often the one that was to be
expected before `report` was read does, at least 93 %; its mean against the true mean; and, to compare, what an interval
does that takes the winner's score on `select` for a fresh one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from pretune.analysis import optimism

TRIALS = (5, 50, 500)
IMAGES = (200, 5_000)
SPREADS = ("zero", "one", "large", "falling", "half bad", "even", "few good", "outliers")
BEST = 0.7
SHARED = 0.5
"""Of the variance behind an answer, the image's."""
BINS = 50
JUDGED = 5
DIFFICULTY = norm.ppf((np.arange(BINS) + 0.5) / BINS)
THRESHOLDS = np.linspace(-4.0, 4.0, 300)

Floats = NDArray[np.float64]


def right(thresholds: Floats) -> Floats:
    """The probability [r, BINS] that a trial of these thresholds [r] tells an image of each difficulty right."""
    found: Floats = norm.cdf((thresholds[:, None] + math.sqrt(SHARED) * DIFFICULTY) / math.sqrt(1.0 - SHARED))
    return found


ACCURACIES = right(THRESHOLDS).mean(1)


def accuracies(spread: str, trials: int, images: int, rng: np.random.Generator) -> Floats:
    """On the scale of arcsin sqrt, where a standard error is the same for all."""
    best, error = math.asin(math.sqrt(BEST)), 0.5 / math.sqrt(images)
    made: NDArray[np.floating]
    if spread == "falling":
        made = best - 6.0 * error * rng.exponential(size=trials)
    elif spread == "half bad":
        made = best - 12.0 * error * (rng.random(trials) < 0.5)
    elif spread == "even":
        made = best - 8.0 * error * rng.random(trials)
    elif spread == "few good":
        made = best - 10.0 * error * (rng.random(trials) > 0.05) + 3.0 * error * rng.standard_normal(trials)
    elif spread == "outliers":
        made = best + error * rng.standard_t(3, size=trials)
    else:
        made = best + {"zero": 0.0, "one": 1.0, "large": 4.0}[spread] * error * rng.standard_normal(trials)
    found: Floats = np.square(np.sin(np.clip(made, 0.2, 1.5))).astype(np.float64)
    return found


def answers(told: NDArray[np.int64], counts: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Which images each trial tells right, given how many `told` [r, BINS] of each difficulty it does."""
    found = []
    for row in told:
        parts = [rng.permutation(count) < right for right, count in zip(row, counts, strict=True)]
        found.append(np.concatenate(parts))
    return found


def search(spread: str, trials: int, images: int, rng: np.random.Generator) -> tuple[float, optimism.Optimism]:
    """One search: by how much its winner's score is too high, and what is said of that."""
    chance = right(np.interp(accuracies(spread, trials, images, rng), ACCURACIES, THRESHOLDS))
    counts = rng.multinomial(images, np.full(BINS, 1.0 / BINS))
    told = rng.binomial(counts, chance)
    scores = told.sum(1) / images
    winner = int(scores.argmax())
    best = np.argsort(-scores)[:JUDGED]
    truth = float(chance[winner].mean())
    found = optimism.gap(
        "probe/linear",
        scores.tolist(),
        winner,
        reported=float(rng.binomial(images, truth)) / images,
        select_images=images,
        report_images=images,
        correct=answers(told[best], counts, rng),
    )
    return float(scores[winner]) - truth, found


def rows(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """What, wanted, seen, of how many: for each spread, number of trials and of images."""
    for spread in SPREADS:
        for trials in TRIALS:
            for images in IMAGES:
                rng = np.random.default_rng([seed, SPREADS.index(spread), trials, images])
                yield from setting(spread, trials, images, count, rng)


def setting(
    spread: str, trials: int, images: int, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, str, str, str]]:
    """The rows of one setting."""
    made = [search(spread, trials, images, rng) for _ in range(count)]
    name = f"spread {spread}, {trials} trials, {images} images"
    truths = np.array([truth for truth, _ in made])
    observed = [one.gap_low <= truth <= one.gap_high for truth, one in made]
    expected = [one.expected_low <= truth <= one.expected_high for truth, one in made]
    fresh = [
        abs(truth) <= optimism.NORMAL_95 * math.sqrt(one.searched * (1.0 - one.searched) / images)
        for truth, one in made
    ]
    yield f"{name}: gap, from report", "93 to 97 %", _share(observed), str(count)
    yield f"{name}: gap, expected", "at least 93 %", _share(expected), str(count)
    mean = float(np.mean([one.expected for _, one in made]))
    yield f"{name}: mean gap expected", f"{truths.mean():.4f}", f"{mean:.4f}", str(count)
    yield f"{name}: select as if fresh", "–", _share(fresh), str(count)


def _share(found: list[bool]) -> str:
    return f"{np.mean(found):.1%}"
