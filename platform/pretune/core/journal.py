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
import weakref
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

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

_START, _SUFFIX = b'{"crc32":"%08x","record":', b"}\n"
_HEAD = len(_START % 0)
"""Where the record begins in its line."""

_EPOCHS_SINCE = 2
"""The format since which an epoch's line is as it is now, but for the path in it."""

# An epoch's line, up to its numbers and after them.
_EPOCH = re.compile(rb'\{"time":([-+.e\d]+),"kind":"epoch","number":(\d+),"epoch":(\d+),"metrics":\{')
_OPENING = ord("{")
_CHECKPOINT_KEY = b',"checkpoint":'
_CHECKPOINT = re.compile(rb'%b(null|\{"path":"[^"{}\\]*","sha256":"[^"{}\\]*","epoch":\d+\})\}' % _CHECKPOINT_KEY)

# The line of a trial that was asked, up to its parameters, between them and its config, and after that.
_ASKED = re.compile(rb'\{"time":([-+.e\d]+),"kind":"asked","number":(\d+),"params":')
_DISTRIBUTIONS, _CONFIG, _DUPLICATE = b',"distributions":', b',"config":', b',"duplicate_of":'
_ASKED_END = re.compile(rb'%b(?:null|(\d+)),"enqueued":(?:null|"([^"\\]*)")\}' % _DUPLICATE)


class _Record(BaseModel):
    # "strings": a diverged loss is written as "NaN", which is still JSON, and read back as a number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: float = 0.0
    """Unix seconds at which it was written; set by `append`."""

    @cached_property
    def unknown(self) -> dict[str, Any]:
        """Keys that this version does not know, by dotted path, of a record that was read."""
        # No field, and no private attribute: to give each record one takes twice as long as to read it.
        return {}


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
    before the trial's next `started`, and another `ended` follows.
    """

    kind: Literal["extended"] = "extended"
    number: int
    config: dict[str, Any]
    checkpoint: Checkpoint


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
_TEXTS = TypeAdapter(dict[str, str])
_VALUES = TypeAdapter(dict[str, Any])
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
        if record.kind in ("opened", "resumed"):
            said = record.content if isinstance(record, Unknown) else dict(record)
            self._format = said.get("format", self._format)
            self._version = said.get("versions", {}).get("pretune", "unknown")
        if "unknown" in vars(record):  # few have any
            for path in record.unknown:
                self._keys[f"{record.kind}.{path}"] = None

    def later(self) -> Later | None:
        """As the function `later`, of what was seen."""
        if self._format <= FORMAT and not self._kinds and not self._keys:
            return None
        return Later(self._format, self._version, tuple(self._kinds), tuple(self._keys))


class Source:
    """An open journal, from which epochs that stay on the disk are read: where the sweep lies, and the metric that is
    searched for. It is closed with the last epoch that lies in it, or by `close`.
    """

    def __init__(self, handle: int, place: Place, metric: str) -> None:
        """`handle` is a file's, and this one's own from now on."""
        self.place, self.metric = place, metric
        self.key = json.dumps(metric, ensure_ascii=False).encode() + b":"
        """The metric as it stands in an epoch's line."""
        self._handle = handle
        self.close = weakref.finalize(self, os.close, handle)

    def bytes(self, begin: int, count: int) -> bytes:
        if not self.close.alive:
            raise ValueError("the journal is closed")
        return os.pread(self._handle, count, begin)


class StoredEpoch(Mapping[str, float]):
    """An `Epoch` that stays on the disk: it is the mapping of its own `metrics`, read when a number is asked for. Only
    the searched metric, which makes curves and decisions, is at hand.

    Of a large sweep nearly all lines are epochs, and who shows it needs the last of each trial.
    """

    __slots__ = ("_begin", "_checkpoint", "_count", "_source", "_value", "epoch", "number", "time")

    kind: ClassVar[Literal["epoch"]] = "epoch"

    def __init__(
        self,
        source: Source,
        time: float,
        number: int,
        epoch: int,
        value: float | None,
        begin: int,
        count: int,
        checkpoint: int,
    ) -> None:
        """`value` is that of the searched metric, None where it was not measured. The bytes of `metrics` begin at
        `begin` and are `count`, those of its checkpoint, which follow, are `checkpoint`, 0 where it has none.
        """
        self._source, self.time, self.number, self.epoch = source, time, number, epoch
        self._value, self._begin, self._count, self._checkpoint = value, begin, count, checkpoint

    @property
    def metrics(self) -> Mapping[str, float]:
        return self

    @property
    def has_checkpoint(self) -> bool:
        return self._checkpoint > 0

    def read_checkpoint(self) -> Checkpoint:
        """Of one that has a checkpoint."""
        assert self.has_checkpoint
        begin = self._begin + self._count + len(_CHECKPOINT_KEY)
        found = json.loads(self._source.bytes(begin, self._checkpoint))
        path = self._source.place.path(found["path"])
        return Checkpoint(path=path, sha256=found["sha256"], epoch=found["epoch"])

    def read_metrics(self) -> dict[str, float]:
        return _METRICS.validate_json(self._source.bytes(self._begin, self._count))

    def whole(self) -> Epoch:
        """The same, all of it in memory."""
        return Epoch.model_construct(
            time=self.time,
            number=self.number,
            epoch=self.epoch,
            metrics=self.read_metrics(),
            checkpoint=self.read_checkpoint() if self.has_checkpoint else None,
        )

    def __getitem__(self, name: str) -> float:
        if name == self._source.metric:
            if self._value is None:
                raise KeyError(name)
            return self._value
        return self.read_metrics()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read_metrics())

    def __len__(self) -> int:
        return len(self.read_metrics())


def _value_in(body: bytes, source: Source, begin: int, end: int) -> float | None:
    """The searched metric in the metrics of an epoch's line, which lie from `begin` to `end`; None where it was not
    measured. ValueError where they are no numbers.
    """
    # Within a name a quotation mark has a backslash before it.
    found = body.find(source.key, begin, end)
    if found > begin and body[found - 1] in b"{,":
        found += len(source.key)
        comma = body.find(b",", found, end)
        text = body[found : comma if comma >= 0 else end - 1]
        return float(text[1:-1] if text.startswith(b'"') else text)
    if found < 0 and body.find(b"\\", begin, end) < 0 and body.find(source.key[:-1], begin, end) < 0:
        return None
    return _METRICS.validate_json(body[begin:end]).get(source.metric)


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
    with reading(folder, remote=remote) as records:
        return [record.whole() if isinstance(record, StoredEpoch) else record for record in records]


@contextmanager
def reading(folder: Path, *, remote: str | None = None) -> Iterator[Iterator[Record | StoredEpoch]]:
    """The same, one after another, with most epochs left on the disk; they are read within this context only.

    RequestError as for `read`, while they are gone through.
    """
    with collecting_no_garbage(), _Lines.opened(folder / FILE) as lines:
        reader = _Reader(Place.of(folder, remote), lines.file)
        try:
            yield _records(lines, reader)
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
            self._reader.close()
            self._lines = None

    def _anew(self) -> list[Record | StoredEpoch]:
        before = self._lines, self._reader
        file = self.path.open("rb")
        self._lines, self._reader = _Lines(self.path, file), _Reader(self._place, file)
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
            return list(_records(self._lines, self._reader))

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
                with collecting_no_garbage(), _Lines.opened(self.path) as lines:
                    reader = _Reader(self._place, lines.file)
                    self.records = list(_records(lines, reader))
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
    return _START % checksum + body + _SUFFIX, checksum


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
                if self.size + len(line) > end:
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


def _records(lines: _Lines, reader: _Reader) -> Iterator[Any]:
    """What `lines` say. RequestError as for `read`."""
    path, begin = lines.path, lines.size
    for body in lines:
        if lines.count == 1:
            _check_first(path, json.loads(body))
        try:
            epoch = reader.stored(begin + _HEAD, body)
            yield reader.read(body) if epoch is None else epoch
        except ValidationError as error:
            raise RequestError(
                f"{path}: line {lines.count}, of format {reader.format}, was written by pretune {reader.version} "
                f"and is not understood: {error}; use that version (this is {this_version()})"
            ) from error
        begin = lines.size


class _Reader:
    """Makes records of lines, one after another, whatever version wrote them; knows who wrote the last one."""

    def __init__(self, place: Place, file: BinaryIO | None = None) -> None:
        """`file` is where the lines are, if epochs are to stay there as far as they can."""
        self.place = place
        self.format = 0
        self.version = "unknown"
        self._file = file
        self._source: Source | None = None
        self._space = ""
        self._base: dict[str, Any] = {}
        self._common = _Common({})
        self._understood: set[Hashable] = set()
        """Parts of configs without an unknown key, by their names and what keys they have."""
        self._distributions: dict[bytes, dict[str, str]] = {}
        """By how they stand in a line: most trials have the same."""
        self._texts: dict[str, str] = {}

    def close(self) -> None:
        """Epochs that stayed on the disk can no longer be read."""
        if self._source is not None:
            self._source.close()

    def stored(self, begin: int, body: bytes) -> StoredEpoch | None:
        """An epoch's line that needs no closer look, its record at `begin` in the file."""
        source = self._source
        if source is None or not _EPOCHS_SINCE <= self.format <= FORMAT:
            return None
        head = _EPOCH.match(body)
        if head is None:
            return None
        metrics = head.end()
        end = body.find(b"}", metrics)
        tail = _CHECKPOINT.fullmatch(body, end + 1)
        if tail is None or body.find(b"{", metrics, end) >= 0:
            return None
        first, last = tail.span(1)
        time, number, epoch = head.groups()
        try:
            return StoredEpoch(
                source,
                float(time),
                int(number),
                int(epoch),
                _value_in(body, source, metrics - 1, end + 1),
                begin + metrics - 1,
                end - metrics + 2,
                0 if body[first] != _OPENING else last - first,
            )
        except ValueError:  # no number
            return None

    def read(self, body: bytes) -> Record:
        """The next line's record. ValidationError where it is not understood, and the sweep not without it."""
        with suppress(ValueError):
            if (asked := self._asked(body)) is not None:
                return asked
        record = self._todays(body)
        if record is None:
            record = _with_paths(self._another(json.loads(body)), self.place.absolute)
        if isinstance(record, Opened):
            self.place = _place_of(record, self.place)
            record = record.model_copy(update={"experiment": record.experiment.at(self.place)})
            self._begin(record.experiment)
        elif isinstance(record, Asked | Extended | Enqueued) and record.config is not None:
            record.unknown.update(self._share(record.config))
        if isinstance(record, Asked | Enqueued):
            # A distribution's text is that of all trials.
            for name, text in record.distributions.items():
                record.distributions[name] = self._texts.setdefault(text, text)
        return record

    def _begin(self, experiment: Experiment) -> None:
        self._base = experiment.base.model_dump(mode="json")
        self._common = _Common(self._base)
        if self._file is not None:
            self._source = Source(os.dup(self._file.fileno()), self.place, experiment.metric)

    def _todays(self, body: bytes) -> Record | None:
        """The record of a line of today's format, None where it needs a closer look. Most lines need none."""
        if self.format != FORMAT:
            return None
        try:
            record = _KNOWN.validate_json(body)
        except ValidationError:
            return None
        return None if isinstance(record, Opened | Resumed) else _with_paths(record, self.place.absolute)

    def _asked(self, body: bytes) -> Asked | None:
        """The record of a line of today's format about a trial that was asked, None where it needs a closer look. What
        it has in common with others, nearly all of it, is known by its text.

        ValueError: no JSON; a closer look says where.
        """
        # In a string a quotation mark has a backslash before it, so that each of these is a key. Where it is one of an
        # inner object, what lies before it is no JSON.
        if self.format != FORMAT or (head := _ASKED.match(body)) is None:
            return None
        params = body.find(_DISTRIBUTIONS, head.end())
        begin = params + len(_DISTRIBUTIONS)
        end = body.find(_CONFIG, begin)
        found = self._common.config(body, end + len(_CONFIG)) if 0 < params < end else None
        if found is None:
            return None
        config, shapes, position = found
        tail = _ASKED_END.fullmatch(body, position)
        if tail is None or not self._understood.issuperset(shapes):
            return None
        distributions = self._distributions.get(body[begin:end])
        if distributions is None:
            distributions = self._distributions[body[begin:end]] = _TEXTS.validate_json(body[begin:end])
        duplicate_of, enqueued = tail.groups()
        return Asked.model_construct(
            time=float(head[1]),
            number=int(head[2]),
            params=_VALUES.validate_json(body[head.end() : params]),
            distributions=distributions,
            config=config,
            duplicate_of=None if duplicate_of is None else int(duplicate_of),
            enqueued=None if enqueued is None else enqueued.decode(),
        )

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


class _Part(NamedTuple):
    """A part of the base as it stands in a line: how it begins there, all of it, and what follows it. To the text
    belongs the comma or the brace after it: a number may go on otherwise.
    """

    name: str
    begin: bytes
    text: bytes
    value: Any
    next: bytes


class _Common:
    """What the trials' configs have in common with the sweep's base, as it stands in their lines: most of each."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        begins = [to_json(name) + b":" for name in base]
        nexts = [*(b"," + begin for begin in begins[1:]), b"}" + _DUPLICATE]
        self._parts = [
            _Part(name, begin, begin + to_json(value, inf_nan_mode="strings") + following[:1], value, following)
            for (name, value), begin, following in zip(base.items(), begins, nexts, strict=False)
        ]
        self._varied: set[str] = set()
        """The parts in which a trial was seen to differ."""
        self._steps = self._planned()

    def config(self, body: bytes, position: int) -> tuple[dict[str, Any] | None, list[Hashable], int] | None:
        """The config that begins at `position` in a line, the shapes of its own parts, and where it ends; None where it
        needs a closer look. What is as in the base is the very same object. ValueError: no JSON.
        """
        if body.startswith(b"null", position):
            return None, [], position + len(b"null")
        config: dict[str, Any] = {}
        shapes: list[Hashable] = []
        position += len(b"{")
        for same, values, part in self._steps:
            if body.startswith(same, position):
                config.update(values)
                position += len(same)
            elif part is None:
                self._vary(body, position, values)
                return None
            elif body.startswith(part.begin, position):
                begin, end = position + len(part.begin), body.find(part.next, position)
                config[part.name] = own = from_json(body[begin:end])
                shapes.append((part.name, _shape(own)))
                position = end + 1
            else:
                return None
        return config, shapes, position

    def _vary(self, body: bytes, position: int, run: Mapping[str, Any]) -> None:
        """Notes the first part of `run`, which begins at `position`, that is not as in the base."""
        for part in self._parts:
            if part.name in run:
                if not body.startswith(part.text, position):
                    self._varied.add(part.name)
                    break
                position += len(part.text)
        self._steps = self._planned()

    def _planned(self) -> list[tuple[bytes, dict[str, Any], _Part | None]]:
        """The parts in their order, text and values: those between two that vary are looked for at once."""
        steps: list[tuple[bytes, dict[str, Any], _Part | None]] = []
        for part in self._parts:
            if part.name in self._varied:
                steps.append((part.text, {part.name: part.value}, part))
            elif steps and steps[-1][2] is None:
                text, values, _ = steps[-1]
                steps[-1] = text + part.text, values | {part.name: part.value}, None
            else:
                steps.append((part.text, {part.name: part.value}, None))
        return steps


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
    whole = line.startswith(_START % checksum) and line.endswith(_SUFFIX)
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
