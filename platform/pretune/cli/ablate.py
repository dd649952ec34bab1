"""`pretune ablate`: levels of a factor under equal seeds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pretune.cli import completion
from pretune.cli.exits import checking, note
from pretune.cli.options import (
    STORAGE,
    Address,
    CpusPerWorker,
    Data,
    Direction,
    Epochs,
    GpusPerWorker,
    LogTo,
    MaxFailed,
    Metric,
    Name,
    Settings,
    Slots,
    Storage,
    Subset,
    WorkersPerTrial,
)
from pretune.cli.running import logging_to, run_sweep
from pretune.core.choices import MAX_FAILED
from pretune.display import screen


def ablate_command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SWEEP",
            help="what to vary: a recipe as of `train`, or a sweep's best",
            autocompletion=completion.recipes_and_sweeps,
        ),
    ],
    factors: Annotated[
        list[str] | None,
        typer.Option("--factor", metavar="a.b=v1,v2", help="a setting and its levels; may be given again"),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="all combinations, instead of one factor at a time")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="runs of each level, with the same seeds")] = 3,
    data: Data = None,
    subset: Subset = None,
    epochs: Epochs = None,
    slots: Slots = None,
    workers_per_trial: WorkersPerTrial = 1,
    gpus_per_worker: GpusPerWorker = None,
    max_failed: MaxFailed = None,
    cpus_per_worker: CpusPerWorker = 1.0,
    storage: Storage = STORAGE,
    name: Name = None,
    settings: Settings = None,
    metric: Metric = None,
    direction: Direction = None,
    log_to: LogTo = None,
    address: Address = None,
) -> None:
    """Change one factor at a time, or all on a grid, and compare under equal seeds."""
    console = screen.console()
    with checking():
        from pretune import sweep
        from pretune.analysis import ablation
        from pretune.core.points import unvaried
        from pretune.request import lookup, overrides, request

        found = request.recipe_or_best(recipe, storage)
        base = request.configure(
            found, subset=subset, epochs=epochs, assignments=settings or (), workers=workers_per_trial
        )
        for line in request.left_out(found, settings or ()):
            note(console, f"--set {line}")
        points = ablation.points(base, ablation.parse(factors or ()), grid=grid, seeds=seeds)
        experiment = request.checked(
            lookup.FoundSpace(ablation.SPACE, f"ablate-{found.label}", unvaried, None, None),
            found,
            base,
            name=name,
            data=data,
            local=address is None,
            trials=len(points),
            points=points,
            slots=slots,
            workers_per_trial=workers_per_trial,
            gpus_per_worker=gpus_per_worker or 0.0,
            max_failed=MAX_FAILED if max_failed is None else max_failed,
            cpus_per_worker=cpus_per_worker,
            storage=storage,
            stopping_enabled=False,
            metric=metric,
            direction=direction,
        )
        trackers = logging_to(log_to)
        for line in dict.fromkeys(line for point in points for line in overrides.left_out_by(base, point)):
            note(console, f"--factor {line}")

    def run(listener: Any) -> Any:
        return sweep.run(
            experiment, space=unvaried, listener=listener, address=address, auto_gpus=gpus_per_worker is None
        )

    run_sweep(console, experiment, run, log_to=trackers)
