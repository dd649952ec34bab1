"""What can go wrong with a sweep, as the command line tells them apart by exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RequestError(ValueError):
    """What was asked cannot be done as asked. The command line prints it and ends with code 2; nothing was started."""


@contextmanager
def checking_a_request() -> Iterator[None]:
    """What is wrong with a request, a ValueError or a file that cannot be used, leaves as a RequestError."""
    try:
        yield
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from error
    except OSError as error:
        raise RequestError(
            f"{error.filename or 'a file'} cannot be used ({error.strerror or error}); check path and permissions"
        ) from error


class SweepFailedError(RuntimeError):
    """No trial can go on, or each one would fail like those before. The sweep can be resumed once the cause is gone."""


class LeaseLostError(OSError):
    """Another driver has taken the sweep: nothing more may be decided here."""
