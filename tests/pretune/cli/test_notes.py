"""`pretune note`, `remove` and `clean`: what is said of a sweep, and what of it may go."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pretune.core import journal, notes
from pretune.core.journal import Journal, read
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
from tests.pretune.cli.command import pretune, synthetic_sweep
from trainers import storage
from trainers.report import Checkpoint


def test_notes_and_tags_are_shown_with_the_sweep_and_in_the_list(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    synthetic_sweep(here / "sweeps" / "other")
    assert "no notes on known" in pretune("note", "known").stdout
    assert (
        pretune("note", "known", "the kernel matters\nmore than I thought", "--tag", "paper", "--tag", "v2").exit_code
        == 0
    )
    assert pretune("note", "known", "--untag", "v2").exit_code == 0
    shown = pretune("show", "known").stdout
    assert "tags: paper" in shown
    assert "the kernel matters" in shown
    told = json.loads(pretune("show", "known", "--json").stdout)
    assert told["tags"] == ["paper"]
    assert told["notes"][0]["text"] == "the kernel matters\nmore than I thought"
    listed = pretune("show").stdout
    assert "tags" in listed
    assert [one["name"] for one in json.loads(pretune("show", "--tag", "paper", "--json").stdout)] == ["known"]
    assert "sweeps has nothing" in pretune("show", "--tag", "nothing").stdout
    assert "notes" not in json.loads(pretune("show", "other", "--json").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tag", "two words"], "--tag must be a word"),
        (["  "], "must say something"),
        (["x" * 10_001], "at most 10,000 characters"),
    ],
)
def test_a_note_that_says_nothing_is_refused(here: Path, arguments: list[str], said: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    result = pretune("note", "known", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_note_does_not_move_the_cursor(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    pretune("note", "known", "red \x1b[31malert\x07")
    assert "\x1b" not in pretune("show", "known").stdout
    assert "red [31malert" in pretune("show", "known").stdout


def test_notes_of_many_writers_at_once_are_all_there(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for count in range(5):
            notes.add(tmp_path, notes.checked(f"{number}.{count}"))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (tmp_path / notes.FOLDER / "0-broken.json").write_text("{")
    assert len({note.text for note in notes.read(tmp_path)}) == 40


def test_notes_on_a_sweep_in_a_bucket_are_seen_from_elsewhere(here: Path, bucket: str) -> None:
    synthetic_sweep(here / "elsewhere" / "known")
    remote = storage.join(bucket, "known")
    lines = (here / "elsewhere" / "known" / "journal.jsonl").read_bytes()
    storage.write(storage.join(remote, "journal", "00000001-00000000.jsonl"), lines)
    assert pretune("note", remote, "from here", "--tag", "far").exit_code == 0
    assert storage.names(storage.join(remote, notes.FOLDER)) != []
    for path in (here / "sweeps" / "known" / notes.FOLDER).iterdir():
        path.unlink()
    assert "from here" in pretune("show", remote).stdout
    removed = pretune("remove", remote, "--yes")
    assert removed.exit_code == 0, removed.output
    assert storage.sizes(remote) == {}
    assert not (here / "sweeps" / "known").exists()


def test_remove_asks_and_names_the_bytes(here: Path) -> None:
    folder = synthetic_sweep(here / "sweeps" / "known")
    (folder / "trials").mkdir()
    (folder / "trials" / "big").write_bytes(bytes(5_000_000))
    refused = pretune("remove", "known")
    assert refused.exit_code == 2
    assert "files, 5.0" in refused.stderr
    assert "add --yes" in refused.stderr
    assert folder.is_dir()
    done = pretune("remove", "known", "--yes")
    assert done.exit_code == 0
    assert not folder.exists()
    assert list((here / "sweeps").iterdir()) == []


def test_remove_follows_no_link_out(here: Path) -> None:
    folder = synthetic_sweep(here / "sweeps" / "known")
    (here / "precious").mkdir()
    (here / "precious" / "thesis.txt").write_text("42")
    (folder / "link").symlink_to(here / "precious")
    assert pretune("remove", "known", "--yes").exit_code == 0
    assert (here / "precious" / "thesis.txt").read_text() == "42"
    elsewhere = synthetic_sweep(here / "disk" / "real")
    (here / "sweeps").mkdir(exist_ok=True)
    (here / "sweeps" / "linked").symlink_to(elsewhere)
    refused = pretune("remove", "linked", "--yes")
    assert refused.exit_code == 2
    assert "is a link to" in refused.stderr
    assert elsewhere.is_dir()


def test_what_is_no_sweep_or_runs_or_holds_another_is_not_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "folder").mkdir()
    (here / "folder" / "file").touch()
    assert pretune("remove", "folder", "--yes").exit_code == 2
    (here / "folder" / "journal.jsonl").write_text('{"mine": 1}\n')
    assert pretune("remove", "folder", "--yes").exit_code == 2
    folder = synthetic_sweep(here / "sweeps" / "known")
    with journal.locked(folder):
        running = pretune("remove", "known", "--yes")
        assert running.exit_code == 2
        assert "is being run by another process" in running.stderr
        assert pretune("clean", "known", "--yes").exit_code == 2
    synthetic_sweep(folder / "inside")
    assert "has another sweep in it" in pretune("remove", "known", "--yes").stderr
    monkeypatch.chdir(folder / "inside")
    assert "is where you are" in pretune("remove", str(folder / "inside"), "--yes").stderr
    assert (here / "folder" / "file").exists()
    assert (folder / "inside" / "journal.jsonl").exists()


def with_checkpoints(folder: Path) -> None:
    """Three complete trials of three epochs, the second the best; a fourth unfinished."""
    synthetic_sweep(folder.parent / "other")
    opened = read(folder.parent / "other")[0]
    assert isinstance(opened, Opened)
    config = opened.experiment.base.model_dump(mode="json")
    with Journal(folder, new=True) as written:
        written.append(opened)
        for number in range(4):
            written.append(Asked(number=number, params={"x": number}, distributions={}, config=config))
            written.append(Started(number=number, attempt=0, epoch=0))
            place = folder / "trials" / f"{number:04d}" / "checkpoints"
            place.mkdir(parents=True)
            for epoch in range(1, 4):
                path = place / f"epoch-{epoch:04d}.pt"
                path.write_bytes(bytes(1000))
                path.with_name(f"{path.name}.json").write_text("{}")
                pointer = Checkpoint(path=str(path), sha256="x", epoch=epoch)
                value = 0.5 + 0.1 * (number == 1) + 0.01 * epoch
                written.append(Epoch(number=number, epoch=epoch, metrics={"probe/linear": value}, checkpoint=pointer))
            if number < 3:
                written.append(Ended(number=number, state="COMPLETE", value=value))
        written.append(Closed(reason="interrupted"))


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "trials").as_posix() for path in folder.glob("trials/*/checkpoints/*.pt"))


def test_clean_keeps_what_finalize_and_resume_need(here: Path) -> None:
    folder = here / "sweeps" / "mine"
    with_checkpoints(folder)
    (folder / "trials" / "0000" / "log.txt").write_text("kept")
    asked = pretune("clean", "mine")
    assert asked.exit_code == 2
    assert "20 files of checkpoints, 10 kB" in asked.stderr
    assert len(left(folder)) == 12
    done = pretune("clean", "mine", "--yes")
    assert done.exit_code == 0, done.output
    assert left(folder) == ["0001/checkpoints/epoch-0003.pt", "0003/checkpoints/epoch-0003.pt"]
    assert (folder / "trials" / "0000" / "log.txt").exists()
    assert "nothing to remove" in pretune("clean", "mine", "--yes").stdout
    assert "pretune clean removed 20 files" in pretune("show", "mine").stdout
    # What is gone is said by whoever needs it.
    longer = pretune("resume", "mine", "--epochs", "30")
    assert longer.exit_code == 2
    assert "is gone; restore it" in longer.stderr
    assert pretune("clean", "mine", "--keep", "0", "--yes").exit_code == 0
    finalized = pretune("finalize", "mine")
    assert finalized.exit_code == 2
    assert "is gone; train it again" in finalized.stderr
