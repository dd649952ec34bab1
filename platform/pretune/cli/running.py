"""A sweep or an ablation while it runs, and how it ends: what `sweep`, `ablate`, `resume` and `finalize` share."""

from __future__ import annotations

import shlex
import signal
import traceback
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from pretune.cli import kinds
from pretune.cli.ending import in_time
from pretune.cli.exits import checking, fail, interrupted, note, refuse, running
from pretune.core.errors import RequestError
from pretune.display import screen
from pretune.execution import processes
from pretune.execution.interruption import Interrupted

if TYPE_CHECKING:
    from pretune.core.experiment import Experiment
    from pretune.core.forecast import Forecast
    from pretune.core.records import Record
    from pretune.core.results import SweepResult
    from pretune.core.search import Space
    from pretune.display.trackers import Tracker

MOST_LISTED = 30
"""Trials that a sweep's end lists one by one at most."""


def foretold(console: Console, experiment: Experiment, space: Space, *, auto_gpus: bool, local: bool) -> Forecast:
    """Says in a line what the sweep takes, as far as that is known without measuring anything: trials and epochs, and
    the rest where its shapes were measured before on this machine. Ends the command with 2 where one of them does not
    fit into its memory. `local`: it runs on this machine alone, of which measurements are.
    """
    from pretune.analysis import plan
    from pretune.display import forecast as display

    with checking():
        slots, gpus = plan.slots_here(experiment, auto_gpus=auto_gpus)
        configs = plan.glanced(experiment, space)
        known = plan.remembered(experiment, configs, slots=slots, gpus_per_worker=gpus) if local else []
        for one in known:
            plan.check_fits(experiment, one, slots=slots)
        found = plan.plan(experiment, configs, known, slots=slots, quick=True)
    said = found.forecast if local else found.forecast.model_copy(update={"slots": experiment.slots})
    console.print(display.short(said, experiment), soft_wrap=True)
    if local and said.seconds is None:
        told = "hours and memory: run `pretune plan` with the same arguments, which measures a few steps"
        console.print(Text(told, style="dim"), soft_wrap=True)
    return said


def compiled(
    console: Console, experiment: Experiment, space: Space, *, auto_gpus: bool, quiet: bool = False
) -> Experiment:
    """`experiment` with each network of its trials compiled or not, as is fastest on this machine; what was found is
    said, unless `quiet`. Ends the command with 2 where the space cannot be looked at.
    """
    from pretune.analysis import fastest
    from pretune.display import fastest as display

    with checking():
        try:
            found = fastest.for_sweep(
                experiment,
                space,
                auto_gpus=auto_gpus,
                tell=(lambda words: None) if quiet else partial(note, console),
            )
        except KeyboardInterrupt as error:
            interrupted("interrupted while it was measured what is faster compiled; nothing has started", error)
    if not quiet:
        screen.show(console, *display.whole(found.fastest))
    return found


def learned(result: SweepResult, forecast: Forecast) -> None:
    """Keeps what the trials of a sweep on this machine took, for the next forecast."""
    from pretune.analysis import measurements

    if result.closed in ("finished", "exhausted") and forecast.slots is not None:
        measurements.learn(result, slots=forecast.slots)


def run_sweep(
    console: Console,
    experiment: Experiment,
    run: Any,
    *,
    earlier: Sequence[Record] = (),
    log_to: Sequence[Tracker] = (),
) -> None:
    """Run, watch, and print the closing screen; ends the process with 1 where the sweep failed or was interrupted."""
    close(console, watched(console, experiment, run, earlier=earlier, log_to=log_to, before_s=processes.age_s()))


def watched(
    console: Console | None,
    experiment: Experiment,
    run: Any,
    *,
    earlier: Sequence[Record] = (),
    log_to: Sequence[Tracker] = (),
    before_s: float = 0.0,
) -> SweepResult:
    """Run and watch, on nothing where there is no console; ends the process with 1 where the sweep failed. `before_s`
    is what its checks have taken, since the command was typed.
    """
    from pretune.core import journal
    from pretune.core.errors import LeaseLostError, SweepFailedError, refused_by_files
    from pretune.display.watching import watching
    from trainers import storage

    try:
        with (
            watching(experiment, console, earlier=earlier, log_to=log_to, before_s=before_s) as listener,
            in_time(partial(note, console or Console(stderr=True))),
        ):
            result: SweepResult = run(listener)
    except KeyboardInterrupt as error:
        interrupted("interrupted before a trial began; the same command starts again", error)
    except RequestError as error:
        refuse(str(error))
    except Exception as error:
        known = isinstance(error, SweepFailedError | LeaseLostError) or storage.refuses(error)
        if not known:  # what is said in full below needs no stack of Tune's
            traceback.print_exc()
        if isinstance(error, OSError) and known:
            reason = refused_by_files(error)
        else:
            reason = str(error) if isinstance(error, SweepFailedError) else f"{type(error).__name__}: {error}"
        begun = (experiment.folder / journal.FILE).exists()
        onward = (
            f"go on with: pretune resume {shlex.quote(str(experiment.folder))}"
            if begun
            else "no trial was asked for: try again"
        )
        fail(f"the sweep failed: {reason}; logs are in {experiment.folder / 'logs'}, {onward}")
    return result


def logging_to(texts: Sequence[str] | None) -> list[Tracker]:
    """What `--log-to` names; the trackers' packages are imported where there is one. RequestError as of `checked`."""
    if not texts:
        return []
    from pretune.display import trackers

    return trackers.checked(texts)


def close(console: Console, result: Any) -> NoReturn:
    """The closing screen of a sweep."""
    from pretune.analysis import baselines, forecast
    from pretune.display import forecast as display
    from pretune.display import tables

    kind, compared = kinds.of(result.experiment), None
    with running(f"the sweep is whole: pretune show {shlex.quote(str(result.folder))}"):
        if result.closed in ("finished", "exhausted", "out_of_time") and result.winner is not None:
            with console.status("comparing with the untrained encoder and raw pixels"):
                compared = baselines.compare(result)
        told = forecast.against_fact(result)
        last: list[RenderableType] = [] if told is None else [display.against(told)]
        written, left_out = kind.write(result)
        last += [Text(f"written to {path}", style="dim") for path in filter(Path.is_file, written)]
        last += [Text(line, style="yellow") for line in left_out]
        last.append(tables.next_commands(result))
        screen.show(console, *_fitting(console, lambda limit: kind.screen(result, compared, limit=limit), last))
    for part in last:
        console.print(part, soft_wrap=True)
    if result.closed == "interrupted":
        number = signal.Signals[result.detail] if result.detail else signal.SIGINT
        interrupted("interrupted; nothing that was done is lost", Interrupted(number))
    if result.best is None:
        fail(f"no trial was completed; the reasons are in the table, logs in {result.folder / 'logs'}")
    raise typer.Exit(0)


def _fitting(
    console: Console, screen_of: Callable[[int], list[RenderableType]], last: Sequence[RenderableType]
) -> list[RenderableType]:
    """The screen with as many trials one by one as the terminal has lines for, at least the best; `last` and the
    shell's own line follow it.
    """
    if not console.is_terminal:
        return screen_of(MOST_LISTED)
    room = console.height - 1 - screen.height(console, *last)
    fitting = bisect_right(range(1, MOST_LISTED + 1), room, key=lambda limit: screen.height(console, *screen_of(limit)))
    return screen_of(max(1, fitting))
