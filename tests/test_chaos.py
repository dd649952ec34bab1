"""A quick part of `make chaos`: kills of a driver at random records of small sweeps."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import points


def test_a_driver_that_is_killed_nine_times_loses_nothing(tmp_path: Path) -> None:
    counts = points.run(tmp_path, seed=7, count=9)
    assert not counts.broken, counts.text()
    assert "finished trials lost" in counts.text()
