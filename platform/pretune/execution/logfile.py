"""Python's log lines in a file of the sweep; logs that nobody will read, packed."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

from pretune.core.results import SweepResult

TRIAL_LOG = "log.txt"
"""In a trial's folder: what its rank 0 logged, and each of its failures with its traceback."""


class LogFile(logging.FileHandler):
    """Appends lines with time, level and name to `path`, made with its first line.

    On a full disk lines are lost in silence: a complaint about the log must not take the place of what was logged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing can be done; Python's own would print a stack for every line."""

    def close(self) -> None:
        """Closes the file, whether or not its last lines find room."""
        with suppress(OSError):
            super().close()


def pack_where_all_went_well(result: SweepResult) -> None:
    """Packs Ray's logs of a sweep that came to its end without a failure: a hundred files, which are read where
    something went wrong.
    """
    good = result.closed in ("finished", "exhausted")
    if good and not any(trial.failures or trial.state == "FAIL" for trial in result.trials):
        pack(result.folder / "logs" / "ray")


def pack(folder: Path) -> Path | None:
    """Makes `folder` a `folder.tar.gz` beside it, `folder-2.tar.gz` and so on where an earlier session left one.

    None where there is nothing to pack. On a full disk, or where a file cannot be read, the folder stays as it is: a
    log must not take the place of what was logged.
    """
    if not folder.is_dir():
        return None
    target, session = folder.with_name(f"{folder.name}.tar.gz"), 2
    while target.exists():
        target, session = folder.with_name(f"{folder.name}-{session}.tar.gz"), session + 1
    aside = target.with_name(f"{target.name}.part")
    try:
        with tarfile.open(aside, "w:gz", compresslevel=6) as archive:
            archive.add(folder, arcname=folder.name)
        os.replace(aside, target)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    return target
