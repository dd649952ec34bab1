"""Would a measure that takes no labels have chosen as the probe does? The rank correlation of the two over the trials
of a sweep, wherever both are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from pretune.core.metrics import ALPHA_REQ, DEFAULT, LABEL_FREE
from pretune.core.results import SweepResult

FEWEST = 8
"""Trials below which a rank correlation says nothing: its interval is nearly all of -1 to 1."""
NORMAL_95 = 1.959964


class Agreement(BaseModel):
    """Spearman's rank correlation of a measure with the probe over trials, and its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    """`health/features/rankme`, …; of alpha-ReQ its nearness to 1 is ranked."""
    probe: str
    trials: int
    correlation: float
    low: float
    high: float


def agreements(result: SweepResult) -> list[Agreement]:
    """One for each label-free measure of features and embeddings that at least `FEWEST` complete trials told beside a
    probe, and that differs between them. Of trials that were stopped both are low, as they were short; they are left
    out, as are those whose result is that of another one.

    The probe is the sweep's own metric, or the linear one where a sweep searches for something else.
    """
    probe = result.metric if result.metric.startswith("probe/") else DEFAULT
    complete = [trial.last_metrics for trial in result.trials if trial.state == "COMPLETE" and trial.result_of is None]
    found = []
    for place in ("features", "embedding"):
        for measure in LABEL_FREE:
            name = f"health/{place}/{measure}"
            pairs = [(told[name], told[probe]) for told in complete if name in told and probe in told]
            if len(pairs) < FEWEST:
                continue
            values = [-abs(value - 1.0) if measure == ALPHA_REQ else value for value, _ in pairs]
            correlation = spearman(values, [score for _, score in pairs])
            if correlation is None:
                continue
            low, high = interval(correlation, len(pairs))
            found.append(
                Agreement(measure=name, probe=probe, trials=len(pairs), correlation=correlation, low=low, high=high)
            )
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The correlation of the ranks, equal values sharing their mean rank; None where all of one are equal."""
    x, y = _centered_ranks(first), _centered_ranks(second)
    lengths = math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))
    if lengths == 0.0:
        return None
    return max(-1.0, min(1.0, math.fsum(a * b for a, b in zip(x, y, strict=True)) / lengths))


def interval(correlation: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation of `count` pairs, at least 4: Fisher's z with the standard error
    sqrt((1 + r² / 2) / (count - 3)) (Bonett and Wright 2000, Psychometrika 65, equation 4).

    A perfect order is taken for one that is half a swap of neighbors away from it. How often it covers the truth is
    counted by `benchmarks/simulations.py label_free`, beside the percentile bootstrap: neither is ahead, and this one
    takes no draws.
    """
    most = 1.0 - 6.0 / (count**3 - count)
    r = max(-most, min(most, correlation))
    z, error = math.atanh(r), math.sqrt((1.0 + r * r / 2.0) / (count - 3))
    return math.tanh(z - NORMAL_95 * error), math.tanh(z + NORMAL_95 * error)


def _centered_ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end < len(order) and values[order[end]] == values[order[begin]]:
            end += 1
        for position in order[begin:end]:
            ranks[position] = (begin + end - len(values)) / 2.0
        begin = end
    return ranks
