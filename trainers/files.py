"""Files that are there as a whole or not at all: written aside, flushed to the disk, renamed, the folder flushed, too.

Whoever reads a path that is written here finds the old content or the new one, after a crash of the machine as well;
where writing fails, the old one stays. Each writer has an aside file of its own, so of several that write a path at
once the last one wins. It is locked for as long as its writer lives: what a killed one has left is told by that, and
removed when the path is next written. Machines that share a folder but not its locks must not write one path at once.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TAG = 8
"""Characters that tell the aside files of one path from each other."""


def write_whole(path: Path, content: bytes | str) -> None:
    """Puts `content`, text as UTF-8, in the place of the file at `path`. OSError as for `opened_whole`."""
    with opened_whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def opened_whole(path: Path) -> Iterator[BinaryIO]:
    """An empty file that takes the place of the one at `path` when the block ends, and is gone where the block raises.

    A library that wants a path and not a file may write to its `name`. Its permissions are those of any new file.
    OSError where it cannot be written: then the file at `path` is as it was, unless all that failed was to flush the
    folder.
    """
    _remove_leftovers(path)
    file = _open_aside(path)
    aside = Path(file.name)
    try:
        with named(path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def folder_whole(path: Path) -> Iterator[Path]:
    """An empty folder that becomes the one at `path` when the block ends, and is gone where the block raises.

    FileExistsError where there is something at `path` already, other than an empty folder, by then as well. What a
    killed process has left beside it is removed.
    """
    if not is_free(path):
        raise FileExistsError(errno.EEXIST, "it is there already", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _TAG}.part"):
        if leftover.is_dir() and not _is_locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:_TAG]}.part")
    aside.mkdir()
    handle = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield aside
        for file in aside.rglob("*"):
            sync(file)
        sync(aside)
        try:
            os.rename(aside, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, "it is there already", str(path)) from error
            raise
    finally:
        os.close(handle)
        shutil.rmtree(aside, ignore_errors=True)
    sync(path.parent)


def is_free(path: Path) -> bool:
    """Whether a folder may be put at `path`: there is nothing, or an empty folder."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def why_not_writable(folder: Path) -> str:
    """Why nothing can be written into `folder`, or it cannot be made; empty where nothing is known against it. Nothing
    is tried.
    """
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if not there.is_dir():
        return f"{there} is a file"
    if os.access(there, os.W_OK | os.X_OK):
        return ""
    read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    return f"{there} is {'on a read-only file system' if read_only else 'not writable for this user'}"


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of the block names `path` where it names no file: one of a write to an open file does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Flushes to the disk what was written to the file at `path`; of a folder, which names it has."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder, and keep its names without.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _open_aside(path: Path) -> BinaryIO:
    """A new, locked file beside `path`."""
    while True:
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:_TAG]}.part")
        file = aside.open("xb")
        # A file system without locks has none to tell a leftover by either: nothing is removed there.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was taken for a leftover before it was locked


def _is_locked(folder: Path) -> bool:
    """Whether whoever writes it lives; also where that cannot be told."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _remove_leftovers(path: Path) -> None:
    """Removes the aside files of `path` whose writers are gone."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * _TAG}.part"):
        with suppress(OSError), leftover.open("r+b") as file:  # OSError: its writer lives, or it is gone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
