"""Where the logs of a trial lie, and their last lines."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from pretune.core.results import SweepResult
from pretune.execution.logfile import TRIAL_LOG

_BLOCK = 64 * 1024


def trial_logs(result: SweepResult, number: int) -> list[Path]:
    """What the trial's workers logged, oldest folder first, rank 0 of a folder last: a trial that was made longer has a
    folder of its own. Empty where nothing was logged, or where it was logged on another machine.
    """
    trials = result.folder / "trials"
    folders = [trials / f"{number:04d}", *sorted(trials.glob(f"{number:04d}-epochs-*"), key=_epochs)]
    return [
        path
        for folder in folders
        for path in (*sorted(folder.glob("log.rank-*.txt")), folder / TRIAL_LOG)
        if path.is_file()
    ]


def sweep_logs(result: SweepResult) -> list[Path]:
    """Ray's own logs of the sweep: folders, or archives of them after a good end."""
    logs = result.folder / "logs"
    return sorted(path for path in logs.glob("*") if path.is_dir() or path.name.endswith(".tar.gz"))


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a file as they are, however long; `log_tail` has some for a screen."""
    if count <= 0:
        return []
    with path.open("rb") as file:
        begin = file.seek(0, os.SEEK_END)
        content = b""
        while begin > 0 and content.count(b"\n") <= count:
            size = min(_BLOCK, begin)
            begin = file.seek(begin - size)
            content = file.read(size) + content
    return list(deque(content.decode("utf-8", "replace").splitlines(), maxlen=count))


def _epochs(folder: Path) -> int:
    ending = folder.name.rpartition("-")[2]
    return int(ending) if ending.isdigit() else 0
