"""When a trial ends early: rungs on the searched metric. Functions of numbers; the state is rebuilt by feeding the
journal again.

Asynchronous successive halving, the stopping form (Li et al. 2020, "A System for Massively Parallel Hyperparameter
Tuning", algorithm 2; its promotion form needs paused trials). Rung k lies at grace x eta^k units of budget. A trial
that reaches a rung goes on if it is among the best floor(n / eta) of the n trials that got there so far, itself
included; the first eta - 1 always go on, for there is nobody to compare with. Divergence and collapse are not judged
here: the trial tells them itself.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretune.core.choices import Budget
from pretune.core.experiment import Experiment

_METRICS: dict[Budget, str | None] = {"epochs": None, "views": "budget/views", "seconds": "budget/seconds"}


@dataclass(frozen=True)
class Stop:
    """Why a trial ends here. `rung` counts from 0; None where no rung ends it but its own seconds, which are used."""

    rung: int | None
    reason: str


class SuccessiveHalving:
    """The rungs of one sweep: who reached them, with which value. Shown each report once, in the journal's order."""

    def __init__(
        self,
        *,
        metric: str,
        maximize: bool = True,
        budget: Budget = "epochs",
        reduction_factor: float = 3.0,
        grace: float | None = None,
        grace_epochs: int = 1,
    ) -> None:
        """`grace` is in budget units; None makes it what the first report of epoch `grace_epochs` had used."""
        self.metric, self.maximize, self.budget = metric, maximize, budget
        self.reduction_factor = reduction_factor
        self.grace = grace
        self.grace_epochs = grace_epochs
        self.rungs: dict[int, dict[int, float]] = {}
        self._sorted: dict[int, list[float]] = {}
        """The scores of each rung in order, so that a report costs a search among them and not all of them."""

    @classmethod
    def of(cls, experiment: Experiment) -> SuccessiveHalving | None:
        """The stopping rule of `experiment`, None where it is turned off."""
        if not experiment.stopping.enabled:
            return None
        return cls(
            metric=experiment.metric,
            maximize=experiment.maximize,
            budget=experiment.budget,
            reduction_factor=experiment.stopping.reduction_factor,
            grace=experiment.stopping.grace,
            grace_epochs=math.ceil(experiment.base.epochs / 5),
        )

    def observe(self, number: int, epoch: int, metrics: Mapping[str, float], *, last_epoch: int) -> Stop | None:
        """Takes in one report of trial `number` and says whether the trial ends with it.

        `last_epoch` is the trial's last one before its decay (`ScheduleConfig.last_epoch_before_decay`); later reports
        are on no rung, for a decayed and an undecayed network do not compare. A report without the metric is passed
        over: the next one counts.

        Raises:
            ValueError: the report does not say how much of the budget it used.
        """
        used = self._used(number, epoch, metrics)
        if self.grace is None and epoch >= self.grace_epochs:
            self.grace = used
        if self.grace is None or epoch > last_epoch or self.metric not in metrics:
            return None
        rung = rung_of(used, self.grace, self.reduction_factor)
        if rung is None or any(number in reached for higher, reached in self.rungs.items() if higher >= rung):
            return None
        value = metrics[self.metric]
        reached = self.rungs.setdefault(rung, {})
        reached[number] = _score(value, self.maximize)
        scores = self._sorted.setdefault(rung, [])
        insort(scores, reached[number])
        better = len(scores) - bisect_right(scores, reached[number])
        if _survives(better, len(scores), self.reduction_factor):
            return None
        level = self.grace * self.reduction_factor**rung
        kept = survivors(len(scores), self.reduction_factor)
        text = f"{self.metric} {value:.4g} at {level:.6g} {self.budget} is not among the best {kept} of {len(scores)}"
        return Stop(rung, text)

    def _used(self, number: int, epoch: int, metrics: Mapping[str, float]) -> float:
        name = _METRICS[self.budget]
        if name is None:
            return float(epoch)
        if name not in metrics:
            raise ValueError(
                f"budget {self.budget!r} needs the metric {name!r} in each report, but epoch {epoch} of trial {number} "
                f"has only {', '.join(sorted(metrics))}; run a new sweep with --budget epochs"
            )
        return metrics[name]


def spent(experiment: Experiment, epoch: int, metrics: Mapping[str, float]) -> Stop | None:
    """The end of a trial whose seconds of training are used, with the report of `epoch`, if that has the metric."""
    seconds, used = experiment.trial_seconds, metrics.get("budget/seconds", 0.0)
    if seconds is None or used < seconds or experiment.metric not in metrics:
        return None
    return Stop(None, f"its {seconds:g} seconds of training were used by the end of epoch {epoch} ({used:.1f})")


def rung_of(used: float, grace: float, reduction_factor: float) -> int | None:
    """The highest rung k with grace x reduction_factor^k <= used, None below the first."""
    rung: int | None = None
    # The tolerance makes a level that is reached exactly count, whatever the rounding of the power.
    while grace * reduction_factor ** (0 if rung is None else rung + 1) <= used * (1.0 + 1e-9):
        rung = 0 if rung is None else rung + 1
    return rung


def survives(score: float, scores: Sequence[float], reduction_factor: float) -> bool:
    """Whether `score` (higher is better) is among the best floor(n / reduction_factor) of the n `scores`, itself
    included.

    With fewer than `reduction_factor` scores everything survives; so do ties with the last survivor.
    """
    return _survives(sum(other > score for other in scores), len(scores), reduction_factor)


def _survives(better: int, count: int, reduction_factor: float) -> bool:
    return count < reduction_factor or better < survivors(count, reduction_factor)


def survivors(count: int, reduction_factor: float) -> int:
    """How many of `count` trials on a rung go on, ties aside: at least one."""
    return max(1, math.floor(count / reduction_factor))


def _score(value: float, maximize: bool) -> float:
    if math.isnan(value):
        return -math.inf
    return value if maximize else -value
