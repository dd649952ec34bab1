"""One signal ends a sweep, at a moment when nothing is half written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from pretune.execution.interruption import SIGNALS, Interrupted, Interruption


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Tests may run in the background, where some of these signals are ignored, which would be respected."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_raised_with_its_name(number: signal.Signals) -> None:
    interruption = Interruption()
    before = signal.getsignal(number)
    with interruption.caught(), pytest.raises(KeyboardInterrupt, match=number.name):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert interruption.name == number.name


def test_what_is_shielded_is_not_torn_apart() -> None:
    interruption, done = Interruption(), []

    def twice_shielded() -> None:
        with interruption.shielded():
            with interruption.shielded():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")

    with interruption.caught(), pytest.raises(Interrupted):
        twice_shielded()
    assert done == ["inner", "outer"]


def test_later_signals_do_not_disturb_how_the_first_one_is_answered() -> None:
    interruption = Interruption()
    with interruption.caught():
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.name == "SIGTERM"


def test_while_a_sweep_is_closed_nothing_is_raised() -> None:
    interruption = Interruption()
    with interruption.caught():
        interruption.hold()
        os.kill(os.getpid(), signal.SIGHUP)
        with interruption.shielded():
            pass
    assert interruption.name == "SIGHUP"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interruption = Interruption()
        with interruption.caught():
            os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def elsewhere() -> None:
        with Interruption().caught():
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == before
