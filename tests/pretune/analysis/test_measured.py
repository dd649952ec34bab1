"""What `pretune show SWEEP --json` has beside the result: curves, what trials took, and what was typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from pretune.analysis import measured
from pretune.core import results
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Ended, Epoch, Extended, Opened, Record, Resumed, Started
from trainers.config import TrialConfig
from trainers.report import Checkpoint
from trainers.terms import Alignment

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=2)
CONFIG = BASE.model_dump(mode="json")


def epoch(number: int, at: int, **metrics: float) -> Epoch:
    return Epoch(number=number, epoch=at, metrics={"time/epoch_s": 10.0, "time/probe_s": 1.0, **metrics})


def told(folder: Path, *records: Record, host: Mapping[str, str] = MappingProxyType({})) -> results.SweepResult:
    asked = Experiment(name="s", space="mine", base=BASE, trials=2, storage=str(folder))
    with Journal(folder / "s", new=True) as journal:
        journal.append(Opened(experiment=asked, host=dict(host)))
        for record in records:
            journal.append(record)
    return results.read(folder / "s")


def asked(number: int) -> Asked:
    return Asked(number=number, params={"rate": 0.1}, distributions={}, config=CONFIG)


def test_a_curve_has_the_epochs_that_measured_the_metric_and_seconds_are_of_all(tmp_path: Path) -> None:
    result = told(
        tmp_path,
        asked(0),
        Started(number=0, attempt=0, epoch=0),
        epoch(0, 1, **{"probe/linear": 0.5, "probe/linear_stderr": 0.1, "memory/slot_bytes": 5.0}),
        Started(number=0, attempt=1, epoch=1),
        epoch(0, 2, **{"memory/slot_bytes": 7.0}),
    )
    [trial] = measured.as_json(result)["trials"]
    assert trial["state"] == "RUNNING"
    assert (trial["value"], trial["last_value"], trial["last_stderr"]) == (None, 0.5, 0.1)
    assert trial["curve"] == [{"epoch": 1, "value": 0.5, "stderr": 0.1}]
    assert (trial["seconds"], trial["probe_seconds"], trial["slot_bytes"]) == (20.0, 2.0, 7.0)


def test_a_result_that_was_reused_has_its_curve_and_took_nothing(tmp_path: Path) -> None:
    result = told(
        tmp_path,
        asked(0),
        Started(number=0, attempt=0, epoch=0),
        epoch(0, 1, **{"probe/linear": 0.5}),
        Ended(number=0, state="COMPLETE", value=0.5),
        asked(1),
        Ended(number=1, state="COMPLETE", value=0.5, result_of=0),
    )
    first, second = measured.as_json(result)["trials"]
    assert second["curve"] == first["curve"]
    assert (second["seconds"], second["probe_seconds"], second["slot_bytes"]) == (0.0, 0.0, None)


def test_of_a_trial_that_was_made_longer_the_curve_is_the_one_that_counts(tmp_path: Path) -> None:
    kept = Checkpoint(path="/c", sha256="x", epoch=1)
    result = told(
        tmp_path,
        asked(0),
        Started(number=0, attempt=0, epoch=0),
        epoch(0, 1, **{"probe/linear": 0.5}),
        epoch(0, 2, **{"probe/linear": 0.6}),
        Ended(number=0, state="COMPLETE", value=0.6),
        Extended(number=0, config={**CONFIG, "epochs": 3}, checkpoint=kept),
        Started(number=0, attempt=1, epoch=1),
        epoch(0, 2, **{"probe/linear": 0.7}),
    )
    [trial] = measured.as_json(result)["trials"]
    assert [point["value"] for point in trial["curve"]] == [0.5, 0.7]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("/home/me/.venv/bin/pretune sweep kernels", "pretune sweep kernels"),
        ("/home/me/platform/pretune/__main__.py sweep 'my space.py:space'", "pretune sweep 'my space.py:space'"),
        ("./mine.py --trials 3", "./mine.py --trials 3"),
        (None, None),
    ],
)
def test_what_was_typed_is_kept_exactly_and_shown_with_the_program_by_its_name(
    tmp_path: Path, typed: str | None, shown: str | None
) -> None:
    host = {} if typed is None else {"command": typed}
    result = told(tmp_path, Resumed(trials=3, host=host), host=host)
    assert measured.as_json(result)["commands"] == ([] if typed is None else [typed, typed])
    assert measured.command(result.folder) == shown
