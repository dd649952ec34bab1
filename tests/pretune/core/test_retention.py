"""What stays on the disk of a trial that was stopped, and how much the checkpoints of a sweep take at most."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from pretune.core import retention
from pretune.core.history import Checkpoints, History, TrialHistory
from pretune.core.records import Asked, Closed, Ended, Epoch, Record, Started
from tests.toys import Ear, begin, experiment, space
from trainers import storage
from trainers.report import Checkpoint

METRIC = "probe/linear"


def trial(folder: Path, values: list[float | None], number: int = 0) -> list[Record]:
    """A running trial with a checkpoint, and its manifest, at each epoch; None: the epoch was not judged."""
    records: list[Record] = [
        Asked(number=number, params={}, distributions={}, config={}),
        Started(number=number, attempt=0, epoch=0),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for epoch, value in enumerate(values, start=1):
        pointer = Checkpoint(path=str(folder / f"epoch-{epoch}.pt"), sha256="", epoch=epoch)
        Path(pointer.path).write_bytes(b"state")
        Path(pointer.manifest).write_text("{}")
        metrics = {"loss/total": 1.0} if value is None else {METRIC: value}
        records.append(Epoch(number=number, epoch=epoch, metrics=metrics, checkpoint=pointer))
    return records


def history(folder: Path, values: list[float | None]) -> TrialHistory:
    return History(trial(folder, values)).trials[0]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("values", "maximize", "best"),
    [
        ([0.2, 0.7, 0.5], True, 2),
        ([0.2, 0.7, 0.5], False, 1),
        ([0.5, 0.5, 0.2], True, 2),  # of equals the newer one, which has trained longer
        ([None, 0.1, None], True, 2),  # an epoch that was not judged is never better
        ([None, 0.1, None], False, 2),
        ([None, None, None], True, 3),  # none was judged: the newest
        ([0.4], True, 1),
        ([-math.inf, 0.1], True, 2),
    ],
)
def test_the_best_checkpoint_stays_with_its_manifest_and_no_other(
    tmp_path: Path, values: list[float | None], maximize: bool, best: int
) -> None:
    retention.trim(history(tmp_path, values), METRIC, maximize=maximize)
    assert left(tmp_path) == [f"epoch-{best}.pt", f"epoch-{best}.pt.json"]


def test_a_checkpoint_that_is_gone_already_is_not_the_one_that_stays(tmp_path: Path) -> None:
    story = history(tmp_path, [0.2, 0.7, 0.5])
    (tmp_path / "epoch-2.pt").unlink()
    (tmp_path / "epoch-2.pt.json").unlink()
    retention.trim(story, METRIC, maximize=True)
    assert left(tmp_path) == ["epoch-3.pt", "epoch-3.pt.json"]
    retention.trim(story, METRIC, maximize=True)
    assert left(tmp_path) == ["epoch-3.pt", "epoch-3.pt.json"], "a second time nothing happens"


def test_a_trial_without_checkpoints_has_nothing_to_lose(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    retention.trim(History([Asked(number=0, params={}, distributions={}, config={})]).trials[0], METRIC, maximize=True)
    assert left(tmp_path) == ["config.json"]


def test_checkpoints_in_an_object_store_are_trimmed_there(tmp_path: Path) -> None:
    story = history(tmp_path, [0.2, 0.7, 0.5])
    story.checkpoints = Checkpoints(
        {
            epoch: pointer.model_copy(update={"path": f"file://{pointer.path}"})
            for epoch, pointer in story.checkpoints.items()
        }
    )
    retention.trim(story, METRIC, maximize=True)
    assert left(tmp_path) == ["epoch-2.pt", "epoch-2.pt.json"]


# ---- as a listener ---------------------------------------------------------------------------------------------------


def test_what_was_saved_within_an_epoch_goes_too_here_and_in_an_object_store(tmp_path: Path) -> None:
    for form in ("", "file://"):
        story = history(tmp_path, [0.7, 0.5])
        for name in ("epoch-0002-step-0000047.pt", "epoch-0002-step-0000047.pt.json", "notes.txt"):
            (tmp_path / name).touch()
        story.checkpoints = Checkpoints(
            {
                epoch: pointer.model_copy(update={"path": f"{form}{pointer.path}"})
                for epoch, pointer in story.checkpoints.items()
            }
        )
        retention.trim(story, METRIC, maximize=True)
        assert left(tmp_path) == ["epoch-1.pt", "epoch-1.pt.json", "notes.txt"]


def test_what_a_killed_driver_left_of_a_failed_trial_goes_when_the_sweep_is_taken_up(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    for record in (*trial(tmp_path / "0000", [0.2, 0.7]), Ended(number=0, state="FAIL")):
        conductor.history.apply(record)
    retention.Trimming(conductor, None)
    assert left(tmp_path / "0000") == ["epoch-2.pt", "epoch-2.pt.json"]


def test_a_sweep_that_is_taken_up_asks_its_storage_of_the_newest_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    for number in range(6):
        for record in (*trial(tmp_path / str(number), [0.2, 0.7], number), Ended(number=number, state="PRUNED")):
            conductor.history.apply(record)
    for number in range(4):  # the first driver was killed before it had trimmed the last two
        retention.trim(conductor.history.trials[number], METRIC, maximize=True)
    asked: list[str] = []
    exists = storage.exists

    def counted(place: str) -> bool:
        asked.append(place)
        return exists(place)

    monkeypatch.setattr(storage, "exists", counted)
    retention.Trimming(conductor, None)
    assert all(left(tmp_path / str(number)) == ["epoch-2.pt", "epoch-2.pt.json"] for number in range(6))
    assert {Path(place).parent.name for place in asked} == {"5", "4", "3"}, "that of number 3 needed nothing"


@pytest.mark.parametrize(
    ("state", "trimmed"), [("PRUNED", True), ("INFEASIBLE", True), ("COMPLETE", False), ("FAIL", True)]
)
def test_only_a_trial_that_is_not_gone_on_with_is_trimmed(tmp_path: Path, state: str, trimmed: bool) -> None:
    """A complete one can be trained longer from before its decay; one that has failed too often is not taken up."""
    ear, conductor = Ear(), begin(tmp_path / "s", experiment(tmp_path), space)
    listener = retention.Trimming(conductor, ear)
    records = [*trial(tmp_path / "0000", [0.2, 0.7]), Ended.model_validate({"number": 0, "state": state})]
    for record in records:
        conductor.history.apply(record)
        assert len(left(tmp_path / "0000")) == 4
        listener.on_event(record)
    assert ear.heard == records
    epochs = [2] if trimmed else [1, 2]
    assert left(tmp_path / "0000") == [f"epoch-{epoch}.pt{end}" for epoch in epochs for end in ("", ".json")]


def test_the_listener_behind_it_hears_of_an_end_while_all_files_are_there(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    seen: list[int] = []

    class Looking(Ear):
        def on_event(self, record: Record) -> None:
            seen.append(len(left(tmp_path / "0000")))

    listener = retention.Trimming(conductor, Looking())
    records = trial(tmp_path / "0000", [0.2, 0.7, 0.5])
    for record in (*records, Ended(number=0, state="PRUNED"), Closed(reason="finished")):
        conductor.history.apply(record)
        listener.on_event(record)
    assert seen == [6] * (len(records) + 1) + [2]


def test_a_disk_that_refuses_is_a_warning_and_not_the_sweeps_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: str, **_: float) -> None:
        raise OSError(30, "Read-only file system")

    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    listener = retention.Trimming(conductor, None)
    for record in (*trial(tmp_path / "0000", [0.2, 0.7]), Ended(number=0, state="PRUNED")):
        conductor.history.apply(record)
    monkeypatch.setattr(storage, "remove", refuse)
    with caplog.at_level(logging.WARNING, logger="pretune.core.retention"):
        listener.on_event(Ended(number=0, state="PRUNED"))
    assert "checkpoints of trial 0 stay: [Errno 30] Read-only file system" in caplog.text


# ---- how much --------------------------------------------------------------------------------------------------------


def test_the_size_of_a_checkpoint_is_its_files_and_unknown_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "epoch-1.pt"
    path.write_bytes(b"12345")
    assert retention.size(Checkpoint(path=str(path), sha256="", epoch=1)) == 5
    assert retention.size(Checkpoint(path=str(tmp_path / "gone.pt"), sha256="", epoch=1)) is None
    assert retention.size(Checkpoint(path="s3://bucket/epoch-1.pt", sha256="", epoch=1)) is None


def test_the_bound_counts_three_checkpoints_a_trial_and_three_more_while_it_runs() -> None:
    assert retention.bound(10, trials=1, slots=1) == 60
    assert retention.bound(10, trials=100, slots=4) == 10 * (3 * 96 + 6 * 4)
    assert retention.bound(0, trials=100, slots=4) == 0
