"""`pretune report`: sweeps as one page to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from pretune.cli import completion
from pretune.cli.exits import checking, refuse, running
from pretune.cli.options import STORAGE, Storage
from pretune.core.errors import RequestError
from pretune.display import screen


def report_command(
    sweeps: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP…",
            help="names below --storage, folders or URIs; several are compared",
            autocompletion=completion.sweeps,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.html", help="where to; default: report.html in the sweep's folder, or here"
        ),
    ] = None,
    storage: Storage = STORAGE,
) -> None:
    """One HTML page that opens anywhere without a network, and Markdown: what was asked, what came out."""
    from pretune.analysis import account
    from pretune.display import report, tables
    from pretune.request import request

    console = screen.console()
    with checking():
        twice = next((name for name in sweeps if sweeps.count(name) > 1), None)
        if twice is not None:
            raise RequestError(f"each sweep is told once, but {twice!r} is named twice; leave one out")
        results = [request.read_sweep(sweep, storage) for sweep in sweeps]
        path = out if out is not None else report.default_path(results)
        report.check_target(path)
        report.check_installed()
    try:
        with running(), console.status("reading the trials, and what matters"):
            report.write(report.document([account.of(result) for result in results]), path)
    except RequestError as error:
        refuse(str(error))
    console.print(Text(tables.relative(path.absolute())), soft_wrap=True)
    console.print(
        Text(f"the same as Markdown: {tables.relative(report.markdown_path(path.absolute()))}", style="dim"),
        soft_wrap=True,
    )
