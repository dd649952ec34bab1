"""`pretune sweep`: settings of a recipe, tried on warm slots."""

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
    Space,
    Storage,
    Subset,
    WorkersPerTrial,
)
from pretune.cli.running import logging_to, run_sweep
from pretune.core.choices import MAX_FAILED, Budget, SamplerName
from pretune.display import screen


def sweep_command(
    space: Space,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="the recipe to vary; default: the space's own", autocompletion=completion.recipes
        ),
    ] = None,
    data: Data = None,
    subset: Subset = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="how many to try in all")] = None,
    epochs: Epochs = None,
    budget: Annotated[
        Budget | None,
        typer.Option("--budget", help="what weak trials are stopped by; default: the space's own, or epochs"),
    ] = None,
    slots: Slots = None,
    workers_per_trial: WorkersPerTrial = 1,
    gpus_per_worker: GpusPerWorker = None,
    max_failed: MaxFailed = None,
    cpus_per_worker: CpusPerWorker = 1.0,
    sampler: Annotated[SamplerName, typer.Option("--sampler", help="what proposes trials")] = "tpe",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="of the sampler and of every trial; default: 0")
    ] = None,
    storage: Storage = STORAGE,
    name: Name = None,
    settings: Settings = None,
    stopping: Annotated[bool, typer.Option("--stopping/--no-stopping", help="end weak trials early")] = True,
    grace: Annotated[float | None, typer.Option("--grace", min=0.0, help="first rung, in units of --budget")] = None,
    metric: Metric = None,
    direction: Direction = None,
    log_to: LogTo = None,
    address: Address = None,
) -> None:
    """Try settings of a recipe and show what works best."""
    console = screen.console()
    with checking():
        from pretune import sweep
        from pretune.request import lookup, request

        found_space, found_recipe = lookup.space_and_recipe(space, recipe)
        base = request.configure(
            found_recipe,
            subset=subset,
            epochs=epochs,
            seed=seed,
            assignments=settings or (),
            workers=workers_per_trial,
        )
        experiment = request.checked(
            found_space,
            found_recipe,
            base,
            name=name,
            data=data,
            local=address is None,
            trials=trials,
            budget=budget,
            slots=slots,
            workers_per_trial=workers_per_trial,
            gpus_per_worker=gpus_per_worker or 0.0,
            max_failed=MAX_FAILED if max_failed is None else max_failed,
            cpus_per_worker=cpus_per_worker,
            sampler=sampler,
            storage=storage,
            stopping_enabled=stopping,
            stopping_grace=grace,
            metric=metric,
            direction=direction,
        )
        trackers = logging_to(log_to)
        for line in request.left_out(found_recipe, settings or ()):
            note(console, f"--set {line}")
        for path in request.varied_by_the_space(found_space.function, experiment.base, settings or ()):
            note(console, f"the space sets {path} itself; --set {path} only changes what it starts from")

    def run(listener: Any) -> Any:
        return sweep.run(
            experiment,
            space=found_space.function,
            listener=listener,
            address=address,
            auto_gpus=gpus_per_worker is None,
        )

    run_sweep(console, experiment, run, log_to=trackers)
