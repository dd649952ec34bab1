"""How the process of a command ends: with its own exit code; and one that is told to end (Ctrl-C, SIGTERM, a closed
terminal) says so at once, and ends in time.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from pretune.cli.exits import interrupted_code
from pretune.execution.interruption import SIGNALS

WITHIN_S = 13.0
"""How long a sweep may take to end once it was told to; two or three seconds, as a rule."""


@contextmanager
def in_time(tell: Callable[[str], None]) -> Iterator[None]:
    """From a signal within the block on, the process has `WITHIN_S` left. `tell` is given one line at once.

    Python's own handlers run between two steps of Python in the main thread, which may wait in Ray for processes that
    the same signal has ended. So a thread of its own hears of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, hears = os.pipe()
    os.set_blocking(hears, False)
    before = signal.set_wakeup_fd(hears, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, tell), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(hears)


def leave(code: str | int | None) -> NoReturn:
    """Ends the process as SystemExit(code) does, which it raises where Ray has not been imported.

    Threads of Ray's that no Python knows of may still run, above all where `ray.init` was interrupted: what C++ takes
    down at a process's end they still use, and one end in ten was a segmentation fault in place of the exit code. So
    Python's own part of the end is done, and that of C++ left out.
    """
    if "ray" not in sys.modules or not isinstance(code, int | None):
        raise SystemExit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the terminal has gone, it is closed, there is none
            stream.flush()
    os._exit(code or 0)


def _watch(heard: int, tell: Callable[[str], None]) -> None:
    numbers = {int(number) for number in SIGNALS}
    number = 0
    while number not in numbers:  # of each signal that has a handler, whoever set it
        read = os.read(heard, 1)
        if not read:
            os.close(heard)
            return
        number = read[0]
    with suppress(OSError):  # the terminal may be what has gone
        tell(f"{signal.Signals(number).name}: stopping")
    threading.Event().wait(WITHIN_S)
    with suppress(OSError):
        os.write(2, b"error: the sweep could not be closed in time; its journal is whole: go on with pretune resume\n")
    os._exit(interrupted_code(number))
