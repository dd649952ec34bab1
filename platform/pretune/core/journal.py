"""The append-only record of a sweep: written before anything is acted upon, read to rebuild everything.

What a line says is in records.py, how it is written down in lines.py, and how it is understood in reader.py. Each line
is flushed to the disk (fsync) before `append` returns. A crash can only tear the last line: reading drops it, opening
for append cuts it off. With a storage URI the same lines are uploaded as segments (journal_remote.py).

What is written is of today's format and has no unknown key.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pretune.core.errors import RequestError, refused_by_files
from pretune.core.lines import Lines, collecting_no_garbage, line_of
from pretune.core.place import Place
from pretune.core.reader import Reader, StoredEpoch, records
from pretune.core.records import Opened, Record, Resumed, Unknown, later, place_of, with_paths
from pretune.core.upgrade import FORMAT
from trainers.files import named, sync, write_whole

FILE = "journal.jsonl"
LOCK = "journal.lock"


def read(folder: Path, *, remote: str | None = None) -> list[Record]:
    """All records of the sweep in `folder`. A torn last line is left out: a driver may be writing it right now.
    `remote` is its URI, if it is not the one in the journal.

    Raises:
        RequestError: no journal there, a corrupt or missing line (named), or a line that this version does not
            understand and cannot do without.
    """
    with reading(folder, remote=remote) as records:
        return [record.whole() if isinstance(record, StoredEpoch) else record for record in records]


@contextmanager
def reading(folder: Path, *, remote: str | None = None) -> Iterator[Iterator[Record | StoredEpoch]]:
    """The same, one after another, with most epochs left on the disk; they are read within this context only.

    RequestError as for `read`, while they are gone through.
    """
    with collecting_no_garbage(), Lines.opened(folder / FILE) as lines:
        reader = Reader(Place.of(folder, remote), lines.file)
        try:
            yield records(lines, reader)
        finally:
            reader.close()


class Follower:
    """Reads a journal that others write: each `read` gives what came since the one before. It takes no lock, and the
    file need not be there yet.

    A torn last line is left out until it is whole, or was cut off. A journal that was put in another one's place, cut
    within what was read, or written anew is read from its beginning. One that is removed keeps what it said.
    """

    def __init__(self, folder: Path, *, remote: str | None = None) -> None:
        """`remote` as for `read`."""
        self.path = folder / FILE
        self.there = False
        """Whether there was a file at the last `read`."""
        self._place = Place.of(folder, remote)
        self._lines: Lines | None = None
        self._reader = Reader(self._place)
        self._seen: tuple[int, ...] = ()
        self._problem: RequestError | OSError | None = None

    def read(self) -> tuple[bool, list[Record | StoredEpoch]]:
        """Whether these records are the journal's first ones, whatever was read before; and the records. Epochs stay on
        the disk where they can, and are there until the next time that records are the first ones.

        RequestError as for the function `read`, or OSError, each time anew until the file is another one.
        """
        try:
            seen = _identity(os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            self.there, self._seen, self._problem = False, (), None
            return False, []
        self.there = True
        if seen == self._seen:
            if self._problem is not None:
                raise self._problem
            return False, []
        goes_on = self._problem is None and self._goes_on(seen)
        self._seen, self._problem = seen, None
        try:
            if goes_on:
                try:
                    return False, self._more()
                except RequestError:  # written anew, and longer than it was?
                    goes_on = False
            return True, self._anew()
        except (RequestError, OSError) as error:
            self._problem = error
            raise

    def close(self) -> None:
        """Epochs that stay on the disk can no longer be read."""
        if self._lines is not None:
            self._lines.file.close()
            self._reader.close()
            self._lines = None

    def _anew(self) -> list[Record | StoredEpoch]:
        before = self._lines, self._reader
        file = self.path.open("rb")
        self._lines, self._reader = Lines(self.path, file), Reader(self._place, file)
        try:
            records = self._more()
        except (RequestError, OSError):
            self.close()
            self._lines, self._reader = before
            raise
        lines, reader = before
        if lines is not None:
            lines.file.close()
            reader.close()
        return records

    def _more(self) -> list[Record | StoredEpoch]:
        assert self._lines is not None
        with collecting_no_garbage():
            return list(records(self._lines, self._reader))

    def _goes_on(self, seen: tuple[int, ...]) -> bool:
        """Whether the file at the path is the one that was read, as far as it was read. Its last line's checksum is
        that of all lines up to it.
        """
        if self._lines is None:
            return False
        handle, size = self._lines.file.fileno(), self._lines.size
        if _identity(os.fstat(handle))[:2] != seen[:2] or seen[2] < size:
            return False
        return not size or os.pread(handle, len(self._lines.last), size - len(self._lines.last)) == self._lines.last


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """Equal where a file was not touched; the first two are equal as long as it is the same file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def begun(folder: Path) -> bool:
    """Whether the journal in `folder` has a record. RequestError where its first line is corrupt."""
    with reading(folder) as records:
        return next(records, None) is not None


class Journal:
    """The journal of one sweep, opened by the one process that may write it.

    `records` is all that is in it, with most epochs of earlier drivers left on the disk; `dropped_bytes` is the length
    of a torn last line that was cut off.
    """

    def __init__(
        self,
        folder: Path,
        *,
        new: bool,
        remote: str | None = None,
        clock: Callable[[], float] = time.time,
        publish: Callable[[bytes], None] | None = None,
    ) -> None:
        """`remote` is the sweep's URI, if it is not the one in the journal. `publish` is given each line once it is on
        the disk, before `append` returns.

        RequestError: another process runs the sweep; `new`, and there is one; not `new`, and there is none; a later
        version wrote in it what this one does not know; the folder cannot be written to.
        """
        self.path = folder / FILE
        self._clock = clock
        self._publish = publish
        if not new and not self.path.exists():
            raise RequestError(f"no sweep in {folder}: {FILE} is missing; `pretune show` lists the sweeps there are")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder / LOCK)
        except OSError as error:
            raise RequestError(refused_by_files(error)) from error
        try:
            self.records: list[Record | StoredEpoch] = []
            self._checksum, size = 0, 0
            self._place = Place.of(folder, remote)
            if self.path.exists():
                with collecting_no_garbage(), Lines.opened(self.path) as lines:
                    reader = Reader(self._place, lines.file)
                    self.records = list(records(lines, reader))
                self._checksum, size, self._place = lines.checksum, lines.size, reader.place
            sessions = [record.format for record in self.records if isinstance(record, Opened | Resumed)]
            self._format = sessions[-1] if sessions else FORMAT
            """Of the last `opened` or `resumed`."""
            found = later(record for record in self.records if not isinstance(record, StoredEpoch))
            if found is not None and (refusal := found.refusal()) is not None:
                raise RequestError(f"{self.path}: {refusal}")
            if new and self.records:
                raise RequestError(
                    f"a sweep named {folder.name!r} exists in {folder.parent}; choose another --name, or go on with "
                    f"`pretune resume {shlex.quote(str(folder))}`"
                )
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the journal
            self.dropped_bytes = self._file.seek(0, os.SEEK_END) - size
            if self.dropped_bytes:
                self._file.truncate(size)
                os.fsync(self._file.fileno())
            sync(folder)
        except OSError as error:
            os.close(self._lock)
            raise RequestError(refused_by_files(error)) from error
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, record: Record) -> Record:
        """Stamps `record` with the time and returns it once the disk, and the storage if there is one, has it.

        OSError where one of them refuses.
        """
        self._check_is_todays(record)
        record = record.model_copy(update={"time": self._clock()})
        if isinstance(record, Opened):
            self._place = place_of(record, self._place)
        body = with_paths(record, self._place.relative).model_dump_json().encode()
        line, checksum = line_of(body, self._checksum)
        end = self._file.seek(0, os.SEEK_END)
        try:
            with named(self.path):
                written = self._file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes written; the disk is full")
                os.fsync(self._file.fileno())
        except OSError:
            # Half a line in the middle would make the whole journal unreadable after the next append.
            self._file.truncate(end)
            raise
        self._checksum = checksum
        if isinstance(record, Opened | Resumed):
            self._format = record.format
        self.records.append(record)
        if self._publish is not None:
            # Where it raises, the line stays: the next driver finds the local journal longer, and goes on from it.
            self._publish(line)
        return record

    def _check_is_todays(self, record: Record) -> None:
        """Where an older version wrote last, `resumed` comes first and says that another format begins."""
        assert not isinstance(record, Unknown), "what is not understood is not written"
        assert not record.unknown, "what is not understood is not written"
        format = record.format if isinstance(record, Opened | Resumed) else self._format
        assert format == FORMAT, f"a record of format {FORMAT} after one of format {format}"

    def close(self) -> None:
        """Lets another process take the sweep. A sweep that never began leaves no journal behind."""
        if not self._file.closed:
            self._file.close()
            if not self.records:
                self.path.unlink(missing_ok=True)
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def replace(folder: Path, content: bytes) -> None:
    """Puts `content` in the place of the journal in `folder`. RequestError: a process runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        write_whole(folder / FILE, content)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While no driver may take the sweep in `folder`. RequestError: one runs it."""
    try:
        handle = _lock(folder / LOCK)
    except OSError as error:
        raise RequestError(refused_by_files(error)) from error
    try:
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process runs the sweep in `folder` right now, as far as the file system shares its locks."""
    path = folder / LOCK
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(handle)
    except BlockingIOError:
        owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise RequestError(
            f"the sweep in {path.parent} is being run by another process ({owner}); wait for it, or end it first"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return handle


def _take(handle: int) -> None:
    """Takes the lock, or raises BlockingIOError. Tries for a moment: another process's `is_locked` holds it briefly."""
    for _ in range(20):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
