"""`pretune logs`: what a trial logged."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from pretune.cli.exits import checking
from pretune.cli.options import STORAGE, Storage, Sweep, Trial
from pretune.core.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

POLL_S = 0.5


def logs_command(
    sweep: Sweep,
    trial: Trial,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="so many of the last lines")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="go on as it is written, until the sweep ends")] = False,
    storage: Storage = STORAGE,
) -> None:
    """The last lines that a trial's workers logged, its failures with their tracebacks among them."""
    with checking():
        from pretune.analysis import logs, story
        from pretune.core import journal
        from pretune.request import request

        result = request.read_sweep(sweep, storage)
        story.check_number(result, trial)
        found = logs.trial_logs(result, trial)
        waits = follow and journal.is_locked(result.folder)
        if not found and not waits:
            others = ", ".join(map(str, logs.sweep_logs(result)))
            more = f"; Ray's own logs are in {others}" if others else ""
            where = " on this machine (they lie where it ran)" if result.remote is not None else ""
            raise RequestError(f"trial {trial} of {result.name!r} logged nothing{where}{more}")
        ends: dict[Path, int] = {}
        for path in found:
            ends[path] = path.stat().st_size
            _print(path, logs.tail(path, lines), several=len(found) > 1)
    while waits:
        time.sleep(POLL_S)
        waits = journal.is_locked(result.folder)  # asked first: what was written until then is printed
        for path in logs.trial_logs(result, trial):
            with path.open("rb") as file:
                file.seek(ends.get(path, 0))
                new = file.read()
            ends[path] = ends.get(path, 0) + len(new)
            sys.stdout.write(new.decode("utf-8", "replace"))
            sys.stdout.flush()


def _print(path: Path, lines: list[str], *, several: bool) -> None:
    if several:
        print(f"==> {path} <==")
    for line in lines:
        print(line)
