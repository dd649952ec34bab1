"""What a shell offers after TAB (`pretune --install-completion`): the names that an argument can be.

It is asked at each TAB, so it imports no more than it needs, and what cannot be found offers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from pretune.core.choices import LOCAL_ROOT


def spaces(incomplete: str) -> list[str]:
    """Shipped spaces and those of installed packages. Of `file.py:function` the shell completes the file."""
    from search_spaces import SPACES
    from trainers.usercode import plugins

    return _beginning(incomplete, [*SPACES, *plugins("pretune.spaces")])


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes and those of installed packages."""
    from search_spaces import RECIPES
    from trainers.usercode import plugins

    return _beginning(incomplete, [*RECIPES, *plugins("pretune.recipes")])


def sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """The sweeps below --storage, as far as that is a folder: nobody waits for a bucket."""
    storage = Path(str(context.params.get("storage") or LOCAL_ROOT))
    # `journal.FILE`, whose module takes too long to import.
    return _beginning(incomplete, sorted(path.parent.name for path in storage.glob("*/journal.jsonl")))


def recipes_and_sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """What `pretune ablate` takes."""
    return [*sweeps(context, incomplete), *recipes(incomplete)]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
