"""Python's log lines in a file of the sweep."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

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
