"""`pretune profile`: where a run's time goes on this machine, and what limits it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pretune.cli.exits import checking, fail, interrupted, note, print_json, running
from pretune.cli.options import Data, Json, Recipe, Settings, Subset
from pretune.core.errors import RequestError
from pretune.display import screen

FIGURES = "profile.json"


def profile_command(
    recipe: Recipe,
    data: Data = None,
    subset: Subset = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="DDP processes on this machine")] = 1,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="a new folder for a trace (Perfetto, TensorBoard) and all figures; default: none"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure where a run's time goes on this machine, and say what limits it."""
    console = screen.console()
    with checking():
        from pretune.analysis import limits
        from pretune.analysis import profile as analysis
        from pretune.request import lookup, request

        found_recipe = lookup.recipe(recipe)
        config = request.configure(found_recipe, subset=subset, assignments=settings or (), workers=workers)
        left_out = request.left_out(found_recipe, settings or ())
        if out is not None:
            _check_new(out)
        config, _ = request.with_data(config, data)
        analysis.check_device(config, workers)
    if not as_json:
        for line in left_out:
            note(console, f"--set {line}")
    with running(), nullcontext() if as_json else console.status("measuring") as status:
        try:
            found = analysis.profile(
                config,
                workers=workers,
                out=out,
                tell=lambda words: None if status is None else status.update(f"measuring: {words}"),
            )
        except KeyboardInterrupt as error:
            interrupted("interrupted; nothing was to be kept", error)
        except analysis.NotProfiledError as error:
            fail(str(error))
    limit = limits.limit(found)
    asked = {"recipe": found_recipe.label, "data": config.data.path}
    told = {**asked, **found.model_dump(mode="json"), "limit": asdict(limit)}
    if out is not None:
        with running():
            analysis.keep(told, out / FIGURES)
    if as_json:
        print_json(told)
        return
    from pretune.display import profile as display

    screen.show(console, *display.whole(found, limit, recipe=found_recipe.label, data=config.data.path))
    if out is not None:
        console.print(Text(f"written to {out}; open its trace.json.gz in ui.perfetto.dev"), soft_wrap=True)


def _check_new(folder: Path) -> None:
    from pretune.execution import run_folder

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RequestError(f"--out {folder} must be a new or empty folder, but is not; choose another")
    run_folder.check_writable(folder)
