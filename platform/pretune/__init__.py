"""Runs explorations: sweeps of self-supervised pretraining on Ray, searched by Optuna. Knows no loss and no layer.

This is the Python interface, for notebooks; what else lies in the package may change. Nothing heavy is imported before
it is used.

    import pretune, trainers

    sweep = pretune.run("kernels", "sfrik_tiny", trials=8)      # or pretune.open("sweeps/NAME")
    sweep.trials                                                # a pandas DataFrame
    encoder = trainers.load_encoder(sweep.best.checkpoint)      # a torch.nn.Module
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretune.core.choices import LOCAL_ROOT, MAX_FAILED, Budget, Compile, Direction, SamplerName, StoppingName

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pretune.analysis.notebook import Sweep
    from pretune.core.search import Space
    from pretune.request.lookup import GivenRecipe

    __version__: str

__all__ = ["Sweep", "__version__", "open", "run"]


def open(sweep: str | Path, *, storage: str | Path = LOCAL_ROOT) -> Sweep:
    """A sweep, from its journal alone, whether it runs or not; open it again to see more.

    Args:
        sweep: its folder, its name below `storage`, or its URI (s3://, gs://, file:///).
        storage: the folder or URI that holds sweeps.

    ValueError (`pretune.core.errors.RequestError`) where there is no such sweep, or its journal is damaged.
    """
    from pretune.analysis.notebook import Sweep
    from pretune.core.errors import checking_a_request

    with checking_a_request():
        return Sweep.read(sweep, storage)


def run(
    space: str | Space,
    recipe: GivenRecipe | None = None,
    *,
    data: str | Path | None = None,
    subset: int | str | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    max_hours: float | None = None,
    budget: Budget | None = None,
    slots: int | None = None,
    workers_per_trial: int = 1,
    gpus_per_worker: float | None = None,
    pack: int | None = None,
    cpus_per_worker: float = 1.0,
    max_failed: float = MAX_FAILED,
    sampler: SamplerName = "tpe",
    warm_start: str | Sequence[str] = (),
    seed: int | None = None,
    storage: str | Path = LOCAL_ROOT,
    name: str | None = None,
    set: Mapping[str, Any] | None = None,
    compile: Compile | None = None,
    stopping: StoppingName | bool = "asha",
    grace: float | None = None,
    audit: float | None = None,
    metric: str | Sequence[str] | None = None,
    direction: Direction | Sequence[Direction] | None = None,
    log_to: Sequence[str] = (),
    address: str | None = None,
    quiet: bool = False,
) -> Sweep:
    """Runs a sweep to its end, as `pretune sweep` does, with the same checks before anything starts; then opens it.

    Interrupting the kernel ends it in order, and `pretune resume` goes on.

    Args:
        space: what may vary: a shipped name, `module:function`, `file.py:function`, or the function itself, if it lies
            in a file that can be imported (`pretune resume` must find it again).
        recipe: the recipe to vary: a name or a function as for `space`, a config's `.json`, or a `TrialConfig`; the
            space's own if None.
        data: a folder or URI with what `pretune data` wrote, or "digits"; the recipe's if None.
        subset: pretrain on so many images of `train`, or on a share of each class, such as "10%".
        trials: how many to try in all.
        epochs: length of a run; the recipe's if None.
        max_hours: land within so many hours: the best trials finish in time, and no other is begun.
        budget: what weak trials are stopped by, "epochs", "views" or "seconds".
        slots: trials at once; what the cluster holds if None.
        workers_per_trial: DDP workers of each trial.
        gpus_per_worker: 0 trains on CPUs, a share below 1 packs several trials on a GPU; if None, 1 where the cluster
            has any.
        pack: so many trials share one GPU, or without any this machine; `pretune plan … --pack auto` measures how many
            are best.
        cpus_per_worker: CPUs reserved for each worker.
        max_failed: the sweep ends early when a greater share of its trials failed.
        sampler: what proposes trials.
        warm_start: sweeps whose best points come first, and whose trials TPE knows where their values compare.
        seed: of the sampler and of every trial.
        storage: the folder or URI that holds sweeps.
        name: the sweep's folder below `storage`; space and time if None.
        set: settings of the recipe to change, by path: `{"optimizer.learning_rate": 0.1}`.
        compile: "on" compiles the network's passes, "cuda_graphs" replays them on a GPU, "auto" measures once for each
            network what is fastest on this machine; the recipe's if None.
        stopping: what ends weak trials early: "asha" (successive halving), "hyperband", "median" or "none"; True and
            False are the first and the last of these.
        grace: the first rung, or with "median" what a trial may use before it is judged; in units of `budget`.
        audit: this share of the trials that would be stopped, 0 to 1, live on, to tell how often that is wrong.
        metric: what is searched for, "probe/linear" if None; of two or three the trials that no other one beats.
        direction: "maximize" or "minimize", for each metric; what it suggests if None: losses are minimized.
        log_to: trackers: "mlflow[:URI]", "wandb[:PROJECT]", "csv[:FILE]".
        address: a running Ray cluster, such as "auto"; a local one if None.
        quiet: show nothing while it runs.

    Raises:
        ValueError: (`pretune.core.errors.RequestError`) the request is wrong, in the command line's words; nothing was
            started.
        RuntimeError: (`pretune.core.errors.SweepFailedError`) trials ran, but no trial can go on.
    """
    import json
    import warnings

    from rich.console import Console

    from pretune import sweep as sweeps
    from pretune.analysis import packing
    from pretune.analysis.notebook import Sweep
    from pretune.core import results
    from pretune.core.errors import RequestError, checking_a_request
    from pretune.display import trackers
    from pretune.request import compiling, lookup, request

    with checking_a_request():
        try:
            assignments = [f"{path}={json.dumps(value)}" for path, value in (set or {}).items()]
        except (TypeError, RecursionError) as error:
            raise RequestError(f"set must hold what JSON can say, but {error}; give numbers, text or lists") from error
        found_space, found_recipe = lookup.space_and_recipe(space, recipe)
        base = request.configure(
            found_recipe,
            subset=subset,
            epochs=epochs,
            seed=seed,
            assignments=assignments,
            compile=compile,
            workers=workers_per_trial,
        )
        auto_compile = compiling.is_auto(compile, local=address is None)
        experiment = request.checked(
            found_space,
            found_recipe,
            base,
            name=name,
            data=None if data is None else str(data),
            local=address is None,
            trials=trials,
            max_hours=max_hours,
            budget=budget,
            sampler=sampler,
            stopping=("asha" if stopping else "none") if isinstance(stopping, bool) else stopping,
            stopping_grace=grace,
            stopping_audit=audit,
            slots=slots,
            workers_per_trial=workers_per_trial,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker or 0.0,
            max_failed=max_failed,
            storage=str(storage),
            metric=metric,
            direction=direction,
        )
        if auto_compile:
            compiling.check_space(found_space.function, experiment.base)
        experiment, packed_as = packing.asked(experiment, pack, gpus_per_worker=gpus_per_worker, local=address is None)
        if packed_as == "auto":
            raise RequestError("pack must be a number here; `pretune plan … --pack auto` measures which one")
        warm = [warm_start] if isinstance(warm_start, str) else list(warm_start)
        experiment, taken = request.warmed(experiment, found_space.function, warm)
        logged = trackers.checked(log_to)
        left_out = request.left_out(found_recipe, assignments)
        varied = request.varied_by_the_space(found_space.function, experiment.base, assignments)
    for line in taken:
        warnings.warn(line, stacklevel=2)
    for line in left_out:
        warnings.warn(f"set: {line}", stacklevel=2)
    for path in varied:
        warnings.warn(f"the space sets {path} itself; set[{path!r}] only changes what it starts from", stacklevel=2)

    from pretune.display.watching import watching

    auto_gpus = gpus_per_worker is None and pack is None
    if auto_compile:
        from pretune.analysis import fastest
        from pretune.display import fastest as display
        from pretune.display import screen

        console = Console(quiet=quiet)
        experiment = fastest.for_sweep(
            experiment, found_space.function, auto_gpus=auto_gpus, tell=lambda words: console.print(words, markup=False)
        )
        screen.show(console, *display.whole(experiment.fastest))
    with watching(experiment, None if quiet else Console(), log_to=logged) as listener:
        result = sweeps.run(
            experiment,
            space=found_space.function,
            listener=listener,
            address=address,
            auto_gpus=auto_gpus,
            packing=packed_as,
        )
    return Sweep(results.read(result.folder, remote=result.remote))  # read anew, as it was still running then


if not TYPE_CHECKING:  # hidden from type checkers, which would let any name pass

    def __getattr__(name: str) -> Any:
        if name == "Sweep":
            from pretune.analysis.notebook import Sweep

            return Sweep
        if name == "__version__":
            from importlib.metadata import version

            return version("pretune")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
