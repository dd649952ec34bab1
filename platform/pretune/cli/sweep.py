"""`pretune sweep`: settings of a recipe, tried on warm slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from pretune.cli import completion
from pretune.cli.options import (
    STORAGE,
    Address,
    Compile,
    CpusPerWorker,
    Data,
    Directions,
    Epochs,
    GpusPerWorker,
    LogTo,
    MaxFailed,
    MaxHours,
    Metrics,
    Name,
    Pack,
    Settings,
    Slots,
    Space,
    Storage,
    Subset,
    WorkersPerTrial,
    share,
)
from pretune.cli.packing import packed, serving
from pretune.cli.running import compiled, foretold, learned, logging_to, run_sweep
from pretune.cli.taking import taking
from pretune.core.choices import MAX_FAILED, Budget, SamplerName, StoppingName

if TYPE_CHECKING:
    from pretune.core.experiment import Experiment
    from pretune.core.packing import Packing
    from pretune.core.search import Space as SpaceFunction
    from pretune.display.trackers import Tracker


@dataclass(frozen=True)
class SweepRequest:
    """A search or an ablation that was asked for and can be run."""

    experiment: Experiment
    space: SpaceFunction
    auto_gpus: bool
    auto_compile: bool
    address: str | None
    log_to: Sequence[Tracker]
    notes: tuple[str, ...]
    packing: Packing | Literal["auto"] | None = None
    """How trials share a GPU; already in the experiment where it is a number, measured before it starts with auto."""

    @property
    def may_have_gpus(self) -> bool:
        """Whether trials get GPUs where there are any, before it is known how many share one."""
        return self.auto_gpus or self.packing == "auto"


def sweep_request(
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
    max_hours: MaxHours = None,
    budget: Annotated[
        Budget | None,
        typer.Option("--budget", help="what weak trials are stopped by; default: the space's own, or epochs"),
    ] = None,
    slots: Slots = None,
    workers_per_trial: WorkersPerTrial = 1,
    gpus_per_worker: GpusPerWorker = None,
    pack: Pack = None,
    max_failed: MaxFailed = None,
    cpus_per_worker: CpusPerWorker = 1.0,
    sampler: Annotated[SamplerName, typer.Option("--sampler", help="what proposes trials")] = "tpe",
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            "--warm-start",
            metavar="SWEEP",
            help="begin with what that sweep has found: its best points, its trials for TPE; may be given again",
            autocompletion=completion.sweeps,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="of the sampler and of every trial; default: 0")
    ] = None,
    storage: Storage = STORAGE,
    name: Name = None,
    settings: Settings = None,
    compile: Compile = None,
    stopping: Annotated[
        StoppingName | None,
        typer.Option(
            "--stopping", help="what ends weak trials early: successive halving (asha, the default), or another rule"
        ),
    ] = None,
    no_stopping: Annotated[bool, typer.Option("--no-stopping", help="as --stopping none")] = False,
    grace: Annotated[
        float | None,
        typer.Option("--grace", min=0.0, help="the first rung, or no stop before; in units of --budget"),
    ] = None,
    reduction_factor: Annotated[
        float | None, typer.Option("--reduction-factor", help="asha, hyperband: one in so many passes a rung")
    ] = None,
    brackets: Annotated[int | None, typer.Option("--brackets", min=1, help="hyperband: how many")] = None,
    min_trials: Annotated[
        int | None, typer.Option("--min-trials", min=1, help="median: no stop before so many trials are complete")
    ] = None,
    audit: Annotated[
        float | None,
        typer.Option(
            "--audit",
            metavar="SHARE",
            parser=share,
            help="so many of the trials that would be stopped live on, such as 5%, to tell how often that is wrong",
        ),
    ] = None,
    metric: Metrics = None,
    direction: Directions = None,
    log_to: LogTo = None,
    address: Address = None,
) -> SweepRequest:
    """What was typed, checked completely. RequestError where it cannot be run."""
    from pretune.analysis import packing
    from pretune.core import metrics
    from pretune.request import compiling, lookup, request

    found_space, found_recipe = lookup.space_and_recipe(space, recipe)
    base = request.configure(
        found_recipe,
        subset=subset,
        epochs=epochs,
        seed=seed,
        assignments=settings or (),
        compile=compile,
        workers=workers_per_trial,
    )
    auto_compile = compiling.is_auto(compile, local=address is None)
    experiment = request.checked(
        found_space,
        found_recipe,
        base,
        name=name,
        data=data,
        local=address is None,
        trials=trials,
        max_hours=max_hours,
        budget=budget,
        slots=slots,
        workers_per_trial=workers_per_trial,
        gpus_per_worker=gpus_per_worker or 0.0,
        max_failed=MAX_FAILED if max_failed is None else max_failed,
        cpus_per_worker=cpus_per_worker,
        sampler=sampler,
        storage=storage,
        stopping=request.stopping_name(stopping, off=no_stopping),
        stopping_grace=grace,
        stopping_reduction_factor=reduction_factor,
        stopping_brackets=brackets,
        stopping_min_trials=min_trials,
        stopping_audit=audit,
        metric=metric,
        direction=direction,
    )
    if auto_compile:
        compiling.check_space(found_space.function, experiment.base)
    experiment, packed_as = packing.asked(experiment, pack, gpus_per_worker=gpus_per_worker, local=address is None)
    experiment, notes = request.warmed(experiment, found_space.function, warm_start or ())
    notes += filter(None, (metrics.weight(objective.metric) for objective in experiment.objectives))
    notes += [f"--set {line}" for line in request.left_out(found_recipe, settings or ())]
    notes += [
        f"the space sets {path} itself; --set {path} only changes what it starts from"
        for path in request.varied_by_the_space(found_space.function, experiment.base, settings or ())
    ]
    return SweepRequest(
        experiment=experiment,
        space=found_space.function,
        auto_gpus=gpus_per_worker is None and packed_as is None,
        auto_compile=auto_compile,
        address=address,
        log_to=logging_to(log_to),
        notes=tuple(notes),
        packing=packed_as,
    )


@taking(sweep_request)
def sweep_command(console: Console, asked: SweepRequest) -> None:
    """Try settings of a recipe and show what works best."""
    run_asked(console, asked)


def run_asked(console: Console, asked: SweepRequest) -> None:
    """Says what it will take, runs it and shows what came out."""
    from pretune import sweep

    experiment = asked.experiment
    if asked.auto_compile:
        experiment = compiled(console, experiment, asked.space, auto_gpus=asked.may_have_gpus)
    experiment, packing = packed(console, experiment, asked.packing, asked.space)
    forecast = foretold(console, experiment, asked.space, auto_gpus=asked.auto_gpus, local=asked.address is None)

    def run(listener: Any) -> Any:
        result = sweep.run(
            experiment,
            space=asked.space,
            listener=listener,
            address=asked.address,
            auto_gpus=asked.auto_gpus,
            forecast=forecast,
            packing=packing,
        )
        if asked.address is None:
            learned(result, forecast)
        return result

    with serving(console, packing):
        run_sweep(console, experiment, run, log_to=asked.log_to)
