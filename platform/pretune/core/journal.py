"""The append-only record of a sweep: written before anything is acted upon, read to rebuild everything.

One JSON object per line: `{"crc32":"xxxxxxxx","record":{...}}`. The checksum covers the record's bytes and the
checksum of the line before, so a line that is changed, missing or out of place is noticed. Each line is flushed to
the disk (fsync) before `append` returns. A crash can only tear the last line: reading drops it, opening for append
cuts it off.

Records, in the order in which a trial meets them: `opened` (once, first), `asked`, `started` (each attempt), `epoch`,
`attempt` (a failure that is retried or given up), `ended`, `extended` (it is to train longer); and of drivers `resumed`
and `closed`. Each class below says what its fields mean. With a storage URI the same lines are uploaded as segments
(journal_remote.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from trainers.files import sync, write_whole
from trainers.report import Checkpoint

FORMAT = 1
FILE = "journal.jsonl"
LOCK = "journal.lock"

End = Literal["COMPLETE", "PRUNED", "INFEASIBLE", "FAIL"]

_PREFIX, _MIDDLE, _SUFFIX = b'{"crc32":"', b'","record":', b"}\n"


class _Record(BaseModel):
    # "strings": a diverged loss is written as "NaN", which is still JSON, and read back as a number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: float = 0.0
    """Unix seconds at which it was written; set by `append`."""


class Opened(_Record):
    """The first line. `host` holds facts about the machine, kept apart: journals compare without them."""

    kind: Literal["opened"] = "opened"
    format: int = FORMAT
    experiment: Experiment
    versions: dict[str, str] = {}
    host: dict[str, str] = {}


class Asked(_Record):
    """The sampler's proposal. Trial numbers count from 0 without gaps.

    `distributions` are Optuna's, as its own JSON. `config` is None where the space refused the parameters; an `Ended`
    follows. `duplicate_of` is the first trial with equal parameters, if any.
    """

    kind: Literal["asked"] = "asked"
    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: dict[str, Any] | None
    duplicate_of: int | None = None


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


class Ended(_Record):
    """A trial is over. `value` is what Optuna is told for COMPLETE; `rung` is where a PRUNED trial was stopped."""

    kind: Literal["ended"] = "ended"
    number: int
    state: End
    value: float | None = None
    reason: str = ""
    rung: int | None = None


class Extended(_Record):
    """A finished trial is to train longer: on from `checkpoint`, the last before its decay, as `config` says. It comes
    before the trial's next `started`, and another `ended` follows.
    """

    kind: Literal["extended"] = "extended"
    number: int
    config: dict[str, Any]
    checkpoint: Checkpoint


class Resumed(_Record):
    """A driver took the sweep up again. `trials` is the number of trials asked for from now on."""

    kind: Literal["resumed"] = "resumed"
    trials: int
    versions: dict[str, str] = {}
    host: dict[str, str] = {}


class Closed(_Record):
    """A driver left the sweep in order. `exhausted`: the grid has no more points."""

    kind: Literal["closed"] = "closed"
    reason: Literal["finished", "exhausted", "interrupted", "failed"]
    detail: str = ""


Record = Annotated[
    Opened | Asked | Started | Epoch | Attempt | Ended | Extended | Resumed | Closed,
    Field(discriminator="kind"),
]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def read(folder: Path) -> list[Record]:
    """All records of the sweep in `folder`. A torn last line is left out: a driver may be writing it right now.

    Raises:
        RequestError: no journal there, a corrupt or missing line (named), or a format this version does not know.
    """
    records, _, _ = _parse(folder / FILE)
    return records


class Journal:
    """The journal of one sweep, opened by the one process that may write it.

    `records` is all that is in it; `dropped_bytes` is the length of a torn last line that was cut off.
    """

    def __init__(
        self,
        folder: Path,
        *,
        new: bool,
        clock: Callable[[], float] = time.time,
        publish: Callable[[bytes], None] | None = None,
    ) -> None:
        """`publish` is given each line once it is on the disk, before `append` returns.

        RequestError: another process runs the sweep; `new`, and there is one; not `new`, and there is none.
        """
        self.path = folder / FILE
        self._clock = clock
        self._publish = publish
        if not new and not self.path.exists():
            raise RequestError(f"no sweep in {folder}: {FILE} is missing; `pretune show` lists the sweeps there are")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder / LOCK)
        try:
            self.records: list[Record] = []
            self._checksum, size = 0, 0
            if self.path.exists():
                self.records, self._checksum, size = _parse(self.path)
            if new and self.records:
                raise RequestError(
                    f"a sweep named {folder.name!r} exists in {folder.parent}; choose another --name, or go on with "
                    f"`pretune resume {folder}`"
                )
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the journal
            self.dropped_bytes = self._file.seek(0, os.SEEK_END) - size
            if self.dropped_bytes:
                self._file.truncate(size)
                os.fsync(self._file.fileno())
            sync(folder)
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, record: Record) -> Record:
        """Stamps `record` with the time and returns it once the disk, and the storage if there is one, has it.

        OSError where one of them refuses.
        """
        record = record.model_copy(update={"time": self._clock()})
        line, checksum = _line(record, self._checksum)
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{self.path}: {written} of {len(line)} bytes written; the disk is full?")
            os.fsync(self._file.fileno())
        except OSError:
            # Half a line in the middle would make the whole journal unreadable after the next append.
            self._file.truncate(end)
            raise
        self._checksum = checksum
        self.records.append(record)
        if self._publish is not None:
            # Where it raises, the line stays: the next driver finds the local journal longer, and goes on from it.
            self._publish(line)
        return record

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
        body = _body(line, checksum)
        if body is None:
            break
        checksum = zlib.crc32(body, checksum)
        size += len(line)
    return size, checksum


def whole_lines(path: Path) -> bytes:
    """The journal's bytes without a torn last line. RequestError as for `read`."""
    _, _, size = _parse(path)
    return path.read_bytes()[:size]


def replace(folder: Path, content: bytes) -> None:
    """Puts `content` in the place of the journal in `folder`. RequestError: a process runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder / LOCK)
    try:
        write_whole(folder / FILE, content)
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


def _parse(path: Path) -> tuple[list[Record], int, int]:
    """The records, the last checksum, and the number of bytes up to the end of the last good line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(
            f"no sweep in {path.parent}: {path.name} is missing; `pretune show` lists the sweeps there are"
        ) from None
    records: list[Record] = []
    checksum, size = 0, 0
    lines = [line + b"\n" for line in content.split(b"\n")]
    # What follows the last line feed is empty, or a torn line.
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    for position, line in enumerate(lines):
        body = _body(line, checksum)
        if body is None:
            if position == len(lines) - 1:
                break
            raise RequestError(
                f"{path}: line {position + 1} of {len(lines)} is corrupt (its checksum does not fit, or that of a "
                f"line missing before it); restore the file from a copy, or cut it before that "
                f"line and lose what follows"
            )
        if not records:
            _check_format(path, body)
        try:
            records.append(_RECORD.validate_json(body))
        except ValidationError as error:
            raise RequestError(
                f"{path}: line {position + 1} was written by another version of pretune and is not understood: "
                f"{error}; use the version named in the journal's first line"
            ) from error
        checksum = zlib.crc32(body, checksum)
        size += len(line)
    return records, checksum, size


def _body(line: bytes, previous: int) -> bytes | None:
    """The record's bytes, or None where the line is torn or its checksum does not fit."""
    head = len(_PREFIX) + 8 + len(_MIDDLE)
    if not (line.startswith(_PREFIX) and line.endswith(_SUFFIX) and line[head - len(_MIDDLE) : head] == _MIDDLE):
        return None
    body = line[head : -len(_SUFFIX)]
    return body if line[len(_PREFIX) : len(_PREFIX) + 8] == f"{zlib.crc32(body, previous):08x}".encode() else None


def _check_format(path: Path, body: bytes) -> None:
    first = json.loads(body)
    if first.get("kind") != "opened" or first.get("format") != FORMAT:
        raise RequestError(
            f"{path} has format {first.get('format')!r}, but this version of pretune reads format {FORMAT}; "
            f"use the version that wrote it ({first.get('versions', {}).get('pretune', 'unknown')})"
        )
