"""Two sweeps, or two trials, beside each other: where their configs differ, what each is worth, and whether the
difference is more than noise.

The noise that is known is that of scoring on a finite number of images: each value comes with its standard error, and
two are taken as independent, which makes that of their difference too large where both are scored on the same images.
A sweep's best trial was chosen for its value: of N trials that are worth the same, the best looks better than it is by
`luck(N)` standard errors. The interval allows for all of it, on the side of each sweep. What seeds would change is not
in it: only `pretune ablate` measures that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from pretune.analysis.differences import Difference, differences, request_of
from pretune.core.errors import RequestError
from pretune.core.results import SweepResult, TrialResult

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Side:
    """One of the two: a trial, or a sweep that stands for its best one. `chosen_among` is how many trials it was chosen
    from for its value, 1 where somebody named it.
    """

    name: str
    result: SweepResult
    trial: TrialResult | None
    chosen_among: int

    @property
    def value(self) -> float | None:
        if self.trial is None:
            return None
        told = self.trial.last_metrics.get(self.result.metric) if self.trial.value is None else self.trial.value
        return told if told is not None and math.isfinite(told) else None

    @property
    def stderr(self) -> float | None:
        return None if self.trial is None else self.trial.last_metrics.get(f"{self.result.metric}_stderr")


@dataclass(frozen=True)
class Compared:
    """`difference` is the first's value less the second's, with its 95 % interval; None where the two do not compare,
    and `why_not` says why. `verdict` is in words.
    """

    first: Side
    second: Side
    changes: list[Difference]
    asked: list[Difference]
    difference: float | None
    low: float | None
    high: float | None
    verdict: str

    @property
    def more_than_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)

    def as_json(self) -> dict[str, Any]:
        """What `pretune compare --json` prints."""
        sides = {
            key: {
                "name": side.name,
                "trial": None if side.trial is None else side.trial.id,
                "state": None if side.trial is None else side.trial.state,
                "metric": side.result.metric,
                "value": side.value,
                "stderr": side.stderr,
                "chosen_among": side.chosen_among,
            }
            for key, side in (("first", self.first), ("second", self.second))
        }
        return {
            **sides,
            "changes": [one._asdict() for one in self.changes],
            "asked": [one._asdict() for one in self.asked],
            "difference": self.difference,
            "interval": None if self.low is None else [self.low, self.high],
            "more_than_noise": self.more_than_noise,
            "verdict": self.verdict,
        }


def sweep(result: SweepResult) -> Side:
    """A sweep, by its best trial. An ablation has none: its trials are levels and seeds."""
    complete = sum(trial.state == "COMPLETE" for trial in result.trials)
    return Side(result.name, result, result.winner, max(1, complete))


def trial(result: SweepResult, number: int) -> Side:
    """One trial of a sweep. RequestError where there is none."""
    if not 0 <= number < len(result.trials):
        known = f"0 to {len(result.trials) - 1}" if result.trials else "none yet"
        raise RequestError(f"TRIAL must be one of sweep {result.name!r} ({known}), but is {number}")
    return Side(f"{result.name}/{number}", result, result.trials[number], 1)


def compare(first: Side, second: Side, *, trials: bool) -> Compared:
    """The two beside each other; `trials`: both are trials, and it is their configs that differ, else the sweeps' bases
    and what was asked of them.
    """
    if trials:
        configs = [side.trial.config if side.trial is not None else None for side in (first, second)]
        changes = differences(configs[0] or {}, configs[1] or {})
        asked: list[Difference] = []
    else:
        changes = differences(*(side.result.experiment.base.model_dump(mode="json") for side in (first, second)))
        asked = differences(*(_asked(side.result) for side in (first, second)))
    why_not = _why_not(first, second)
    if why_not:
        return Compared(first, second, changes, asked, None, None, None, why_not)
    assert first.value is not None
    assert second.value is not None
    difference = first.value - second.value
    if first.stderr is None or second.stderr is None:
        verdict = (
            f"{first.result.metric} has no standard error, so that noise is not known; run both over several seeds"
        )
        return Compared(first, second, changes, asked, difference, None, None, verdict)
    low, high = interval(
        difference,
        (first.stderr, second.stderr),
        (first.chosen_among, second.chosen_among),
        maximize=first.result.experiment.maximize,
    )
    return Compared(first, second, changes, asked, difference, low, high, _verdict(first, second, low, high))


def interval(
    difference: float, stderrs: tuple[float, float], chosen_among: tuple[int, int], *, maximize: bool
) -> tuple[float, float]:
    """Where the difference of two true values lies in at least 95 % of cases."""
    error = Z * math.hypot(*stderrs)
    lucky = [luck(count) * stderr for count, stderr in zip(chosen_among, stderrs, strict=True)]
    # What was chosen for a high value is worth less, and for a low one more.
    below, above = (lucky[0], lucky[1]) if maximize else (lucky[1], lucky[0])
    return difference - below - error, difference + above + error


def luck(count: int) -> float:
    """By how many standard errors the best of `count` values of equal worth looks better than it is, on average (Blom
    1958, "Statistical Estimates and Transformed Beta-Variables"); more than in any sweep whose trials differ.
    """
    return 0.0 if count < 2 else NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _why_not(first: Side, second: Side) -> str:
    for side in (first, second):
        if side.trial is None:
            kind = "is an ablation" if side.result.experiment.points else "has no complete trial"
            return f"{side.name} {kind}, so that values are not compared; name trials: SWEEP/TRIAL"
        if side.value is None:
            return f"{side.name} ({side.trial.state}) has no value"
    assert first.trial is not None
    assert second.trial is not None
    whole = first.trial.state == second.trial.state == "COMPLETE"
    if not whole and first.trial.epochs != second.trial.epochs:
        return (
            f"{first.name} was judged after {first.trial.epochs} epochs and {second.name} after {second.trial.epochs}, "
            "so that their values do not compare"
        )
    one, other = first.result.experiment, second.result.experiment
    if (one.metric, one.maximize) != (other.metric, other.maximize):
        return f"their metrics differ ({one.metric}, {other.metric}), so that their values do not compare"
    if one.base.data.manifest != other.base.data.manifest:
        return "they are scored on different data, so that their values do not compare"
    return ""


def _verdict(first: Side, second: Side, low: float, high: float) -> str:
    maximize = first.result.experiment.maximize
    seeds = "; how much seeds change is not in it (pretune ablate --seeds)"
    if low > 0.0 or high < 0.0:
        better = first if (low > 0.0) == maximize else second
        return f"{better.name} is better by more than noise{seeds}"
    return f"no more than noise{seeds}"


def _asked(result: SweepResult) -> Mapping[str, Any]:
    return {**request_of(result.experiment), "trials": result.asked}
