"""`pretune leaderboard`: the best trials of all sweeps on one data set."""

from __future__ import annotations

from typing import Annotated

import typer

from pretune.cli.exits import checking, note, print_json
from pretune.cli.options import STORAGE, Json, Storage
from pretune.display import screen


def leaderboard_command(
    data: Annotated[
        str | None, typer.Option("--data", help="only sweeps on this data set; default: a table for each one")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="only sweeps that searched for this")] = None,
    each: Annotated[int, typer.Option("--each", min=1, help="best trials of each sweep")] = 1,
    top: Annotated[int, typer.Option("--top", min=1, help="lines of each table")] = 20,
    storage: Storage = STORAGE,
    as_json: Json = False,
) -> None:
    """The best trials of all sweeps on the same images, with what `finalize` has read of them."""
    console = screen.console()
    with checking():
        from pretune.analysis import leaderboard
        from pretune.display import comparison
        from pretune.request import request
        from trainers.storage import is_uri

        manifest = None if data is None else request.open_data(data).manifest_hash
        found, unreadable = request.read_sweeps(storage)
        boards = leaderboard.boards(found, manifest=manifest, metric=metric, each=each, ask_storage=is_uri(storage))
    if as_json:
        print_json([board.as_json() for board in boards])
        return
    for board in boards:
        screen.show(console, *comparison.board(board, top=top))
    if not boards:
        of = "" if data is None else f" on {data}"
        console.print(f"no sweep in {storage}{of} has a complete trial", markup=False, soft_wrap=True)
    for one in unreadable:
        note(console, f"sweep {one.name} is left out: {one.problem}")
