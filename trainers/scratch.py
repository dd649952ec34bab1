"""Folders for the time of a block, in the system's temporary folder, that a killed process leaves behind for one run at
most.

Each has an owner's lock, which the system lets go of when the owner dies, however it dies. Whoever makes the next one
removes those whose lock is free: what may go is proven by the lock, never by a name that is read somewhere.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "pretune-scratch-"
OWNER = "owner"
"""The locked file in each of them."""
TRIES = 20
"""How often it is tried to empty one, a tenth of a second apart."""


def _nothing(orphan: Path) -> None:
    """The default for `before_removal`."""


@contextmanager
def folder(*, place: Path | None = None, before_removal: Callable[[Path], None] = _nothing) -> Iterator[Path]:
    """A new folder in `place` (the system's temporary folder if None) that nobody else can read, removed with the
    block.

    Those that dead processes of this user left there are removed first, each after `before_removal` was given it.
    """
    place = Path(tempfile.gettempdir()) if place is None else place
    remove_orphans(place, before_removal)
    path, lock = _made(place)
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def remove_orphans(place: Path, before_removal: Callable[[Path], None] = _nothing) -> None:
    """Removes what dead processes of this user left in `place`."""
    for path in place.glob(f"{PREFIX}*"):
        if path.is_symlink() or not path.is_dir():
            continue
        lock = None
        with suppress(OSError):  # somebody else removes it, or it is another user's
            if path.stat().st_uid != os.getuid():
                continue
            if not any(child.is_file() or child.is_symlink() for child in path.rglob("*")):
                # Its maker was killed before it could lock it, or a process made its folder again when it had gone.
                shutil.rmtree(path, ignore_errors=True)
                continue
            lock = _locked(path / OWNER, new=False)
        if lock is not None:
            before_removal(path)
            _remove(path)
            os.close(lock)


def _remove(path: Path) -> None:
    """The lock goes last: what cannot go now, as somebody still writes in it, is an orphan for the next run."""
    for _ in range(TRIES):
        for child in path.iterdir():
            if child.name != OWNER:
                shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink(missing_ok=True)
        if [child.name for child in path.iterdir()] == [OWNER]:
            (path / OWNER).unlink()
            with suppress(OSError):  # a process that ends makes a folder in it again: empty, it goes with the next run
                path.rmdir()
            return
        time.sleep(0.1)


def _made(place: Path) -> tuple[Path, int]:
    while True:  # until nobody took it for an orphan before it was locked
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with suppress(FileNotFoundError):
            lock = _locked(path / OWNER, new=True)
            if lock is not None:
                return path, lock


def _locked(file: Path, *, new: bool) -> int | None:
    """The open file, locked; None where somebody has the lock, or the file was removed meanwhile."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if new else 0)
    lock = os.open(file, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
    except OSError:
        pass
    os.close(lock)
    return None
