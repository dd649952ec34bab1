"""Does a level help? Paired differences over seeds, tested so that looking again makes no false discovery.

Differences are taken as independent from seed to seed. At a look they are tested by Student's paired t test. With
several looks planned after n_1 < ... < n_K seeds, the test of look k is given the share
(n_k^2 - n_(k-1)^2) / n_K^2 of the error: the increments of the spending function alpha t^2 (Kim and DeMets 1987,
"Design and analysis of group sequential tests based on the type I error spending rate function"). Each increment is
spent on a test of its own (Bonferroni), so that P = min over looks of p_k / share_k is a p value whatever the
dependence between looks, and whenever one stops; it takes no large sample, as nominal boundaries of z values would.
Holm's step-down over the comparisons (Holm 1979) then bounds by `ALPHA` the probability of any false verdict of an
ablation: P only falls from look to look, so that what is rejected early would be rejected at the end as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pretune.core.outcomes import Outcomes

ALPHA = 0.05
"""The probability of any false `helps` or `hurts` in one ablation."""
SHARE_WORTH_HAVING = 0.01
"""The smallest difference worth having of a metric that is a share: one point of accuracy."""
PART_WORTH_HAVING = 0.02
"""That of any other metric, as a part of the base's mean."""
_SHARES = ("probe/", "report/")

Finding = Literal["helps", "hurts", "no evidence", "not enough seeds"]


@dataclass(frozen=True)
class Paired:
    """Differences of so many pairs. Below two of them there is a mean alone; without any spread no interval."""

    count: int
    mean: float
    std: float | None
    p: float | None
    """Two-sided; of equal differences, which have no t, that of the signs."""
    half_width: float | None
    """Of the 95 % interval around the mean."""

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


def paired(differences: Sequence[float]) -> Paired | None:
    """Student's test and interval of differences whose mean is asked for; None where there are none."""
    count = len(differences)
    if count == 0:
        return None
    mean = statistics.fmean(differences)
    if count == 1:
        return Paired(count, mean, None, None, None)
    std = statistics.stdev(differences)
    if std <= 1e-9 * max(map(abs, differences)) or std == 0.0:
        # Two accuracies of 500 images may well differ by as much twice. That is no certainty: their signs count alone.
        return Paired(count, mean, 0.0, 1.0 if mean == 0.0 else 2.0 ** (1 - count), None)
    from scipy.special import stdtr

    stderr = std / math.sqrt(count)
    p = min(1.0, 2.0 * float(stdtr(count - 1, -abs(mean) / stderr)))
    return Paired(count, mean, std, p, quantile(count) * stderr)


def quantile(count: int, alpha: float = ALPHA) -> float:
    """Student's, two-sided, for the mean of `count` numbers."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 1.0 - alpha / 2.0))


def shares(looks: Sequence[int]) -> list[float]:
    """Of the error, what each look may spend; their sum is 1."""
    before = [0, *looks[:-1]]
    return [(now**2 - then**2) / looks[-1] ** 2 for now, then in zip(looks, before, strict=True)]


def sequential(p_values: Sequence[float | None], looks: Sequence[int]) -> float | None:
    """The p value of one comparison after the first looks, None before there is any. One look's is its own."""
    spent = [p / share for p, share in zip(p_values, shares(looks), strict=False) if p is not None]
    return min(1.0, *spent) if spent else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted for as many comparisons as there are, those that have no p value yet among them."""
    order = sorted(range(len(p_values)), key=lambda at: 1.0 if p_values[at] is None else p_values[at] or 0.0)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(order):
        p = p_values[at]
        if p is not None:
            highest = max(highest, min(1.0, (len(p_values) - rank) * p))
            adjusted[at] = highest
    return adjusted


@dataclass(frozen=True)
class Standing:
    """What is known of one level's difference to the base. `look`: after how many seeds it was judged last, 0 before
    that; `judged` are the pairs of then.
    """

    look: int
    judged: Paired | None
    p: float | None
    """Adjusted for looks and comparisons."""
    finding: Finding


def standings(outcomes: Outcomes, *, metric: str, maximize: bool) -> dict[int, Standing]:
    """By level, of each that has trials, the base apart. Judged is at planned looks only: whoever looks in between,
    while an ablation runs, is told that there are not enough seeds.
    """
    design = outcomes.design
    looks = design.looks
    compared = [at for at, level in enumerate(design.levels) if at and not level.refused]
    seen: dict[int, list[Paired | None]] = {}
    for at in compared:
        done = [look for look in looks if outcomes.has_ended(at, look)]
        seen[at] = [paired(list(outcomes.differences(at, first=look).values())) for look in done]
    single = [sequential([None if one is None else one.p for one in seen[at]], looks) for at in compared]
    worth = smallest_effect(outcomes, metric)
    found: dict[int, Standing] = {}
    for at, p in zip(compared, holm(single), strict=True):
        last = seen[at][-1] if seen[at] else None
        look = looks[len(seen[at]) - 1] if seen[at] else 0
        found[at] = Standing(look, last, p, finding(last, p, looks=len(looks), worth=worth, maximize=maximize))
    return found


def finding(judged: Paired | None, p: float | None, *, looks: int, worth: float | None, maximize: bool) -> Finding:
    """`no evidence` is said only where an interval leaves no room for a difference worth having: that of 95 %, or with
    several looks a wider one, so that all of them together miss such a difference in at most `ALPHA` of all cases.
    """
    if judged is None or p is None:
        return "not enough seeds"
    if p <= ALPHA and judged.mean != 0.0:
        return "helps" if (judged.mean > 0.0) == maximize else "hurts"
    if worth is None:
        return "not enough seeds"
    if not judged.std:
        enough = 2.0 ** (1 - judged.count) <= ALPHA and abs(judged.mean) < worth
    else:
        room = quantile(judged.count, min(ALPHA, 2.0 * ALPHA / looks)) * judged.std / math.sqrt(judged.count)
        enough = abs(judged.mean) + room < worth
    return "no evidence" if enough else "not enough seeds"


def smallest_effect(outcomes: Outcomes, metric: str) -> float | None:
    """The smallest difference worth having. Of a metric whose scale is not known it is told by the base's first seeds,
    so that it does not move with later ones; None before they have ended.
    """
    if outcomes.design.smallest_effect is not None:
        return outcomes.design.smallest_effect
    if metric.startswith(_SHARES):
        return SHARE_WORTH_HAVING
    first = outcomes.design.seeds
    values = outcomes.values(0, first=first)
    if not outcomes.has_ended(0, first) or not values:
        return None
    return PART_WORTH_HAVING * abs(statistics.fmean(values.values())) or None


def seeds_wanted(outcomes: Outcomes, *, metric: str, maximize: bool) -> dict[int, int]:
    """How many seeds each level is to have, by what has come out so far: those of the next look where it is undecided,
    unless nothing of it or of the base has a value at all. The base has as many as any.
    """
    looks = outcomes.design.looks
    wanted: dict[int, int] = {}
    for at, standing in standings(outcomes, metric=metric, maximize=maximize).items():
        later = [look for look in looks if look > standing.look]
        compares = outcomes.values(at, first=standing.look) and outcomes.values(0, first=standing.look)
        goes_on = standing.look and standing.finding == "not enough seeds" and later and compares
        wanted[at] = later[0] if goes_on else standing.look or looks[0]
    return {0: max(wanted.values(), default=looks[0]), **wanted}
