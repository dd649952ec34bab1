"""`pretune data`: FFCV files with the three splits."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pretune.cli.exits import checking, note
from pretune.cli.options import percent
from pretune.cli.progress import progress_bar
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from trainers.data.sources.base import Branch


def data_command(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="digits, cifar10, cifar100, stl10, tiny-imagenet, images or npz")
    ],
    source: Annotated[
        list[Path] | None, typer.Option("--source", help="what the kind reads; may be given again")
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            "--unlabelled", "--unlabeled", help="images that join pretraining only; without --source, all there are"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="the new folder; default: data/KIND")] = None,
    max_side: Annotated[
        int | None, typer.Option("--max-side", min=4, help="bring longer sides down to so many pixels")
    ] = None,
    split_seed: Annotated[int, typer.Option("--split-seed", min=0, help="another draw of the splits")] = 0,
    select: Annotated[
        str | None,
        typer.Option(
            "--select",
            "--select-images",
            metavar="N|N%",
            help="size of the split the search sees, or its share of the training part",
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            "--report-images",
            metavar="N|N%",
            help="the same of the split that is read once, where the source has no test part",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="auto|parts|classes|channels-first|channels-last",
            help="of images: parts (train, test and such) hold the classes' folders, or each top folder is a class; "
            "of npz: the axis of the channels; auto tells by names and contents, and refuses where both could be meant",
        ),
    ] = "auto",
    array: Annotated[
        list[str] | None,
        typer.Option(
            "--array",
            metavar="NAME=KEY",
            help="of npz: the key that holds images, labels, test_images or test_labels; may be given again",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME=COLUMN",
            help="of a table (CSV, Parquet): the column that holds path, label or split; a path may be made up, as "
            "in 'path=images/{id}.jpg'; may be given again",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="FILE|imagenet100",
            help="of images: only these classes; a file with one a line, or a published list",
        ),
    ] = None,
    skip_broken: Annotated[
        str | None,
        typer.Option(
            "--skip-broken",
            metavar="N%",
            help="leave out images that do not decode, and list them in the manifest; refused above N% of all",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="let torchvision fetch the source (CIFAR, STL-10)")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="build nothing: compare every byte in --out with its manifest")
    ] = False,
) -> None:
    """Write FFCV files with the three splits train, select and report."""
    from pretune.display import format, tables
    from pretune.request.request import DATA_ROOT
    from trainers.data import datasets

    console = screen.console()
    with checking():
        kinds = datasets.kinds()
        name = kind.replace("_", "-")
        if name not in kinds:
            from pretune.core.messages import did_you_mean

            raise RequestError(f"KIND {kind!r} is not known; {did_you_mean(kind, list(kinds))}")
        folder = out if out is not None else DATA_ROOT / name
        started = time.monotonic()
        if verify:
            dataset = datasets.open_dataset(folder)
            with console.status("hashing every byte"):
                datasets.verify(dataset)
        else:
            with progress_bar(console, "images") as advance:
                dataset = datasets.build(
                    name,
                    source=tuple(source or ()),
                    unlabeled=unlabelled,
                    out=folder,
                    max_side=max_side,
                    split_seed=split_seed,
                    select_images=select,
                    report_images=report,
                    progress=advance,
                    download=download,
                    layout=layout,
                    arrays=dict(_pair(text, "--array", "images=train_images") for text in array or ()),
                    columns=dict(_pair(text, "--column", "label=species", empty=True) for text in column or ()),
                    classes=classes,
                    skip_broken=None if skip_broken is None else percent(skip_broken),
                    understood=partial(_show, console),
                )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in datasets.summary(dataset).items():
        table.add_row(key, value)
    if found := dataset.manifest.class_names:
        table.add_row("names", ", ".join(found[:12]) + (f", … ({len(found) - 12} more)" if len(found) > 12 else ""))
    console.print(table)
    done = "every byte is as its manifest says" if verify else "done"
    console.print(Text(f"{done}, {format.duration(time.monotonic() - started)}. Next:", style="dim"))
    flag = "" if name == "digits" and folder == DATA_ROOT / name else f" --data {shlex.quote(tables.relative(folder))}"
    flag += "" if dataset.class_count > 1 else " --metric health/embedding/effective_rank"
    console.print(
        tables.commands({f"pretune sweep kernels{flag}": "sweep a recipe on it", "pretune list": "recipes and spaces"}),
        soft_wrap=True,
    )


def _pair(text: str, option: str, example: str, *, empty: bool = False) -> tuple[str, str]:
    name, separator, key = text.partition("=")
    if not (name and separator and (key or empty)):
        form = "NAME=KEY" if option == "--array" else "NAME=COLUMN"
        raise RequestError(f"{option} must be {form}, such as {example}, but is {text!r}; change it")
    return name, key


def _show(console: Console, branches: Sequence[Branch], notes: Sequence[str]) -> None:
    """What the source was taken for, before anything is written."""

    def grow(tree: Tree, below: Sequence[Branch]) -> None:
        for branch in below:
            grow(tree.add(Text(branch.text)), branch.below)

    for branch in branches:
        tree = Tree(Text(branch.text))
        grow(tree, branch.below)
        console.print(tree, soft_wrap=True)
    for text in notes:
        note(console, text)
