"""`pretune ablate`: levels of a factor under equal seeds."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from pretune.cli.exits import checking
from pretune.cli.options import (
    STORAGE,
    Address,
    CpusPerWorker,
    Data,
    Epochs,
    GpusPerWorker,
    Metric,
    Name,
    Settings,
    Slots,
    Storage,
    Subset,
    WorkersPerTrial,
)
from pretune.cli.running import run_sweep


def ablate_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE|SWEEP", help="what to vary: a recipe as of `train`, or a sweep's best")
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
    gpus_per_worker: GpusPerWorker = 0.0,
    cpus_per_worker: CpusPerWorker = 1.0,
    storage: Storage = STORAGE,
    name: Name = None,
    settings: Settings = None,
    metric: Metric = None,
    address: Address = None,
) -> None:
    """Change one factor at a time, or all on a grid, and compare under equal seeds."""
    console = Console()
    with checking():
        from pretune import sweep
        from pretune.analysis import ablation
        from pretune.request import lookup, overrides, request

        found = request.recipe_or_best(recipe, storage)
        base = request.configure(found, subset=subset, epochs=epochs, assignments=settings or ())
        base.check_workers(workers_per_trial)
        points = ablation.points(base, ablation.parse(factors or ()), grid=grid, seeds=seeds)
        space = lookup.FoundSpace(ablation.SPACE, f"ablate-{found.label}", ablation.unvaried, None, None)
        options = {
            "data": data if data is not None else base.data.path,
            "trials": len(points),
            "points": points,
            "slots": slots,
            "workers_per_trial": workers_per_trial,
            "cpus_per_worker": cpus_per_worker,
            "gpus_per_worker": gpus_per_worker,
            "seed": base.seed,
            "storage": storage,
            "metric": metric,
            "stopping_enabled": False,
        }
        experiment = request.experiment(space, found, base, name=name, options=options)
        if address is None:
            request.check_local_slots(slots, workers_per_trial, cpus_per_worker)
        request.check_folder_is_new(experiment)
        request.check_storage(experiment)
        sweep.check(experiment, ablation.unvaried)
        base, dataset = request.with_data(base, data)
        for point in points:
            request.check_data(overrides.apply(base, point), dataset)
        experiment = request.experiment(space, found, base, name=experiment.name, options=options)

    def run(listener: Any) -> Any:
        return sweep.run(experiment, space=ablation.unvaried, listener=listener, address=address)

    run_sweep(console, experiment, run)
