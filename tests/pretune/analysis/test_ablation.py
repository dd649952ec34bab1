"""Levels under equal seeds: what is run, and that differences are taken seed by seed."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import ablation
from pretune.core import results
from pretune.core.errors import RequestError
from tests.pretune.analysis.ablations import BASE, run
from trainers.config import TrialConfig

FACTORS: dict[str, list[Any]] = {"objective.variance.weight": [0, 25, 50], "optimizer.learning_rate": [0.1, 0.2]}


def configs_of(result: results.SweepResult) -> list[TrialConfig]:
    return [TrialConfig.model_validate(trial.config) for trial in result.trials]


# --- points -----------------------------------------------------------------------------------------------------------


def test_one_factor_at_a_time_leaves_the_others_as_the_recipe_has_them() -> None:
    points = ablation.points(BASE, FACTORS, grid=False, seeds=2)
    rate = BASE.optimizer.learning_rate
    assert rate not in (0.1, 0.2)
    changes: list[dict[str, Any]] = [
        {},
        {"objective.variance.weight": 0},
        {"objective.variance.weight": 50},
        {"optimizer.learning_rate": 0.1},
        {"optimizer.learning_rate": 0.2},
    ]
    assert points == tuple({"seed": seed, **change} for seed in (0, 1) for change in changes)


def test_a_grid_has_every_combination_once_and_the_recipe_itself(tmp_path: Path) -> None:
    points = ablation.points(BASE, FACTORS, grid=True, seeds=1)
    # Each of three weights (25 is the recipe's own) with each of two rates, and the recipe with its own rate.
    assert len(points) == 7
    assert points[0] == {"seed": 0}
    configs = configs_of(run(tmp_path / "a", points, [0.5] * 7))
    found = {(config.objective["variance"].weight, config.optimizer.learning_rate) for config in configs}
    wanted = {(weight, rate) for weight in (0.0, 25.0, 50.0) for rate in (0.1, 0.2)}
    assert found == wanted | {(25.0, BASE.optimizer.learning_rate)}


def test_seeds_count_from_the_recipes_own() -> None:
    base = BASE.model_copy(update={"seed": 5})
    points = ablation.points(base, {"objective.variance.weight": [0]}, grid=False, seeds=3)
    assert [point["seed"] for point in points] == [5, 5, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("texts", "factors"),
    [
        (["a.b=0,0.1,1"], {"a.b": [0, 0.1, 1]}),
        (["kind=rbf,energy"], {"kind": ["rbf", "energy"]}),
        (["widths=[8,16],[32]"], {"widths": [[8, 16], [32]]}),
        (["x=null,2", "y=true"], {"x": [None, 2], "y": [True]}),
    ],
)
def test_values_are_json_where_they_can_be(texts: list[str], factors: dict[str, list[Any]]) -> None:
    assert ablation.parse(texts) == factors


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "an ablation needs a factor"),
        (["a.b"], "must have the form a.b=v1,v2"),
        (["a.b="], "must have the form a.b=v1,v2"),
        (["a..b=1"], "must have the form a.b=v1,v2"),
        (["a=1,1"], "--factor a has the value 1 twice"),
        (["a=1", "a=2"], "--factor a is given twice"),
        (["seed=1,2"], "use --seeds N"),
    ],
)
def test_a_factor_that_says_nothing_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ablation.parse(texts)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"objective.variance.weight": [25, 25.0]}, "nothing would change"),
        ({"objective.variance.wait": [1]}, "unknown key: 'objective.variance.wait'"),
        ({"objective.variance.weight": [-1]}, "--factor objective.variance.weight=-1: "),
        ({"views.7.flip_probability": [1]}, "--factor views.7.flip_probability=1: views.7.flip_probability"),
    ],
)
def test_a_level_that_is_no_config_is_refused_before_anything_runs(factors: ablation.Factors, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ablation.points(BASE, factors, grid=False, seeds=1)


# --- the table --------------------------------------------------------------------------------------------------------


def test_differences_are_taken_between_runs_of_one_seed(tmp_path: Path) -> None:
    points = ablation.points(BASE, {"objective.variance.weight": [0]}, grid=False, seeds=3)
    base, without = [0.50, 0.70, 0.90], [0.49, 0.68, 0.87]
    result = run(tmp_path / "a", points, [value for pair in zip(base, without, strict=True) for value in pair])
    first, second = ablation.collect(result).levels
    assert (first.settings, second.settings) == (
        {"objective.variance.weight": 25.0},
        {"objective.variance.weight": 0.0},
    )
    assert first.values == dict(enumerate(base))
    assert first.mean == pytest.approx(0.7)
    assert first.std == pytest.approx(statistics.stdev(base))
    assert first.difference is None
    # The seeds differ by 0.2; the differences only by 0.01.
    assert second.difference == pytest.approx(-0.02)
    assert second.difference_stderr == pytest.approx(0.01 / math.sqrt(3))
    assert second.pairs == 3


def test_a_seed_that_diverged_is_left_out_of_its_pair_and_named(tmp_path: Path) -> None:
    points = ablation.points(BASE, {"objective.variance.weight": [0, 50]}, grid=False, seeds=2)
    result = run(tmp_path / "a", points, [0.5, None, 0.6, None, 0.3, 0.7])
    base, without, double = ablation.collect(result).levels
    assert (base.values, base.mean, base.std) == ({0: 0.5}, 0.5, None)
    assert (without.values, without.difference, without.pairs) == ({1: 0.3}, None, 0)
    assert double.difference == pytest.approx(0.1)
    assert double.pairs == 1
    assert double.difference_stderr is None
    assert without.reasons == {0: "INFEASIBLE: diverged: loss/total"}


def test_a_part_of_an_ablation_has_a_table_already(tmp_path: Path) -> None:
    points = ablation.points(BASE, {"objective.variance.weight": [0]}, grid=False, seeds=3)
    levels = ablation.collect(run(tmp_path / "a", points, [0.5, 0.4])).levels
    assert [(level.values, level.seeds) for level in levels] == [({0: 0.5}, 3), ({0: 0.4}, 3)]
