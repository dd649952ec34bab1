"""What a sweep's own trials took, kept for the next forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.analysis import measurements
from pretune.core import results
from pretune.core import shape as shapes
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened
from tests import toys

BASE = toys.BASE


def sweep(folder: Path, *, memory: bool = True) -> None:
    with Journal(folder, new=True) as journal:
        journal.append(Opened(experiment=toys.experiment(folder.parent, name=folder.name, trials=2)))
        for number in range(2):
            config = BASE.model_dump(mode="json")
            journal.append(Asked(number=number, params={"n": number}, distributions={}, config=config))
            for epoch in (1, 2, 3):
                first = {"time/first_step_s": 6.0 if number == 0 else 0.2} if epoch == 1 else {}
                group = {"time/group_start_s": 30.0} if (number, epoch) == (0, 1) else {}
                full = {"probe/full_linear": 0.5} if epoch == 3 else {}
                held = {"memory/host_peak_bytes": 1e9 + number} if memory else {}
                metrics = {
                    "probe/linear": 0.5,
                    "time/images_per_s": 128.0,
                    "time/probe_s": 3.0 if epoch == 3 else 1.0,
                    **first,
                    **group,
                    **full,
                    **held,
                }
                journal.append(Epoch(number=number, epoch=epoch, metrics=metrics))
            journal.append(Ended(number=number, state="COMPLETE", value=0.5))
        journal.append(Closed(reason="finished"))


@pytest.mark.usefixtures("own_cache")
def test_a_finished_sweep_says_what_its_shapes_take(tmp_path: Path) -> None:
    sweep(tmp_path / "s")
    ((shape, found),) = measurements.told(tmp_path / "s").items()
    assert shape == shapes.of(BASE)
    assert (found.start_s, found.cold_s, found.warm_s) == (30.0, 6.0, 0.2)
    assert (found.step_s, found.probe_s, found.full_probe_s) == (64 / 128.0, 1.0, 2.0)
    assert (found.host_bytes, found.gpu_bytes, found.checkpoint_bytes) == (1e9 + 1, None, None)
    measurements.learn(results.read(tmp_path / "s"), slots=2)
    assert measurements.Known(workers=1, gpus_per_worker=0.0, slots=2).of(shape) == found
    assert measurements.Known(workers=2, gpus_per_worker=0.0, slots=2).of(shape) is None
    assert measurements.Known(workers=1, gpus_per_worker=0.0, slots=1).of(shape) is None


def test_a_sweep_that_told_no_memory_says_nothing(tmp_path: Path) -> None:
    sweep(tmp_path / "s", memory=False)
    assert measurements.told(tmp_path / "s") == {}


def test_a_cache_that_cannot_be_written_to_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "file"))
    sweep(tmp_path / "s")
    measurements.learn(results.read(tmp_path / "s"), slots=2)
    assert measurements.Known(workers=1, gpus_per_worker=0.0, slots=2).of(shapes.of(BASE)) is None
