"""What an ablation's numbers can bear beside the verdict's own test (`pretune.core.evidence`): bootstrap intervals, how
many seeds would decide, and the effects of a factorial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pretune.core.evidence import ALPHA, Paired, quantile

POWER = 0.8
RESAMPLES = 9_999
MOST_SEEDS = 10_000
"""Where more seeds than this would be needed, that many are said."""
ORDERS = 2
"""Effects of single factors, and of two together."""


def bootstrap(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the mean, bias-corrected and accelerated (Efron 1987); by percentiles where the
    resamples have no acceleration. None below three differences, or without any spread. Equal differences give equal
    intervals.
    """
    if len(differences) < 3 or max(differences) == min(differences):
        return None
    import warnings

    import numpy as np
    from scipy import stats

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (np.asarray(differences, dtype=np.float64),),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=1.0 - ALPHA,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    return None


def power(effect: float, std: float, pairs: int, alpha: float = ALPHA) -> float:
    """How likely a two-sided paired t test at `alpha` sees a true mean difference of `effect`, where differences have
    the standard deviation `std`: tails of the noncentral t (Cohen 1988, chapter 2).
    """
    if pairs < 2 or effect == 0.0:
        return alpha if pairs >= 2 else 0.0
    if std == 0.0:
        return 1.0
    from scipy.special import nctdtr

    shift, bound = abs(effect) / std * math.sqrt(pairs), quantile(pairs, alpha)
    if shift > bound + 38.0:  # scipy's series gives up there, where nothing is left of the tails
        return 1.0
    above = 1.0 - float(nctdtr(pairs - 1, shift, bound))
    below = float(nctdtr(pairs - 1, shift, -bound))
    return min(1.0, above + (below if math.isfinite(below) else 0.0))


def pairs_for(effect: float, std: float, alpha: float = ALPHA) -> int:
    """The fewest pairs with which that power is `POWER`, at most `MOST_SEEDS`."""
    return _fewest(lambda pairs: power(effect, std, pairs, alpha) >= POWER)


def more_seeds(judged: Paired | None, *, worth: float | None, comparisons: int) -> int:
    """About how many more pairs would decide, if the difference and its spread are as they look now: whichever comes
    first, that the difference is seen (with power `POWER`, at the error left to one of so many comparisons), or that
    the interval leaves no room for one worth having. At least 1.
    """
    count = 0 if judged is None else judged.count
    if judged is None or judged.std is None:
        return max(1, 3 - count)
    if judged.std == 0.0:
        return max(1, _fewest(lambda pairs: 2.0 ** (1 - pairs) <= ALPHA / comparisons) - count)
    wanted = [pairs_for(judged.mean, judged.std, ALPHA / comparisons)]
    if worth is not None and abs(judged.mean) < worth:
        room, std = worth - abs(judged.mean), judged.std
        wanted.append(_fewest(lambda pairs: quantile(pairs) * std / math.sqrt(pairs) < room))
    return max(1, min(wanted) - count)


def _fewest(enough: Callable[[int], bool]) -> int:
    """The smallest number from 2 on that is enough, where each larger one is; at most `MOST_SEEDS`."""
    high = 2
    while high < MOST_SEEDS and not enough(high):
        high *= 2
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return min(low, MOST_SEEDS)


# --- factorials -------------------------------------------------------------------------------------------------------

Cell = tuple[str, ...]
"""A level of each factor, in the order of the factors."""


@dataclass(frozen=True)
class Contrast:
    """An effect in a factorial: the levels of one or more factors, each against its factor's first level."""

    levels: Mapping[str, str]
    against: Mapping[str, str]
    differences: tuple[float, ...]
    """One for each seed."""


def contrasts(factors: Mapping[str, Sequence[str]], values: Mapping[Cell, Mapping[int, float]]) -> list[Contrast]:
    """Main effects and interactions of two, one number per seed that every cell has a value of.

    A main effect is the mean over the other factors' levels of the difference to the factor's first level; an
    interaction is the difference of two such differences: what the one level adds to the other's effect.
    """
    names = list(factors)
    cells = list(itertools.product(*factors.values()))
    seeds = sorted(set.intersection(*(set(values.get(cell, {})) for cell in cells)))
    found: list[Contrast] = []
    for order in range(1, ORDERS + 1):
        for chosen in itertools.combinations(range(len(names)), order):
            for levels in itertools.product(*(factors[names[at]][1:] for at in chosen)):
                signs = {cell: _sign(cell, chosen, levels, factors) for cell in cells}
                others = len([sign for sign in signs.values() if sign]) / 2**order
                found.append(
                    Contrast(
                        levels={names[at]: level for at, level in zip(chosen, levels, strict=True)},
                        against={names[at]: factors[names[at]][0] for at in chosen},
                        differences=tuple(
                            math.fsum(sign * values[cell][seed] for cell, sign in signs.items() if sign) / others
                            for seed in seeds
                        ),
                    )
                )
    return found


def _sign(cell: Cell, chosen: Sequence[int], levels: Sequence[str], factors: Mapping[str, Sequence[str]]) -> int:
    """What a cell counts in the contrast of `levels`: a product over its factors; 0 where it is in none of the two."""
    sign = 1
    for at, level in zip(chosen, levels, strict=True):
        first = list(factors.values())[at][0]
        sign *= 1 if cell[at] == level else -1 if cell[at] == first else 0
    return sign
