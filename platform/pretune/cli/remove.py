"""`pretune remove`: all of a sweep goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pretune.cli.exits import checking, running
from pretune.cli.options import STORAGE, Storage, Sweep
from pretune.core.errors import RequestError
from pretune.display import format, screen

Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


def remove_command(sweep: Sweep, yes: Yes = False, storage: Storage = STORAGE) -> None:
    """Remove a sweep with all that lies in its folder, after asking; one that runs is refused."""
    console = screen.console()
    with checking():
        from pretune.core import removal, results
        from pretune.request import request
        from trainers import storage as storages

        remote: str | None
        if storages.is_uri(sweep) or storages.is_uri(storage):
            result = request.read_sweep(sweep, storage)
            folder, remote = result.folder, result.remote
        else:
            folder = request.sweep_folder(sweep, Path(storage))
            try:
                remote = results.read(folder).remote
                if remote is not None and storages.name_of(remote) != folder.name:
                    remote = None  # a copy of the working copy: what lies in the storage is not its own
            except RequestError:  # it never began, or its journal is broken: that may go as well
                remote = None
        with removal.nobody_runs(folder, remote):
            doomed = removal.whole(folder, remote)
            stored = f" and all below {remote}" if doomed.stored else ""
            what = f"{folder}{stored}: {doomed.files:,} files, {format.size(doomed.bytes)}"
            ask(f"remove {what}?", yes)
            with running():
                removal.remove_whole(doomed)
    console.print(Text(f"removed {what}"), soft_wrap=True)


def ask(question: str, yes: bool) -> None:
    """RequestError where the answer is no, or there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestError(f"{question} Nobody is here to answer: add --yes")
    if not typer.confirm(question):
        raise RequestError("nothing was removed")
