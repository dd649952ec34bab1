"""How a command ends, and what it says then: 0 done, 1 the run failed, 2 the request was wrong, 143 after SIGTERM, 130
after Ctrl-C or where its terminal was closed.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from pretune.core.errors import RequestError, checking_a_request, refused_by_files
from trainers import storage


@contextmanager
def checking() -> Iterator[None]:
    """While a request is checked, what is wrong with it ends the command with code 2."""
    try:
        with checking_a_request():
            yield
    except RequestError as error:
        refuse(str(error))


@contextmanager
def running(onward: str = "") -> Iterator[None]:
    """While a request is run, a disk or a storage that is full, read-only or not ours ends the command with code 1.
    `onward` says how it goes on once that is mended.
    """
    try:
        yield
    except OSError as error:
        if not storage.refuses(error):
            raise
        fail("\n".join(filter(None, (refused_by_files(error), onward))))


def refuse(message: str) -> NoReturn:
    print_error(message)
    raise typer.Exit(2)


def fail(message: str) -> NoReturn:
    print_error(message)
    raise typer.Exit(1)


def interrupted_code(number: int) -> int:
    return 143 if number == signal.SIGTERM else 130


def interrupted(message: str, error: KeyboardInterrupt) -> NoReturn:
    sys.stderr.write(f"{message}\n")  # in one piece: another thread may be saying that it stops
    raise typer.Exit(interrupted_code(getattr(error, "number", signal.SIGINT)))


def print_error(message: str) -> None:
    first, *rest = message.splitlines() or [""]
    print("\n".join([f"error: {first}", *rest]), file=sys.stderr)


def note(console: Console, message: str) -> None:
    console.print(Text(f"note: {message}", style="yellow"), soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """JSON has no word for what is not finite: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
