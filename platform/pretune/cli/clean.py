"""`pretune clean`: checkpoints that nothing needs any more go."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer
from rich.text import Text

from pretune.cli.exits import checking, running
from pretune.cli.options import STORAGE, Storage, Sweep
from pretune.cli.remove import Yes, ask
from pretune.display import format, screen


def clean_command(
    sweep: Sweep,
    keep: Annotated[int, typer.Option("--keep", min=0, help="best trials that keep their last checkpoint")] = 1,
    yes: Yes = False,
    storage: Storage = STORAGE,
) -> None:
    """Remove a sweep's checkpoints but those of its best trials, and of unfinished ones; everything else stays."""
    console = screen.console()
    with checking():
        from pretune.core import notes, removal
        from pretune.request import request

        result = request.sweep_to_change(sweep, storage)
        with removal.nobody_runs(result.folder, result.remote):
            doomed = removal.checkpoints(result, keep=keep)
            if not doomed.files:
                console.print(
                    f"nothing to remove: {result.name} has no other checkpoints", markup=False, soft_wrap=True
                )
                return
            what = f"{doomed.files:,} files of checkpoints, {format.size(doomed.bytes)}"
            best = "its best trial" if keep == 1 else f"its {keep} best trials"
            kept = f"the last ones of {best} and of unfinished ones stay"
            ask(f"remove {what}, of {result.folder}? ({kept}; finished trials cannot train longer then)", yes)
            with running(f"some are gone; go on with: pretune clean {shlex.quote(sweep)}"):
                removal.remove_files(doomed)
                notes.add(result.folder, notes.checked(f"pretune clean removed {what}"), remote=result.remote)
    console.print(Text(f"removed {what}; {kept}"), soft_wrap=True)
