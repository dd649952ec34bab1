"""An ablation's table: levels by what they change, what was not counted, for a terminal, as Markdown, in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretune.analysis import ablation
from pretune.core import results
from pretune.display.ablation import LEGEND, markdown, table, write
from tests.pretune.analysis.ablations import BASE, run
from tests.pretune.display.screen import words


@pytest.fixture
def result(tmp_path: Path) -> results.SweepResult:
    """Two seeds of three levels; one of the base and one of weight 0 diverged."""
    points = ablation.points(BASE, {"objective.variance.weight": [0, 50]}, grid=False, seeds=2)
    return run(tmp_path / "a", points, [0.5, None, 0.6, None, 0.3, 0.7])


def test_markdown_has_a_row_a_level_and_names_what_is_not_counted(result: results.SweepResult) -> None:
    assert markdown(ablation.collect(result)).splitlines() == [
        "# a",
        "",
        "Recipe: mine",
        "",
        "| level | seeds | probe/linear | std | to base | pairs |",
        "| :-- | --: | --: | --: | --: | --: |",
        "| base: variance.weight=25 | 1 of 2 | 0.500 | – |  |  |",
        "| variance.weight=0 | 1 of 2 | 0.300 | – | – | 0 |",
        "| variance.weight=50 | 2 | 0.650 | 0.071 | +0.100 | 1 |",
        "",
        LEGEND,
        "",
        "* base: variance.weight=25, seed 1, is not counted: INFEASIBLE: diverged: loss/total",
        "* variance.weight=0, seed 0, is not counted: INFEASIBLE: diverged: loss/total",
    ]


def test_a_bar_in_a_value_does_not_end_its_cell(result: results.SweepResult) -> None:
    found = ablation.collect(result)
    level = found.levels[0].model_copy(update={"settings": {"objective.mmd.kind": "a|b"}})
    assert r"| base: mmd=a\|b |" in markdown(found.model_copy(update={"levels": (level,)}))


def test_the_terminal_shows_the_same_rows_and_remarks(result: results.SweepResult) -> None:
    lines = words(table(result))
    assert ["variance.weight=50", "2", "0.650", "0.071", "+0.100", "1"] in lines
    assert ["base:", "variance.weight=25", "1", "of", "2", "0.500", "–"] in lines
    text = " ".join(word for line in lines for word in line)
    assert "variance.weight=0, seed 0, is not counted: INFEASIBLE: diverged: loss/total" in text
    assert LEGEND in text


def test_the_table_is_written_as_markdown_and_json(result: results.SweepResult) -> None:
    text, values = (path.read_text(encoding="utf-8") for path in write(result))
    assert text == markdown(ablation.collect(result))
    assert json.loads(values)["levels"][2]["difference"] == pytest.approx(0.1)
    assert sorted(path.name for path in result.folder.glob("ablation*")) == ["ablation.json", "ablation.md"]
