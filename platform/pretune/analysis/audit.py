"""How often the stopping rule would have ended a winner, from the trials that it condemned and that lived on.

Which ones live on was drawn from their numbers alone, so they stand for all that the rule condemned. Two mistakes are
counted among them:

* **a winner**: it ended better than every trial that the rule let run to its end;
* **one of the better half**: it ended at least as good as the median of those.

A trial that diverged, collapsed or ran out of memory after it was condemned is none of them; one that failed, ran out
of time or runs still says nothing and is left out. The intervals are exact (Clopper and Pearson 1934), for the share of
all condemned trials.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretune.core.results import SweepResult, TrialResult

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """So many of the audited trials, and the interval for the share of all condemned ones."""

    count: int
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        return {"count": self.count, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Audit:
    """What the audit says. `winners` and `better_half` are None as long as there is nothing to compare."""

    condemned: int
    """Trials that the rule condemned, those that it stopped included."""
    audited: int
    """Of these, the ones that lived on and whose end says something."""
    let_live: int
    """Trials that the rule let run to their end."""
    winners: Share | None = None
    better_half: Share | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "condemned": self.condemned,
            "audited": self.audited,
            "let_live": self.let_live,
            "confidence": CONFIDENCE,
            "winners": None if self.winners is None else self.winners.as_json(),
            "better_half": None if self.better_half is None else self.better_half.as_json(),
        }


def of(result: SweepResult) -> Audit | None:
    """The audit of a sweep; None where none was asked for."""
    if result.experiment.stopping.audit == 0.0:
        return None
    run = [trial for trial in result.trials if trial.result_of is None]
    lived = [trial for trial in run if trial.condemned is not None]
    ends = [_worth(trial) for trial in lived if trial.state in ("COMPLETE", "INFEASIBLE")]
    let_live = [
        trial.value
        for trial in run
        if trial.state == "COMPLETE" and trial.condemned is None and trial.value is not None
    ]
    stopped = sum(trial.state == "PRUNED" and trial.rung is not None for trial in run)
    return judge(ends, let_live, condemned=stopped + len(lived), maximize=result.experiment.maximize)


def judge(ends: Sequence[float | None], let_live: Sequence[float], *, condemned: int, maximize: bool = True) -> Audit:
    """The audit of trials that ended with the values `ends` (None: without one), against those that were let live."""
    if not ends or not let_live:
        return Audit(condemned, len(ends), len(let_live))
    sign = 1.0 if maximize else -1.0
    scores = [sign * value for value in ends if value is not None]
    others = [sign * value for value in let_live]
    best, median = max(others), statistics.median(others)
    return Audit(
        condemned,
        len(ends),
        len(let_live),
        winners=_share(sum(score > best for score in scores), len(ends)),
        better_half=_share(sum(score >= median for score in scores), len(ends)),
    )


def _worth(trial: TrialResult) -> float | None:
    return trial.value if trial.state == "COMPLETE" else None


def _share(count: int, of_how_many: int) -> Share:
    from scipy.stats import binomtest

    found = binomtest(count, of_how_many).proportion_ci(CONFIDENCE, method="exact")
    return Share(count, float(found.low), float(found.high))
