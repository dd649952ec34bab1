"""The command line: the only parser of arguments. A request is checked completely before anything is started.

Exit codes: 0 done, 1 the run failed or was interrupted, 2 the request was wrong. Ray, torch and FFCV are imported by
what runs, never here: `--help`, `list`, `show` and a refusal answer at once.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pretune.experiment import Budget, Experiment, SamplerName
from pretune.journal import Record
from pretune.messages import RequestError

app = typer.Typer(
    name="pretune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Explore self-supervised image pretraining: sweep recipes on Ray, stop weak trials early, say what works.",
)

RUNS = Path("runs")
STORAGE: str = Experiment.model_fields["storage"].default

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="a shipped name (`pretune list`), a config's .json, module:function or file.py:function"
    ),
]
Space = Annotated[
    str, typer.Argument(metavar="SPACE", help="a shipped name (`pretune list`), module:function or file.py:function")
]
Sweep = Annotated[str, typer.Argument(metavar="SWEEP", help="a sweep's name below --storage, its folder or its URI")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="a folder or URI with what `pretune data` wrote, or 'digits'; default: the recipe's"),
]
Subset = Annotated[int | None, typer.Option("--subset", min=2, help="pretrain on so many images of `train`")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="length of a run; default: the recipe's")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=value", help="change a setting of the recipe; may be given again"),
]
Storage = Annotated[str, typer.Option("--storage", help="the folder or URI (s3://, gs://, file:///) that holds sweeps")]
Slots = Annotated[int | None, typer.Option("--slots", min=1, help="trials at once; default: what the cluster holds")]
WorkersPerTrial = Annotated[int, typer.Option("--workers-per-trial", min=1, help="DDP workers of each trial")]
GpusPerWorker = Annotated[
    float, typer.Option("--gpus-per-worker", min=0.0, help="a share below 1 packs several trials on a GPU")
]
CpusPerWorker = Annotated[float, typer.Option("--cpus-per-worker", min=0.01, help="CPUs reserved for each worker")]
Name = Annotated[
    str | None, typer.Option("--name", help="the sweep's folder below --storage; default: what is varied, and time")
]
Metric = Annotated[str | None, typer.Option("--metric", help="what is maximized; default: probe/linear")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Address = Annotated[
    str | None, typer.Option("--address", help="a running Ray cluster, such as 'auto'; default: a local one")
]


# --- data -------------------------------------------------------------------------------------------------------------


@app.command("data")
def data_command(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="digits, cifar10, cifar100, stl10, tiny-imagenet, images or npz")
    ],
    source: Annotated[
        list[Path] | None, typer.Option("--source", help="what the kind reads; may be given again")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option("--unlabelled", "--unlabeled", help="images that join pretraining only")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="the new folder; default: data/KIND")] = None,
    max_side: Annotated[
        int | None, typer.Option("--max-side", min=4, help="bring longer sides down to so many pixels")
    ] = None,
    split_seed: Annotated[int, typer.Option("--split-seed", min=0, help="another draw of the splits")] = 0,
    select_images: Annotated[
        int | None, typer.Option("--select-images", min=1, help="size of the split the search sees")
    ] = None,
    report_images: Annotated[
        int | None,
        typer.Option("--report-images", min=1, help="size of the split read once, where the source has no test part"),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="let torchvision fetch the source (CIFAR, STL-10)")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="build nothing: compare every byte in --out with its manifest")
    ] = False,
) -> None:
    """Write FFCV files with the three splits train, select and report."""
    from pretune import figures, tables
    from pretune.request import DATA_ROOT
    from trainers import datasets

    console = Console()
    with _checking():
        kinds = datasets.kinds()
        name = kind.replace("_", "-")
        if name not in kinds:
            from pretune.messages import did_you_mean

            raise RequestError(f"KIND {kind!r} is not known; {did_you_mean(kind, list(kinds))}")
        folder = out if out is not None else DATA_ROOT / name
        started = time.monotonic()
        if verify:
            dataset = datasets.open_dataset(folder)
            with console.status("hashing every byte"):
                datasets.verify(dataset)
        else:
            with _progress_bar(console, "images") as advance:
                dataset = datasets.build(
                    name,
                    source=tuple(source or ()),
                    unlabeled=unlabelled,
                    out=folder,
                    max_side=max_side,
                    split_seed=split_seed,
                    select_images=select_images,
                    report_images=report_images,
                    progress=advance,
                    download=download,
                )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in datasets.summary(dataset).items():
        table.add_row(key, value)
    classes = dataset.manifest.class_names
    table.add_row("names", ", ".join(classes[:12]) + (f", … ({len(classes) - 12} more)" if len(classes) > 12 else ""))
    console.print(table)
    done = "every byte is as its manifest says" if verify else "done"
    console.print(Text(f"{done}, {figures.duration(time.monotonic() - started)}. Next:", style="dim"))
    flag = "" if name == "digits" and folder == DATA_ROOT / name else f" --data {folder}"
    console.print(
        tables.commands({f"pretune sweep kernels{flag}": "sweep a recipe on it", "pretune list": "recipes and spaces"}),
        soft_wrap=True,
    )


@contextmanager
def _progress_bar(console: Console, what: str) -> Iterator[Any]:
    """Gives a function (done, total) that moves a bar; nothing is drawn where the console is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


# --- train ------------------------------------------------------------------------------------------------------------


@app.command("train")
def train_command(
    recipe: Recipe,
    data: Data = None,
    subset: Subset = None,
    epochs: Epochs = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="DDP processes on this machine")] = 1,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="the run's folder; default: runs/RECIPE and time")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in --out")] = False,
    every_steps: Annotated[
        int | None,
        typer.Option("--checkpoint-every-steps", min=1, help="also within epochs, where one takes long"),
    ] = None,
    verify_resume: Annotated[
        bool, typer.Option("--verify-resume", help="keep nothing: kill a short run, resume it, compare bit for bit")
    ] = False,
) -> None:
    """Train one recipe, or replay a sweep's best.json, without Ray."""
    console = Console()
    with _checking():
        from pretune import launch, lookup, request, tables
        from pretune import run as runs

        found = lookup.recipe(recipe)
        config = request.configure(
            found, subset=subset, epochs=epochs, every_steps=every_steps, assignments=settings or ()
        )
        config.check_workers(workers)
    if verify_resume:
        _verify_resume(console, config, data, workers, resume=resume, out=out)
    with _checking():
        if resume and out is None:
            raise RequestError("--resume must know the run to go on with; name its folder with --out")
        folder = (out if out is not None else RUNS / request.new_name(found.label, RUNS)).resolve()
        checkpoint = None
        if resume:
            checkpoint = runs.last_checkpoint(folder)
        else:
            runs.check_new(folder)
        if checkpoint is not None and checkpoint.epoch >= config.epochs:
            raise RequestError(
                f"the run in {folder} has all its {config.epochs} epochs; "
                f"train longer with --epochs {2 * config.epochs}"
            )
        config, dataset = request.with_data(config, data)
    steps = len(dataset.pretrain_ids(config.data.subset)) // config.batch_size
    start = 0 if checkpoint is None else checkpoint.epoch
    place = shlex.quote(tables.relative(folder))
    again = f"pretune train {place}/{runs.CONFIG} --out {place} --resume"
    console.print(
        Text(f"{found.label} on {config.data.path}, {config.epochs} epochs of {steps} steps, into {folder}"),
        soft_wrap=True,
    )
    with runs.Record(folder, config, resume=checkpoint) as record, _progress_bar(console, "steps") as advance:

        def report(epoch_report: Any) -> bool:
            record.add(epoch_report)
            console.print(Text(runs.line(epoch_report, config.epochs)), soft_wrap=True)
            return True

        try:
            outcome = launch.run(
                config,
                folder=folder,
                workers=workers,
                resume=checkpoint,
                report=report,
                progress=lambda epoch, step: advance(step, config.epochs * steps),
            )
        except KeyboardInterrupt:
            _fail(f"interrupted; go on with: {again}")
        except ValueError as error:
            # What is refused before the first epoch (a checkpoint of another config, bf16 on a CPU) was asked wrongly.
            if record.last is not None and record.last.epoch > start:
                raise
            record.undo()
            _refuse(str(error))
        except launch.TrainingFailedError as error:
            _fail(f"{error}\ngo on with: {again}")
    if record.last is not None:
        console.print(runs.closing(record.last))
    if outcome.state != "complete":
        _fail(f"the run {outcome.state.replace('_', ' ')} after epoch {outcome.epochs}: {outcome.reason}; see {folder}")
    longer = f"{again} --epochs {2 * config.epochs}"
    console.print(tables.commands({f"tensorboard --logdir {place}": "curves", longer: "train longer"}), soft_wrap=True)


def _verify_resume(
    console: Console, config: Any, data: str | None, workers: int, *, resume: bool, out: Path | None
) -> NoReturn:
    """Prints VERIFIED and ends with 0, or prints the first difference and ends with 1."""
    with _checking():
        from pretune import launch, request, verify

        if resume or out is not None:
            raise RequestError("--verify-resume keeps nothing and goes on with nothing; leave out --out and --resume")
        _, dataset = request.with_data(config, data)
        config, dataset = request.with_data(verify.shortened(config, len(dataset.pretrain_ids(None))), data)
    steps = len(dataset.pretrain_ids(config.data.subset)) // config.batch_size
    with tempfile.TemporaryDirectory(prefix="pretune-verify-") as folder:
        try:
            verdict = verify.run(
                config,
                Path(folder),
                steps=steps,
                workers=workers,
                tell=lambda line: console.print(Text(line), soft_wrap=True),
            )
        except KeyboardInterrupt:
            _fail("interrupted")
        except (launch.TrainingFailedError, RuntimeError) as error:
            _fail(str(error))
    if verdict.difference:
        _fail(f"DIFFERENT: {verdict.difference} (without and with the kills; the first of what differs)")
    console.print(
        Text.assemble(
            ("VERIFIED", "bold green"),
            f": {verdict.tensors} tensors and {verdict.numbers} numbers are equal bit for bit, with and without kills",
        ),
        soft_wrap=True,
    )
    raise typer.Exit(0)


# --- sweep, resume ----------------------------------------------------------------------------------------------------


@app.command("sweep")
def sweep_command(
    space: Space,
    recipe: Annotated[str | None, typer.Option("--recipe", help="the recipe to vary; default: the space's own")] = None,
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
    gpus_per_worker: GpusPerWorker = 0.0,
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
    address: Address = None,
) -> None:
    """Try settings of a recipe and show what works best."""
    console = Console()
    with _checking():
        from pretune import lookup, request, sweep

        found_space = lookup.space(space)
        wanted = recipe if recipe is not None else found_space.recipe
        if wanted is None:
            raise RequestError(f"space {space!r} names no recipe of its own; give one with --recipe (`pretune list`)")
        found_recipe = lookup.recipe(wanted)
        base = request.configure(found_recipe, subset=subset, epochs=epochs, seed=seed, assignments=settings or ())
        base.check_workers(workers_per_trial)
        options = {
            "data": data if data is not None else base.data.path,
            "trials": trials,
            "budget": budget or found_space.budget,
            "slots": slots,
            "workers_per_trial": workers_per_trial,
            "cpus_per_worker": cpus_per_worker,
            "gpus_per_worker": gpus_per_worker,
            "sampler": sampler,
            "seed": base.seed,
            "storage": storage,
            "metric": metric,
            "stopping_enabled": stopping,
            "stopping_grace": grace,
        }
        experiment = request.experiment(found_space, found_recipe, base, name=name, options=options)
        if address is None:
            request.check_local_slots(slots, workers_per_trial, cpus_per_worker)
        request.check_folder_is_new(experiment)
        request.check_storage(experiment)
        sweep.check(experiment, found_space.function)
        base, _ = request.with_data(base, data)
        experiment = request.experiment(found_space, found_recipe, base, name=experiment.name, options=options)
        for path in request.varied_by_the_space(found_space.function, base, settings or ()):
            _note(console, f"the space sets {path} itself; --set {path} only changes what it starts from")

    def run(listener: Any) -> Any:
        return sweep.run(experiment, space=found_space.function, listener=listener, address=address)

    _run_sweep(console, experiment, run)


@app.command("ablate")
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
    with _checking():
        from pretune import ablation, lookup, overrides, request, sweep

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

    _run_sweep(console, experiment, run)


@app.command("resume")
def resume_command(
    sweep: Sweep,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="how many to try in all, from now on")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=2, help="train finished trials to so many epochs, decay anew")
    ] = None,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="go on although packages or the space have changed since")
    ] = False,
    storage: Storage = STORAGE,
    address: Address = None,
) -> None:
    """Go on with a sweep after any interruption, or add trials to it."""
    console = Console()
    with _checking():
        from pretune import ablation, journal, lookup, request
        from pretune import sweep as sweeps
        from pretune.history import History

        result = request.read_sweep(sweep, storage, fresh=True)
        experiment = result.experiment
        space = ablation.unvaried if experiment.points else lookup.space(experiment.space).function
        if experiment.points and trials is not None:
            raise RequestError(
                f"sweep {result.name!r} is an ablation of {result.asked} trials, each a level and a seed; "
                "leave --trials out, or run a new `pretune ablate` with more --seeds"
            )
        earlier = journal.read(result.folder)
        extensions = [] if epochs is None else sweeps.longer(History(earlier), epochs)
        request.open_data(experiment.base.data.path, expected_hash=experiment.base.data.manifest)
        target = result.asked if trials is None else trials
        if target < len(result.trials):
            raise RequestError(
                f"--trials must be at least {len(result.trials)}, what the sweep has so far, but is {trials}; raise it"
            )
        if target == result.asked and result.closed in ("finished", "exhausted") and not extensions:
            longer = f"train them longer with --epochs {2 * experiment.base.epochs}, or "
            more = longer if experiment.points else f"add some with --trials {result.asked + 8}, {longer}"
            raise RequestError(
                f"sweep {result.name!r} has all its {result.asked} trials; {more}look at it with `pretune show {sweep}`"
            )
        sweeps.check(experiment, space)
        if not accept_changes:
            began = [record for record in earlier if isinstance(record, journal.Opened | journal.Resumed)]
            sweeps.check_unchanged(began[-1].versions, space)

    def run(listener: Any) -> Any:
        return sweeps.resume(
            result.folder,
            space=space,
            remote=result.remote,
            trials=trials,
            epochs=epochs,
            listener=listener,
            address=address,
        )

    if extensions:
        begins = sorted({extension.checkpoint.epoch for extension in extensions})
        _note(
            console,
            f"{len(extensions)} finished trials go on from epoch {', '.join(map(str, begins))}, before their decay, to "
            f"epoch {epochs}",
        )
        if experiment.base.schedule.kind == "cosine":
            _note(
                console,
                "a cosine has no part before its decay: the learning rate jumps to where the longer cosine is by then",
            )
    _run_sweep(console, experiment.model_copy(update={"storage": str(result.folder.parent)}), run, earlier=earlier)


class _Listeners:
    """Tells several listeners, in order."""

    def __init__(self, *listeners: Any) -> None:
        self._listeners = listeners

    def on_event(self, record: Record) -> None:
        for listener in self._listeners:
            listener.on_event(record)


def _run_sweep(console: Console, experiment: Experiment, run: Any, *, earlier: Sequence[Record] = ()) -> None:
    """Run, watch, and print the closing screen; ends the process with 1 where the sweep failed or was interrupted."""
    from pretune import journal, live, tables
    from pretune.conductor import SweepFailedError
    from pretune.curves import SweepCurves
    from pretune.lease import LeaseLostError
    from trainers import storage

    since = time.time()
    progress = live.Progress(experiment, since=since)
    curves = SweepCurves(tables.curves_folder(experiment.folder), metric=experiment.metric, since=since)
    listeners = _Listeners(view := live.view(progress, console), curves)
    for record in earlier:
        listeners.on_event(record)
    try:
        with view:
            result = run(listeners)
    except RequestError as error:
        _refuse(str(error))
    except Exception as error:
        known = isinstance(error, SweepFailedError | storage.StorageError | LeaseLostError) or storage.is_full(error)
        if not known:  # what is said in full below needs no stack of Tune's
            traceback.print_exc()
        reason = str(error) if isinstance(error, SweepFailedError) else f"{type(error).__name__}: {error}"
        begun = (experiment.folder / journal.FILE).exists()
        onward = f"go on with: pretune resume {experiment.folder}" if begun else "no trial was asked for: try again"
        _fail(f"the sweep failed: {reason}; logs are in {experiment.folder / 'logs'}, {onward}")
    finally:
        curves.close()
    _close(console, result)


def _close(console: Console, result: Any) -> NoReturn:
    """The closing screen of a sweep."""
    from pretune import ablation, baselines, results, tables

    compared = None
    if result.closed in ("finished", "exhausted") and result.best is not None and not result.experiment.points:
        with console.status("comparing with the untrained encoder and raw pixels"):
            compared = baselines.compare(result)
    for part in screen(result, compared, limit=30):
        console.print(part)
    files = ablation.files(result) if result.experiment.points else [results.best_config_path(result.folder)]
    for path in filter(Path.is_file, files):
        console.print(Text(f"written to {path}", style="dim"), soft_wrap=True)
    console.print(tables.next_commands(result), soft_wrap=True)
    if result.closed == "interrupted":
        print("interrupted; nothing that was done is lost", file=sys.stderr)
        raise typer.Exit(1)
    if result.best is None:
        _fail(f"no trial was completed; the reasons are in the table, logs in {result.folder / 'logs'}")
    raise typer.Exit(0)


def screen(result: Any, compared: Any, *, limit: int | None = None) -> list[RenderableType]:
    """What is shown of a sweep: a line on the whole, the trials, the families, the comparison; or the ablation."""
    from pretune import ablation, tables

    if result.experiment.points:
        return [tables.summary(result), ablation.table(ablation.collect(result))]
    parts: list[RenderableType] = [tables.summary(result), tables.trials(result, limit=limit)]
    families = tables.families(result)
    if families is not None:
        parts.append(families)
    if compared is not None:
        parts.append(tables.comparison(compared))
    return parts


@app.command("replay")
def replay_command(
    sweep: Sweep,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="its number in `pretune show SWEEP`")],
    storage: Storage = STORAGE,
) -> None:
    """Run one trial of a sweep again, without Ray, and compare its numbers with the journal's bit for bit."""
    console = Console()
    with _checking():
        from pretune import launch, replay, request, tables
        from pretune.history import History
        from pretune.journal import read

        result = request.read_sweep(sweep, storage, fresh=True)
        config = replay.trial_of(result, trial)
        request.open_data(config.data.path, expected_hash=config.data.manifest)
        told = History(read(result.folder)).trials[trial].epochs
    workers = result.experiment.workers_per_trial
    console.print(
        Text(f"trial {trial} of {result.name}, {max(told)} of {config.epochs} epochs, {workers} worker(s)"),
        soft_wrap=True,
    )
    with tempfile.TemporaryDirectory(prefix="pretune-replay-") as folder, console.status("training"):
        try:
            compared, outcome = replay.run(config, told, Path(folder), workers=workers)
        except KeyboardInterrupt:
            _fail("interrupted")
        except launch.TrainingFailedError as error:
            _fail(str(error))
    console.print(replay.table(compared, result.metric))
    different = next((one for one in compared if one.different), None)
    if different is not None:
        _fail(
            f"DIFFERENT from epoch {different.epoch} on, first in {different.different[0]}; equal numbers need the "
            "same type of CPU, the same versions and, on a GPU, deterministic=true"
        )
    if len(compared) < max(told):
        _fail(f"the replay {outcome.state.replace('_', ' ')} after epoch {outcome.epochs}: {outcome.reason}")
    console.print(Text("EQUAL: every number of every epoch, bit for bit", style="bold green"))
    again = f"pretune show {shlex.quote(sweep)}"
    console.print(tables.commands({again: "the sweep"}), soft_wrap=True)


# --- show, list -------------------------------------------------------------------------------------------------------


@app.command("show")
def show_command(
    sweep: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="a sweep's name or folder; default: list all")
    ] = None,
    storage: Storage = STORAGE,
    as_json: Json = False,
    svg: Annotated[Path | None, typer.Option("--svg", help="also write the screen as a picture, for a README")] = None,
) -> None:
    """The sweeps there are, or the trials of one; also while it runs."""
    from pretune import ablation, baselines, request, results, tables
    from trainers.storage import is_uri

    console = Console()
    with _checking():
        if sweep is None:
            if svg is not None:
                raise RequestError("--svg draws one sweep; name it: pretune show SWEEP --svg FILE")
            if is_uri(storage):
                raise RequestError(f"show lists the sweeps of a folder, not of {storage}; name one: pretune show URI")
            found = results.sweeps(Path(storage))
            if as_json:
                _print_json([_sweep_json(result) for result in found])
            elif found:
                console.print(tables.sweeps(found))
            else:
                console.print(f"no sweeps in {storage}; start one: pretune sweep kernels", markup=False)
            return
        result = request.read_sweep(sweep, storage)
        compared = baselines.read(result)
        parts = screen(result, compared)
        if svg is not None:
            try:
                tables.save_picture(svg, f"pretune show {sweep}", parts)
            except OSError as error:
                raise RequestError(f"--svg {svg} cannot be written ({error.strerror}); choose another file") from error
    if as_json:
        table = {"ablation": ablation.collect(result).model_dump(mode="json")} if result.experiment.points else {}
        _print_json(result.to_json() | table)
        return
    for part in parts:
        console.print(part)
    console.print(tables.next_commands(result), soft_wrap=True)


def _sweep_json(result: Any) -> dict[str, Any]:
    from pretune import tables

    best = result.best_trial
    return {
        "name": result.name,
        "folder": str(result.folder),
        "space": result.space,
        "recipe": result.experiment.recipe,
        "metric": result.metric,
        "trials": len(result.trials),
        "asked": result.asked,
        "best": result.best,
        "value": None if best is None else best.value,
        "state": tables.status(result),
    }


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """Recipes, spaces, terms, and data sets."""
    from pretune import listing

    found = listing.collect()
    if as_json:
        _print_json(found)
        return
    Console().print(listing.table(found))


# --- finalize ---------------------------------------------------------------------------------------------------------


@app.command("finalize")
def finalize_command(
    sweep: Sweep,
    storage: Storage = STORAGE,
    again: Annotated[bool, typer.Option("--again", help="read the report split although it was read before")] = False,
    as_json: Json = False,
) -> None:
    """The winner on the report split, which is there to be read once."""
    from pretune import finalize, request

    console = Console()
    with _checking():
        result = request.read_sweep(sweep, storage, fresh=True)
        winner = finalize.check(result, again=again)
    try:
        with nullcontext() if as_json else console.status("probing the winner"):
            record = finalize.run(result, winner)
    except ValueError as error:
        _fail(str(error))
    if as_json:
        _print_json(record.model_dump(mode="json"))
        return
    console.print(finalize.table(record))
    console.print(Text(f"written to {finalize.path(result)}", style="dim"), soft_wrap=True)


# --- how it ends ------------------------------------------------------------------------------------------------------


@contextmanager
def _checking() -> Iterator[None]:
    """While a request is checked, what is wrong with it is a ValueError (or a file that cannot be used)."""
    try:
        yield
    except ValueError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'a file'} cannot be used ({error.strerror or error}); check path and permissions")


def _refuse(message: str) -> NoReturn:
    _print_error(message)
    raise typer.Exit(2)


def _fail(message: str) -> NoReturn:
    _print_error(message)
    raise typer.Exit(1)


def _print_error(message: str) -> None:
    first, *rest = message.splitlines() or [""]
    print("\n".join([f"error: {first}", *rest]), file=sys.stderr)


def _note(console: Console, message: str) -> None:
    console.print(Text(f"note: {message}", style="yellow"), soft_wrap=True)


def _print_json(value: Any) -> None:
    print(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """JSON has no word for what is not finite: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
