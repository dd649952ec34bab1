"""What of a sweep may go: all of it, or checkpoints that nothing needs any more. Only what lies in its own folder, and
in its own place in the storage; a link is removed, never followed.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pretune.core import journal, lease
from pretune.core.errors import RequestError
from pretune.core.results import SweepResult
from trainers import storage
from trainers.report import Checkpoint


@dataclass(frozen=True)
class Doomed:
    """Files that would go: by path below `folder`, and below `remote` in the storage, how many bytes each has."""

    folder: Path
    remote: str | None
    local: dict[str, int]
    stored: dict[str, int]

    @property
    def files(self) -> int:
        return len(self.local) + len(self.stored)

    @property
    def bytes(self) -> int:
        return sum(self.local.values()) + sum(self.stored.values())


def whole(folder: Path, remote: str | None) -> Doomed:
    """All of the sweep in `folder`, with what lies in `remote`.

    RequestError where it is no sweep's own folder: it is a link, has no journal, or has another sweep or this process
    in it.
    """
    if folder.is_symlink():
        raise RequestError(
            f"{folder} is a link to {folder.resolve()}, and links are not followed here; name that folder, or remove "
            "the link yourself"
        )
    if not folder.is_dir() or not any((folder / name).is_file() for name in (journal.FILE, journal.LOCK)):
        raise RequestError(f"{folder} is no sweep's folder: it has no {journal.FILE}; `pretune show` lists the sweeps")
    if (folder / journal.FILE).is_file():
        with suppress(StopIteration), journal.reading(folder) as records:
            next(records)  # RequestError where it does not begin as a journal does
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise RequestError(f"{folder} is where you are; go elsewhere first: cd ..")
    local = dict(_files(folder))
    inside = next((path for path in local if path.endswith(f"/{journal.FILE}")), None)
    if inside is not None:
        raise RequestError(f"{folder} has another sweep in it ({inside}); remove or move that one first")
    return Doomed(folder, remote, local, {} if remote is None else storage.sizes(remote))


def checkpoints(result: SweepResult, *, keep: int) -> Doomed:
    """All checkpoints of `result` but the newest of each of its `keep` best trials, which `finalize` reads, and the
    newest of each trial that is unfinished, which `resume` goes on from.
    """
    best = [trial for trial in result.ranked() if trial.state == "COMPLETE"][:keep]
    unfinished = [trial for trial in result.trials if trial.state in ("WAITING", "RUNNING")]
    kept = {place for trial in (*best, *unfinished) for place in _places(trial.checkpoint)}

    def goes(path: str, root: str) -> bool:
        parts = path.split("/")
        return len(parts) == 4 and (parts[0], parts[2]) == ("trials", "checkpoints") and f"{root}/{path}" not in kept

    local = {path: size for path, size in _files(result.folder) if goes(path, str(result.folder))}
    stored = {}
    if result.remote is not None:
        found = storage.sizes(result.remote)
        stored = {path: size for path, size in found.items() if goes(path, result.remote.rstrip("/"))}
    return Doomed(result.folder, result.remote, local, stored)


@contextmanager
def nobody_runs(folder: Path, remote: str | None) -> Iterator[None]:
    """While something is removed no driver may begin on this machine. RequestError where one runs."""
    if remote is not None and lease.is_live(storage.join(remote, lease.FILE)):
        raise RequestError(f"the sweep in {remote} is being run; wait for it, or end it first")
    with journal.locked(folder):
        yield


def remove_whole(doomed: Doomed) -> None:
    """Removes the sweep, in the storage first, so that what fails can be tried again by name. OSError where it does."""
    if doomed.remote is not None:
        storage.remove_below(doomed.remote)
    aside = doomed.folder.with_name(f".{doomed.folder.name}.removed-{uuid.uuid4().hex[:8]}")
    os.rename(doomed.folder, aside)  # it is gone as a whole, whatever happens below
    shutil.rmtree(aside)


def remove_files(doomed: Doomed) -> None:
    """Removes these files. OSError where it stops."""
    for path in doomed.local:
        (doomed.folder / path).unlink(missing_ok=True)
    for path in doomed.stored:
        assert doomed.remote is not None
        storage.remove(storage.join(doomed.remote, path))


def _places(checkpoint: Checkpoint | None) -> tuple[str, ...]:
    return () if checkpoint is None else (checkpoint.path, checkpoint.manifest)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Each file below `folder` with its bytes; a link is a file of its own."""
    for root, folders, files in os.walk(folder, followlinks=False):
        linked = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*files, *linked):
            path = Path(root, name)
            with suppress(FileNotFoundError):
                yield path.relative_to(folder).as_posix(), path.lstat().st_size
