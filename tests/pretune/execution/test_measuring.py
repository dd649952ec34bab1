"""A shape is measured by two short trials of it, in fresh processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pretune.execution import family, measuring
from pretune.execution.measuring import NotFittingError, NotMeasuredError, measure
from pretune.request import request
from search_spaces import RECIPES
from tests.profiles import TINY, runs_end
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.report import Outcome


@pytest.fixture
def tiny(here: Path) -> TrialConfig:
    bound, _ = request.with_data(
        with_changes(RECIPES["sfrik_tiny"](), TINY | {"epochs": 500}), "digits", root=here / "data"
    )
    return bound


def test_a_few_steps_say_what_a_trial_takes(tiny: TrialConfig) -> None:
    found = measure(tiny, workers=1, gpus_per_worker=0.0, copies=1, host_bytes=measuring.machine_bytes())
    assert found.start_s is not None
    assert found.start_s > 0.1
    assert 0.0 < found.step_s < 5.0
    assert found.probe_s > 0.0
    assert 2e8 < found.host_bytes < measuring.machine_bytes()
    assert found.mapped_bytes is not None
    assert 0.0 < found.mapped_bytes < found.host_bytes
    assert found.checkpoint_bytes is not None
    assert found.checkpoint_bytes > 1e4
    assert found.gpu_bytes is None
    assert os.listdir() == ["data"], "nothing is left where it was asked"


@pytest.mark.parametrize(
    ("ends", "error", "said"),
    [
        (Outcome(state="out_of_memory", reason="can't allocate memory", epochs=0), NotFittingError, "can't allocate"),
        (Outcome(state="collapsed", reason="in one point", epochs=0), NotMeasuredError, "collapsed: in one point"),
        (family.WorkerFailedError("rank 0 died with exit code -9"), NotFittingError, "runs out of memory"),
        (
            family.WorkerFailedError("rank 0 raised KeyError: 'x'\nTraceback"),
            NotMeasuredError,
            "raised KeyError: 'x'$",
        ),
        (
            family.HungError("rank 0 hung: no sign of life for 90 s"),
            NotMeasuredError,
            "no step was done in 90 s, too slow to be measured here",
        ),
    ],
)
def test_what_cannot_be_measured_says_why(
    tiny: TrialConfig, ends: Outcome | Exception, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_end(monkeypatch, ends)
    with pytest.raises(error, match=said):
        measure(tiny, workers=1, gpus_per_worker=0.0, copies=2, host_bytes=1e9)


def test_a_measurement_survives_json() -> None:
    found = measuring.Measurement(
        start_s=None,
        cold_s=None,
        warm_s=0.0,
        step_s=1.0,
        epoch_s=0.0,
        probe_s=0.0,
        full_probe_s=0.0,
        save_s=0.0,
        host_bytes=1.0,
        report_bytes=1.0,
    )
    assert measuring.Measurement.model_validate(json.loads(found.model_dump_json())) == found
