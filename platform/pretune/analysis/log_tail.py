"""The last lines of a log that somebody else is writing."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

READ_BYTES = 65_536
"""So much of a file's end is looked at, however long its lines are."""
LINE = 500
"""Characters that are kept of a line."""

# A terminal's colors and cursor movements, and what else has no picture.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def last_lines(path: Path, count: int) -> list[str]:
    """At most `count` lines without what steers a terminal, of a progress bar what it showed last; none where there is
    no such file.
    """
    try:
        # A FIFO must not make us wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return []
        begin = max(0, found.st_size - READ_BYTES)
        lines = os.pread(handle, READ_BYTES, begin).decode("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    finally:
        os.close(handle)
    lines = [_plain(line) for line in (lines[1:] if begin and len(lines) > 1 else lines)]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines[-count:]


def _plain(line: str) -> str:
    shown = _ESCAPES.sub("", line.rstrip("\r\n")).rsplit("\r", 1)[-1]
    shown = _CONTROLS.sub("", shown.expandtabs(4))
    return shown if len(shown) <= LINE else f"{shown[: LINE - 1]}…"
