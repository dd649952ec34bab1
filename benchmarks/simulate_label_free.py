"""Does the interval of a rank correlation hold? Pairs are drawn of which the true one is known.

    python benchmarks/simulations.py label_free

Of normal pairs with correlation r, Spearman's is 6 / π arcsin(r / 2). Printed is how often the interval that `pretune
show` prints covers it, which is to be 93 to 97 %, and to compare how often the percentile bootstrap's does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pretune.analysis import label_free

PAIRS = (8, 12, 20, 100)
CORRELATIONS = (0.0, 0.3, 0.6, 0.9)
RESAMPLED = 200


def rows(count: int, seed: int, *, bootstrap: bool = True) -> Iterator[tuple[str, ...]]:
    """What, wanted, seen, of how many: for each number of pairs and each correlation."""
    for pairs in PAIRS:
        for correlation in CORRELATIONS:
            rng = np.random.default_rng([seed, pairs, round(10 * correlation)])
            truth = 6.0 / math.pi * math.asin(correlation / 2.0)
            covered = resampled = 0
            for _ in range(count):
                x = rng.standard_normal(pairs)
                y = correlation * x + math.sqrt(1.0 - correlation**2) * rng.standard_normal(pairs)
                found = label_free.spearman(x.tolist(), y.tolist())
                assert found is not None
                low, high = label_free.interval(found, pairs)
                covered += low <= truth <= high
                if bootstrap:
                    low, high = percentiles(x, y, rng)
                    resampled += low <= truth <= high
            name = f"{pairs} pairs, correlation {correlation:g}"
            yield f"{name}: interval", "93 to 97 %", f"{covered / count:.1%}", str(count)
            if bootstrap:
                yield f"{name}: bootstrap", "–", f"{resampled / count:.1%}", str(count)


def percentiles(x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """The 2.5 and 97.5 percentile of the rank correlation over resampled pairs."""
    chosen = rng.integers(0, len(x), (RESAMPLED, len(x)))
    ranks = [rankdata(values[chosen], axis=1) - (len(x) + 1) / 2.0 for values in (x, y)]
    lengths = np.sqrt(np.square(ranks[0]).sum(1) * np.square(ranks[1]).sum(1))
    low, high = np.quantile((ranks[0] * ranks[1]).sum(1) / np.where(lengths > 0.0, lengths, 1.0), [0.025, 0.975])
    return float(low), float(high)
