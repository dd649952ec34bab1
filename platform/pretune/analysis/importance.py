"""Which parameters matter: PED-ANOVA and fANOVA, with intervals, and what to do about it.

* **PED-ANOVA** (Watanabe et al. 2023; for conditional parameters arXiv 2601.20800): how differently the best trials and
  all trials are spread over a parameter. It is told as a share of the sum over all parameters.
* **fANOVA** (Hutter et al. 2014): the share of the variance that a parameter explains by itself in a random forest;
  what is missing to 1 is shared by several.

Both look at ranks of trials and not at values, so that a trial that was stopped early counts for what is known of it:
completed trials come first, by value; behind them stopped ones, by how far they got and then by their last value, the
order that TPE has as well. Infeasible and failed trials are left out and counted, so are those that were not run again.

A conditional parameter is judged by the trials that have it. PED-ANOVA weighs it with how often it was asked for among
the best and among all; fANOVA's share is of the variance within those trials.

Intervals are from random halves of the trials (half-sampling; McCarthy 1969, Politis and Romano 1994), around the
value of all trials: what halves spread is what wholes of independent trials would. A bootstrap that draws trials
several times covers a parameter without any effect in one study out of five, for trials that are there twice look like
certainty (`benchmarks/simulate_importance.py`). The interval of PED-ANOVA reaches down to 0 where shuffled values make
as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from pretune.analysis.fanova import Encoding
from pretune.analysis.ped_anova import Trials
from pretune.core import journal, study
from pretune.core.experiment import Experiment
from pretune.core.history import History, TrialHistory
from pretune.core.parameters import Flat, Names, flat
from pretune.core.results import SweepResult

FEWEST = 10
"""Below so many trials nothing is said."""
MOST = 1_000
"""So many trials PED-ANOVA looks at, drawn at random; intervals are those of so many trials."""
MOST_OF_FOREST = 150
"""The same for fANOVA, whose forest takes longer."""
HALVES, HALVES_OF_FOREST = 60, 20
"""Random halves of the trials for the intervals."""
TREES, DEPTH = 12, 8
LEVEL = 0.95
SMALL = 0.05
"""A parameter can be fixed where its interval lies below this share."""
EDGE = 0.02
"""So near to an end of its range, as a share of the range, a value lies on the edge."""

Numbers = NDArray[np.float64]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A share from 0 to 1, and the 95 % interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Parameter:
    """What is known of one parameter. `name` is Optuna's: one that is asked for in several ways has several."""

    name: str
    parameter: str
    """The space's own name of it."""
    trials: int
    """How many of the trials looked at have it."""
    of: int
    ped_anova: Interval
    fanova: Interval | None
    """None where fewer than `FEWEST` trials have it, or they are all alike."""

    @property
    def conditional(self) -> bool:
        return self.trials < self.of

    @property
    def can_be_fixed(self) -> bool:
        """Whether both methods agree that it hardly matters."""
        found = [self.ped_anova, *([] if self.fanova is None else [self.fanova])]
        return all(interval.high < SMALL for interval in found)


@dataclass(frozen=True)
class Importance:
    """What the trials of a sweep say. `parameters` come by PED-ANOVA's share, largest first; none where `problem` says
    why.
    """

    complete: int
    stopped: int
    infeasible: int
    failed: int
    reused: int
    looked_at: int
    """Completed and stopped trials, or as many of them as were drawn."""
    best_share: float
    """PED-ANOVA compares the best share of the trials with all of them."""
    parameters: tuple[Parameter, ...]
    advice: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class _Trial:
    """One trial as both methods see it: the larger its score, the better; ties have one score."""

    params: Mapping[str, Flat]
    drawn: Mapping[str, BaseDistribution]
    own: Mapping[str, str]
    """The space's names by Optuna's."""
    key: tuple[float, float, float]
    """Completed or not, how far, how good."""


def of(result: SweepResult, *, seed: int = 0) -> Importance:
    """Of a search that runs or has ended: reads its journal once more. RequestError where it is damaged."""
    history = History()
    with journal.reading(result.folder, remote=result.remote) as records:
        for record in records:
            # What contradicts the others was told or refused when the result was read.
            with suppress(ValueError):
                history.apply(record)
        return evaluate(result.experiment, history.trials, seed=seed)


def evaluate(experiment: Experiment, trials: Sequence[TrialHistory], *, seed: int = 0) -> Importance:
    """The importance of each parameter that varies, equal for equal `trials` and `seed`."""
    seen = _seen(experiment, trials)
    rng = np.random.default_rng(seed)
    names = _varying(seen)
    problem = _problem(seen, names)
    own = [trial for trial in trials if trial.result_of is None]
    nothing = Importance(
        complete=sum(trial.state == "COMPLETE" for trial in own),
        stopped=sum(trial.state == "PRUNED" for trial in own),
        infeasible=sum(trial.state == "INFEASIBLE" for trial in own),
        failed=sum(trial.state == "FAIL" for trial in own),
        reused=len(trials) - len(own),
        looked_at=len(seen),
        best_share=0.0,
        parameters=(),
        advice=(),
        problem=problem,
    )
    if problem:
        return nothing
    advised = _at_edges(seen, names)
    looked_at = _drawn(seen, MOST, rng)
    names = [name for name in names if sum(name in trial.params for trial in looked_at) >= 2]
    scores = _scores(looked_at)

    known = Trials([trial.params for trial in looked_at], [trial.drawn for trial in looked_at], names)

    def ped_anova(of: Positions, ranks: Numbers) -> Numbers:
        return known.importances(of, ranks, _best_share(len(of)))

    whole = ped_anova(np.arange(len(looked_at)), scores)
    halves = _halves(ped_anova, looked_at, HALVES, rng)
    shuffled = np.array([ped_anova(np.arange(len(looked_at)), rng.permutation(scores)) for _ in range(HALVES)])
    shares, of_halves = _shares(whole), np.array([_shares(half) for half in halves])
    noise = whole <= np.quantile(shuffled, LEVEL, axis=0)
    intervals = _intervals(shares, of_halves)
    forest = _forest(looked_at, names, rng)
    own_names = {alias: name for trial in looked_at for alias, name in trial.own.items()}
    parameters = tuple(
        Parameter(
            name=name,
            parameter=own_names[name],
            trials=sum(name in trial.params for trial in looked_at),
            of=len(looked_at),
            ped_anova=Interval(interval.value, 0.0, interval.high) if is_noise else interval,
            fanova=forest.get(name),
        )
        for name, interval, is_noise in zip(names, intervals, noise, strict=True)
    )
    ranked = tuple(sorted(parameters, key=lambda parameter: (-parameter.ped_anova.value, parameter.name)))
    fixed = [parameter for parameter in ranked if parameter.can_be_fixed]
    advice = [text for name, text in advised.items() if name not in {parameter.name for parameter in fixed}]
    advice += [
        f"{parameter.name} can be fixed: it makes at most {parameter.ped_anova.high:.1%} of the difference"
        for parameter in fixed
    ]
    return replace(
        nothing,
        looked_at=len(looked_at),
        best_share=_best_share(len(looked_at)),
        parameters=ranked,
        advice=tuple(advice),
    )


# --- what is looked at ------------------------------------------------------------------------------------------------


def _seen(experiment: Experiment, trials: Sequence[TrialHistory]) -> list[_Trial]:
    """Completed and stopped trials that were run themselves and have a value; of those that somebody has handed in, the
    points of the space.
    """
    called, sign = Names(), 1.0 if experiment.maximize else -1.0
    found = []
    for trial in trials:
        if trial.state not in ("COMPLETE", "PRUNED") or trial.result_of is not None:
            continue
        if trial.enqueued and not trial.params:
            continue
        value = trial.value if trial.state == "COMPLETE" else trial.last(experiment.metric)
        if value is None or not math.isfinite(value):
            continue
        drawn = study.distributions(trial)
        alias = {name: called.of(name, distribution) for name, distribution in drawn.items()}
        complete = trial.state == "COMPLETE"
        found.append(
            _Trial(
                params={alias[name]: flat(trial.params[name]) for name in drawn},
                drawn={alias[name]: distribution for name, distribution in drawn.items()},
                own={alias[name]: name for name in drawn},
                key=(float(complete), 0.0 if complete else float(trial.last_epoch), sign * value),
            )
        )
    return found


def _varying(trials: Sequence[_Trial]) -> list[str]:
    """Parameters with more than one value among the trials, in the order in which they were met."""
    values: dict[str, set[Flat]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    return [name for name, met in values.items() if len(met) > 1]


def _problem(trials: Sequence[_Trial], names: Sequence[str]) -> str:
    if len(trials) < FEWEST:
        return (
            f"too few trials to say what matters: {len(trials)} were completed or stopped early, and at least {FEWEST} "
            f"are needed"
        )
    if not names:
        return "no parameter varies among the trials that were completed or stopped early"
    if len({trial.key for trial in trials}) == 1:
        return "all trials that were completed or stopped early are equally good"
    return ""


def _drawn(trials: Sequence[_Trial], most: int, rng: np.random.Generator) -> list[_Trial]:
    if len(trials) <= most:
        return list(trials)
    return [trials[position] for position in sorted(rng.choice(len(trials), size=most, replace=False))]


def _scores(trials: Sequence[_Trial]) -> Numbers:
    """Ranks from 0, the worst, to 1; equal trials have equal ones, in the middle of their places."""
    places = {key: place for place, key in enumerate(sorted({trial.key for trial in trials}))}
    _, place, counts = np.unique([places[trial.key] for trial in trials], return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2.0  # from 0
    found: Numbers = ranks[place] / max(1, len(trials) - 1)
    return found


def _best_share(count: int) -> float:
    """The share of so many trials that PED-ANOVA calls the best: a tenth, of few trials more."""
    return min(0.5, max(0.1, 10 / count))


# --- both methods -----------------------------------------------------------------------------------------------------

_Method = Callable[[Positions, Numbers], Numbers]
"""What some of the trials, by their positions, say of each parameter, given their ranks."""


def _forest(trials: Sequence[_Trial], names: Sequence[str], rng: np.random.Generator) -> dict[str, Interval]:
    """fANOVA of each parameter, among the trials that have it, together with all that these have in common."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        having = tuple(number for number, trial in enumerate(trials) if name in trial.params)
        groups.setdefault(having, []).append(name)
    found: dict[str, Interval] = {}
    for having, of_interest in groups.items():
        members = _drawn([trials[number] for number in having], MOST_OF_FOREST, rng)
        if len(members) < FEWEST:
            continue
        common = [name for name in _varying(members) if all(_alike(name, trial, members[0]) for trial in members)]
        told = [name for name in of_interest if name in common]
        if not told:
            continue
        fanova = _fanova(members, common, seed=int(rng.integers(2**31)))
        whole = fanova(np.arange(len(members)), _scores(members))
        intervals = _intervals(whole, _halves(fanova, members, HALVES_OF_FOREST, rng))
        found |= {name: interval for name, interval in zip(common, intervals, strict=True) if name in told}
    return found


def _fanova(trials: Sequence[_Trial], names: Sequence[str], *, seed: int) -> _Method:
    """fANOVA of each of `names`, which all of the trials have, from one range."""
    encoding = Encoding({name: trials[0].drawn[name] for name in names})
    rows = encoding.rows([trial.params for trial in trials])

    def found(of: Positions, ranks: Numbers) -> Numbers:
        return encoding.shares(rows[of], ranks, trees=TREES, depth=DEPTH, seed=seed)

    return found


def _alike(name: str, one: _Trial, other: _Trial) -> bool:
    """Whether both have the parameter, from the same range: fANOVA knows no others."""
    return name in one.drawn and one.drawn[name] == other.drawn.get(name)


# --- intervals --------------------------------------------------------------------------------------------------------


def _halves(method: _Method, trials: Sequence[_Trial], count: int, rng: np.random.Generator) -> Numbers:
    """What `method` finds in random halves of the trials, each ranked anew; (count, parameters)."""
    found = []
    for _ in range(count):
        half = rng.permutation(len(trials))[: len(trials) // 2]
        found.append(method(half, _scores([trials[position] for position in half])))
    return np.array(found)


def _intervals(whole: Numbers, halves: Numbers) -> list[Interval]:
    """Around each value of `whole`, as far as the halves spread around their mean; and farther to the side to which
    values move as trials become more, by as much again as from halves to the whole (a bias of order 1/n).
    """
    moved = whole - halves.mean(axis=0)
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(halves + moved, [tail, 1.0 - tail], axis=0)
    low, high = np.minimum(low, whole) + np.minimum(moved, 0.0), np.maximum(high, whole) + np.maximum(moved, 0.0)
    low, high = np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)
    return [Interval(float(value), float(a), float(b)) for value, a, b in zip(whole, low, high, strict=True)]


def _shares(found: Numbers) -> Numbers:
    total = found.sum()
    shares: Numbers = found / total if total > 0.0 else np.full_like(found, 1.0 / len(found))
    return shares


# --- advice -----------------------------------------------------------------------------------------------------------


def _at_edges(trials: Sequence[_Trial], names: Sequence[str]) -> dict[str, str]:
    """By parameter, what to do where the best value lies on the edge of its range and the next best lie near it."""
    ranked = sorted(trials, key=lambda trial: trial.key, reverse=True)
    best, next_best = ranked[0], ranked[: max(3, math.ceil(len(ranked) / 10))]
    found: dict[str, str] = {}
    for name in names:
        distribution = best.drawn.get(name)
        if distribution is None or not isinstance(distribution, FloatDistribution | IntDistribution):
            continue
        place = _place(distribution, best.params[name])
        near = [_place(one.drawn[name], one.params[name]) for one in next_best if name in one.params]
        middle = float(np.median(near))
        if _values(distribution) < 3:
            continue
        for end, on_edge, others_too, word in (
            (distribution.low, place <= EDGE, middle < 1 / 3, "below"),
            (distribution.high, place >= 1.0 - EDGE, middle > 2 / 3, "above"),
        ):
            if on_edge and others_too:
                found[name] = (
                    f"the best value of {name} ({best.params[name]:.4g}) sits on the edge of its range, and the next "
                    f"best lie near it: widen the range {word} {end:g}, where that makes sense"
                )
    return found


def _place(distribution: BaseDistribution, value: Flat) -> float:
    """Where a number lies in its range, from 0 to 1, in the range's own scale."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    low, high, at = float(distribution.low), float(distribution.high), float(value)
    if distribution.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return 0.5 if high == low else (at - low) / (high - low)


def _values(distribution: FloatDistribution | IntDistribution) -> float:
    if distribution.step is None or distribution.log:
        return math.inf
    return round((distribution.high - distribution.low) / distribution.step) + 1
