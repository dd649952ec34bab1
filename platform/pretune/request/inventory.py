"""What can be named in a request: recipes, spaces, terms, data sets, each with the first line of its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pretune.request import lookup
from pretune.request.request import DATA_ROOT
from search_spaces import RECIPES, SPACES
from trainers.data import datasets
from trainers.terms import Term, TermConfig

Listing = dict[str, list[dict[str, Any]]]


def collect(root: Path = DATA_ROOT) -> Listing:
    """Four lists: `recipes`, `spaces`, `terms` and `data`; each entry has `name` and `description`.

    `data` names the kinds that `pretune data` builds, and in `folder` the data set below `root` where it is built.
    """
    spaces = [
        {"name": name, "description": first_line(function), "recipe": lookup.default_recipe(function)}
        for name, function in SPACES.items()
    ]
    return {
        "recipes": [{"name": name, "description": first_line(function)} for name, function in RECIPES.items()],
        "spaces": spaces,
        "terms": [{"name": kind, "description": first_line(term)} for kind, term in _terms()],
        "data": _data(root),
    }


def first_line(thing: Callable[..., Any] | type) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _terms() -> list[tuple[str, type[TermConfig]]]:
    """Every kind of term and its class, in the order of the union that lists them."""
    found: list[tuple[str, type[TermConfig]]] = []
    union = get_args(Term)[0]
    for member in get_args(union) or (union,):
        kind = member.model_fields["kind"].annotation
        assert get_origin(kind) is Literal
        found += [(name, member) for name in get_args(kind)]
    return found


def _data(root: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [
        {"name": name, "description": layout, "folder": _built(root / name)}
        for name, layout in datasets.kinds().items()
    ]
    known = {entry["name"] for entry in entries}
    for manifest in sorted(root.glob(f"*/{datasets.MANIFEST_FILE}")):
        if manifest.parent.name not in known:
            entries.append({"name": manifest.parent.name, "description": "a data set", "folder": str(manifest.parent)})
    return entries


def _built(folder: Path) -> str | None:
    return str(folder) if (folder / datasets.MANIFEST_FILE).is_file() else None
