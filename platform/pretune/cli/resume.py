"""`pretune resume`: a sweep goes on."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretune.cli import kinds
from pretune.cli.exits import checking, note
from pretune.cli.options import STORAGE, Address, LogTo, MaxHours, Pack, Storage, Sweep
from pretune.cli.packing import packed, serving
from pretune.cli.running import logging_to, run_sweep
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.core.records import Record


def resume_command(
    sweep: Sweep,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="how many to try in all, from now on")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=2, help="train finished trials to so many epochs, decay anew")
    ] = None,
    max_hours: MaxHours = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="trials at once; default: as before")] = None,
    pack: Pack = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="go on although packages or the space have changed since")
    ] = False,
    storage: Storage = STORAGE,
    log_to: LogTo = None,
    address: Address = None,
) -> None:
    """Go on with a sweep after any interruption, or add trials to it."""
    console = screen.console()
    with checking():
        from pretune import sweep as sweeps
        from pretune.analysis import packing
        from pretune.core import journal, points
        from pretune.core.experiment import MOST_TRIALS
        from pretune.core.history import History
        from pretune.core.place import Place
        from pretune.core.records import Opened, Resumed
        from pretune.request import compiling, request
        from trainers.files import why_not_writable

        result = request.sweep_to_change(sweep, storage)
        if why := why_not_writable(result.folder):
            raise RequestError(
                f"sweep {result.name!r} must be in a folder that can be written to, but {why}; change that, or "
                "resume a copy of the sweep"
            )
        experiment = result.experiment
        kind = kinds.of(experiment)
        space, full = kind.space(experiment), kind.why_no_more(result)
        if trials is not None and full:
            raise RequestError(full)
        if address is None:
            compiling.check_resumed(experiment)
        placed, how, machine = packing.asked_again(result, pack, slots=slots, local=address is None)
        earlier = journal.read(result.folder, remote=result.remote)
        extensions = [] if epochs is None else sweeps.longer(History(earlier), epochs)
        check_hours(result.name, earlier, max_hours, extending=bool(extensions))
        continued = [] if max_hours is None else sweeps.cut_short(earlier, max_hours)
        request.open_data(experiment.base.data.path, expected_hash=experiment.base.data.manifest)
        target = result.asked if trials is None else trials
        least = len(result.trials) + result.enqueued
        if target < least:
            raise RequestError(
                f"--trials must be at least {least}, what the sweep has so far, but is {trials}; raise it"
            )
        if target > MOST_TRIALS:
            raise RequestError(f"--trials must be at most {MOST_TRIALS}, but is {trials}; lower it")
        longer = f"train them longer with --epochs {2 * experiment.base.epochs}, or "
        if result.closed == "exhausted" and not (extensions or continued or result.enqueued or accept_changes):
            raise RequestError(
                full
                or f"sweep {result.name!r} has tried all {len(result.trials)} points of its space; try a wider one in "
                f"a new sweep, {longer}look at it with `pretune show {shlex.quote(sweep)}`"
            )
        if target == result.asked and result.closed == "finished" and not (extensions or continued or result.enqueued):
            more = longer if full else f"add some with --trials {result.asked + 8}, {longer}"
            raise RequestError(
                f"sweep {result.name!r} has all its {result.asked} trials; {more}look at it with `pretune "
                f"show {shlex.quote(sweep)}`"
            )
        points.proposer(experiment, space).check()
        if not accept_changes:
            began = [record for record in earlier if isinstance(record, Opened | Resumed)]
            sweeps.check_unchanged(began[-1], space, experiment.base)
        trackers = logging_to(log_to)
    _, packed_as = packed(console, placed, how, space, machine)

    def run(listener: Any) -> Any:
        return sweeps.resume(
            result.folder,
            space=space,
            remote=result.remote,
            trials=trials,
            epochs=epochs,
            max_hours=max_hours,
            slots=slots,
            packing=packed_as,
            listener=listener,
            address=address,
        )

    if continued:
        note(console, f"of the trials that the hours had ended go on: {len(continued)}")
    if extensions:
        begins = sorted({extension.checkpoint.epoch for extension in extensions})
        note(
            console,
            f"{len(extensions)} finished trials go on from epoch {', '.join(map(str, begins))}, before their decay, to "
            f"epoch {epochs}",
        )
        if experiment.base.schedule.kind == "cosine":
            note(
                console,
                "a cosine has no part before its decay: the learning rate jumps to where the longer cosine is by then",
            )
    with serving(console, (packed_as or result.packing) if address is None else None):
        run_sweep(console, experiment.at(Place.of(result.folder)), run, earlier=earlier, log_to=trackers)


def check_hours(name: str, earlier: Sequence[Record], given: float | None, *, extending: bool) -> None:
    """Whether there is time for another trial in the hours that are `given`, or that the sweep has. RequestError."""
    from pretune.core.history import History
    from pretune.core.landing import Landing

    history = History()
    landing = Landing(history)
    for record in earlier:
        history.apply(record)
        landing.see(record)
    if given is not None and not 0.0 < given < math.inf:
        raise RequestError(f"--max-hours must be a number above 0, but is {given:g}; change it")
    history.max_hours = history.max_hours if given is None else given
    unfinished = [one for one in history.trials if not one.ended and landing.may_go_on(one)]
    if extending or landing.may_begin() or unfinished or landing.cut_short():
        return
    used = landing.used_s / 3600.0
    raise RequestError(
        f"sweep {name!r} has used {used:.3g} h of its {history.max_hours:g} h, and no trial would finish in what is "
        f"left; give it more in all with --max-hours {math.ceil(used + 1.0)}"
    )
