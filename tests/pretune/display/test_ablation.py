"""An ablation's tables: levels by what they change, verdicts, what was not counted, for a terminal and as Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.analysis import ablation
from pretune.core import results
from pretune.display.ablation import legend, markdown, table
from tests.pretune.analysis.ablations import asked, run
from tests.pretune.display.screen import words


@pytest.fixture
def result(tmp_path: Path) -> results.SweepResult:
    """Two seeds of three levels; one of the base and one of weight 0 diverged."""
    return run(tmp_path / "a", asked("objective.variance.weight=0,50,-1"), [0.5, None, 0.6, None, 0.3, 0.7])


def test_markdown_has_a_row_a_level_and_names_what_is_not_counted(result: results.SweepResult) -> None:
    found = ablation.collect(result)
    few = "not enough seeds (about 2 more)"
    assert markdown(found).splitlines() == [
        "# a",
        "",
        "Recipe: mine",
        "",
        "| level | seeds | probe/linear | to base | 95 % | p | verdict |",
        "| :-- | --: | --: | --: | --: | --: | :-- |",
        "| base | 1 of 2 | 0.500 |  |  |  |  |",
        f"| variance.weight=0 | 1 of 2 | 0.300 | – | – | – | {few.replace('2', '3')} |",
        f"| variance.weight=50 | 2 | 0.650 ± 0.635 | +0.100 | – | – | {few} |",
        "| variance.weight=-1 | – | – | – | – | – | cannot be built |",
        "",
        "base: variance.weight=25",
        "",
        legend(found),
        "",
        "* variance.weight=-1 cannot be built: 'objective.variance.weight' is -1, but must be at least 0; change it",
        "* base, seed 1, is not counted: INFEASIBLE: diverged: loss/total",
        "* variance.weight=0, seed 0, is not counted: INFEASIBLE: diverged: loss/total",
    ]


def test_a_bar_in_a_value_does_not_end_its_cell(result: results.SweepResult) -> None:
    found = ablation.collect(result)
    kinds = [{"objective.mmd.kind": kind} for kind in ("a", "a|b")]
    levels = [level.model_copy(update={"settings": kind}) for level, kind in zip(found.levels, kinds, strict=False)]
    assert r"| mmd=a\|b |" in markdown(found.model_copy(update={"levels": tuple(levels)}))


def test_the_terminal_shows_the_same_rows_and_remarks(result: results.SweepResult) -> None:
    lines = words(table(result))
    assert ["base", "1", "of", "2", "0.500"] in lines
    text = " ".join(word for line in lines for word in line)
    assert "variance.weight=0, seed 0, is not counted: INFEASIBLE: diverged: loss/total" in text
    assert legend(ablation.collect(result)) in text


def test_levels_that_three_digits_do_not_tell_apart_are_written_in_full(tmp_path: Path) -> None:
    result = run(tmp_path / "a", asked("objective.variance.weight=25.001,30"), [])
    assert "| variance.weight=25.001 |" in markdown(ablation.collect(result))
    assert "| variance.weight=30 |" in markdown(ablation.collect(result))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.52, 0.51, 0.55], "+0.030"),
        ([5000.0, 5300.0, 5100.0, 5350.0], "+275"),
        ([1e-4, 2e-4, 1e-4, 3e-4], "+0.00015"),
    ],
)
def test_values_have_as_many_decimals_as_their_differences_deserve(
    tmp_path: Path, values: list[float], shown: str
) -> None:
    found = ablation.collect(run(tmp_path / "a", asked("objective.variance.weight=0"), values))
    assert f"| {shown} |" in markdown(found)


def test_a_grid_and_later_looks_are_explained(tmp_path: Path) -> None:
    design = asked("objective.variance.weight=0", "epochs=9", grid=True, seeds=2, max_seeds=4)
    result = run(tmp_path / "a", design, lambda level, seed: 0.5 + 0.1 * level + 0.001 * seed * level)
    text = markdown(ablation.collect(result))
    assert "| variance.weight x epochs" not in text
    assert "| variance.weight 0 x epochs 9 |" in text
    assert "| epochs: 9 against 3 |" in text
    assert "after 2, 3 or 4 seeds, adjusted for looking again" in text
