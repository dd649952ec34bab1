"""What can go wrong with a sweep, as the command line tells them apart by exit code."""

from __future__ import annotations


class RequestError(ValueError):
    """What was asked cannot be done as asked. The command line prints it and ends with code 2; nothing was started."""


class SweepFailedError(RuntimeError):
    """No trial can go on, or each one would fail like those before. The sweep can be resumed once the cause is gone."""


class LeaseLostError(OSError):
    """Another driver has taken the sweep: nothing more may be decided here."""
