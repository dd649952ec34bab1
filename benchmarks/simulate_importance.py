"""Whether importances are true: on functions whose answer is known, how often they rank parameters right, cover the
importance that very many trials have, and call a parameter superfluous that is not.

    python benchmarks/simulations.py importance

Functions, of parameters drawn at random, with noise: `sum` has three parameters that matter one more than the other and
one that does not; `branches` one that exists under one choice of a kernel only; `stopped` is `sum` where a third of the
trials are judged at a third of the epochs and the worse half of those is stopped; `minimized` has the opposite sign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution

from pretune.analysis import importance
from pretune.analysis.importance import Importance, Parameter
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.parameters import written
from trainers.config import TrialConfig
from trainers.terms import Alignment

UNIT = FloatDistribution(0.0, 1.0)
KERNEL = CategoricalDistribution(["rbf", "energy"])
BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=9, batch_size=64)
NOISE = 0.3
LARGE = 1_000
"""Trials of the study whose importances are taken for the truth."""

Point = dict[str, Any]
Rng = np.random.Generator


def experiment(*, maximize: bool = True) -> Experiment:
    return Experiment(name="simulated", space="simulated", base=BASE, maximize=maximize)


def summed(rng: Rng) -> tuple[Point, float]:
    point = {name: float(rng.random()) for name in ("large", "middle", "small", "none")}
    return point, 3.0 * point["large"] + point["middle"] + 0.3 * point["small"] + NOISE * float(rng.normal())


def branching(rng: Rng) -> tuple[Point, float]:
    point: Point = {"kernel": str(rng.choice(["rbf", "energy"])), "none": float(rng.random())}
    if point["kernel"] == "energy":
        return point, NOISE * float(rng.normal())
    point["bandwidth"] = float(rng.random())
    return point, 4.0 * point["bandwidth"] - 1.0 + NOISE * float(rng.normal())


def study(
    draw: Callable[[Rng], tuple[Point, float]], trials: int, rng: Rng, *, sign: float = 1.0
) -> list[TrialHistory]:
    """A study of completed trials."""
    return [
        _trial(number, point, sign * value) for number, (point, value) in enumerate(draw(rng) for _ in range(trials))
    ]


def stopped(trials: list[TrialHistory]) -> list[TrialHistory]:
    """The same, where the worse half of every second trial ended in epoch 3, at half of its value."""
    judged = trials[::2]
    middle = float(np.median([trial.value or 0.0 for trial in judged]))
    for trial in judged:
        if (trial.value or 0.0) < middle:
            trial.state, trial.epochs, trial.value = "PRUNED", {3: {"probe/linear": 0.5 * (trial.value or 0.0)}}, None
    return trials


def _trial(number: int, point: Point, value: float) -> TrialHistory:
    drawn = {name: KERNEL if name == "kernel" else UNIT for name in point}
    told = {name: written(one, KERNEL.choices if name == "kernel" else ()) for name, one in drawn.items()}
    trial = TrialHistory(number, point, told, None, None, asked_at=number)
    trial.state, trial.value, trial.epochs = "COMPLETE", value, {9: {"probe/linear": value}}
    return trial


def rows(count: int, seed: int, *, sizes: Sequence[int] = (20, 50, 200)) -> Iterator[tuple[str, ...]]:
    """What is asked, what is wanted, what was seen, of how many studies."""
    whole = experiment()
    for trials in sizes:
        rng = np.random.default_rng((seed, trials))
        found = [importance.evaluate(whole, study(summed, trials, rng), seed=number) for number in range(count)]
        order = sum(_names(one)[0] == "large" for one in found)
        yield f"sum, {trials} trials: the largest first", "all", str(order), str(count)
        right = sum(_names(one)[:2] == ["large", "middle"] for one in found)
        yield f"sum, {trials} trials: the largest, then the middle", "most", str(right), str(count)
        yield from _covered(f"sum, {trials} trials", found, summed, seed)
        for name in ("large", "middle"):
            wrong = sum(_parameter(one, name).can_be_fixed for one in found)
            yield f"sum, {trials} trials: {name} could be fixed", "0", str(wrong), str(count)
        fixed = sum(_parameter(one, "none").can_be_fixed for one in found)
        yield f"sum, {trials} trials: none could be fixed", "as may be", str(fixed), str(count)
    trials = sizes[-1]
    rng = np.random.default_rng((seed, 1))
    found = [importance.evaluate(whole, stopped(study(summed, trials, rng)), seed=number) for number in range(count)]
    yield "stopped: the largest first", "all", str(sum(_names(one)[0] == "large" for one in found)), str(count)
    found = [importance.evaluate(whole, study(branching, trials, rng), seed=number) for number in range(count)]
    first = sum(set(_names(one)[:2]) == {"kernel", "bandwidth"} for one in found)
    yield "branches: kernel and bandwidth first", "all", str(first), str(count)
    opposite = experiment(maximize=False)
    same = 0
    for number in range(count):
        points = study(summed, trials, np.random.default_rng((seed, 2, number)))
        negated = [dataclasses.replace(trial, value=-(trial.value or 0.0)) for trial in points]
        same += importance.evaluate(whole, points) == importance.evaluate(opposite, negated)
    yield "minimized: the same numbers", "all", str(same), str(count)


def _covered(
    what: str, found: Sequence[Importance], draw: Callable[[Rng], tuple[Point, float]], seed: int
) -> Iterator[tuple[str, ...]]:
    truth = importance.evaluate(experiment(), study(draw, LARGE, np.random.default_rng((seed, 0))))
    for method in ("ped_anova", "fanova"):
        for parameter in truth.parameters:
            value = getattr(parameter, method).value
            intervals = [getattr(_parameter(one, parameter.name), method) for one in found]
            inside = sum(interval.low <= value <= interval.high for interval in intervals)
            yield f"{what}: {method} of {parameter.name} ({value:.3f}) inside", "95 %", str(inside), str(len(found))


def _names(found: Importance) -> list[str]:
    return [parameter.name for parameter in found.parameters]


def _parameter(found: Importance, name: str) -> Parameter:
    return next(parameter for parameter in found.parameters if parameter.name == name)
