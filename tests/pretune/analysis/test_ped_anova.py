"""PED-ANOVA is Optuna's to rounding: ranges of all kinds, conditions, several ways to ask, ties."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from pretune.analysis.ped_anova import Trials

Point = dict[str, Any]
Drawn = dict[str, BaseDistribution]


def draw(rng: np.random.Generator) -> tuple[Point, Drawn, float]:
    """One trial of a space with a condition, and with a parameter whose range depends on another one."""
    drawn: Drawn = {
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "share": FloatDistribution(0.0, 1.0, step=0.25),
        "depth": IntDistribution(1, 5),
        "groups": IntDistribution(1, 64, log=True),
        "kernel": CategoricalDistribution(["rbf", "energy", None, 3]),
    }
    kernel = drawn["kernel"].to_external_repr(float(rng.integers(4)))
    if kernel == "rbf":
        drawn["bandwidth"] = FloatDistribution(0.1, 2.0)
    elif kernel == "energy":
        drawn["bandwidth"] = FloatDistribution(-1.0, 1.0)
    point: Point = {"kernel": kernel}
    for name, of in drawn.items():
        if isinstance(of, FloatDistribution):
            found = float(np.exp(rng.uniform(np.log(of.low), 0))) if of.log else float(rng.uniform(of.low, of.high))
            point[name] = found if of.step is None else round(found * 4) / 4
        elif isinstance(of, IntDistribution):
            point[name] = int(rng.integers(of.low, of.high + 1))
    value = np.log(point["rate"]) + point["depth"] + 3.0 * point.get("bandwidth", 0.0) + rng.normal()
    return point, drawn, float(np.round(value, 1))


@pytest.mark.parametrize("count", [2, 11, 40, 200])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_numbers_are_those_of_optuna(count: int, share: float) -> None:
    rng = np.random.default_rng(count)
    points, drawn, values = zip(*(draw(rng) for _ in range(count)), strict=True)
    told = optuna.create_study()
    for point, of, value in zip(points, drawn, values, strict=True):
        told.add_trial(optuna.trial.create_trial(params=point, distributions=of, value=-value))
    names = sorted({name for of in drawn for name in of})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
        wanted = evaluator.evaluate(told, params=names, target=lambda trial: trial.values[0])
    found = Trials(points, drawn, names).importances(np.arange(count), np.array(values), share)
    assert found == pytest.approx([wanted[name] for name in names], rel=1e-6, abs=1e-9)


def test_of_a_part_of_the_trials_it_is_as_if_there_were_no_others() -> None:
    rng = np.random.default_rng(0)
    points, drawn, values = zip(*(draw(rng) for _ in range(60)), strict=True)
    names = ["rate", "bandwidth", "kernel"]
    of = rng.permutation(60)[:30]
    part = Trials(points, drawn, names).importances(of, np.array(values)[of], 0.3)
    alone = Trials([points[one] for one in of], [drawn[one] for one in of], names)
    assert part == pytest.approx(alone.importances(np.arange(30), np.array(values)[of], 0.3))
