"""One process at a time does what concerns a path: an exclusive file that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HeldError(Exception):
    """Another process holds the lock, and did so for as long as was waited."""


@contextmanager
def held(path: Path, *, wait_s: float) -> Iterator[None]:
    """Holds the lock that belongs to `path`, a file or folder that need not exist: a hidden file beside it.

    HeldError after `wait_s`; OSError where the folder around it cannot be made or written to.
    """
    file = path.parent / f".{path.name}.lock"
    deadline = time.monotonic() + wait_s
    path.parent.mkdir(parents=True, exist_ok=True)
    while (descriptor := _take(file)) is None:
        if time.monotonic() > deadline:
            raise HeldError(str(path))
        time.sleep(0.05)
    try:
        yield
    finally:
        # Removed while it is held; whoever waits for it sees that and takes a new one.
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _take(file: Path) -> int | None:
    """The lock's file descriptor, or None while another process has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == file.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held by another, or removed by the former holder: then what we opened is no longer the lock
    os.close(descriptor)
    return None
