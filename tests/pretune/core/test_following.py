"""A journal that is followed gives what reading it gives, whatever happens to its file meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretune.core import journal, journal_remote, lease
from pretune.core.errors import RequestError
from pretune.core.journal import FILE, LOCK, Follower, Journal, read
from pretune.core.reader import StoredEpoch
from pretune.core.records import Asked, Epoch, Opened, Record
from tests.toys import experiment
from trainers import storage


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.001)


def records(folder: Path, count: int, *, value: float = 0.5) -> Iterator[Record]:
    yield Opened(experiment=experiment(folder.parent, name=folder.name))
    for number in range(count):
        yield Asked(number=number, params={"rate": 0.1}, distributions={}, config={"epochs": 6})
        yield Epoch(number=number, epoch=1, metrics={"probe/linear": value + number, 'odd ",name': 2.0})


def written(folder: Path, count: int, *, value: float = 0.5) -> Journal:
    book = Journal(folder, new=True)
    for record in records(folder, count, value=value):
        book.append(record)
    return book


def told(found: list[Record | StoredEpoch]) -> list[tuple[str, int]]:
    return [
        ("epoch" if isinstance(record, StoredEpoch) else record.kind, getattr(record, "number", -1)) for record in found
    ]


def whole(folder: Path) -> list[tuple[str, int]]:
    return [(record.kind, getattr(record, "number", -1)) for record in read(folder)]


def test_each_record_is_given_once_as_the_journal_grows(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    follower = Follower(folder)
    assert follower.read() == (False, [])
    assert not follower.there
    book, seen = Journal(folder, new=True), []
    for position, record in enumerate(records(folder, 3)):
        book.append(record)
        first, more = follower.read()
        assert (first, len(more)) == (position == 0, 1)
        assert follower.read() == (False, []), "nothing has come since"
        seen += more
    assert told(seen) == whole(folder)
    epoch = seen[-1]
    assert isinstance(epoch, StoredEpoch)
    assert (epoch["probe/linear"], epoch['odd ",name'], epoch.time > 0.0) == (2.5, 2.0, True)
    assert "linear" not in epoch
    follower.close()


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_left_out_until_it_is_whole_or_cut_off(tmp_path: Path, cut: int) -> None:
    folder = tmp_path / "s"
    written(folder, 2).close()
    path = folder / FILE
    lines = path.read_bytes()
    last = lines.splitlines(keepends=True)[-1]
    follower = Follower(folder)
    path.write_bytes(lines[: -len(last)] + last[:cut])
    first, found = follower.read()
    assert first
    assert told(found) == whole(folder)
    with path.open("ab") as file:
        file.write(last[cut:])
    assert told(follower.read()[1]) == [("epoch", 1)]
    with path.open("ab") as file:
        file.write(b'{"crc32":"')
    assert follower.read() == (False, [])
    # The next driver cuts it off, and writes another line in its place.
    book = Journal(folder, new=False)
    assert book.dropped_bytes
    book.append(Epoch(number=1, epoch=2, metrics={"probe/linear": 0.9}))
    assert told(follower.read()[1]) == [("epoch", 1)]
    follower.close()


def _renamed_over(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


def _written_over(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


@pytest.mark.parametrize("put", [_renamed_over, _written_over])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_another_journal_in_the_same_place_is_read_from_its_beginning(
    tmp_path: Path, put: Callable[[Path, bytes], None], count: int
) -> None:
    written(tmp_path / "s", 2).close()
    written(tmp_path / "other", count, value=0.25).close()
    follower = Follower(tmp_path / "s")
    follower.read()
    put(tmp_path / "s" / FILE, (tmp_path / "other" / FILE).read_bytes())
    first, found = follower.read()
    assert first
    assert told(found) == whole(tmp_path / "s")
    assert isinstance(found[-1], StoredEpoch)
    assert found[-1]["probe/linear"] == 0.25 + count - 1
    follower.close()


def test_lines_that_were_cut_off_are_forgotten(tmp_path: Path) -> None:
    written(tmp_path / "s", 3).close()
    follower = Follower(tmp_path / "s")
    follower.read()
    path = tmp_path / "s" / FILE
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    first, found = follower.read()
    assert first
    assert told(found) == [("opened", -1), ("asked", 0), ("epoch", 0)]
    follower.close()


def test_a_journal_that_is_removed_keeps_what_it_said_and_one_that_comes_back_is_read(tmp_path: Path) -> None:
    written(tmp_path / "s", 1).close()
    follower = Follower(tmp_path / "s")
    _, found = follower.read()
    (tmp_path / "s").rename(tmp_path / "moved")
    assert follower.read() == (False, [])
    assert not follower.there
    assert isinstance(found[-1], StoredEpoch)
    assert found[-1]["probe/linear"] == 0.5
    written(tmp_path / "s", 2).close()
    first, found = follower.read()
    assert first
    assert follower.there
    assert len(found) == 5
    follower.close()


def test_a_corrupt_line_is_told_each_time_until_the_file_is_mended(tmp_path: Path) -> None:
    book = written(tmp_path / "s", 2)
    path = tmp_path / "s" / FILE
    follower = Follower(tmp_path / "s")
    follower.read()
    good = path.read_bytes()
    book.append(Epoch(number=1, epoch=2, metrics={"probe/linear": 0.9}))
    longer = path.read_bytes()
    _written_over(path, longer.replace(b'"epoch":2', b'"epoch":3'))
    for _ in range(2):
        with pytest.raises(RequestError, match="line 6 of 6 is corrupt"):
            follower.read()
    _written_over(path, longer)
    first, found = follower.read()
    assert first
    assert len(found) == 6
    assert path.read_bytes().startswith(good)
    follower.close()


def test_following_takes_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    book = written(tmp_path / "s", 1)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "s").iterdir()}
    follower = Follower(tmp_path / "s")
    follower.read()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "s").iterdir()} == before
    assert set(before) == {FILE, LOCK}
    book.close()
    Journal(tmp_path / "s", new=False).close()
    follower.close()


# ---- behind a URI ----------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease.take, "__kwdefaults__", {**(lease.take.__kwdefaults__ or {}), "settle_s": 0.02})
    return f"file://{tmp_path}/remote/s"


def test_a_copy_grows_with_the_journal_behind_a_uri(remote: str, tmp_path: Path) -> None:
    copy, place = journal_remote.Copy(remote, tmp_path / "copy"), tmp_path / "copy"
    place.mkdir()
    copy.update()
    assert not (place / FILE).exists(), "there is no sweep yet"
    follower, seen = Follower(place, remote=remote), list[Record | StoredEpoch]()
    with journal_remote.opened(tmp_path / "head", remote, new=True) as book:
        for record in records(tmp_path / "head", 3):
            book.append(record)
            copy.update()
            seen += follower.read()[1]
        assert copy.live
    assert told(seen) == whole(tmp_path / "head")
    copy.update()
    assert not copy.live, "the driver has left"
    # Another driver takes over, on another machine: its first segment is the whole journal.
    with journal_remote.opened(tmp_path / "next", remote, new=False) as book:
        book.append(Epoch(number=2, epoch=2, metrics={"probe/linear": 0.7}))
        copy.update()
        first, more = follower.read()
        assert (first, told(more)) == (False, [("epoch", 2)])
    assert (place / FILE).read_bytes() == (tmp_path / "next" / FILE).read_bytes()
    follower.close()


def test_a_copy_asks_for_few_objects_however_many_segments_there_are(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal_remote.opened(tmp_path / "head", remote, new=True) as book:
        for record in records(tmp_path / "head", 10):
            book.append(record)
        (tmp_path / "copy").mkdir()
        copy = journal_remote.Copy(remote, tmp_path / "copy")
        copy.update()
        asked: list[str] = []
        really, listed = storage.read, storage.names

        def asking(uri: str, **how: float) -> bytes:
            asked.append(uri)
            return really(uri, **how)

        def listing(uri: str, **how: float) -> list[str]:
            asked.append("list")
            return listed(uri, **how)

        monkeypatch.setattr(storage, "read", asking)
        monkeypatch.setattr(storage, "names", listing)
        copy.update()
        assert len(asked) == 2, "the lease, and the next segment, which is not there"
        assert "list" not in asked


def test_a_copy_says_which_segment_is_missing_or_corrupt(remote: str, tmp_path: Path) -> None:
    with journal_remote.opened(tmp_path / "head", remote, new=True) as book:
        for record in records(tmp_path / "head", 2):
            book.append(record)
    folder = tmp_path / "remote" / "s" / journal_remote.FOLDER
    third = sorted(folder.iterdir())[2]
    content = third.read_bytes()
    (tmp_path / "copy").mkdir()
    third.write_bytes(content.replace(b"epoch", b"epoxy"))
    with pytest.raises(RequestError, match=f"{third.name} is corrupt"):
        journal_remote.Copy(remote, tmp_path / "copy").update()
    third.unlink()
    with pytest.raises(RequestError, match=f"{third.name} is missing"):
        journal_remote.Copy(remote, tmp_path / "copy").update()
    third.write_bytes(content)
    journal_remote.Copy(remote, tmp_path / "copy").update()
    assert (tmp_path / "copy" / FILE).read_bytes() == (tmp_path / "head" / FILE).read_bytes()
    assert journal.read(tmp_path / "copy")
