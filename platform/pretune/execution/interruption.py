"""Ctrl-C, a closed terminal and SIGTERM while a sweep runs: all three end it in the same way, at a moment when no
record is half written.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """One of `SIGNALS` was received."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """Turns the first signal into `Interrupted`, raised in the main thread; later ones change nothing. What waits in
    Ray at that moment raises a KeyboardInterrupt of Ray's in its place.

    Ray Tune's own way is a flag that its loop looks at. Where the signal went to the whole process group the cluster
    has ended with it, and the loop waits a minute for what no longer lives.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._shields = 0
        self._raised = False

    @property
    def name(self) -> str:
        """Of the signal that was received: "SIGTERM"; empty if none was."""
        return "" if self.received is None else signal.Signals(self.received).name

    @contextmanager
    def caught(self) -> Iterator[None]:
        """For the time of the block; outside the main thread nothing is changed.

        A signal that is ignored stays so: `nohup` means it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """What happens in the block is not torn apart: a signal is raised after it."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            self._raise_if_due()

    def hold(self) -> None:
        """From now on no signal is raised: the sweep is being closed, which does not take long."""
        self._shields += 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        if number == signal.SIGHUP:
            _let_go_of_the_terminal()
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self.received is not None and not self._shields and not self._raised:
            self._raised = True
            raise Interrupted(self.received)


def _let_go_of_the_terminal() -> None:
    """What is printed from now on goes nowhere; a write to a terminal that is gone would be an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        try:
            if stream.isatty():
                os.dup2(nowhere, stream.fileno())
        except (AttributeError, OSError, ValueError):  # none, closed, or not a file
            continue
    os.close(nowhere)
