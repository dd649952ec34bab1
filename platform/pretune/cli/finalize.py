"""`pretune finalize`: the winner on the report split."""

from __future__ import annotations

import shlex
import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from pretune.cli.exits import checking, fail, interrupted, note, print_json, refuse, running
from pretune.cli.options import STORAGE, Address, Json, Storage, Sweep
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.candidates import Judged
    from pretune.analysis.finalize import Request
    from pretune.core.experiment import Experiment
    from pretune.core.results import SweepResult

TOP_OF_SEEDS = 3
"""So many trials are run again with `--seeds` unless it is said."""


def finalize_command(
    sweep: Sweep,
    storage: Storage = STORAGE,
    top: Annotated[
        int | None,
        typer.Option(
            "--top", min=1, metavar="K", help="judge the best K again and choose by that; default: 1, 3 with --seeds"
        ),
    ] = None,
    probe_seeds: Annotated[
        int,
        typer.Option("--probe-seeds", min=2, help="with --top: fits of each one's probe, on other images of `train`"),
    ] = 5,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="run the best K again from N new seeds, choose by the mean"),
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="with --seeds: trials at once; default: as the sweep had")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", metavar="NAME,…", help="protocols of `pretune eval` to run on the winner, too"),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="read the report split although it was read before")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """The winner on the report split, which is there to be read once; and how much too good the search's score was."""
    from pretune.analysis import finalize
    from pretune.display import finalize as display
    from pretune.request import request

    console = screen.console()
    wanted = top or (1 if seeds is None else TOP_OF_SEEDS)
    protocols = dict.fromkeys(name.strip() for names in protocol or () for name in names.split(","))
    with checking():
        result = request.read_sweep(sweep, storage, fresh=True)
        asked = finalize.check(result, again=again, top=wanted, reseeded=seeds is not None, protocols=[*protocols])
        if seeds is None and slots is not None:
            raise RequestError("--slots is of the runs that --seeds asks for; add --seeds N, or leave it out")
    if len(asked.candidates) < wanted and not as_json:
        note(console, f"the sweep has {len(asked.candidates)} complete trials, no {wanted}")
    retrained: list[Judged] = []
    if seeds is not None:
        retrained = _retrained(None if as_json else console, result, asked, seeds, slots=slots, address=address)
    try:
        with running(), nullcontext() if as_json else console.status("probing the best"):
            found = finalize.run(result, asked, probe_seeds=probe_seeds, retrained=retrained)
    except RequestError as error:
        refuse(str(error))
    except ValueError as error:
        fail(str(error))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    screen.show(console, display.table(found))
    console.print(Text(f"written to {result.reads_file}", style="dim"), soft_wrap=True)


def _retrained(
    console: Console | None,
    result: SweepResult,
    asked: Request,
    seeds: int,
    *,
    slots: int | None,
    address: str | None,
) -> list[Judged]:
    """The best trials run again from other seeds, as far as that was not done before; ends the process where it is not
    whole afterwards.
    """
    from pretune.analysis import reseeding
    from pretune.cli.running import watched
    from pretune.core import journal

    with checking():
        experiment = reseeding.experiment(result, asked.candidates, seeds, slots=slots)
        found = reseeding.begun(experiment)
        if found is None:
            _check(experiment, local=address is None)
    if found is None or not reseeding.is_whole(found):
        if console is not None:
            note(console, f"the best {len(asked.candidates)} from {seeds} new seeds: sweep {experiment.name}")
        earlier = () if found is None else journal.read(found.folder, remote=found.remote)
        found = watched(console, experiment, _run(experiment, found, slots, address), earlier=earlier)
    if found.closed == "interrupted":
        from pretune.execution.interruption import Interrupted

        number = signal.Signals[found.detail] if found.detail else signal.SIGINT
        interrupted("interrupted; nothing was read on report, and the same command goes on", Interrupted(number))
    if not reseeding.is_whole(found):
        fail(
            f"the runs from other seeds ended early ({found.detail or found.closed}), nothing was read on report; go "
            f"on with: pretune resume {shlex.quote(str(found.folder))}"
        )
    return reseeding.collect(found, asked.candidates)


def _run(experiment: Experiment, found: SweepResult | None, slots: int | None, address: str | None) -> Any:
    from pretune import sweep as sweeps
    from pretune.core.points import unvaried

    def run(listener: Any) -> Any:
        if found is None:
            return sweeps.run(experiment, space=unvaried, listener=listener, address=address)
        return sweeps.resume(
            found.folder, space=unvaried, remote=found.remote, slots=slots, listener=listener, address=address
        )

    return run


def _check(experiment: Experiment, *, local: bool) -> None:
    """What can be refused before Ray starts."""
    from pretune.core import points
    from pretune.request import request

    if local:
        request.check_local_slots(experiment.slots, experiment.workers_per_trial, experiment.cpus_per_worker)
    request.check_storage(experiment)
    request.open_data(experiment.base.data.path, expected_hash=experiment.base.data.manifest)
    points.proposer(experiment, points.unvaried).check()
