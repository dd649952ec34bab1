"""A trial again, beside what was told of it."""

from __future__ import annotations

from pretune.analysis.replay import EpochComparison
from pretune.display.replay import table
from tests.pretune.display.screen import words


def test_the_table_shows_both_and_how_many_differ() -> None:
    metrics = {"probe/linear": 0.5, "loss/total": 2.0}
    compared = [EpochComparison(1, metrics, metrics), EpochComparison(2, metrics, {})]
    head, first, second = (line for line in words(table(compared, "probe/linear")) if line and line[0][0] not in "─━")
    assert head == ["epoch", "probe/linear,", "journal", "replay", "loss,", "journal", "replay", "numbers", "different"]
    assert first == ["1", "0.5", "0.5", "2", "2", "2", "none"]
    assert second == ["2", "0.5", "–", "2", "–", "0", "2"]
