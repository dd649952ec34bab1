"""`--pack`: how many trials share a GPU is measured before a sweep starts, and MPS served while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console

from pretune.cli.exits import checking, interrupted, note
from pretune.core.experiment import Experiment
from pretune.core.packing import Packing
from pretune.display import packing as display

if TYPE_CHECKING:
    from pretune.analysis.packing import Asked, Machine
    from pretune.core.search import Space


def packed(
    console: Console,
    experiment: Experiment,
    how: Asked,
    space: Space,
    machine: Machine | None = None,
    *,
    quiet: bool = False,
) -> tuple[Experiment, Packing | None]:
    """`experiment` with its trials packed as was asked, on `machine` (this one, all of it, if None), measured first
    where that is auto; and how. The choice is said, unless `quiet`.
    """
    if how is None:
        return experiment, None
    found = measured(console, experiment, space, machine, quiet=quiet) if how == "auto" else how
    if not quiet:
        for part in display.whole(found):
            console.print(part, soft_wrap=True)
    return found.applied(experiment), found


def measured(
    console: Console, experiment: Experiment, space: Space, machine: Machine | None, *, quiet: bool
) -> Packing:
    """How many trials of `experiment` are best on one card of `machine`, or on it. Ends the command where that cannot
    be told.
    """
    from pretune.analysis import packing, plan

    with checking():
        try:
            with nullcontext() if quiet else console.status("measuring how many trials go together") as status:

                def tell(words: str) -> None:
                    if status is not None:
                        status.update(f"measuring how many trials go together: {words}")

                found = packing.measured(
                    experiment,
                    plan.configs_of(experiment, space),
                    machine or packing.here(),
                    clock=time.monotonic,
                    tell=tell,
                )
        except KeyboardInterrupt as error:
            interrupted("interrupted while it was measured how many trials go together; nothing has started", error)
    return found


@contextmanager
def serving(console: Console, found: Packing | None) -> Iterator[None]:
    """MPS for the time of the block, where the trials were found to be faster with it. Where it cannot be had now, that
    is said, and they take turns.
    """
    if found is None or not found.mps:
        yield
        return
    from pretune.execution import mps

    with ExitStack() as stack:
        try:
            stack.enter_context(mps.serving())
        except mps.NotServedError as error:
            note(console, f"trials take turns on a GPU, without MPS: {error}")
        yield
