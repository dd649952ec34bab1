"""`pretune show`: sweeps, or the trials of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from pretune.cli import completion, kinds
from pretune.cli.exits import checking, note, print_json
from pretune.cli.options import STORAGE, Json, Storage
from pretune.core.errors import RequestError
from pretune.display import screen


def show_command(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP]", help="a sweep's name or folder; default: list all", autocompletion=completion.sweeps
        ),
    ] = None,
    storage: Storage = STORAGE,
    as_json: Json = False,
    whole: Annotated[bool, typer.Option("--all", help="list all trials, not only the 100 best")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="also write the screen as a picture, for a README")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="write an ablation's tables and plots anew, beside its journal")
    ] = False,
) -> None:
    """The sweeps there are, or the trials of one; also while it runs."""
    from pretune.analysis import baselines, forecast, measured
    from pretune.core import results
    from pretune.display import forecast as display
    from pretune.display import tables
    from pretune.request import request
    from trainers.storage import is_uri

    console = screen.console()
    with checking():
        if sweep is None:
            if svg is not None:
                raise RequestError("--svg draws one sweep; name it: pretune show SWEEP --svg FILE")
            if is_uri(storage):
                raise RequestError(f"show lists the sweeps of a folder, not of {storage}; name one: pretune show URI")
            found, unreadable = results.sweeps(Path(storage))
            if as_json:
                print_json([*map(_sweep_json, found), *map(_unreadable_json, unreadable)])
                return
            if found:
                screen.show(console, tables.sweeps(found))
            elif not unreadable:
                console.print(f"no sweeps in {storage}; start one: pretune sweep kernels", markup=False, soft_wrap=True)
            for one in unreadable:
                note(console, f"sweep {one.name} cannot be shown: {one.problem}")
            return
        result = request.read_sweep(sweep, storage)
        kind = kinds.of(result.experiment)
        if write and not result.experiment.points:
            raise RequestError(f"--write writes the tables of an ablation, but {sweep!r} is a search; leave it out")
        parts = kind.screen(result, baselines.read(result), limit=None if whole else tables.SHOWN)
        told = forecast.against_fact(result)
        parts += [] if told is None else [display.against(told)]
        if svg is not None:
            try:
                tables.save_picture(svg, f"pretune show {sweep}", parts)
            except OSError as error:
                raise RequestError(f"--svg {svg} cannot be written ({error.strerror}); choose another file") from error
        written, left_out = kind.write(result) if write else ([], [])
    if as_json:
        print_json(kind.as_json(result) | ({} if told is None else {"forecast": told.as_json()}))
        return
    screen.show(console, *parts)
    typed = measured.command(result.folder)
    if typed is not None:
        console.print(Text(f"typed: {typed}", style="dim"), soft_wrap=True)
    for notice in [] if result.later is None else result.later.notices():
        note(console, notice)
    for path in written:
        console.print(Text(f"written to {path}", style="dim"), soft_wrap=True)
    for line in left_out:
        note(console, line)
    console.print(tables.next_commands(result), soft_wrap=True)


def _sweep_json(result: Any) -> dict[str, Any]:
    from pretune.display import tables

    best = result.best_trial
    return {
        "name": result.name,
        "folder": str(result.folder),
        "space": result.space,
        "recipe": result.experiment.recipe,
        "metric": result.metric,
        **({} if result.experiment.maximize else {"direction": "minimize"}),
        "trials": len(result.trials),
        "asked": result.asked,
        "best": result.best,
        "value": None if best is None else best.value,
        "state": tables.status(result),
    }


def _unreadable_json(found: Any) -> dict[str, Any]:
    return {"name": found.name, "folder": str(found.folder), "state": "unreadable", "problem": found.problem}
