"""What a sweep was said to take, against what it took."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pretune.analysis import forecast
from pretune.core import results
from pretune.core.forecast import Forecast
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Resumed
from tests import toys

SAID = Forecast(trials=2, epochs=12, expected_epochs=8.0, slots=1, seconds=50.0, host_bytes=2e9, disk_bytes=5e6)


def sweep(folder: Path, said: Forecast | None, *, closed: bool = True) -> results.SweepResult:
    """A record each ten seconds; 100 seconds lie between two drivers."""
    clock = itertools.chain(range(0, 50, 10), range(140, 1000, 10))
    with Journal(folder, new=True, clock=lambda: float(next(clock))) as journal:
        journal.append(Opened(experiment=toys.experiment(folder.parent, name=folder.name, trials=2), forecast=said))
        config = toys.BASE.model_dump(mode="json")
        journal.append(Asked(number=0, params={"n": 0}, distributions={}, config=config))
        journal.append(Epoch(number=0, epoch=6, metrics={"probe/linear": 0.5, "memory/host_peak_bytes": 1e9}))
        journal.append(Ended(number=0, state="COMPLETE", value=0.5))
        journal.append(Closed(reason="interrupted"))  # at 40
        journal.append(Resumed(trials=2))  # at 140
        journal.append(Asked(number=1, params={"n": 1}, distributions={}, config=config))
        journal.append(Epoch(number=1, epoch=4, metrics={"probe/linear": 0.5, "memory/host_peak_bytes": 1.6e9}))
        journal.append(Ended(number=1, state="PRUNED"))
        if closed:
            journal.append(Closed(reason="finished"))  # at 180
    return results.read(folder)


def test_each_cost_has_a_line_with_how_far_the_forecast_was_off(tmp_path: Path) -> None:
    found = forecast.against_fact(sweep(tmp_path / "s", SAID))
    assert found is not None
    assert found.over
    facts = {line.name: (line.forecast, line.fact) for line in found.lines}
    assert facts["time"] == (50.0, 80.0)  # 40 of the first driver, 40 of the second
    assert facts["epochs"] == (8.0, 10.0)
    assert facts["memory of a worker"] == (2e9, 1.6e9)
    assert facts["disk"][1] == pytest.approx((tmp_path / "s" / "journal.jsonl").stat().st_size, rel=0.1)
    assert "GPU memory of a worker" not in facts
    errors = {line.name: line.error for line in found.lines}
    assert errors["memory of a worker"] == pytest.approx(0.25)
    assert found.as_json()["epochs"] == {"unit": "epochs", "forecast": 8.0, "fact": 10.0}


def test_a_sweep_that_is_not_over_says_so(tmp_path: Path) -> None:
    found = forecast.against_fact(sweep(tmp_path / "s", SAID, closed=False))
    assert found is not None
    assert not found.over


def test_of_a_sweep_without_a_forecast_nothing_is_said(tmp_path: Path) -> None:
    assert forecast.against_fact(sweep(tmp_path / "s", None)) is None


def test_what_was_not_forecast_has_no_line_and_no_error(tmp_path: Path) -> None:
    found = forecast.against_fact(sweep(tmp_path / "s", Forecast(trials=2, epochs=12)))
    assert found is not None
    assert [(line.name, line.forecast) for line in found.lines] == [("epochs", 12.0)]
    assert forecast.Line("time", "seconds", None, 3.0).error is None
    assert forecast.Line("time", "seconds", 3.0, None).error is None
