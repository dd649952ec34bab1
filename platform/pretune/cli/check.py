"""`pretune check`: what a term, backbone or view operation must do, tried."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.exits import checking, fail, print_json, running
from pretune.cli.options import Json
from pretune.display import screen


def check_command(
    part: Annotated[
        str,
        typer.Argument(metavar="PART", help="file.py:Name, module:Name, timm:NAME, or the name of a package's term"),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="a=value", help="a setting of the part; may be given again")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=4, max=1024, help="height and width of views in pixels")] = 32,
    as_json: Json = False,
) -> None:
    """Try what every term, backbone and view operation must do on one of your own."""
    console = screen.console()
    with checking():
        from pretune.analysis import contract
        from pretune.display import contract as display
        from pretune.request import overrides

        asked = contract.ask(part, overrides.parse(settings or ()), size=size, folder=Path.cwd())
    with running():
        try:
            verdicts = list(contract.run(asked))
        except RuntimeError as error:
            fail(str(error))
    if as_json:
        print_json({"part": asked.label, "kind": asked.kind, "contracts": [vars(verdict) for verdict in verdicts]})
    else:
        screen.show(console, display.table(asked, verdicts))
    broken = [verdict.contract for verdict in verdicts if verdict.holds is False]
    if broken:
        fail(f"{asked.label} does not do what a {asked.kind} must: {', '.join(broken)}")
