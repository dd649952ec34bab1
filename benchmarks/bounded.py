"""A command in a process of its own that may take so long and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 20.0
"""What a process that is told to end may take until it is killed; a sweep ends in order."""


def lines_of(command: Sequence[str], *, limit_s: float) -> Generator[str, None, None]:
    """What `command` prints, line by line while it runs, in the root of the repository.

    It and what it has started end with this generator, however that ends.

    Raises:
        TimeoutError: it was not done after `limit_s`.
        RuntimeError: it failed; the message is the last line of its standard error.
    """
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        ) as process,
    ):
        late = threading.Timer(limit_s, _tell, [process.pid, signal.SIGTERM])
        later = threading.Timer(limit_s + GRACE_S, _tell, [process.pid, signal.SIGKILL])
        for timer in (late, later):
            timer.start()
        try:
            assert process.stdout is not None
            yield from (line.rstrip("\n") for line in process.stdout)
            code = process.wait()
        finally:
            too_late = not late.is_alive()
            for timer in (late, later):
                timer.cancel()
            _end(process)
        if too_late:
            raise TimeoutError(f"not done after {limit_s:.0f} s")
        if code:
            raise RuntimeError(_last_line(said) or f"exit code {code}")


def _tell(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _end(process: subprocess.Popen[str]) -> None:
    """In order, if it still runs; what it leaves behind is killed."""
    if process.poll() is None:
        _tell(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    _tell(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(said: IO[str]) -> str:
    said.seek(0)
    return next((line.strip() for line in reversed(said.read().splitlines()) if line.strip()), "")
