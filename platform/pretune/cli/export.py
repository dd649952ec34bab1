"""`pretune export`: an encoder in the hands of other libraries."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from pretune.cli import completion
from pretune.cli.exits import checking, fail, interrupted, note, print_json, refuse, running
from pretune.cli.options import STORAGE, Json, License, Storage, TrustCode
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.export import Written


def export_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP[/TRIAL]|CHECKPOINT",
            help="a sweep (its best trial), one trial of it (NAME/3), a checkpoint's file or URI, or an import",
            autocompletion=completion.sweeps,
        ),
    ],
    layout: Annotated[
        Literal["torchvision", "timm", "onnx"],
        typer.Option("--format", help="which library opens it, without pretune"),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="a new folder; default: below exports/")
    ] = None,
    branch: Annotated[
        Literal["student", "teacher"],
        typer.Option("--branch", help="the network that was trained, or its moving average"),
    ] = "student",
    projector: Annotated[bool, typer.Option("--projector", help="the projector, too, in a file of its own")] = False,
    license_name: License = "unknown",
    trust_code: TrustCode = False,
    storage: Storage = STORAGE,
    as_json: Json = False,
) -> None:
    """An encoder as a folder that torchvision, timm or onnxruntime opens alone: weights, preprocessing, model card."""
    from pretune.analysis import evaluate, export

    console = screen.console()
    with checking():
        asked = export.check(
            evaluate.find(target, storage, trust_code=trust_code),
            layout=layout,
            out=out,
            branch=branch,
            projector=projector,
            license_name=license_name,
        )
    if asked.target.live and not as_json:
        note(console, f"the sweep {asked.target.sweep} runs: this is the trial as it is now")
    keep(
        console,
        lambda: export.run(asked),
        "writing",
        lambda place: {f"less {place}/README.md": "how to open it", f"pretune eval {place} --data DATA": "judge it"},
        as_json=as_json,
    )


def keep(
    console: Console,
    write: Callable[[], Written],
    doing: str,
    commands: Callable[[str], dict[str, str]],
    *,
    as_json: bool,
) -> None:
    """What was written is shown, with the commands that go on from its place; what was refused or failed is said."""
    from pretune.display import export as display
    from pretune.display import tables

    with running(), nullcontext() if as_json else console.status(f"{doing}, and opening it without pretune"):
        try:
            written = write()
        except ValueError as error:
            refuse(str(error))
        except RuntimeError as error:
            fail(str(error))
        except KeyboardInterrupt as error:
            interrupted("interrupted; no folder is half written", error)
    if as_json:
        print_json(display.as_json(written))
        return
    screen.show(console, display.told(written))
    following = commands(shlex.quote(tables.relative(written.folder)))
    console.print(tables.commands(following), soft_wrap=True)
