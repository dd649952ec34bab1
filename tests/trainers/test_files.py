"""A path holds its old content or the new one, whole, whatever happens to who writes it; and nothing else is left."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainers.files import opened_whole, sync, write_whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that has content already, alone in its folder; its name is a pattern, too."""
    path = tmp_path / "a[0].json"
    path.write_text("old")
    return path


def alone(path: Path) -> bool:
    return os.listdir(path.parent) == [path.name]


def test_bytes_and_text_take_the_place_of_what_was_there(path: Path) -> None:
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_whole(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert alone(path)


def test_a_new_file_appears_when_its_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with opened_whole(path) as file:
        file.write(b"first ")
        assert not path.exists()
        file.write(b"second")
    assert path.read_bytes() == b"first second"
    assert alone(path)


def test_a_library_may_write_to_the_name_instead(path: Path) -> None:
    with opened_whole(path) as file:
        Path(file.name).write_text("by another")
    assert path.read_text() == "by another"
    assert alone(path)


def test_the_bytes_are_on_the_disk_before_the_name_is_and_then_the_name_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        found = os.fstat(handle)
        steps.append("folder" if stat.S_ISDIR(found.st_mode) else f"file of {found.st_size}, {path.read_text()}")
        fsync(handle)

    def recorded_replace(source: Any, target: Any) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_whole(path, "newer")
    assert steps == ["file of 5, old", "rename", "folder"]


# --- what fails -------------------------------------------------------------------------------------------------------


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes: the kernel refuses in the middle of a write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_the_disk_refuses_leaves_the_old_content_alone(path: Path) -> None:
    with room_for(100_000), pytest.raises(OSError, match="File too large"):
        write_whole(path, b"x" * 200_000)
    assert path.read_text() == "old"
    assert alone(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_flush_or_a_rename_that_fails_leaves_the_old_content_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, "new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert alone(path)


@pytest.mark.parametrize("error", [ValueError("not what was asked for"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_the_old_content_alone(path: Path, error: BaseException) -> None:
    def broken_off() -> None:
        with opened_whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        broken_off()
    assert path.read_text() == "old"
    assert alone(path)


def fsync_that_raises(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders only."""
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_folder_that_fails_to_be_flushed_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync_that_raises(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(path, "new")
    assert alone(path)


def test_a_folder_that_cannot_be_flushed_at_all_does_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync_that_raises(errno.EINVAL, monkeypatch)
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_a_file_that_cannot_be_flushed_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(path)


# --- who may read it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_are_those_of_any_new_file(path: Path, mask: int) -> None:
    path.chmod(0o600)
    before = os.umask(mask)
    try:
        write_whole(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


# --- several writers, and dead ones -----------------------------------------------------------------------------------


def test_of_two_writers_at_once_the_last_one_wins(path: Path) -> None:
    with opened_whole(path) as slow:
        slow.write(b"slow, ")
        with opened_whole(path) as quick:
            quick.write(b"quick")
        assert path.read_text() == "quick"
        slow.write(b"but whole")
    assert path.read_text() == "slow, but whole"
    assert alone(path)


WRITER = """
import sys
from pathlib import Path
from trainers.files import opened_whole
path, letter = Path(sys.argv[1]), sys.argv[2].encode()
for _ in range(100):
    with opened_whole(path) as file:
        for _ in range(20):
            file.write(10_000 * letter)
"""


def test_two_processes_that_write_at_once_never_mix_nor_hinder_each_other(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "ab"]
    whole = {b"old", 200_000 * b"a", 200_000 * b"b"}
    seen: set[bytes] = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert path.read_bytes() in whole - {b"old"}
    assert seen <= whole, "a reader saw half a file, or a mix"
    assert alone(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from trainers.files import opened_whole
with opened_whole(Path(sys.argv[1])) as file:
    file.write(b"half of what")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_a_writer(path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL


def test_what_a_killed_writer_has_left_goes_with_the_next_write(path: Path) -> None:
    for _ in range(2):
        kill_a_writer(path)
        assert path.read_text() == "old"
    assert len(os.listdir(path.parent)) == 2, "the second writer removed what the first one left"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert alone(path)


def test_what_belongs_to_another_path_is_left_alone(path: Path) -> None:
    other = path.with_name(f"{path.name}.json")
    kill_a_writer(other)
    write_whole(path, "new")
    assert len(os.listdir(path.parent)) == 2
    write_whole(other, "new")
    assert sorted(os.listdir(path.parent)) == [path.name, other.name]


def locks(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], None]) -> None:
    """`act` is done first wherever a file is locked."""
    flock = fcntl.flock

    def lock(file: Any, operation: int) -> None:
        act(file)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock)


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []

    def remove_the_first(file: Any) -> None:
        if not removed:
            removed.append(Path(file.name))
            removed[0].unlink()

    locks(monkeypatch, remove_the_first)
    write_whole(path, "new")
    assert len(removed) == 1
    assert path.read_text() == "new"
    assert alone(path)


def test_where_there_are_no_locks_it_is_written_all_the_same_and_nothing_is_taken_for_a_leftover(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    locks(monkeypatch, refuse)
    with opened_whole(path) as slow:
        write_whole(path, "quick")
        slow.write(b"slow")
    assert path.read_text() == "slow"
    assert alone(path)
