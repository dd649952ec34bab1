"""What can be named in a request: recipes, spaces, terms, backbones, data sets, with the first line of their docstring;
what installed packages offer beside them; and how to name code of one's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from pretune.core.errors import RequestError
from pretune.request import lookup, usercode
from pretune.request.request import DATA_ROOT
from search_spaces import RECIPES, SPACES
from trainers.config import ResNetConfig, ViTConfig
from trainers.data import datasets
from trainers.terms import SHIPPED_TERMS
from trainers.usercode import Group

Listing = dict[str, list[dict[str, Any]]]

FORMS = (
    ("file.py:Name", "a recipe, space, term, backbone or view operation in a file of your own; try it: pretune check"),
    ("module:Name", "the same in a module that can be imported wherever trials run"),
    ("timm:NAME", "a backbone of timm that gives one feature vector, untrained"),
)
_BACKBONES: tuple[type[BaseModel], ...] = (ResNetConfig, ViTConfig)


def collect(root: Path = DATA_ROOT) -> Listing:
    """Lists by heading: `recipes`, `spaces`, `terms`, `backbones`, `data` and `your own`; each entry has `name` and
    `description`, and `package` where an installed package offers it.

    `data` names the kinds that `pretune data` builds, and in `folder` the data set below `root` where it is built.
    `notes`, there only if there are any, says which packages offer what cannot be used.
    """
    spaces = [
        {"name": name, "description": first_line(function), "recipe": lookup.default_recipe(function)}
        for name, function in SPACES.items()
    ]
    recipes = [{"name": name, "description": first_line(function)} for name, function in RECIPES.items()]
    terms = [{"name": kind, "description": first_line(term)} for term in SHIPPED_TERMS for kind in _kinds(term)]
    backbones = [{"name": kind, "description": first_line(one)} for one in _BACKBONES for kind in _kinds(one)]
    notes: list[dict[str, Any]] = []
    listing: Listing = {
        "recipes": [*recipes, *_offered("pretune.recipes", RECIPES, notes)],
        "spaces": [*spaces, *_offered("pretune.spaces", SPACES, notes)],
        "terms": [*terms, *_offered("pretune.terms", {entry["name"] for entry in terms}, notes)],
        "backbones": backbones,
        "data": _data(root),
        "your own": [{"name": form, "description": text} for form, text in FORMS],
    }
    return listing | ({"notes": notes} if notes else {})


def first_line(thing: Callable[..., Any] | type) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The kinds that a class has."""
    kind = model.model_fields["kind"].annotation
    assert get_origin(kind) is Literal
    return get_args(kind)


def _offered(group: Group, shipped: Collection[str], notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What installed packages offer in a group. What cannot be loaded, or has the name of something shipped, is in
    `notes` in its place: another's fault must not hide the rest."""
    entries: list[dict[str, Any]] = []
    for plugin in usercode.plugins(group).values():
        package = f"{plugin.package} {plugin.version}".strip()
        if plugin.name in shipped:
            problem = f"has the name of a shipped one, which is taken; name it as {plugin.reference}"
        else:
            try:
                thing = usercode.load(plugin.reference, what="plug-in", folder=Path.cwd())
            except RequestError as error:
                problem = f"cannot be loaded: {str(error).splitlines()[-1].strip()}"
            else:
                entries.append({"name": plugin.name, "description": first_line(thing), "package": package})
                continue
        notes.append({"name": plugin.name, "description": f"{group} of {package} {problem}"})
    return entries


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
