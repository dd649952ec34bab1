"""`pretune enqueue`: a configuration of one's own, to be tried next."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from pretune.cli import kinds
from pretune.cli.exits import checking, fail, note
from pretune.cli.options import STORAGE, Storage, Sweep
from pretune.core.errors import RequestError
from pretune.display import screen


def enqueue_command(
    sweep: Sweep,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="a.b=value…", help="parameters of the space by name, settings by path; all else is the sweep's base"
        ),
    ],
    storage: Storage = STORAGE,
) -> None:
    """Hand in a configuration that a sweep tries next, one trial more than were asked for."""
    console = screen.console()
    with checking():
        from pretune.core import requests
        from pretune.display import format
        from pretune.request import enqueue, request

        result = request.sweep_to_change(sweep, storage)
        if why := enqueue.why_not(result.experiment):
            raise RequestError(why)
        checked = enqueue.check(result.experiment, kinds.of(result.experiment).space(result.experiment), assignments)
        try:
            running = requests.hand_in(result, checked.record)
        except requests.UnansweredError as error:
            fail(str(error))
    twins = [trial for trial in result.trials if trial.config == checked.record.config and trial.state != "FAIL"]
    if checked.outside:
        note(console, f"{checked.outside}: the sampler does not learn from it")
    if twins:
        note(
            console,
            f"trial {twins[0].id} ({twins[0].state}) has this very config: its result is told, it is not run again",
        )
    changes = checked.record.params or dict(one.split("=", 1) for one in assignments)
    when = (
        "it is tried as soon as a slot is free"
        if running
        else f"it is tried first when the sweep goes on: pretune resume {shlex.quote(sweep)}"
    )
    console.print(f"handed in: {format.parameters(changes)}; {when}", markup=False, soft_wrap=True)
