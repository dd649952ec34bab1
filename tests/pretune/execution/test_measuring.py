"""A shape is measured by two short trials of it, in fresh processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pretune.execution import family, launch, measuring
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


def test_a_few_steps_say_what_a_trial_takes_and_how_fast_two_are_at_once(tiny: TrialConfig) -> None:
    most = measuring.machine_bytes()
    found = measure(tiny, workers=1, gpus_per_worker=0.0, copies=2, host_bytes=most, together=True)
    assert found.images_per_s is not None
    alone = tiny.batch_size / found.step_s
    assert 0.1 * alone < found.images_per_s < 10.0 * alone
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


@pytest.mark.parametrize(("share", "capped"), [(1.0, 0), (0.5, 1)])
def test_copies_on_a_gpu_have_the_caps_of_a_sweeps_workers(
    share: float, capped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: seen.append(fraction))
    measuring._make(share, 1e9)
    assert len(seen) == capped


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


def test_steps_are_counted_while_all_train() -> None:
    early = [(10.0, 1), (11.0, 11), (14.0, 41)]
    late = [(12.0, 1), (16.0, 21)]
    assert measuring.at_once([early]) == pytest.approx(10.0)
    assert measuring.at_once([early, late]) == pytest.approx(10.0 + 5.0), "from 12 to 14 s"
    assert measuring.at_once([late, early]) == measuring.at_once([early, late])
    uneven = [(10.0, 0), (10.5, 10), (20.0, 10)]
    assert measuring.at_once([uneven, [(10.25, 0), (11.25, 4)]]) == pytest.approx(5.0 + 4.0)


def test_processes_that_never_train_at_once_are_no_measurement() -> None:
    with pytest.raises(NotMeasuredError, match="2 processes did not train at the same time"):
        measuring.at_once([[(10.0, 1), (12.0, 9)], [(12.0, 1), (14.0, 9)]])


def test_nobody_waits_for_a_process_that_has_ended(tmp_path: Path) -> None:
    gate = measuring._Gate(tmp_path, 2)
    beats: list[int] = []

    def progress(epoch: int, step: int) -> None:
        beats.append(step)
        gate.give_up()

    with pytest.raises(NotMeasuredError, match="another process"):
        gate.wait(progress)
    assert len(beats) == 1
    (tmp_path / "ready-0").touch()
    gate.wait(progress)


def test_that_memory_did_not_suffice_tells_more_than_what_followed(
    tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter([family.WorkerFailedError("rank 0 raised NotMeasuredError: another process"), None])

    def run(*_: object, **__: object) -> Outcome:
        error = next(ends)
        if error is not None:
            raise error
        return Outcome(state="out_of_memory", reason="can't allocate memory", epochs=0)

    monkeypatch.setattr(launch, "run", run)
    with pytest.raises(NotFittingError, match="can't allocate"):
        measure(tiny, workers=1, gpus_per_worker=0.0, copies=2, host_bytes=1e9, together=True)
