"""`pretune train`: one recipe, without Ray; and `--verify-resume`."""

from __future__ import annotations

import shlex
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from pretune.cli.exits import checking, fail, interrupted, note, refuse, running
from pretune.cli.options import RUNS, Compile, Data, Epochs, Recipe, Settings, Subset
from pretune.cli.progress import progress_bar
from pretune.core.errors import RequestError
from pretune.display import screen
from trainers import compiling, scratch

if TYPE_CHECKING:
    from trainers.config import TrialConfig


def train_command(
    recipe: Recipe,
    data: Data = None,
    subset: Subset = None,
    epochs: Epochs = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="DDP processes on this machine")] = 1,
    settings: Settings = None,
    compile: Compile = None,
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
    console = screen.console()
    with checking():
        from pretune.display import run as display
        from pretune.display import tables
        from pretune.execution import family, launch
        from pretune.execution import run_folder as runs
        from pretune.request import lookup, request

        found = lookup.recipe(recipe)
        if resume and compile == "auto":
            raise RequestError("--resume goes on as the run began, so there is nothing to measure; leave out --compile")
        checkpoint = None
        if resume and out is not None and not verify_resume:
            checkpoint = runs.last_checkpoint(out.resolve())
        config = request.configure(
            found,
            subset=subset,
            epochs=epochs,
            every_steps=every_steps,
            assignments=settings or (),
            compile=compile,
            workers=workers,
            begun=checkpoint is not None,
        )
        compiling.check(config)
        for line in request.left_out(found, settings or ()):
            note(console, f"--set {line}")
    if verify_resume:
        _verify_resume(console, config, data, workers, resume=resume, out=out, compile=compile)
    with checking():
        if resume and out is None:
            raise RequestError("--resume must know the run to go on with; name its folder with --out")
        folder = (out if out is not None else RUNS / request.new_name(found.label, RUNS)).resolve()
        if not resume:
            runs.check_new(folder)
        if checkpoint is not None and checkpoint.epoch >= config.epochs:
            raise RequestError(
                f"the run in {folder} has all its {config.epochs} epochs; "
                f"train longer with --epochs {2 * config.epochs}"
            )
        config, dataset = request.with_data(config, data)
    if compile == "auto":
        config = _compiled(console, config, workers)
    # TensorBoard's writer takes a while to import: not while a request is checked.
    from pretune.display.tensorboard import Curves

    steps = len(dataset.pretrain_ids(config.data.subset)) // config.batch_size
    start = 0 if checkpoint is None else checkpoint.epoch
    place = shlex.quote(tables.relative(folder))
    again = f"pretune train {place}/{runs.CONFIG} --out {place} --resume"
    console.print(
        Text(f"{found.label} on {config.data.path}, {config.epochs} epochs of {steps} steps, into {folder}"),
        soft_wrap=True,
    )
    with checking():
        log = runs.RunLog(folder, config, resume=checkpoint)
    with (
        running(f"go on with: {again}"),
        log as record,
        closing(Curves(folder.parent)) as curves,
        progress_bar(console, "steps") as advance,
    ):

        def report(epoch_report: Any) -> bool:
            if record.add(epoch_report):
                curves.epoch(folder.name, epoch_report.epoch, epoch_report.metrics)
            console.print(Text(display.line(epoch_report, config.epochs)), soft_wrap=True)
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
        except KeyboardInterrupt as error:
            interrupted(f"interrupted; go on with: {again}", error)
        except ValueError as error:
            # What is refused before the first epoch (a checkpoint of another config, bf16 on a CPU) was asked wrongly.
            if record.last is not None and record.last.epoch > start:
                raise
            record.undo()
            refuse(str(error))
        except family.WorkerFailedError as error:
            fail(f"{error}\ngo on with: {again}")
    if record.last is not None:
        screen.show(console, display.closing(record.last))
    if outcome.state != "complete":
        fail(f"the run {outcome.state.replace('_', ' ')} after epoch {outcome.epochs}: {outcome.reason}; see {folder}")
    longer = f"{again} --epochs {2 * config.epochs}"
    console.print(tables.commands({f"tensorboard --logdir {place}": "curves", longer: "train longer"}), soft_wrap=True)


def _compiled(console: Console, config: TrialConfig, workers: int) -> TrialConfig:
    """With `compile` as it is fastest on this machine, and said so."""
    from pretune.analysis import fastest
    from pretune.execution import worker

    gpu = worker.local_device("auto", rank=0, workers=workers).type == "cuda"
    try:
        return fastest.chosen(config, workers=workers, device="cuda" if gpu else "cpu", tell=partial(note, console))
    except KeyboardInterrupt as error:
        interrupted("interrupted before the run began; the same command starts again", error)


def _verify_resume(
    console: Console,
    config: TrialConfig,
    data: str | None,
    workers: int,
    *,
    resume: bool,
    out: Path | None,
    compile: Compile,
) -> NoReturn:
    """Prints VERIFIED and ends with 0, or prints the first difference and ends with 1."""
    with checking():
        from pretune.analysis import verify
        from pretune.execution import family
        from pretune.request import request

        if resume or out is not None:
            raise RequestError("--verify-resume keeps nothing and goes on with nothing; leave out --out and --resume")
        _, dataset = request.with_data(config, data)
        images = len(dataset.pretrain_ids(config.data.subset))
        config, dataset = request.with_data(verify.shortened(config, images), data)
    if compile == "auto":
        config = _compiled(console, config, workers)
    steps = len(dataset.pretrain_ids(config.data.subset)) // config.batch_size
    with running(), scratch.folder() as folder:
        try:
            verdict = verify.run(
                config,
                folder,
                steps=steps,
                workers=workers,
                tell=lambda line: console.print(Text(line), soft_wrap=True),
            )
        except KeyboardInterrupt as error:
            interrupted("interrupted; nothing was to be kept", error)
        except (family.WorkerFailedError, RuntimeError) as error:
            fail(str(error))
    if verdict.difference:
        fail(f"DIFFERENT: {verdict.difference} (without and with the kills; the first of what differs)")
    console.print(
        Text.assemble(
            ("VERIFIED", "bold green"),
            f": {verdict.tensors} tensors and {verdict.numbers} numbers are equal bit for bit, with and without kills",
        ),
        soft_wrap=True,
    )
    raise typer.Exit(0)
