"""A command that is told to end, by Ctrl-C, SIGTERM or a closed terminal: it says so at once, and ends in time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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
