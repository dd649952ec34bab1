"""`pretune list`: what there is to name in a request."""

from __future__ import annotations

from pretune.cli.exits import checking, print_json
from pretune.cli.options import Json
from pretune.display import screen


def list_command(as_json: Json = False) -> None:
    """Recipes, spaces, terms, backbones and data sets, and how to name your own."""
    from pretune.display import listing
    from pretune.request import inventory

    with checking():
        found = inventory.collect()
    if as_json:
        print_json(found)
        return
    screen.show(screen.console(), listing.table(found))
