"""`pretune show`: sweeps, the trials of one, or one trial's whole story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from pretune.cli import completion, kinds
from pretune.cli.exits import checking, note, print_json
from pretune.cli.options import STORAGE, Json, Storage
from pretune.core import notes
from pretune.core.errors import RequestError
from pretune.core.notes import Note
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.importance import Importance
    from pretune.core.results import SweepResult


def show_command(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP]", help="a sweep's name or folder; default: list all", autocompletion=completion.sweeps
        ),
    ] = None,
    trial: Annotated[
        int | None, typer.Argument(metavar="[TRIAL]", min=0, help="a trial's number: its whole story")
    ] = None,
    storage: Storage = STORAGE,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV, numbers to their last digit")] = False,
    states: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="only trials in this state; may be given again")
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="COLUMN", help="smallest first; -COLUMN greatest first")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="of all sweeps those with this tag; may be given again")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns", metavar="a,b", help="trial, state, epochs, value, stderr, reason, parameters, metrics"
        ),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="list all trials, not only the 100 best")] = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="also write the screen as a picture, for a README")] = None,
    importance: Annotated[
        bool, typer.Option("--importance", help="which parameters matter, with intervals, and what to do about it")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="write an ablation's tables and plots anew, beside its journal")
    ] = False,
) -> None:
    """The sweeps there are, the trials of one, or one trial's whole story; also while it runs."""
    from pretune.analysis import baselines, forecast, measured, selection, story
    from pretune.core import results
    from pretune.display import fastest as fastest_screen
    from pretune.display import forecast as forecast_screen
    from pretune.display import packing as packing_screen
    from pretune.display import story as story_screen
    from pretune.display import tables
    from pretune.request import request
    from trainers.storage import is_uri

    console = screen.console()
    chosen = bool(states or sort or columns)
    with checking():
        if as_json and as_csv:
            raise RequestError("--json and --csv are two answers; keep one")
        if tags and sweep is not None:
            raise RequestError("--tag chooses among sweeps; leave SWEEP out")
        if trial is not None and (as_csv or chosen or write or importance or svg is not None):
            raise RequestError(
                "--state, --sort, --columns, --csv, --svg, --importance and --write are of a sweep's trials; leave "
                "TRIAL out"
            )
        if importance and (as_csv or chosen):
            raise RequestError(
                "--importance is of all trials and a table of its own; leave --state, --sort, --columns and --csv out"
            )
        if sweep is None:
            if write:
                raise RequestError("--write writes the tables of one ablation; name it: pretune show SWEEP --write")
            if svg is not None:
                raise RequestError("--svg draws one sweep; name it: pretune show SWEEP --svg FILE")
            if importance:
                raise RequestError("--importance is of one sweep's trials; name it: pretune show SWEEP --importance")
            if as_csv or chosen:
                raise RequestError("--state, --sort, --columns and --csv are of the trials of one sweep; name it")
            if is_uri(storage):
                raise RequestError(f"show lists the sweeps of a folder, not of {storage}; name one: pretune show URI")
            found, unreadable = results.sweeps(Path(storage))
            noted = {one.name: notes.read(one.folder) for one in found}
            if tags:
                found = [one for one in found if set(tags) <= set(notes.tags(noted[one.name]))]
                unreadable = []
            if as_json:
                print_json(
                    [*(_sweep_json(one) | _noted(noted[one.name]) for one in found), *map(_unreadable_json, unreadable)]
                )
                return
            if found:
                screen.show(console, tables.sweeps(found, {name: notes.tags(said) for name, said in noted.items()}))
            elif tags:
                console.print(f"no sweep in {storage} has {', '.join(tags)}", markup=False, soft_wrap=True)
            elif not unreadable:
                console.print(f"no sweeps in {storage}; start one: pretune sweep kernels", markup=False, soft_wrap=True)
            for one in unreadable:
                note(console, f"sweep {one.name} cannot be shown: {one.problem}")
            return
        if svg is not None and tables.is_foreign(svg):
            raise RequestError(f"--svg {svg} is there and is no picture of `pretune show`; choose another file")
        result = request.read_sweep(sweep, storage)
        if result.remote is not None and (is_uri(sweep) or is_uri(storage)):
            notes.fetch(result.remote, result.folder)
        said = notes.read(result.folder)
        if trial is not None:
            told = story.of(result, trial, name=sweep)
            if as_json:
                print_json(told)
                return
            screen.show(console, *story_screen.screen(console, told))
            for command in told["commands"]:
                console.print(Text(command, style="cyan"), soft_wrap=True)
            return
        kind = kinds.of(result.experiment)
        if write and not result.experiment.points:
            raise RequestError(f"--write writes the tables of an ablation, but {sweep!r} is a search; leave it out")
        if importance and result.experiment.points:
            raise RequestError(
                f"--importance is of a search over a space, but {sweep!r} is an ablation, whose table has the effect "
                "of each level; leave it out"
            )
        matters = _importance(result) if importance else None
        foretold = forecast.against_fact(result)
        rows = selection.trials(result, states=states or (), sort=sort) if chosen or as_csv else []
        wanted = selection.columns(result, columns) if columns is not None or as_csv else []
        limit = None if whole else tables.SHOWN
        parts: list[RenderableType]
        if matters is not None:
            from pretune.display import importance as importance_screen

            parts = [tables.summary(result), *importance_screen.table(matters)]
        elif columns is not None:
            parts = [tables.summary(result), tables.columns(rows, wanted, limit=limit)]
        elif chosen:
            parts = [tables.summary(result), tables.trials(result, limit=limit, only=rows)]
        else:
            parts = kind.screen(result, baselines.read(result), limit=limit)
            parts += [] if foretold is None else [forecast_screen.against(foretold)]
            parts += packing_screen.whole(result.packing)
            parts += fastest_screen.whole(result.experiment.fastest)
        if svg is not None:
            try:
                tables.save_picture(svg, f"pretune show {sweep}", parts)
            except OSError as error:
                raise RequestError(f"--svg {svg} cannot be written ({error.strerror}); choose another file") from error
        written, left_out = kind.write(result) if write else ([], [])
    if as_csv:
        print(selection.as_csv(rows, wanted), end="")
        return
    if as_json:
        told = kind.as_json(result) | _noted(said) | ({} if foretold is None else {"forecast": foretold.as_json()})
        told |= {} if result.packing is None else {"packing": result.packing.model_dump(mode="json")}
        fastest = result.experiment.fastest
        told |= {} if fastest is None else {"fastest": fastest.as_json()}
        told |= {} if matters is None else {"importance": asdict(matters)}
        if columns is not None:
            told["trials"] = [{one.name: one.of(each) for one in wanted} for each in rows]
        elif chosen:
            by_id = {each["id"]: each for each in told["trials"]}
            told["trials"] = [by_id[each.id] for each in rows]
        print_json(told)
        return
    screen.show(console, *parts)
    if (remarks := tables.notes(said)) is not None:
        screen.show(console, remarks)
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


def _importance(result: SweepResult) -> Importance:
    from pretune.analysis import importance

    return importance.of(result)


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


def _noted(said: Sequence[Note]) -> dict[str, Any]:
    """Only where there is something."""
    return {"tags": notes.tags(said), "notes": [note.model_dump(mode="json") for note in said]} if said else {}


def _unreadable_json(found: Any) -> dict[str, Any]:
    return {"name": found.name, "folder": str(found.folder), "state": "unreadable", "problem": found.problem}
