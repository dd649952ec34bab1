"""The append-only record of a sweep: written before anything is acted upon, read to rebuild everything.

One JSON object per line: `{"crc32":"xxxxxxxx","record":{...}}`. The checksum covers the record's bytes and the
checksum of the line before, so a line that is changed, missing or out of place is noticed. Each line is flushed to
the disk (fsync) before `append` returns. A crash can only tear the last line: reading drops it, opening for append
cuts it off. A last line that is there as a whole and does not fit its checksum is no torn one: the disk, or somebody,
changed what may have been acted upon.

Records, in the order in which a trial meets them: `opened` (once, first), `asked`, `started` (each attempt), `epoch`,
`attempt` (a failure that is retried or given up), `condemned` (it would have been stopped), `ended`, `extended` (it is
to train longer); of people `stop` and `enqueued` (requests.py); and of drivers `resumed` and `closed`. Each class below
says what its fields mean. With a storage URI the same lines are uploaded as segments (journal_remote.py).

Paths in a line are relative to the sweep; a record in memory has them where the sweep lies now, and `opened` its
present name and place (place.py).

What other versions wrote is read as far as it is understood (upgrade.py): an older record is brought up to date, a
later one's unknown keys are set aside, and a record that only a later version understands becomes an `Unknown`.
What is written is of today's format and has no unknown key.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import re
import shlex
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError

from pretune.core.errors import RequestError, refused_by_files
from pretune.core.experiment import Experiment
from pretune.core.forecast import Forecast
from pretune.core.place import Place
from pretune.core.upgrade import FORMAT, this_version, upgrade
from trainers.config import TrialConfig
from trainers.files import named, sync, write_whole
from trainers.report import Checkpoint
from trainers.upgrade import drop_unknown, understood

FILE = "journal.jsonl"
LOCK = "journal.lock"

End = Literal["COMPLETE", "PRUNED", "INFEASIBLE", "FAIL"]

_PREFIX, _MIDDLE, _SUFFIX = b'{"crc32":"', b'","record":', b"}\n"
_HEAD = len(_PREFIX) + 8 + len(_MIDDLE)
"""Where the record begins in its line."""

_EPOCHS_SINCE = 2
"""The format since which an epoch's line is as it is now, but for the path in it."""

# An epoch's line, up to its numbers and after them.
_EPOCH = re.compile(rb'\{"time":([-+.e\d]+),"kind":"epoch","number":(\d+),"epoch":(\d+),"metrics":\{')
_CHECKPOINT = re.compile(rb',"checkpoint":(null|\{"path":"[^"{}\\]*","sha256":"[^"{}\\]*","epoch":\d+\})\}')


class _Record(BaseModel):
    # "strings": a diverged loss is written as "NaN", which is still JSON, and read back as a number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: float = 0.0
    """Unix seconds at which it was written; set by `append`."""

    _unknown: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def unknown(self) -> dict[str, Any]:
        """Keys that this version does not know, by dotted path, of a record that was read."""
        return self._unknown


class Opened(_Record):
    """The first line. `format` is of this record and those up to the next `resumed`. `host` holds facts about the
    machine, kept apart: journals compare without them.
    """

    kind: Literal["opened"] = "opened"
    format: int = FORMAT
    experiment: Experiment
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    """Hashes of the files that decide what is computed; none in older journals."""
    host: dict[str, str] = {}
    forecast: Forecast | None = None
    """What it was said to take, before it began; none in older journals."""


class Asked(_Record):
    """The sampler's proposal. Trial numbers count from 0 without gaps.

    `distributions` are Optuna's, as its own JSON; of a choice `params` have its label (`core.parameters`). `config` is
    None where the space refused the parameters; an `Ended` follows. `duplicate_of` is the first trial with equal
    parameters or an equal config, if any.
    """

    kind: Literal["asked"] = "asked"
    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: dict[str, Any] | None
    duplicate_of: int | None = None
    enqueued: str | None = None
    """The request of the `Enqueued` whose configuration this is; None where the proposer proposed it."""


class Started(_Record):
    """A slot took the trial. `attempt` counts from 0; `epoch` is the number of finished epochs it goes on from."""

    kind: Literal["started"] = "started"
    number: int
    attempt: int
    epoch: int


class Epoch(_Record):
    """One finished epoch's numbers, each epoch of a trial once."""

    kind: Literal["epoch"] = "epoch"
    number: int
    epoch: int
    metrics: dict[str, float]
    checkpoint: Checkpoint | None = None


class Attempt(_Record):
    """A failure that is not the configuration's fault (lost worker, bug, lost slot), the `failures`-th of its trial."""

    kind: Literal["attempt"] = "attempt"
    number: int
    failures: int
    reason: str


class Condemned(_Record):
    """The stopping rule would have stopped the trial after `epoch`, at `rung`, but it lives on to its own end, for an
    audit of the rule.
    """

    kind: Literal["condemned"] = "condemned"
    number: int
    epoch: int
    rung: int
    reason: str


class Ended(_Record):
    """A trial is over. `value` is what Optuna is told for COMPLETE; `rung` is where the stopping rule stopped a PRUNED
    trial, None where something else did.
    `result_of` is the trial of an equal config whose result this is, with its epochs: it was not run again.
    """

    kind: Literal["ended"] = "ended"
    number: int
    state: End
    value: float | None = None
    reason: str = ""
    rung: int | None = None
    result_of: int | None = None


class Extended(_Record):
    """A finished trial is to train longer: on from `checkpoint`, the last before its decay, as `config` says. It comes
    before the trial's next `started`, and another `ended` follows. With `continued` it is one that the hours had ended:
    as if it had been interrupted, it goes on as it was, under the same rules.
    """

    kind: Literal["extended"] = "extended"
    number: int
    config: dict[str, Any]
    checkpoint: Checkpoint
    continued: bool = False


class StopRequested(_Record):
    """Somebody wants trial `number` to end: at its next report where it runs, else at once; an `Ended` follows. By
    `request` whoever asked finds this line.
    """

    kind: Literal["stop"] = "stop"
    request: str
    number: int
    reason: str = ""
    no_driver: bool = False
    """It was written while no driver ran: it and what follows, up to the next `resumed`, takes no time."""


class Enqueued(_Record):
    """Somebody hands in a configuration to be tried next, one trial more than were asked for. `params` and
    `distributions` are as for `Asked`, and empty where the configuration is no point of the space.
    """

    kind: Literal["enqueued"] = "enqueued"
    request: str
    config: dict[str, Any]
    params: dict[str, Any] = {}
    distributions: dict[str, str] = {}
    no_driver: bool = False
    """As for `StopRequested`."""


class Resumed(_Record):
    """A driver took the sweep up again. `trials` is the number of trials asked for from now on, `max_hours` the hours
    in all, None where they stay as they were; `format` is as for `Opened`.
    """

    kind: Literal["resumed"] = "resumed"
    format: int = FORMAT
    trials: int
    max_hours: float | None = None
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    host: dict[str, str] = {}


class Closed(_Record):
    """A driver left the sweep in order. `exhausted`: a finite space has no more points; `out_of_time`: trials are left
    that would not finish in the sweep's hours.
    """

    kind: Literal["closed"] = "closed"
    reason: Literal["finished", "exhausted", "out_of_time", "interrupted", "failed"]
    detail: str = ""


class Unknown(_Record):
    """A record that only a later version understands, with all it says. It is read and never written."""

    kind: str
    content: dict[str, Any]


Known = Annotated[
    Opened
    | Asked
    | Started
    | Epoch
    | Attempt
    | Condemned
    | Ended
    | Extended
    | StopRequested
    | Enqueued
    | Resumed
    | Closed,
    Field(discriminator="kind"),
]
Record = Known | Unknown
_KNOWN: TypeAdapter[Known] = TypeAdapter(Known)
_METRICS = TypeAdapter(dict[str, float])
_KINDS = {
    *("opened", "asked", "started", "epoch", "attempt", "condemned", "ended", "extended"),
    *("stop", "enqueued", "resumed", "closed"),
}


@dataclass(frozen=True)
class Later:
    """What a journal has that this version does not know: a later one wrote it. `version` of pretune wrote in it last;
    `keys` are dotted paths that begin with the kind of their record.
    """

    format: int
    version: str
    kinds: tuple[str, ...]
    keys: tuple[str, ...]

    def notices(self) -> list[str]:
        """What is left out where the journal is shown, a line for each reason."""
        here = f"this version of pretune ({this_version()})"
        lines = []
        if self.format > FORMAT:
            lines.append(
                f"this journal has format {self.format}, written by pretune {self.version}; {here} reads up to format "
                f"{FORMAT} and shows what it understands"
            )
        if self.kinds:
            lines.append(f"this journal has records that {here} does not know: {', '.join(self.kinds)}")
        if self.keys:
            lines.append(f"this journal has keys that {here} does not know: {', '.join(self.keys)}")
        return lines

    def refusal(self) -> str | None:
        """Why this version must not go on with the sweep, and which one can; None where it may: an unknown key that is
        no setting of a trial or of the sweep only informs.
        """
        settings = [key for key in self.keys if key.startswith(_SETTINGS)]
        if self.format <= FORMAT and not self.kinds and not settings:
            return None
        return f"{'; '.join(self.notices())}. To go on with it, use pretune {self.version} or a later one"


_SETTINGS = ("opened.experiment.", "asked.config.", "extended.config.", "enqueued.config.")


def later(records: Iterable[Record]) -> Later | None:
    """What a later version has put into a journal of these records; None where all of it is understood."""
    found = NotUnderstood()
    for record in records:
        found.see(record)
    return found.later()


class NotUnderstood:
    """Collects what a later version has put into a journal, of one record after another."""

    def __init__(self) -> None:
        self._format, self._version = 0, ""
        self._kinds: dict[str, None] = {}
        self._keys: dict[str, None] = {}

    def see(self, record: Record) -> None:
        if isinstance(record, Unknown):
            self._kinds[record.kind] = None
        if isinstance(record, Opened | Resumed) or record.kind == "resumed":
            said = record.content if isinstance(record, Unknown) else dict(record)
            self._format = said.get("format", self._format)
            self._version = said.get("versions", {}).get("pretune", "unknown")
        for path in record.unknown:
            self._keys[f"{record.kind}.{path}"] = None

    def later(self) -> Later | None:
        """As the function `later`, of what was seen."""
        if self._format <= FORMAT and not self._kinds and not self._keys:
            return None
        return Later(self._format, self._version, tuple(self._kinds), tuple(self._keys))


class StoredEpoch(Mapping[str, float]):
    """An `Epoch` that stays on the disk: it is the mapping of its own `metrics`, read when a number is asked for.

    Of a large sweep nearly all lines are epochs, and who shows it needs the last of each trial.
    """

    __slots__ = ("_checkpoint", "_file", "_metrics", "_place", "epoch", "number", "time")

    def __init__(
        self,
        file: BinaryIO,
        place: Place,
        time: float,
        number: int,
        epoch: int,
        metrics: tuple[int, int],
        checkpoint: tuple[int, int] | None,
    ) -> None:
        """`metrics` and `checkpoint` are the bytes' place in `file`: where they begin, how many they are."""
        self._file, self._place, self.time, self.number, self.epoch = file, place, time, number, epoch
        self._metrics, self._checkpoint = metrics, checkpoint

    @property
    def metrics(self) -> Mapping[str, float]:
        return self

    @property
    def has_checkpoint(self) -> bool:
        return self._checkpoint is not None

    def read_checkpoint(self) -> Checkpoint | None:
        if self._checkpoint is None:
            return None
        return self._place.absolute(Checkpoint.model_validate_json(self._bytes(*self._checkpoint)))

    def read_metrics(self) -> dict[str, float]:
        return _METRICS.validate_json(self._bytes(*self._metrics))

    def __getitem__(self, name: str) -> float:
        # What makes a curve asks each epoch for one number. Within a name a quotation mark has a backslash before it.
        metrics, key = self._bytes(*self._metrics), json.dumps(name, ensure_ascii=False).encode() + b":"
        begin = metrics.find(key)
        if begin < 1 or metrics[begin - 1] not in b"{,":
            return self.read_metrics()[name]
        begin += len(key)
        end = metrics.find(b",", begin)
        return float(metrics[begin : end if end >= 0 else -1].strip(b'"'))

    def __iter__(self) -> Iterator[str]:
        return iter(self.read_metrics())

    def __len__(self) -> int:
        return len(self.read_metrics())

    def _bytes(self, begin: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, begin)


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """While a journal is gone through. Python looks for garbage among all that it holds each time so much was made, and
    of records none is: it doubles the time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def read(folder: Path, *, remote: str | None = None) -> list[Record]:
    """All records of the sweep in `folder`. A torn last line is left out: a driver may be writing it right now.
    `remote` is its URI, if it is not the one in the journal.

    Raises:
        RequestError: no journal there, a corrupt or missing line (named), or a line that this version does not
            understand and cannot do without.
    """
    with collecting_no_garbage(), _Lines.opened(folder / FILE) as lines:
        return list(_records(lines, _Reader(Place.of(folder, remote))))


@contextmanager
def reading(folder: Path, *, remote: str | None = None) -> Iterator[Iterator[Record | StoredEpoch]]:
    """The same, one after another, with most epochs left on the disk; they are read within this context only.

    RequestError as for `read`, while they are gone through.
    """
    with collecting_no_garbage(), _Lines.opened(folder / FILE) as lines:
        yield _records(lines, _Reader(Place.of(folder, remote)), stored=True)


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
        self._lines: _Lines | None = None
        self._reader = _Reader(self._place)
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
            self._lines = None

    def _anew(self) -> list[Record | StoredEpoch]:
        before = self._lines
        self._lines, self._reader = _Lines(self.path, self.path.open("rb")), _Reader(self._place)
        try:
            records = self._more()
        except (RequestError, OSError):
            self._lines.file.close()
            self._lines = before
            raise
        if before is not None:
            before.file.close()
        return records

    def _more(self) -> list[Record | StoredEpoch]:
        assert self._lines is not None
        with collecting_no_garbage():
            return list(_records(self._lines, self._reader, stored=True))

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

    `records` is all that is in it; `dropped_bytes` is the length of a torn last line that was cut off.
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
        reader = _Reader(Place.of(folder, remote))
        if not new and not self.path.exists():
            raise RequestError(f"no sweep in {folder}: {FILE} is missing; `pretune show` lists the sweeps there are")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder / LOCK)
        except OSError as error:
            raise RequestError(refused_by_files(error)) from error
        try:
            self.records: list[Record] = []
            self._checksum, size = 0, 0
            if self.path.exists():
                with collecting_no_garbage(), _Lines.opened(self.path) as lines:
                    self.records = list(_records(lines, reader))
                self._checksum, size = lines.checksum, lines.size
            self._place = reader.place
            sessions = [record.format for record in self.records if isinstance(record, Opened | Resumed)]
            self._format = sessions[-1] if sessions else FORMAT
            """Of the last `opened` or `resumed`."""
            found = later(self.records)
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
            self._place = _place_of(record, self._place)
        line, checksum = _line(_with_paths(record, self._place.relative), self._checksum)
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


def verified(content: bytes, previous: int) -> tuple[int, int]:
    """How many bytes of `content` are good lines that follow a line with checksum `previous`; the checksum then."""
    checksum, size = previous, 0
    for line in content.splitlines(keepends=True):
        found = _body(line, checksum)
        if found is None:
            break
        _, checksum = found
        size += len(line)
    return size, checksum


def whole_lines(path: Path) -> bytes:
    """The journal's bytes without a torn last line. RequestError where another line is corrupt or missing."""
    with _Lines.opened(path) as lines:
        for _ in lines:
            pass
    return path.read_bytes()[: lines.size]


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


def _line(record: Record, previous: int) -> tuple[bytes, int]:
    body = record.model_dump_json().encode()
    checksum = zlib.crc32(body, previous)
    return _PREFIX + f"{checksum:08x}".encode() + _MIDDLE + body + _SUFFIX, checksum


class _Lines:
    """The lines of a journal, one after another: iterating gives the bytes of each record, and iterating again those
    that came since. `checksum` is that of the last one given, `size` the number of bytes up to its end, `count` how
    many were given, `last` the last one's line.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.checksum, self.size, self.count = 0, 0, 0
        self.last = b""

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise RequestError(
                f"no sweep in {path.parent}: {path.name} is missing; `pretune show` lists the sweeps there are"
            ) from None
        with file:
            yield cls(path, file)

    def __iter__(self) -> Iterator[bytes]:
        """RequestError where a line is corrupt; a torn last one is left out."""
        # Not what is appended from now on: the line that was last would not be whole.
        end = os.fstat(self.file.fileno()).st_size
        # A buffer of its own: that of the last time has what has been cut off and written anew since.
        with open(os.dup(self.file.fileno()), "rb") as file:
            file.seek(self.size)
            for line in file:
                line = line[: end - self.size]
                if not line:
                    return
                found = _body(line, self.checksum)
                if found is None:
                    rest = end - self.size - len(line)
                    if not rest and _is_torn(line, self.checksum):
                        return
                    after = file.read(rest)
                    position = self.count + 1
                    count = position + after.count(b"\n") + (not after.endswith(b"\n") and bool(after))
                    raise RequestError(
                        f"{self.path}: line {position} of {count} is corrupt (its checksum does not fit, or that of a "
                        f"line missing before it); restore the file from a copy, or cut it before that "
                        f"line and lose what follows"
                    )
                body, self.checksum = found
                self.size += len(line)
                self.count, self.last = self.count + 1, line
                yield body


def _records(lines: _Lines, reader: _Reader, *, stored: bool = False) -> Iterator[Any]:
    """What `lines` say; `stored`: epochs stay on the disk where they are as this version writes them. RequestError as
    for `read`.
    """
    path, begin = lines.path, lines.size
    for body in lines:
        if lines.count == 1:
            _check_first(path, json.loads(body))
        if stored and (epoch := reader.stored(lines.file, begin + _HEAD, body)) is not None:
            yield epoch
        else:
            try:
                yield reader.read(body)
            except ValidationError as error:
                raise RequestError(
                    f"{path}: line {lines.count}, of format {reader.format}, was written by pretune {reader.version} "
                    f"and is not understood: {error}; use that version (this is {this_version()})"
                ) from error
        begin = lines.size


class _Reader:
    """Makes records of lines, one after another, whatever version wrote them; knows who wrote the last one."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.format = 0
        self.version = "unknown"
        self._space = ""
        self._base: dict[str, Any] = {}
        self._understood: set[Hashable] = set()
        """Parts of configs without an unknown key, by their names and what keys they have."""
        self._texts: dict[str, str] = {}
        self._here = b""
        """The sweep's folder as it stands before a path in a line, where it is a folder."""

    def stored(self, file: BinaryIO, begin: int, body: bytes) -> StoredEpoch | None:
        """An epoch's line that needs no closer look, its record at `begin` in `file`."""
        head = _EPOCH.match(body) if _EPOCHS_SINCE <= self.format <= FORMAT else None
        if head is None:
            return None
        metrics = head.end()
        end = body.find(b"}", metrics)
        tail = _CHECKPOINT.fullmatch(body, end + 1)
        if tail is None or body.find(b"{", metrics, end) >= 0:
            return None
        place = None if tail[1] == b"null" else (begin + tail.start(1), len(tail[1]))
        time, number, epoch = float(head[1]), int(head[2]), int(head[3])
        return StoredEpoch(file, self.place, time, number, epoch, (begin + metrics - 1, end - metrics + 2), place)

    def read(self, body: bytes) -> Record:
        """The next line's record. ValidationError where it is not understood, and the sweep not without it."""
        record = self._todays(body) or _with_paths(self._another(json.loads(body)), self.place.absolute)
        if isinstance(record, Opened):
            self.place = _place_of(record, self.place)
            if self.place.remote is None:
                self._here = json.dumps(os.path.join(self.place.folder, ""))[1:-1].encode()
            record = record.model_copy(update={"experiment": record.experiment.at(self.place)})
            self._base = record.experiment.base.model_dump(mode="json")
        if isinstance(record, Asked | Extended | Enqueued) and record.config is not None:
            record.unknown.update(self._share(record.config))
        if isinstance(record, Asked | Enqueued):
            # A distribution's text is that of all trials.
            for name, text in record.distributions.items():
                record.distributions[name] = self._texts.setdefault(text, text)
        return record

    def _todays(self, body: bytes) -> Record | None:
        """The record of a line of today's format, None where it needs a closer look. Most lines need none."""
        if self.format != FORMAT:
            return None
        placed = self._placed(body)
        try:
            record = _KNOWN.validate_json(placed or body)
        except ValidationError:
            return None
        if isinstance(record, Opened | Resumed):
            return None
        return record if placed else _with_paths(record, self.place.absolute)

    def _placed(self, body: bytes) -> bytes | None:
        """An epoch's line with its path made absolute: a copy of the record with another path would take as long as the
        record itself. None where the line needs a closer look.
        """
        head = _EPOCH.match(body)
        tail = None if head is None else _CHECKPOINT.fullmatch(body, body.find(b"}", head.end()) + 1)
        if tail is None or tail[1] == b"null":
            return None if tail is None else body
        path = tail.start(1) + len(b'{"path":"')
        if not self._here or not body.startswith(b"trials/", path):
            return None
        return body[:path] + self._here + body[path:]

    def _share(self, config: dict[str, Any]) -> dict[str, Any]:
        """Keys of a trial's config that this version does not know. What is as in the sweep's base is made the very
        same object: it is most of each config.
        """
        shapes: list[Hashable] = []
        for name, part in config.items():
            if name in self._base and part == self._base[name]:
                config[name] = self._base[name]
            else:
                shapes.append((name, _shape(part)))
        if self._understood.issuperset(shapes):
            return {}
        unknown = _unknown_settings(config)
        if not unknown:
            self._understood.update(shapes)
        return unknown

    def _another(self, values: dict[str, Any]) -> Record:
        kind = values.get("kind")
        if kind in ("opened", "resumed"):
            self.format = values.get("format", self.format)
            self.version = values.get("versions", {}).get("pretune", "unknown")
            self._space = values["experiment"]["space"] if kind == "opened" else self._space
        elif kind not in _KINDS:
            return _set_aside(values)
        try:
            upgraded = upgrade(values, written_in=self.format, space=self._space)
            record, unknown = understood(_KNOWN.validate_python, upgraded)
        except ValidationError:
            if self.format <= FORMAT or kind == "opened":
                raise
            return _set_aside(values)
        record.unknown.update(unknown)
        return record


def _place_of(opened: Opened, found: Place) -> Place:
    """Of a sweep that was `found` there: its remote is that of its first record, where no other one was named."""
    return found if found.remote is not None else Place(found.folder, opened.experiment.remote)


def _with_paths(record: Record, change: Callable[[Checkpoint], Checkpoint]) -> Record:
    """`record` with the paths in it changed."""
    if isinstance(record, Epoch | Extended) and record.checkpoint is not None:
        return record.model_copy(update={"checkpoint": change(record.checkpoint)})
    return record


def _set_aside(values: dict[str, Any]) -> Unknown:
    return Unknown(time=values.get("time", 0.0), kind=str(values.get("kind")), content=values)


def _unknown_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of a trial's config that this version does not know; they stay in it."""
    try:
        TrialConfig.model_validate(config)
    except ValidationError as error:
        return {f"config.{path}": value for path, value in drop_unknown(deepcopy(config), error).items()}
    return {}


def _shape(part: Any) -> Hashable:
    """What decides which keys of a part of a config are known: its keys, and of which kind the objects in it are."""
    if isinstance(part, dict):
        return tuple((name, value if name == "kind" else _shape(value)) for name, value in part.items())
    return tuple(map(_shape, part)) if isinstance(part, list) else part is None


def _body(line: bytes, previous: int) -> tuple[bytes, int] | None:
    """The record's bytes and their checksum; None where the line is torn or its checksum does not fit."""
    body = line[_HEAD : -len(_SUFFIX)]
    checksum = zlib.crc32(body, previous)
    whole = line.endswith(_SUFFIX) and line.startswith(b"%b%08x%b" % (_PREFIX, checksum, _MIDDLE))
    return (body, checksum) if whole else None


def _is_torn(line: bytes, previous: int) -> bool:
    """Whether a last line that is no good was never written whole: its end is missing, or blocks of it are still zeros.

    A whole line of which a single bit was flipped is not torn, be it the line feed's, or one that makes a space zero.
    """
    if not line.endswith(b"\n"):
        return _body(line[:-1] + b"\n", previous) is None
    return line.startswith(b"\0") or b"\0\0" in line


def _check_first(path: Path, first: Any) -> None:
    if not isinstance(first, dict):
        raise RequestError(f"{path} must begin with a record, but begins with {first!r}; restore the file from a copy")
    format = first.get("format")
    if first.get("kind") != "opened" or not isinstance(format, int) or format < 1:
        raise RequestError(
            f"{path} must begin with a record `opened` of format 1 to {FORMAT}, but begins with "
            f"{first.get('kind')!r} of format {format!r}; restore the file from a copy"
        )
