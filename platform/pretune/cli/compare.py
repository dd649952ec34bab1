"""`pretune compare`: two sweeps or two trials beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pretune.cli import completion
from pretune.cli.exits import checking, print_json
from pretune.cli.options import STORAGE, Json, Storage
from pretune.core.errors import RequestError
from pretune.display import screen

if TYPE_CHECKING:
    from pretune.analysis.compare import Side

Named = Annotated[str, typer.Argument(help="a sweep, or a trial of one: SWEEP/TRIAL", autocompletion=completion.sweeps)]


def compare_command(first: Named, second: Named, storage: Storage = STORAGE, as_json: Json = False) -> None:
    """Where two sweeps or two trials differ, and whether one is better by more than noise."""
    with checking():
        from pretune.analysis import compare
        from pretune.display import comparison

        sides = [_side(text, storage) for text in (first, second)]
        trials = all(is_trial for _, is_trial in sides)
        found = compare.compare(sides[0][0], sides[1][0], trials=trials)
    if as_json:
        print_json(found.as_json())
        return
    screen.show(screen.console(), *comparison.comparison(found))


def _side(text: str, storage: str) -> tuple[Side, bool]:
    """What was named, and whether it is a trial. A sweep's name counts before a trial's."""
    from pretune.analysis import compare
    from pretune.request import request

    folder, slash, number = text.rstrip("/").rpartition("/")
    try:
        return compare.sweep(request.read_sweep(text, storage)), False
    except RequestError:
        if not (slash and number.isdigit() and folder):
            raise
    return compare.trial(request.read_sweep(folder, storage), int(number)), True
