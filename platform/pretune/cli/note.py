"""`pretune note`: what people say of a sweep."""

from __future__ import annotations

from typing import Annotated

import typer

from pretune.cli.exits import checking
from pretune.cli.options import STORAGE, Storage, Sweep
from pretune.display import screen


def note_command(
    sweep: Sweep,
    text: Annotated[str, typer.Argument(metavar="[TEXT]", help="what to say; without it the notes are shown")] = "",
    tag: Annotated[list[str] | None, typer.Option("--tag", help="put a tag on the sweep; may be given again")] = None,
    untag: Annotated[list[str] | None, typer.Option("--untag", help="take a tag off; may be given again")] = None,
    storage: Storage = STORAGE,
) -> None:
    """Add a note or a tag to a sweep, also while it runs; `show` has them."""
    console = screen.console()
    with checking():
        from pretune.core import notes
        from pretune.display import tables
        from pretune.request import request
        from trainers.storage import is_uri

        result = request.read_sweep(sweep, storage)
        if result.remote is not None and (is_uri(sweep) or is_uri(storage)):
            notes.fetch(result.remote, result.folder)
        if text or tag or untag:
            notes.add(result.folder, notes.checked(text, tag or (), untag or ()), remote=result.remote)
        found = tables.notes(notes.read(result.folder))
    if found is None:
        console.print(
            f'no notes on {result.name}; add one: pretune note {result.name} "…"', markup=False, soft_wrap=True
        )
    else:
        screen.show(console, found)
