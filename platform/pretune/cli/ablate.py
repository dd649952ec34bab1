"""`pretune ablate`: levels of a factor under equal seeds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from pretune.cli import completion
from pretune.cli.options import (
    STORAGE,
    Address,
    Compile,
    CpusPerWorker,
    Data,
    Direction,
    Epochs,
    GpusPerWorker,
    LogTo,
    MaxFailed,
    Metric,
    Name,
    Pack,
    Settings,
    Slots,
    Storage,
    Subset,
    WorkersPerTrial,
)
from pretune.cli.running import logging_to
from pretune.cli.sweep import SweepRequest, run_asked
from pretune.cli.taking import taking
from pretune.core.choices import MAX_FAILED, Budget
from pretune.core.errors import RequestError

if TYPE_CHECKING:
    from trainers.config import TrialConfig

Until = Literal["decided"]


def ablation_request(
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
    levels: Annotated[
        list[str] | None,
        typer.Option(
            "--level", metavar="[F/]NAME:a.b=v,c=w", help="several settings at once under one name; may be given again"
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", metavar="PATH,…", help="without it; `objective` is without each term in turn"),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="all combinations, instead of one factor at a time")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="runs of each level, with the same seeds")] = 3,
    until: Annotated[
        Until | None, typer.Option("--until", help="give comparisons that are undecided more seeds (--max-seeds)")
    ] = None,
    max_seeds: Annotated[
        int | None, typer.Option("--max-seeds", min=2, help="of --until decided: at most so many seeds")
    ] = None,
    smallest_effect: Annotated[
        float | None,
        typer.Option(
            "--smallest-effect",
            min=0.0,
            help="the smallest difference worth having; default: 0.01 of an accuracy, 2 % of the base otherwise",
        ),
    ] = None,
    budget: Annotated[
        Budget, typer.Option("--budget", help="what all levels get as much of: epochs, views, or --seconds")
    ] = "epochs",
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.0, help="of --budget seconds: training time of each trial")
    ] = None,
    data: Data = None,
    subset: Subset = None,
    epochs: Epochs = None,
    slots: Slots = None,
    workers_per_trial: WorkersPerTrial = 1,
    gpus_per_worker: GpusPerWorker = None,
    pack: Pack = None,
    max_failed: MaxFailed = None,
    cpus_per_worker: CpusPerWorker = 1.0,
    storage: Storage = STORAGE,
    name: Name = None,
    settings: Settings = None,
    compile: Compile = None,
    metric: Metric = None,
    direction: Direction = None,
    log_to: LogTo = None,
    address: Address = None,
) -> SweepRequest:
    """What was typed, checked completely. RequestError where it cannot be run."""
    from pretune.analysis import packing
    from pretune.analysis.ablation import SPACE
    from pretune.core import metrics
    from pretune.core.points import unvaried
    from pretune.request import compiling as compile_option
    from pretune.request import levels as asked_levels
    from pretune.request import lookup, overrides, request
    from trainers import compiling

    _check_together(until, seeds, max_seeds, budget, seconds, metric)
    found = request.recipe_or_best(recipe, storage)
    base = request.configure(
        found,
        subset=subset,
        epochs=epochs,
        assignments=settings or (),
        compile=compile,
        workers=workers_per_trial,
    )
    auto_compile = compile_option.is_auto(compile, local=address is None)
    judged_by = metric or metrics.DEFAULT
    base = request.measuring(base, [judged_by])
    notes = [f"--set {line}" for line in request.left_out(found, settings or ())]
    if weight := metrics.weight(judged_by):
        notes.append(weight)
    varied = asked_levels.parse(base, factors=factors or (), levels=levels or (), leave_out=leave_out or ())
    space = lookup.FoundSpace(SPACE, f"ablate-{found.label}", unvaried, None, None)
    place = request.experiment(space, found, base, name=name, options={"storage": storage})
    request.check_folder_is_new(place)
    request.check_storage(place)
    _, dataset = request.with_data(base, data)

    def check(config: TrialConfig) -> None:
        config.check_workers(workers_per_trial)
        if address is None:
            compiling.check(config)
        request.check_data(config, dataset)
        metrics.check(judged_by, [config])

    design = asked_levels.design(
        base,
        varied,
        grid=grid,
        seeds=seeds,
        max_seeds=max_seeds,
        smallest_effect=smallest_effect,
        check=check,
        views_per_epoch=partial(request.views_per_epoch, dataset=dataset) if budget == "views" else None,
    )
    if auto_compile:
        compile_option.check_levels(level.changes for level in design.levels)
    points = design.points(base.seed)
    experiment = request.checked(
        space,
        found,
        base,
        name=name,
        data=data,
        local=address is None,
        trials=len(points),
        points=points,
        design=design,
        budget=budget,
        trial_seconds=seconds,
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
    experiment, packed_as = packing.asked(experiment, pack, gpus_per_worker=gpus_per_worker, local=address is None)
    built = [level for level in design.levels if not level.refused]
    notes += dict.fromkeys(line for level in built for line in overrides.left_out_by(base, level.changes))
    for level in design.levels:
        if level.refused:
            told = level.name or ", ".join(f"{path}={value}" for path, value in level.changes.items())
            notes.append(f"{told} cannot be built and is left out: {level.refused}")
    return SweepRequest(
        experiment=experiment,
        space=unvaried,
        auto_gpus=gpus_per_worker is None and packed_as is None,
        auto_compile=auto_compile,
        address=address,
        log_to=logging_to(log_to),
        notes=tuple(notes),
        packing=packed_as,
    )


@taking(ablation_request)
def ablate_command(console: Console, asked: SweepRequest) -> None:
    """Change one factor at a time, or all on a grid, and compare under equal seeds."""
    run_asked(console, asked)


def _check_together(
    until: Until | None,
    seeds: int,
    max_seeds: int | None,
    budget: Budget,
    seconds: float | None,
    metric: str | None,
) -> None:
    """RequestError where options do not go together."""
    if until is not None and max_seeds is None:
        raise RequestError(
            f"--until decided needs --max-seeds, the most seeds that a level may get; give it, for example "
            f"--max-seeds {4 * max(2, seeds)}"
        )
    if max_seeds is not None and until is None:
        raise RequestError(f"--max-seeds {max_seeds} is for --until decided; add that, or use --seeds {max_seeds}")
    if max_seeds is not None and max_seeds <= seeds:
        raise RequestError(
            f"--max-seeds must be above --seeds, with which each level begins, but is {max_seeds} and --seeds {seeds}; "
            f"raise it, or leave --until out"
        )
    if (budget == "seconds") != (seconds is not None) or seconds == 0.0:
        raise RequestError(
            "--budget seconds and --seconds N, the training time of each trial, are given together, and N is above 0, "
            f"but they are --budget {budget}{'' if seconds is None else f' --seconds {seconds:g}'}"
        )
    if seconds is not None and (metric or "").startswith("probe/full"):
        raise RequestError(
            f"--metric {metric} is told of a trial's last epoch alone, which --seconds may leave out; "
            "choose another, such as probe/linear"
        )
