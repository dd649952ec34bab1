"""fANOVA's shares are Optuna's where it is right: even ranges; in logarithm and of choices they are what is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator

from pretune.analysis.fanova import Encoding

FOREST = {"trees": 12, "depth": 8, "seed": 3}


def test_over_even_ranges_the_numbers_are_those_of_optuna() -> None:
    rng = np.random.default_rng(0)
    space: dict[str, BaseDistribution] = {
        "a": FloatDistribution(0.0, 1.0),
        "b": FloatDistribution(-2.0, 2.0),
        "c": IntDistribution(1, 9),
        "kind": CategoricalDistribution(["x", "y"]),
    }
    points: list[dict[str, Any]] = [
        {"a": rng.random(), "b": rng.uniform(-2, 2), "c": int(rng.integers(1, 10)), "kind": str(rng.choice(["x", "y"]))}
        for _ in range(60)
    ]
    values = np.array([3 * one["a"] * one["b"] + 0.1 * one["c"] + (one["kind"] == "x") for one in points])
    told = optuna.create_study()
    for point, value in zip(points, values, strict=True):
        told.add_trial(optuna.trial.create_trial(params=point, distributions=space, value=float(value)))
    wanted = FanovaImportanceEvaluator(n_trees=12, max_depth=8, seed=3).evaluate(told, params=list(space))
    encoding = Encoding(space)
    found = encoding.shares(encoding.rows(points), values, **FOREST)
    assert found[:3] == pytest.approx([wanted[name] for name in ("a", "b", "c")], rel=0.02)
    without = {name: of for name, of in space.items() if name != "kind"}
    encoding = Encoding(without)
    wanted = FanovaImportanceEvaluator(n_trees=12, max_depth=8, seed=3).evaluate(told, params=list(without))
    found = encoding.shares(encoding.rows(points), values, **FOREST)
    assert found == pytest.approx([wanted[name] for name in without], rel=1e-6)


def test_a_range_in_logarithm_counts_by_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    space: dict[str, BaseDistribution] = {
        "weight": FloatDistribution(1e-4, 1.0, log=True),
        "other": FloatDistribution(0.0, 1.0),
    }
    points = [{"weight": float(10 ** rng.uniform(-4, 0)), "other": rng.random()} for _ in range(150)]
    values = np.array([(one["weight"] > 0.01) + 0.2 * one["other"] for one in points])
    encoding = Encoding(space)
    weight, other = encoding.shares(encoding.rows(points), values, **FOREST)
    # variances: 1/4 of the step in the middle of the range, 0.04 / 12 of the other one
    assert weight == pytest.approx(0.25 / (0.25 + 0.04 / 12), abs=0.02)
    assert weight + other <= 1.0 + 1e-9


def test_a_choice_of_many_values_is_one_of_them_at_a_time() -> None:
    rng = np.random.default_rng(0)
    choices = [f"kind {number}" for number in range(24)]
    space: dict[str, BaseDistribution] = {"kind": CategoricalDistribution(choices), "a": FloatDistribution(0.0, 1.0)}
    points = [{"kind": str(rng.choice(choices)), "a": rng.random()} for _ in range(300)]
    values = np.array([float(one["kind"] in choices[:12]) for one in points])
    encoding = Encoding(space)
    kind, a = encoding.shares(encoding.rows(points), values, trees=12, depth=30, seed=3)
    assert kind > 0.9
    assert a < 0.05


def test_what_has_no_effect_at_all_has_no_share() -> None:
    space: dict[str, BaseDistribution] = {"a": FloatDistribution(0.0, 1.0)}
    encoding = Encoding(space)
    rows = encoding.rows([{"a": 0.1}, {"a": 0.1}, {"a": 0.9}])
    assert encoding.shares(rows, np.ones(3), **FOREST).tolist() == [0.0]
    assert encoding.shares(rows[:2], np.array([0.0, 1.0]), **FOREST).tolist() == [0.0]
