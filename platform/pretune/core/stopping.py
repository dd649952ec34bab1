"""When a trial ends early: rules on the searched metric. Functions of numbers; the state is rebuilt by feeding the
journal again.

* Asynchronous successive halving, the stopping form (Li et al. 2020, "A System for Massively Parallel Hyperparameter
  Tuning", algorithm 2; its promotion form needs paused trials). Rung k lies at grace x eta^k units of budget. A trial
  that reaches a rung goes on if it is among the best floor(n / eta) of the n trials that got there so far, itself
  included; the first eta - 1 always go on, for there is nobody to compare with.
* Hyperband (Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", algorithm 1),
  each of its brackets halving asynchronously: bracket b has its first rung at grace x eta^b.
* The median rule (Golovin et al. 2017, "Google Vizier", section 3.2.2).

Divergence and collapse are not judged here: the trial tells them itself.

A few of the trials that a rule condemns live on, for an audit of the rule. From then on it is shown nothing of them:
whatever they do, it decides of the others as if they had been stopped.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pretune.core.choices import Budget, StoppingKind
from pretune.core.experiment import Experiment, Objective

_METRICS: dict[Budget, str | None] = {"epochs": None, "views": "budget/views", "seconds": "budget/seconds"}


@dataclass(frozen=True)
class Stop:
    """Why a trial ends here. `rung` counts from 0; of the median rule it is the level that was judged. None where no
    rule ends it, but time does: the sweep's, or its own seconds, with which it `completes`.
    """

    rung: int | None
    reason: str
    completes: bool = False


class StoppingRule(Protocol):
    """Says when a trial ends early. Shown each report, and each complete trial, once, in the journal's order."""

    def observe(self, number: int, epoch: int, metrics: Mapping[str, float], *, last_epoch: int) -> Stop | None:
        """Takes in one report of trial `number` and says whether the trial ends with it.

        `last_epoch` is the trial's last one before its decay (`ScheduleConfig.last_epoch_before_decay`); later reports
        are not judged, for a decayed and an undecayed network do not compare. A report without the metric is passed
        over: the next one counts.

        Raises:
            ValueError: the report does not say how much of the budget it used.
        """

    def completed(self, number: int) -> None:
        """Trial `number` ran to its end."""


def of(experiment: Experiment) -> StoppingRule | None:
    """The stopping rule of `experiment`, None where it is turned off."""
    if not experiment.stopping.enabled:
        return None
    rules: dict[StoppingKind, type[SuccessiveHalving | Hyperband | MedianRule]] = {
        "asha": SuccessiveHalving,
        "hyperband": Hyperband,
        "median": MedianRule,
    }
    rule = rules[experiment.stopping.kind].of(experiment)
    return Undominated(rule, experiment.objectives) if experiment.beside else rule


def is_audited(experiment: Experiment, number: int) -> bool:
    """Whether trial `number` lives on where the rule condemns it: drawn from seed and number alone, so that nothing of
    what the trial does has a say in it.
    """
    key = f"audit {experiment.seed} {number}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2.0**64
    return drawn < experiment.stopping.audit


class SuccessiveHalving:
    """The rungs of one sweep: who reached them, with which value."""

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
    def of(cls, experiment: Experiment) -> SuccessiveHalving:
        """With the settings of `experiment`."""
        return cls(
            metric=experiment.metric,
            maximize=experiment.maximize,
            budget=experiment.budget,
            reduction_factor=experiment.stopping.reduction_factor,
            grace=experiment.stopping.grace,
            grace_epochs=experiment.grace_epochs,
        )

    def observe(self, number: int, epoch: int, metrics: Mapping[str, float], *, last_epoch: int) -> Stop | None:
        used = used_of(self.budget, number, epoch, metrics)
        if self.grace is None and epoch >= self.grace_epochs:
            self.grace = used
        if self.grace is None or epoch > last_epoch or self.metric not in metrics:
            return None
        return self._judge(number, used, metrics[self.metric], self.grace)

    def completed(self, number: int) -> None:
        """Its reports were all that counts."""

    def _judge(self, number: int, used: float, value: float, grace: float) -> Stop | None:
        rung = rung_of(used, grace, self.reduction_factor)
        if rung is None or any(number in reached for higher, reached in self.rungs.items() if higher >= rung):
            return None
        reached = self.rungs.setdefault(rung, {})
        reached[number] = _score(value, self.maximize)
        scores = self._sorted.setdefault(rung, [])
        insort(scores, reached[number])
        better = len(scores) - bisect_right(scores, reached[number])
        if _survives(better, len(scores), self.reduction_factor):
            return None
        level = grace * self.reduction_factor**rung
        unit = self.budget.removesuffix("s") if level == 1 else self.budget
        kept = survivors(len(scores), self.reduction_factor)
        text = f"{self.metric} {value:.4g} at {level:.6g} {unit} is not among the best {kept} of {len(scores)}"
        return Stop(rung, text)


class Hyperband:
    """Brackets of successive halving, from the one that stops earliest to the one that stops latest or not at all.

    The trials are dealt to the brackets by number, in the shares of Hyperband: with s rungs fewer to pass than the
    first of K brackets, n ~ K eta^(K - 1 - s) / (K - s), so that each costs about the same.
    """

    def __init__(self, brackets: int, first: SuccessiveHalving) -> None:
        """`first` is the first bracket, and as the others are but for where they begin."""
        self.budget, self.reduction_factor = first.budget, first.reduction_factor
        self.grace, self.grace_epochs = first.grace, first.grace_epochs
        self.brackets = [
            SuccessiveHalving(
                metric=first.metric,
                maximize=first.maximize,
                budget=first.budget,
                reduction_factor=first.reduction_factor,
            )
            for _ in range(brackets)
        ]
        weights = [first.reduction_factor ** (brackets - 1 - b) / (brackets - b) for b in range(brackets)]
        self._shares = [weight / sum(weights) for weight in weights]
        self._dealt = [0] * brackets
        self._bracket: list[int] = []

    @classmethod
    def of(cls, experiment: Experiment) -> Hyperband:
        """With the settings of `experiment`."""
        return cls(experiment.brackets, SuccessiveHalving.of(experiment))

    def bracket_of(self, number: int) -> int:
        """The bracket of trial `number`: the one that is furthest behind its share, the earlier of two."""
        while len(self._bracket) <= number:
            count = len(self._bracket) + 1
            behind = [share * count - dealt for share, dealt in zip(self._shares, self._dealt, strict=True)]
            bracket = behind.index(max(behind))
            self._dealt[bracket] += 1
            self._bracket.append(bracket)
        return self._bracket[number]

    def observe(self, number: int, epoch: int, metrics: Mapping[str, float], *, last_epoch: int) -> Stop | None:
        if self.grace is None and epoch >= self.grace_epochs:
            self.grace = used_of(self.budget, number, epoch, metrics)
        if self.grace is None:
            return None
        bracket = self.bracket_of(number)
        halving = self.brackets[bracket]
        halving.grace = self.grace * self.reduction_factor**bracket
        stop = halving.observe(number, epoch, metrics, last_epoch=last_epoch)
        if stop is None:
            return None
        assert stop.rung is not None, "it was a rung that stopped it"
        # Rung k lies at the same level in whichever bracket.
        return Stop(stop.rung + bracket, f"{stop.reason} in bracket {bracket}")

    def completed(self, number: int) -> None:
        """Its reports were all that counts."""


class MedianRule:
    """A trial ends where the best that it has reached is worse than the median of what complete trials had on average
    up to there.

    Levels are epochs; where the budget is views or seconds, what the first report of all had used of it: a trial's
    report stands for the level that it reaches and, until its next one, for those above.
    """

    def __init__(
        self,
        *,
        metric: str,
        maximize: bool = True,
        budget: Budget = "epochs",
        grace: float | None = None,
        grace_epochs: int = 1,
        min_trials: int = 5,
    ) -> None:
        """`grace` and `grace_epochs` are as for `SuccessiveHalving`: what a trial may use before it is judged."""
        self.metric, self.maximize, self.budget = metric, maximize, budget
        self.grace, self.grace_epochs, self.min_trials = grace, grace_epochs, min_trials
        self.unit: float | None = 1.0 if budget == "epochs" else None
        self.averages: dict[int, list[float]] = {}
        """By level, what complete trials had on average up to there, in order."""
        self._curves: dict[int, list[tuple[int, float]]] = {}
        """By trial that is not complete, level and score of each report."""

    @classmethod
    def of(cls, experiment: Experiment) -> MedianRule:
        """With the settings of `experiment`."""
        return cls(
            metric=experiment.metric,
            maximize=experiment.maximize,
            budget=experiment.budget,
            grace=experiment.stopping.grace,
            grace_epochs=experiment.grace_epochs,
            min_trials=experiment.stopping.min_trials,
        )

    def observe(self, number: int, epoch: int, metrics: Mapping[str, float], *, last_epoch: int) -> Stop | None:
        used = used_of(self.budget, number, epoch, metrics)
        if self.unit is None and used > 0.0:
            self.unit = used
        if self.grace is None and epoch >= self.grace_epochs:
            self.grace = used
        if self.unit is None or epoch > last_epoch or self.metric not in metrics:
            return None
        level = math.floor(used / self.unit * (1.0 + 1e-9))
        curve = self._curves.setdefault(number, [])
        curve.append((level, _score(metrics[self.metric], self.maximize)))
        averages = self.averages.get(level, [])
        if self.grace is None or used < self.grace * (1.0 - 1e-9) or len(averages) < self.min_trials:
            return None
        best, median = max(score for _, score in curve), _median(averages)
        if best >= median:
            return None
        sign = 1.0 if self.maximize else -1.0
        text = (
            f"{self.metric} {sign * best:.4g} at best by {used:.6g} {self.budget} is worse than {sign * median:.4g}, "
            f"the median of {len(averages)} complete trials"
        )
        return Stop(level, text)

    def completed(self, number: int) -> None:
        curve = self._curves.pop(number, [])
        total, count = 0.0, 0
        for position, (level, score) in enumerate(curve):
            if math.isfinite(score):
                total, count = total + score, count + 1
            until = curve[position + 1][0] if position + 1 < len(curve) else level + 1
            for reached in range(level, until) if count else ():
                insort(self.averages.setdefault(reached, []), total / count)


class Undominated:
    """A rule on the first of several objectives, which spares a trial as long as no other one was better in one of them
    and as good in all others after as many epochs: a slow trial with a good score must not end a fast one.
    """

    def __init__(self, rule: StoppingRule, objectives: Sequence[Objective]) -> None:
        self.rule, self.objectives = rule, objectives
        self._fronts: dict[int, list[tuple[float, ...]]] = {}
        """By epoch, the scores of trials that no other one beats."""

    def observe(self, number: int, epoch: int, metrics: Mapping[str, float], *, last_epoch: int) -> Stop | None:
        stop = self.rule.observe(number, epoch, metrics, last_epoch=last_epoch)
        if any(objective.metric not in metrics for objective in self.objectives):
            return stop
        scores = tuple(_score(metrics[objective.metric], objective.maximize) for objective in self.objectives)
        front = self._fronts.setdefault(epoch, [])
        if any(dominates(other, scores) for other in front):
            return stop
        self._fronts[epoch] = [scores, *(other for other in front if not dominates(scores, other))]
        return None

    def completed(self, number: int) -> None:
        self.rule.completed(number)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is as good in all scores (higher is better) and better in one."""
    return one != other and all(mine >= its for mine, its in zip(one, other, strict=True))


def used_of(budget: Budget, number: int, epoch: int, metrics: Mapping[str, float]) -> float:
    """How much of the budget trial `number` has used by this report. ValueError where it does not say so."""
    name = _METRICS[budget]
    if name is None:
        return float(epoch)
    if name not in metrics:
        raise ValueError(
            f"budget {budget!r} needs the metric {name!r} in each report, but epoch {epoch} of trial {number} "
            f"has only {', '.join(sorted(metrics))}; run a new sweep with --budget epochs"
        )
    return metrics[name]


def spent(experiment: Experiment, epoch: int, metrics: Mapping[str, float]) -> Stop | None:
    """The end of a trial whose seconds of training are used, with the report of `epoch`, if that has the metric."""
    seconds, used = experiment.trial_seconds, metrics.get("budget/seconds", 0.0)
    if seconds is None or used < seconds or experiment.metric not in metrics:
        return None
    return Stop(None, f"its {seconds:g} seconds of training were used by the end of epoch {epoch} ({used:.1f})", True)


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


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def _score(value: float, maximize: bool) -> float:
    if math.isnan(value):
        return -math.inf
    return value if maximize else -value
