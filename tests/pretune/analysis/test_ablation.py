"""An ablation's numbers: differences taken seed by seed, verdicts, what is not counted, and a grid's effects."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from pretune.analysis import ablation
from tests.pretune.analysis.ablations import asked, run

WEIGHT = "objective.variance.weight"


def test_differences_are_taken_between_runs_of_one_seed(tmp_path: Path) -> None:
    base, without = [0.50, 0.70, 0.90], [0.49, 0.68, 0.87]
    values = [value for pair in zip(base, without, strict=True) for value in pair]
    found = ablation.collect(run(tmp_path / "a", asked(f"{WEIGHT}=0", seeds=3), values), bootstrap=True)
    first, second = found.levels
    assert (first.settings, second.settings) == ({WEIGHT: 25.0}, {WEIGHT: 0.0})
    assert first.values == dict(enumerate(base))
    assert first.mean == pytest.approx(0.7)
    assert first.std == pytest.approx(statistics.stdev(base))
    assert (first.difference, first.verdict) == (None, "")
    # The seeds differ by 0.2; the differences only by 0.01.
    assert second.difference == pytest.approx(-0.02)
    assert second.difference_stderr == pytest.approx(0.01 / math.sqrt(3))
    assert second.interval == pytest.approx(
        (-0.02 - 4.3027 * 0.01 / math.sqrt(3), -0.02 + 4.3027 * 0.01 / math.sqrt(3)), abs=1e-5
    )
    assert second.bootstrap is not None
    assert second.pairs == 3
    assert second.p == pytest.approx(0.0742, abs=1e-4)
    assert second.verdict == "not enough seeds (about 2 more)"
    assert (found.smallest_effect, found.looks) == (0.01, (3,))


def test_a_seed_that_diverged_is_left_out_of_its_pair_and_named(tmp_path: Path) -> None:
    result = run(tmp_path / "a", asked(f"{WEIGHT}=0,50"), [0.5, None, 0.6, None, 0.3, 0.7])
    base, without, double = ablation.collect(result).levels
    assert (base.values, base.mean, base.std) == ({0: 0.5}, 0.5, None)
    assert (without.values, without.difference, without.pairs) == ({1: 0.3}, None, 0)
    assert double.difference == pytest.approx(0.1)
    assert (double.pairs, double.difference_stderr, double.interval) == (1, None, None)
    assert double.verdict == "not enough seeds (about 2 more)"
    assert without.reasons == {0: "INFEASIBLE: diverged: loss/total"}


def test_a_part_of_an_ablation_has_a_table_and_no_verdict_before_its_seeds_have_ended(tmp_path: Path) -> None:
    design = asked(f"{WEIGHT}=0", seeds=5)
    part = [0.50, 0.60, 0.51, 0.612, 0.49, 0.59, 0.50]
    found = ablation.collect(run(tmp_path / "a", design, part)).levels
    assert [(len(level.values), level.seeds) for level in found] == [(4, 5), (3, 5)]
    assert found[1].verdict == "not enough seeds (about 2 more)"
    assert found[1].p is None
    whole = ablation.collect(run(tmp_path / "b", design, [*part, 0.61, 0.5, 0.61])).levels
    assert whole[1].verdict == "helps"


def test_one_seed_gives_no_verdict(tmp_path: Path) -> None:
    levels = ablation.collect(run(tmp_path / "a", asked(f"{WEIGHT}=0", seeds=1), [0.1, 0.9])).levels
    assert levels[1].verdict == "not enough seeds (about 2 more)"
    assert levels[1].difference == pytest.approx(0.8)
    assert (levels[1].interval, levels[1].p) == (None, None)


def test_where_less_is_better_less_helps(tmp_path: Path) -> None:
    result = run(
        tmp_path / "a",
        asked(f"{WEIGHT}=0", seeds=4),
        lambda level, seed: 2.0 - level + 0.01 * seed * (1 + level),
        metric="loss/total",
        maximize=False,
    )
    found = ablation.collect(result)
    assert (found.direction, found.levels[1].verdict) == ("minimize", "helps")
    assert found.smallest_effect == pytest.approx(0.02 * 2.015)


def test_what_cannot_be_built_or_never_ends_well_is_a_row_with_its_reason(tmp_path: Path) -> None:
    result = run(tmp_path / "a", asked(f"{WEIGHT}=-1,0,50", seeds=2), lambda level, seed: None if level == 2 else 0.5)
    base, bad, diverged, equal = ablation.collect(result).levels
    assert "must be at least 0" in bad.refused
    assert (bad.settings, bad.seeds, bad.verdict) == ({WEIGHT: -1}, 0, "")
    assert (diverged.verdict, sorted(diverged.reasons)) == ("", [0, 1])
    assert (equal.verdict, equal.interval) == ("not enough seeds (about 5 more)", None)
    assert base.seeds == 2


def test_without_any_value_of_the_base_nothing_is_compared(tmp_path: Path) -> None:
    found = ablation.collect(run(tmp_path / "a", asked(f"{WEIGHT}=0"), lambda level, seed: 0.5 if level else None))
    assert [level.verdict for level in found.levels] == ["", ""]
    assert found.notes == ("the base has no value with any seed: there is nothing to compare with",)
    everything = ablation.collect(run(tmp_path / "b", asked(f"{WEIGHT}=0"), lambda level, seed: None))
    assert [level.mean for level in everything.levels] == [None, None]
    nothing = ablation.collect(run(tmp_path / "c", asked(f"{WEIGHT}=0"), []))
    assert [level.values for level in nothing.levels] == [{}, {}]


def test_more_seeds_go_to_what_is_undecided_alone(tmp_path: Path) -> None:
    noise = [0.000, 0.031, -0.012, 0.008, -0.027, 0.019, 0.011, -0.009, 0.023, -0.017, 0.006, -0.02]

    def value(level: int, seed: int) -> float:
        return 0.5 + 0.01 * seed + (0.3 + noise[seed] / 100 if level == 1 else noise[seed] if level == 2 else 0.0)

    result = run(tmp_path / "a", asked(f"{WEIGHT}=0,50", seeds=3, max_seeds=12), value)
    base, clear, undecided = ablation.collect(result).levels
    assert [len(level.values) for level in (base, clear, undecided)] == [12, 3, 12]
    assert (clear.verdict, undecided.finding) == ("helps", "not enough seeds")
    assert result.closed == "finished"
    assert len(result.trials) == 27


def test_a_grid_has_main_effects_and_interactions(tmp_path: Path) -> None:
    design = asked(f"{WEIGHT}=0,25", "optimizer.learning_rate=0.1", grid=True, seeds=4)

    def value(level: int, seed: int) -> float:
        cell = design.levels[level].cell
        weight, rate = cell[WEIGHT] == "0", cell["optimizer.learning_rate"] == "0.1"
        return (
            0.5 + 0.1 * seed - 0.2 * weight + 0.1 * rate + 0.04 * (weight and rate) + 0.0001 * seed * (level + 1) ** 2
        )

    found = ablation.collect(run(tmp_path / "a", design, value))
    assert [(list(effect.levels), effect.seeds) for effect in found.effects] == [
        ([WEIGHT], 4),
        (["optimizer.learning_rate"], 4),
        ([WEIGHT, "optimizer.learning_rate"], 4),
    ]
    assert [effect.difference for effect in found.effects] == pytest.approx([-0.18, 0.12, 0.04], abs=0.005)
    assert all(effect.p is not None and effect.p < 0.01 for effect in found.effects)
    assert found.effects[0].against == {WEIGHT: "25"}
    part = ablation.collect(run(tmp_path / "b", design, lambda level, seed: None if level == 3 else 0.5))
    assert part.effects == ()
    assert "every cell of the grid" in part.notes[0]
