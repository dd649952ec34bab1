"""Bootstrap intervals, power and the effects of factorials, held to scipy and statsmodels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pretune.analysis.statistics import Cell, bootstrap, contrasts, more_seeds, pairs_for, power
from pretune.core.evidence import paired


def test_power_and_the_pairs_that_it_takes_are_those_of_statsmodels() -> None:
    from statsmodels.stats.power import TTestPower

    wanted = TTestPower()
    for size, pairs, alpha in itertools.product((0.1, 0.5, 1.0, 3.0), (2, 3, 8, 50), (0.05, 0.01)):
        found, theirs = power(size * 0.02, 0.02, pairs, alpha), wanted.power(size, pairs, alpha)
        # Where nothing is left of the lower tail, some versions of scipy give NaN there.
        assert found == pytest.approx(1.0 if np.isnan(theirs) else theirs, abs=2e-4), (size, pairs, alpha)
    for size in (0.2, 0.5, 1.0, 2.0):
        assert pairs_for(size, 1.0) == np.ceil(wanted.solve_power(size, alpha=0.05, power=0.8) - 1e-9)
    assert (power(0.0, 1.0, 1), power(1.0, 0.0, 2), power(1e6, 1.0, 9)) == (0.0, 1.0, 1.0)
    assert pairs_for(0.0, 1.0) == 10_000


def test_about_how_many_more_is_what_comes_first_of_seeing_it_and_of_ruling_it_out() -> None:
    small = paired([0.004, -0.003, 0.005, -0.004])
    assert small is not None
    assert small.std is not None
    ruled_out = more_seeds(small, worth=0.01, comparisons=1)
    assert 1 <= ruled_out <= 10 < more_seeds(small, worth=None, comparisons=1)
    large = paired([0.02, 0.09, 0.05])
    assert large is not None
    assert more_seeds(large, worth=0.01, comparisons=1) == pairs_for(large.mean, large.std or 0.0) - 3
    assert more_seeds(large, worth=0.01, comparisons=5) > more_seeds(large, worth=0.01, comparisons=1)
    assert more_seeds(None, worth=0.01, comparisons=1) == 3
    assert more_seeds(paired([0.1]), worth=0.01, comparisons=1) == 2
    assert more_seeds(paired([0.1, 0.1]), worth=0.01, comparisons=1) == 4


def test_a_bootstrap_interval_holds_the_mean_and_is_equal_for_equal_numbers() -> None:
    differences = [0.01, 0.03, -0.01, 0.02, 0.05]
    found = bootstrap(differences)
    assert found is not None
    assert found[0] < np.mean(differences) < found[1]
    assert bootstrap(differences) == found
    assert bootstrap([0.1, 0.2]) is None
    assert bootstrap([0.1, 0.1, 0.1]) is None
    assert bootstrap([0.0, 0.0, 0.3]) is not None


def test_effects_of_a_factorial_are_those_of_least_squares_and_of_a_repeated_measures_anova() -> None:
    import pandas as pd
    import statsmodels.formula.api as formulas
    from statsmodels.stats.anova import AnovaRM

    rng = np.random.default_rng(3)
    factors = {"a": ["a0", "a1"], "b": ["b0", "b1", "b2"], "c": ["c0", "c1"]}
    cells = list(itertools.product(*factors.values()))
    values = {cell: {seed: float(rng.normal(cells.index(cell) % 5, 1.0)) for seed in range(6)} for cell in cells}
    found = {tuple(one.levels.values()): one for one in contrasts(factors, values)}
    # 1 + 2 + 1 main effects; 2 + 1 + 2 interactions of two.
    assert len(found) == 9
    table = pd.DataFrame([(*cell, seed, value) for cell, own in values.items() for seed, value in own.items()])
    table.columns = ["a", "b", "c", "seed", "y"]
    fit = formulas.ols("y ~ (C(a, Sum) + C(b) + C(c, Sum))**2 + C(seed)", table).fit()
    for level in ("b1", "b2"):
        estimate = np.mean(found[(level,)].differences)
        assert estimate == pytest.approx(fit.params[f"C(b)[T.{level}]"])
    # Coded -1 and +1, and a0 is the +1: half an effect, the other way.
    assert np.mean(found[("a1",)].differences) == pytest.approx(
        table[table.a == "a1"].y.mean() - table[table.a == "a0"].y.mean()
    )
    two = {name: factors[name] for name in ("a", "c")}
    pooled = {
        (a, c): {seed: np.mean([values[a, b, c][seed] for b in factors["b"]]) for seed in range(6)}
        for a, c in itertools.product(*two.values())
    }
    frame = pd.DataFrame([(*cell, seed, value) for cell, own in pooled.items() for seed, value in own.items()])
    frame.columns = ["a", "c", "seed", "y"]
    anova = AnovaRM(frame, "y", "seed", within=["a", "c"]).fit().anova_table
    for name, levels in {"a": ("a1",), "c": ("c1",), "a:c": ("a1", "c1")}.items():
        test = paired(found[levels].differences)
        assert test is not None
        assert test.p == pytest.approx(anova.loc[name, "Pr > F"])


def test_an_effect_takes_seeds_that_every_cell_has() -> None:
    factors = {"a": ["0", "1"], "b": ["0", "1"]}
    values: dict[Cell, dict[int, float]] = {
        ("0", "0"): {0: 1.0, 1: 1.0},
        ("0", "1"): {0: 2.0, 1: 9.0},
        ("1", "0"): {0: 4.0},
        ("1", "1"): {0: 8.0, 1: 1.0},
    }
    found = {tuple(one.levels): one.differences for one in contrasts(factors, values)}
    assert found == {("a",): (4.5,), ("b",): (2.5,), ("a", "b"): (3.0,)}
    del values["1", "0"]
    assert all(one.differences == () for one in contrasts(factors, values))
