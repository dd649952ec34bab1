"""A sweep that was moved, copied or renamed is whole: it goes on from its own checkpoints, under its present name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from pretune.core import journal, journal_remote, lease, results
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import History
from pretune.core.journal import FILE, Journal, read
from pretune.core.place import Place
from pretune.core.records import Asked, Closed, Epoch, Extended, Opened, Resumed
from pretune.core.rows import Handout
from pretune.request import request
from pretune.sweep import longer
from tests.pretune.core.test_upgrade import plain
from tests.pretune.core.test_upgrade import write as write_lines
from tests.toys import again, begin, experiment, row, space
from trainers.report import Checkpoint

BELOW = "trials/0000/checkpoints/epoch-0001.pt"
NAMES = ["renamed", "my sweep (copy)", "-dash", "Größe", "a" * 120]


def checkpoint(root: Path | str, epoch: int = 1) -> Checkpoint:
    path = f"{root}/trials/0000/checkpoints/epoch-{epoch:04d}.pt"
    if "://" not in path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(f"of {epoch}")
    return Checkpoint(path=path, sha256="x", epoch=epoch)


def swept(folder: Path) -> Conductor:
    """A sweep in `folder` whose first trial has two epochs, each with a checkpoint, and whose driver was killed."""
    conductor = begin(folder, experiment(folder.parent, name=folder.name), space)
    handout = conductor.next()
    assert handout is not None
    conductor.started(handout.number)
    for epoch in (1, 2):
        conductor.reported(row(handout, epoch, checkpoint=checkpoint(folder, epoch)))
    conductor._journal.close()
    return conductor


def next_of(folder: Path) -> tuple[Conductor, Handout]:
    conductor = again(folder, space)
    handout = conductor.next()
    assert handout is not None
    return conductor, handout


def test_no_line_of_a_journal_says_where_the_sweep_lies_but_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    conductor = swept(folder)
    told = conductor.history.trials[0].checkpoint
    assert told is not None
    assert Path(told.path).is_file(), "in memory it is where the file is"
    with Journal(folder, new=False) as book:
        book.append(Extended(number=0, config={"epochs": 9}, checkpoint=told))
    first, *lines = (folder / FILE).read_text().splitlines()
    assert str(tmp_path) in first
    assert not any(str(tmp_path) in line for line in lines)
    kept = [json.loads(line)["record"].get("checkpoint") for line in lines]
    assert [value["path"] for value in kept if value] == [BELOW, *2 * [BELOW.replace("1.pt", "2.pt")]]
    assert journal.read(folder)[-1].checkpoint == told  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("act", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_sweep_goes_on_from_its_own_checkpoints_under_its_own_name(
    act: object, name: str, tmp_path: Path
) -> None:
    swept(tmp_path / "s")
    there = tmp_path / "other" / name
    there.parent.mkdir()
    assert callable(act)
    act(tmp_path / "s", there)
    shown = results.read(there)
    assert (shown.name, shown.experiment.folder, shown.to_json()["name"]) == (name, there, name)
    assert shown.trials[0].checkpoint is not None
    assert shown.trials[0].checkpoint.path == str(there / BELOW.replace("1.pt", "2.pt"))
    conductor, handout = next_of(there)
    assert conductor.experiment.folder == there
    assert handout.resume == shown.trials[0].checkpoint
    conductor.started(0)
    conductor.reported(row(handout, 3, checkpoint=checkpoint(there, 3)))
    assert str(there) not in (there / FILE).read_text()
    assert [Path(found.path).read_text() for found in conductor.history.trials[0].checkpoints.values()] == [
        "of 1",
        "of 2",
        "of 3",
    ]


def test_a_copy_and_its_original_run_at_once_and_neither_meets_the_other(tmp_path: Path) -> None:
    swept(tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    before = (tmp_path / "s" / FILE).read_bytes()
    original, first = next_of(tmp_path / "s")
    copy, second = next_of(tmp_path / "copy")
    assert first.resume is not None
    assert second.resume is not None
    assert Path(first.resume.path).is_relative_to(tmp_path / "s")
    assert Path(second.resume.path).is_relative_to(tmp_path / "copy")
    copy.started(0)
    copy.reported(row(second, 3, checkpoint=checkpoint(tmp_path / "copy", 3)))
    assert (tmp_path / "s" / FILE).read_bytes() == before
    original.started(0)
    assert len(journal.read(tmp_path / "copy")) == len(journal.read(tmp_path / "s")) + 1


@pytest.mark.parametrize("format", [1, 2])
@pytest.mark.parametrize("place", ["moved", "s"])
def test_a_sweep_of_an_older_version_that_was_moved_has_its_checkpoints_where_it_lies(
    place: str, format: int, tmp_path: Path
) -> None:
    old = tmp_path / "then" / "trials" / "s"  # a folder that is called as ours are changes nothing
    conductor = swept(old)
    lines = [plain(record) for record in conductor._journal.records]  # type: ignore[arg-type]
    lines[0]["format"] = format
    for line in lines[1:]:
        if line.get("checkpoint"):
            assert line["checkpoint"]["path"].startswith(str(old)), "as older versions wrote it"
    shutil.rmtree(old / "trials")
    there = tmp_path / "now" / place
    write_lines(there, lines)
    found = results.read(there).trials[0].checkpoint
    assert found == History(journal.read(there)).trials[0].checkpoint
    assert found is not None
    assert found.path == str(there / BELOW.replace("1.pt", "2.pt"))
    with Journal(there, new=False) as book:
        book.append(Resumed(trials=3))
        book.append(Epoch(number=0, epoch=3, metrics={}, checkpoint=checkpoint(there, 3)))
    assert json.loads((there / FILE).read_text().splitlines()[-1])["record"]["checkpoint"]["path"].startswith("trials/")
    assert History(journal.read(there)).trials[0].checkpoint == checkpoint(there, 3)


def test_a_moved_sweep_trains_longer_from_where_it_lies_now(tmp_path: Path) -> None:
    conductor = again((swept(tmp_path / "s"), tmp_path / "s")[1], space)
    handout = conductor.next()
    assert handout is not None
    conductor.started(0)
    for epoch in range(3, 7):
        conductor.reported(row(handout, epoch, checkpoint=checkpoint(tmp_path / "s", epoch)))
    conductor.ended(row(handout, 6, outcome="complete", checkpoint=checkpoint(tmp_path / "s", 6)))
    conductor._journal.close()
    shutil.move(tmp_path / "s", tmp_path / "t")
    (extension,) = longer(History(journal.read(tmp_path / "t")), 12)
    assert Path(extension.checkpoint.path).is_relative_to(tmp_path / "t")


def test_what_lies_elsewhere_stays_as_it_was_written(tmp_path: Path) -> None:
    place = Place(tmp_path / "s")
    for path in ("/elsewhere/x.pt", "s3://bucket/x.pt", f"{tmp_path}/s2/x.pt"):
        there = Checkpoint(path=path, sha256="x", epoch=1)
        assert place.relative(there) == place.absolute(there) == there


@pytest.mark.parametrize("typed", ["../s", ".", "../s/.", "../other/../s"])
def test_a_folder_may_be_typed_in_any_way(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path / "s")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "s")
    shown = results.read(Path(typed))
    assert shown.name == "s"
    assert shown.trials[0].checkpoint is not None
    assert Path(shown.trials[0].checkpoint.path).is_file()


# ---- with a storage URI ----------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lease.take, "__kwdefaults__", {**(lease.take.__kwdefaults__ or {}), "settle_s": 0.0})
    return f"file://{tmp_path}/bucket"


def in_bucket(bucket: str) -> Experiment:
    asked = experiment(Path("unused")).model_copy(update={"storage": bucket})
    assert asked.remote is not None
    with journal_remote.opened(asked.folder, asked.remote, new=True) as book:
        book.append(Opened(experiment=asked))
        params = {"number": 0, "params": {}, "distributions": {}, "config": asked.base.model_dump(mode="json")}
        book.append(Asked.model_validate(params))
        book.append(Epoch(number=0, epoch=1, metrics={}, checkpoint=checkpoint(asked.remote)))
        book.append(Closed(reason="interrupted"))
    return asked


def test_a_bucket_that_was_copied_is_a_sweep_of_its_own(bucket: str, tmp_path: Path) -> None:
    asked = in_bucket(bucket)
    assert "bucket" not in "".join((asked.folder / FILE).read_text().splitlines()[1:])
    same = request.read_sweep(f"{bucket}/s", bucket)
    assert same.trials[0].checkpoint == checkpoint(f"{bucket}/s")
    assert same.experiment == asked
    shutil.copytree(tmp_path / "bucket" / "s", tmp_path / "elsewhere" / "copy")
    remote = f"file://{tmp_path}/elsewhere/copy"
    copy = request.read_sweep(remote, bucket)
    assert (copy.name, copy.remote, copy.experiment.remote) == ("copy", remote, remote)
    assert copy.trials[0].checkpoint == checkpoint(remote)
    with journal_remote.opened(copy.folder, copy.remote, new=False) as book:
        assert isinstance(book.records[0], Opened)
        assert book.records[0].experiment.remote == remote
        book.append(Resumed(trials=3))
        book.append(Epoch(number=0, epoch=2, metrics={}, checkpoint=checkpoint(remote, 2)))
    assert "elsewhere" not in (copy.folder / FILE).read_text()
    assert len(journal_remote.read(remote).splitlines()) == len(journal_remote.read(f"{bucket}/s").splitlines()) + 2


def test_a_working_copy_with_another_name_does_not_write_into_the_first_ones_bucket(
    bucket: str, tmp_path: Path
) -> None:
    asked = in_bucket(bucket)
    shutil.copytree(asked.folder, asked.folder.with_name("t"))
    assert results.read(asked.folder.with_name("t")).name == "t"
    with pytest.raises(RequestError, match=r"working copy of the sweep in file://.*/bucket/s and must have its name"):
        request.read_sweep("t", "sweeps", fresh=True)


@pytest.mark.parametrize("name", ["plain", 'quo"te', "back\\slash", "über 猫", "a b", "caf\udce9"])
def test_a_sweep_that_was_moved_to_a_folder_of_any_name_has_its_checkpoints_there(tmp_path: Path, name: str) -> None:
    with Journal(tmp_path / "s", new=True) as book:
        book.append(Opened(experiment=experiment(tmp_path)))
        book.append(Asked(number=0, params={}, distributions={}, config=None))
        kept = Checkpoint(path=str(tmp_path / "s" / BELOW), sha256="x", epoch=1)
        book.append(Epoch(number=0, epoch=1, metrics={"probe/linear": math.nan}, checkpoint=kept))
        book.append(Epoch(number=0, epoch=2, metrics={}))
    moved = (tmp_path / "s").rename(tmp_path / name)
    *_, first, second = read(moved)
    assert isinstance(first, Epoch)
    assert isinstance(second, Epoch)
    assert first.checkpoint == kept.model_copy(update={"path": str(moved / BELOW)})
    assert second.checkpoint is None
    assert math.isnan(first.metrics["probe/linear"])
