"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from pretune.cli import completion
from pretune.core import choices
from pretune.core.errors import RequestError


def _gpus(typed: str) -> float | None:
    if typed == "auto":
        return None
    try:
        number = float(typed)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise typer.BadParameter(f"must be auto, or a number of at least 0, but is {typed!r}")
    return number


def share(typed: str) -> float:
    percent = typed.endswith("%")
    try:
        found = float(typed.removesuffix("%")) / (100.0 if percent else 1.0)
    except ValueError:
        found = math.nan
    if not 0.0 <= found <= 1.0:
        raise typer.BadParameter(f"must be a share from 0% to 100%, or from 0 to 1, but is {typed!r}")
    return found


def percent(text: str) -> float:
    """What `--skip-broken` is. RequestError where it is no number."""
    try:
        return float(text.strip().removesuffix("%"))
    except ValueError as error:
        raise RequestError(f"--skip-broken must be a percentage, such as 2%, but is {text!r}; change it") from error


RUNS = Path("runs")
STORAGE = choices.LOCAL_ROOT

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="a shipped name (`pretune list`), a config's .json, module:function or file.py:function",
        autocompletion=completion.recipes,
    ),
]
Space = Annotated[
    str,
    typer.Argument(
        metavar="SPACE",
        help="a shipped name (`pretune list`), module:function or file.py:function",
        autocompletion=completion.spaces,
    ),
]
Sweep = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="a sweep's name below --storage, its folder or its URI",
        autocompletion=completion.sweeps,
    ),
]
Trial = Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="its number in `pretune show SWEEP`")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="a folder or URI with what `pretune data` wrote, or 'digits'; default: the recipe's"),
]
Subset = Annotated[
    str | None,
    typer.Option("--subset", metavar="N|N%", help="pretrain on so many images of `train`, or on a share of each class"),
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="length of a run; default: the recipe's")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=value", help="change a setting of the recipe; may be given again"),
]
Compile = Annotated[
    choices.Compile | None,
    typer.Option(
        "--compile",
        help="compile the network's passes; auto: as measured to be fastest on this machine, once for each network; "
        "default: the recipe's",
    ),
]
Storage = Annotated[str, typer.Option("--storage", help="the folder or URI (s3://, gs://, file:///) that holds sweeps")]
Slots = Annotated[int | None, typer.Option("--slots", min=1, help="trials at once; default: what the cluster holds")]
WorkersPerTrial = Annotated[int, typer.Option("--workers-per-trial", min=1, help="DDP workers of each trial")]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="auto|NUMBER",
        parser=_gpus,
        help="0: CPUs; a share below 1 packs several trials on a GPU; default: auto, 1 where the cluster has any",
    ),
]
Pack = Annotated[
    str | None,
    typer.Option(
        "--pack",
        metavar="auto|N",
        help="so many trials share one GPU, or without any this machine; auto: measured before the sweep starts",
    ),
]
CpusPerWorker = Annotated[float, typer.Option("--cpus-per-worker", min=0.01, help="CPUs reserved for each worker")]
MaxFailed = Annotated[
    float | None,
    typer.Option(
        "--max-failed", metavar="SHARE", parser=share, help="end early when more trials than this failed; default: 33%"
    ),
]
MaxHours = Annotated[
    float | None,
    typer.Option(
        "--max-hours", metavar="H", help="land within so many hours, in all sessions: the best trials finish in time"
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", help="the sweep's folder below --storage; default: what is varied, and time")
]
Metric = Annotated[str | None, typer.Option("--metric", help="what is searched for; default: probe/linear")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="what is searched for; default: probe/linear; up to three times"),
]
Directions = Annotated[
    list[str] | None,
    typer.Option(
        "--direction",
        metavar="maximize|minimize",
        help="which way of --metric is better, once for each; default: minimize for losses and costs, else maximize",
    ),
]
Direction = Annotated[
    choices.Direction | None,
    typer.Option("--direction", help="which way of --metric is better; default: minimize for losses, else maximize"),
]
LogTo = Annotated[
    list[str] | None,
    typer.Option(
        "--log-to", metavar="TRACKER", help="mlflow[:URI], wandb[:PROJECT] or csv[:FILE], too; may be given again"
    ),
]
License = Annotated[str, typer.Option("--license", metavar="NAME", help="for the model card, such as cc-by-nc-4.0")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="run code (file.py:Name, module:Name) that a file names as its network")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Address = Annotated[
    str | None, typer.Option("--address", help="a running Ray cluster, such as 'auto'; default: a local one")
]
