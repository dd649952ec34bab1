"""`pretune eval`: an encoder by the papers' protocols."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from pretune.cli.exits import checking, fail, interrupted, note, print_json, refuse, running
from pretune.cli.options import STORAGE, Json, Settings, Storage, TrustCode
from pretune.cli.progress import progress_bar
from pretune.core.errors import RequestError
from pretune.display import screen
from pretune.execution.family import WorkerFailedError

if TYPE_CHECKING:
    from pretune.analysis.evaluate import Request
    from trainers.evaluation.protocol import ProtocolResult

PARTS = 1000
"""Steps of a bar."""


def eval_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RUN|SWEEP[/TRIAL]",
            help="a checkpoint's file or URI, the folder of a run or an export, a sweep (its best trial), or NAME/3",
        ),
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", metavar="NAME", help="how it is judged (default: knn); may be given again"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="on which images; may be given again; default: those it was trained on"),
    ] = None,
    split: Annotated[
        Literal["select", "report"],
        typer.Option("--split", help="which images are scored; `report` is fitted on `select`, too, and counted"),
    ] = "select",
    source: Annotated[
        str | None,
        typer.Option("--source", help="features, embedding, teacher; of a transformer class, mean, last4"),
    ] = None,
    settings: Settings = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="repeat what draws with N seeds")] = 1,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="judge the same network before any training beside it")
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="processes on this machine, one per GPU; results are the same")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="of each worker; default: one per CPU in all")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the results; default: beside the checkpoint")
    ] = None,
    trust_code: TrustCode = False,
    storage: Storage = STORAGE,
    as_json: Json = False,
) -> None:
    """An encoder by the papers' protocols; results stay beside the checkpoint, and what is there is not done again."""
    from pretune.analysis import evaluate, evaluating
    from pretune.display import evaluation as display

    console = screen.console()
    with checking():
        asked = evaluate.check(
            evaluate.find(target, storage, trust_code=trust_code),
            protocols=protocol or ["knn"],
            assignments=settings or (),
            source=source,
            data=data or (),
            split=split,
            seeds=seeds,
            untrained=untrained,
            out=out,
            threads=threads or max(1, len(os.sched_getaffinity(0)) // workers),
            workers=workers,
        )
    found = []
    try:
        with running("what is finished is kept: the same command goes on"), progress_bar(console, "starting") as bar:
            for result in evaluating.run(asked, lambda what, done: bar(round(done * PARTS), PARTS)):
                found.append(result)
    except KeyboardInterrupt as error:
        interrupted("interrupted; what is finished is kept: the same command goes on", error)
    except WorkerFailedError as error:
        fail(f"{error}\nwhat is finished is kept: the same command goes on")
    except RequestError as error:
        refuse(str(error))
    except ValueError as error:
        (refuse if not found else fail)(str(error))
    with running():
        left_out = _written(asked, found)
    if as_json:
        print_json([result.model_dump(mode="json") for result in found])
        return
    screen.show(console, display.table(found))
    for line in left_out:
        note(console, line)
    if split == "report":
        for line in evaluate.reads(asked):
            note(console, line)
    console.print(Text(f"written to {asked.place}", style="dim"), soft_wrap=True)


def _written(asked: Request, found: Sequence[ProtocolResult]) -> list[str]:
    """Writes tables of all results that are there, and pictures of those `found`; what was left out and why."""
    from pretune.analysis import evaluate
    from pretune.display import evaluation as display
    from trainers import storage

    known = evaluate.stored(asked.place)
    for name, draw in (("table.md", display.markdown), ("table.tex", display.latex)):
        evaluate.write(evaluate.join(asked.place, name), draw(known).encode())
    try:
        for result in found:
            picture = evaluate.join(asked.place, display.picture_name(result))
            if result.confusion and not storage.exists(picture):
                evaluate.write(picture, display.confusion(result))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return [display.NO_PICTURES]
    return []
