"""The journal's copy on an object store: sealed segments, each written once, uploaded before a decision is acted upon.

`<sweep>/journal/<fencing number>-<number>.jsonl` holds whole lines of the journal, as they are on the local disk. The
first segment under each fencing number (number 0) is the whole journal as its driver found it, each later one a record
that was added.
A reader takes the highest fencing number that has a first segment, and nothing else: what a driver writes after it lost
its lease (lease.py) is thereby ignored. The local journal comes first; one that disagrees is never overwritten.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pretune.core import journal, lease
from pretune.core.errors import RequestError
from pretune.core.journal import Journal
from pretune.core.lines import verified, whole_lines
from trainers import storage
from trainers.files import write_whole

logger = logging.getLogger(__name__)

FOLDER = "journal"
READERS = 16
"""Segments that are read at once."""
AFTER_FAILURE_S = 1.0
"""How long the next upload is tried after one that has failed for the whole bound: it is the sweep's last record."""
LIST_EVERY = 20
"""So often a copy that is followed looks at all names: there may be as many as the sweep has records."""
FOLLOWED_BOUND_S = 5.0
"""So long a storage may fail before who follows a journal is told; it is asked again later."""

Longer = Literal["equal", "local", "remote"]


class Uploader:
    """Uploads what the journal has on the disk. What could not be uploaded goes with the next segment."""

    def __init__(self, remote: str, held: lease.Held) -> None:
        self._remote = remote
        self._held = held
        self._number = 0
        self._pending = b""
        self._bound_s = storage.BOUND_S

    def publish(self, lines: bytes) -> None:
        """Returns once the storage has `lines` and the lease is still ours. OSError: it failed, or the lease went."""
        self._pending += lines
        try:
            storage.write(
                storage.join(self._remote, FOLDER, _name(self._held.fence, self._number)),
                self._pending,
                bound_s=self._bound_s,
            )
        except OSError:
            self._bound_s = AFTER_FAILURE_S
            raise
        self._pending = b""
        self._number += 1
        self._bound_s = storage.BOUND_S
        # Afterwards: whoever took the lease before the upload may have read the journal without it.
        self._held.check()


@contextmanager
def opened(folder: Path, remote: str | None, *, new: bool) -> Iterator[Journal]:
    """The journal of the sweep in `folder`, mirrored to `remote` if there is one. RequestError as for `Journal`."""
    if remote is None:
        with Journal(folder, new=new) as local:
            yield local
        return
    before = storage.names(storage.join(remote, FOLDER))
    if new and before:
        raise RequestError(f"a sweep lies in {remote}; choose another --name, or go on with `pretune resume {remote}`")
    held = lease.take(storage.join(remote, lease.FILE), above=max((_parse(name)[0] for name in before), default=0))
    with lease.kept(held):
        if not new:
            fetch(remote, folder)
        uploader = Uploader(remote, held)
        with Journal(folder, new=new, remote=remote, publish=uploader.publish) as local:
            if local.records:
                uploader.publish(local.path.read_bytes())
            yield local


def fetch(remote: str, folder: Path) -> Longer:
    """Brings the journal in `folder` up to what `remote` has; says which of the two was longer.

    RequestError where neither is the beginning of the other, or a segment is missing or corrupt (it is named).
    """
    theirs = read(remote)
    path = folder / journal.FILE
    ours = whole_lines(path) if path.is_file() else b""
    if ours == theirs:
        return "equal"
    if ours.startswith(theirs):
        logger.warning("the journal in %s is longer than the one in %s: the local one counts", folder, remote)
        return "local"
    if not theirs.startswith(ours):
        here, there = len(ours.splitlines()), len(theirs.splitlines())
        longer = "local" if here > there else "remote" if there > here else "neither"
        raise RequestError(
            f"{path} and the journal in {remote} must tell the same story, but differ (longer: {longer}; {here} lines "
            f"here, {there} there); move the wrong one away, then resume"
        )
    if ours:
        logger.warning("the journal in %s is longer than the one in %s: the remote one counts", remote, folder)
    journal.replace(folder, theirs)
    return "remote"


def read(remote: str) -> bytes:
    """The journal's lines in `remote`, checked to the last checksum; a torn last line is dropped."""
    found = _listed(remote, bound_s=storage.BOUND_S)
    if found is None:
        raise RequestError(f"no sweep in {remote}: it has no journal; check the URI, it ends with the sweep's name")
    fence, count = found
    return _contents(remote, fence, range(count), 0, bound_s=storage.BOUND_S)[0]


class Copy:
    """The journal in `remote` as a file in `folder`, for who follows it: `update` brings what came since. Nothing in
    `remote` is written, and no lease is taken.
    """

    def __init__(self, remote: str, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._remote, self._path, self._clock = remote, folder / journal.FILE, clock
        self._fence, self._count, self._checksum = 0, 0, 0
        self._looks = 0
        self._heartbeat, self._beaten = 0.0, float("-inf")
        self.live = False
        """Whether a driver runs the sweep, as far as its lease says."""

    def update(self, *, bound_s: float = FOLLOWED_BOUND_S) -> None:
        """Without a journal in `remote` there is no file. OSError: the storage fails. RequestError as for `read`."""
        held = lease.read(storage.join(self._remote, lease.FILE), bound_s=bound_s)
        self.live = held is not None and self._is_live(held)
        if self._looks % LIST_EVERY == 0 or (held is not None and held.fence != self._fence):
            self._list(bound_s)
        else:
            self._ask(bound_s)
        self._looks += 1

    def _is_live(self, held: lease.Lease) -> bool:
        """A heartbeat that changes is that of a living owner, whatever the clocks say."""
        if held.heartbeat != self._heartbeat:
            age_s = self._clock() - held.heartbeat
            first, self._heartbeat = not self._heartbeat, held.heartbeat
            if not first or abs(age_s) <= lease.STALE_S:
                self._beaten = time.monotonic()
        return not held.released and time.monotonic() - self._beaten <= lease.STALE_S

    def _list(self, bound_s: float) -> None:
        """Looks at the names of all segments: a driver that took over begins anew, with all that was."""
        found = _listed(self._remote, bound_s=bound_s)
        if found is None:
            self._fence, self._count, self._checksum = 0, 0, 0
            self._path.unlink(missing_ok=True)
            return
        fence, count = found
        if fence == self._fence and self._path.exists():
            self._append(fence, range(self._count, count), bound_s)
            return
        lines, checksum, good = _contents(self._remote, fence, range(count), 0, bound_s=bound_s)
        before = self._path.read_bytes() if self._path.exists() else b""
        if lines.startswith(before):
            self._write(lines[len(before) :])
        else:
            write_whole(self._path, lines)
        # What was torn is read again from the beginning.
        self._fence, self._count, self._checksum = fence if good == count else 0, good, checksum

    def _ask(self, bound_s: float) -> None:
        """Asks for the next segments by name, which costs one answer however many there are."""
        with suppress(FileNotFoundError):
            while self._fence:
                self._append(self._fence, range(self._count, self._count + 1), bound_s)

    def _append(self, fence: int, numbers: range, bound_s: float) -> None:
        lines, checksum, good = _contents(self._remote, fence, numbers, self._checksum, bound_s=bound_s)
        if good < len(numbers):
            self._fence = 0
            return
        self._write(lines)
        self._checksum, self._count = checksum, self._count + good

    def _write(self, lines: bytes) -> None:
        if lines:
            with self._path.open("ab") as file:
                file.write(lines)


def _listed(remote: str, *, bound_s: float) -> tuple[int, int] | None:
    """The highest fencing number that has a first segment, and how many segments it has; None where there is none.

    RequestError where one is missing among them.
    """
    place = storage.join(remote, FOLDER)
    numbers: dict[int, set[int]] = {}
    for name in storage.names(place, bound_s=bound_s):
        fence, number = _parse(name)
        numbers.setdefault(fence, set()).add(number)
    complete = [fence for fence, found in numbers.items() if 0 in found]
    if not complete:
        return None
    fence = max(complete)
    count = max(numbers[fence]) + 1
    missing = [number for number in range(count) if number not in numbers[fence]]
    if missing:
        name = storage.join(place, _name(fence, missing[0]))
        raise RequestError(f"segment {name} is missing; restore it, or cut what follows")
    return fence, count


def _contents(remote: str, fence: int, numbers: range, checksum: int, *, bound_s: float) -> tuple[bytes, int, int]:
    """The lines of these segments, which follow a line with `checksum`; the checksum then, and how many segments are
    whole: a torn last line is dropped. RequestError where one is corrupt.
    """
    place = storage.join(remote, FOLDER)
    names = [storage.join(place, _name(fence, number)) for number in numbers]
    if len(names) > 1:
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(lambda name: storage.read(name, bound_s=bound_s), names))
    else:
        contents = [storage.read(name, bound_s=bound_s) for name in names]
    lines, whole = [], 0
    for name, content in zip(names, contents, strict=True):
        good, checksum = verified(content, checksum)
        lines.append(content[:good])
        whole += good == len(content)
        if good < len(content) and (name != names[-1] or b"\n" in content[good:]):
            raise RequestError(
                f"segment {name} is corrupt (a checksum in it does not fit); restore it, or remove it and those after "
                f"it, and lose what they hold"
            )
    return b"".join(lines), checksum, whole


def _name(fence: int, number: int) -> str:
    return f"{fence:08d}-{number:08d}.jsonl"


def _parse(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{8})-(\d{8})\.jsonl", name)
    if match is None:
        raise RequestError(f"{name!r} among the segments of a journal is none that pretune wrote; move it away")
    return int(match[1]), int(match[2])
