"""What can go wrong with a sweep, as the command line tells them apart by exit code."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers import storage


class RequestError(ValueError):
    """What was asked cannot be done as asked. The command line prints it and ends with code 2; nothing was started."""


@contextmanager
def checking_a_request() -> Iterator[None]:
    """What is wrong with a request, a ValueError, a file that cannot be used, or code of one's own that ends the whole
    program, leaves as a RequestError.
    """
    try:
        yield
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from error
    except BrokenPipeError:  # whoever reads what is printed has gone: nothing is wrong with the request
        raise
    except OSError as error:
        raise RequestError(refused_by_files(error)) from error
    except RecursionError as error:
        raise RequestError(f"something in the request is nested too deeply ({error}); take some of it away") from error
    except SystemExit as error:  # nothing of ours raises it while a request is checked
        raise RequestError(
            f"{exit_place(error)} ends the whole program, so that nothing could be checked or run; code of one's own "
            "must return: take that line out"
        ) from error


def refused_by_files(error: OSError) -> str:
    """What a disk or a storage does not let us do, and the remedy, in one line."""
    if error.errno is None or (error.filename is None and error.strerror != os.strerror(error.errno)):
        return error.strerror or str(error)  # one of ours, which says all
    remedy = "make room, then try again" if storage.is_full(error) else "check path and permissions"
    return f"{error.filename or 'a file'} cannot be used ({error.strerror or error}); {remedy}"


def exit_place(error: SystemExit) -> str:
    """`line 3 of /home/me/mine.py (`sys.exit(0)`)`: the last line on the way to `error` that is not Python's own."""
    frames = traceback.extract_tb(error.__traceback__)
    library = Path(sysconfig.get_path("stdlib"))
    own = [frame for frame in frames if not frame.filename.startswith("<") and not _is_below(frame.filename, library)]
    if not own:
        return "something"
    return f"line {own[-1].lineno} of {own[-1].filename} (`{own[-1].line}`)"


def _is_below(filename: str, library: Path) -> bool:
    """Whether a file is Python's own; what is installed beside it is not."""
    path = Path(filename)
    return path.is_relative_to(library) and "site-packages" not in path.parts


class SweepFailedError(RuntimeError):
    """No trial can go on, or each one would fail like those before. The sweep can be resumed once the cause is gone."""


class LeaseLostError(OSError):
    """Another driver has taken the sweep: nothing more may be decided here."""
