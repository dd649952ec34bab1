"""How often `pretune compare` says more than it may: sweeps and trials whose true accuracies are known.

    python benchmarks/simulations.py compare

Scores are drawn as accuracies on 360 images, of which two trials share the difficulty: an image that one gets right the
other often does, too, as networks on the same images do. Printed: what, wanted, seen, of how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pretune.analysis.compare import interval

IMAGES = 360
SHARED = 0.5
"""Correlation of two trials on one image, in the latent scale."""


def rows(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Simulated comparisons: false claims where nothing differs, and coverage of the true difference."""
    rng = np.random.default_rng(seed)
    for what, first, second, true in (
        ("two trials of equal worth", 1, 1, 0.0),
        ("two trials 0.05 apart", 1, 1, 0.05),
        ("best of 40 against best of 3, all of equal worth", 40, 3, 0.0),
        ("best of 12 against best of 12, all of equal worth", 12, 12, 0.0),
        ("best of 40 against one trial of equal worth", 40, 1, 0.0),
    ):
        claimed = covered = 0
        for _ in range(count):
            difficulty = math.sqrt(SHARED) * rng.standard_normal(IMAGES)
            one, other = _best(rng, difficulty, 0.8 + true, first), _best(rng, difficulty, 0.8, second)
            low, high = interval(one - other, (_stderr(one), _stderr(other)), (first, second), maximize=True)
            claimed += low > 0.0 or high < 0.0
            covered += low <= true <= high
        if true == 0.0:
            yield f"{what}: better by more than noise", "at most 5.0 %", f"{claimed / count:.1%}", str(count)
        else:
            yield f"{what}: told apart", "(power)", f"{claimed / count:.1%}", str(count)
        yield f"{what}: the interval has the true difference", "at least 95.0 %", f"{covered / count:.1%}", str(count)


def _best(rng: np.random.Generator, difficulty: NDArray[np.float64], accuracy: float, trials: int) -> float:
    """The highest score of so many trials on images of this difficulty."""
    own = math.sqrt(1.0 - SHARED) * rng.standard_normal((trials, IMAGES))
    return float(((difficulty + own) < NormalDist().inv_cdf(accuracy)).mean(axis=1).max())


def _stderr(accuracy: float) -> float:
    return math.sqrt(accuracy * (1.0 - accuracy) / IMAGES)
