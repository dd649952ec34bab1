"""Do the intervals of `pretune eval` cover the truth: accuracies on other images of the kind and with other seeds.

    python benchmarks/simulations.py evaluate

An image has a probability of being told right that varies among images (some are easy) and shifts with each seed's
classifier; the truth is the mean over all images and seeds. Printed: what, wanted, seen, of how many.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trainers.evaluation.classification import mean_class_score
from trainers.evaluation.protocol import Score, share


def rows(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """How often the interval has the truth, for few and many images, one and several seeds, and high accuracies."""
    rng = np.random.default_rng(seed)
    for images, seeds, mean, spread in (
        (100, 1, 0.7, 0.0),
        (2000, 1, 0.7, 0.0),
        (100, 1, 0.98, 0.0),
        (500, 3, 0.7, 0.02),
        (2000, 5, 0.7, 0.02),
        (500, 10, 0.9, 0.005),
    ):
        covered = 0
        for _ in range(count):
            covered += _has(share("top1", _correct(rng, images, seeds, mean, spread)), mean)
        name = f"top1 of {images} images, {seeds} seed(s) whose shift has a deviation of {spread:g}, {mean:g} right"
        yield name, "at least 94.0 %", f"{covered / count:.1%}", str(count)
    for images, classes in ((100, 10), (100, 50), (2000, 10)):
        covered = 0
        shares = np.linspace(0.5, 0.95, classes)
        for _ in range(count):
            labels = np.sort(rng.integers(0, classes, images))
            correct = rng.random((1, images)) < shares[labels]
            covered += _has(mean_class_score("mean_class", correct, labels), float(shares[np.unique(labels)].mean()))
        yield f"mean over {classes} classes of {images} images", "at least 94.0 %", f"{covered / count:.1%}", str(count)


def _correct(rng: np.random.Generator, images: int, seeds: int, mean: float, spread: float) -> NDArray[np.bool_]:
    """[seeds, images]: easy and hard images (Beta), a shift for each seed."""
    concentration = 2.0
    easy = rng.beta(mean * concentration, (1 - mean) * concentration, images)
    shift = rng.normal(0.0, spread, (seeds, 1))
    return rng.random((seeds, images)) < easy + shift * 4 * easy * (1 - easy)


def _has(score: Score, truth: float) -> bool:
    assert score.interval is not None
    return score.interval[0] <= truth <= score.interval[1]
