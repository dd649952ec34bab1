"""`pretune finalize`: the winner on the report split."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer
from rich.text import Text

from pretune.cli.exits import checking, fail, print_json, refuse, running
from pretune.cli.options import STORAGE, Json, Storage, Sweep
from pretune.core.errors import RequestError
from pretune.display import screen


def finalize_command(
    sweep: Sweep,
    storage: Storage = STORAGE,
    again: Annotated[bool, typer.Option("--again", help="read the report split although it was read before")] = False,
    as_json: Json = False,
) -> None:
    """The winner on the report split, which is there to be read once."""
    from pretune.analysis import finalize
    from pretune.display import finalize as display
    from pretune.request import request

    console = screen.console()
    with checking():
        result = request.read_sweep(sweep, storage, fresh=True)
        winner = finalize.check(result, again=again)
    try:
        with running(), nullcontext() if as_json else console.status("probing the winner"):
            found = finalize.run(result, winner)
    except RequestError as error:
        refuse(str(error))
    except ValueError as error:
        fail(str(error))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    screen.show(console, display.table(found))
    console.print(Text(f"written to {finalize.path(result)}", style="dim"), soft_wrap=True)
