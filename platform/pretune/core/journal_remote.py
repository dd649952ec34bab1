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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pretune.core import journal, lease
from pretune.core.errors import RequestError
from pretune.core.journal import Journal
from trainers import storage

logger = logging.getLogger(__name__)

FOLDER = "journal"
READERS = 16
"""Segments that are read at once."""
AFTER_FAILURE_S = 1.0
"""How long the next upload is tried after one that has failed for the whole bound: it is the sweep's last record."""

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
    ours = journal.whole_lines(path) if path.is_file() else b""
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
    place = storage.join(remote, FOLDER)
    numbers: dict[int, set[int]] = {}
    for name in storage.names(place):
        fence, number = _parse(name)
        numbers.setdefault(fence, set()).add(number)
    complete = [fence for fence, found in numbers.items() if 0 in found]
    if not complete:
        raise RequestError(f"no sweep in {remote}: it has no journal; check the URI, it ends with the sweep's name")
    fence = max(complete)
    count = max(numbers[fence]) + 1
    names = [_name(fence, number) for number in range(count)]
    missing = [name for number, name in enumerate(names) if number not in numbers[fence]]
    if missing:
        raise RequestError(f"segment {storage.join(place, missing[0])} is missing; restore it, or cut what follows")
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(lambda name: storage.read(storage.join(place, name)), names))
    checksum, lines = 0, b""
    for position, content in enumerate(contents):
        good, checksum = journal.verified(content, checksum)
        lines += content[:good]
        if good < len(content) and (position < count - 1 or b"\n" in content[good:]):
            raise RequestError(
                f"segment {storage.join(place, names[position])} is corrupt (a checksum in it does not fit); "
                f"restore it, or remove it and those after it, and lose what they hold"
            )
    return lines


def _name(fence: int, number: int) -> str:
    return f"{fence:08d}-{number:08d}.jsonl"


def _parse(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{8})-(\d{8})\.jsonl", name)
    if match is None:
        raise RequestError(f"{name!r} among the segments of a journal is none that pretune wrote; move it away")
    return int(match[1]), int(match[2])
