"""From what was typed to the object: RECIPE and SPACE. The only place where a name becomes an object."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pretune.core.choices import Budget
from pretune.core.errors import RequestError
from pretune.core.messages import did_you_mean
from pretune.request import overrides, usercode
from search_spaces import RECIPES, SPACES
from trainers.config import TrialConfig

if TYPE_CHECKING:
    from pretune.core.search import Space


@dataclass(frozen=True)
class Recipe:
    """A config to start from. `name` finds it again from any folder; `label` is short, for folder names."""

    name: str
    label: str
    config: TrialConfig


@dataclass(frozen=True)
class FoundSpace:
    """A search space. `recipe` and `budget` are those it is made for, where it says so. `name` and `label` as for
    `Recipe`.
    """

    name: str
    label: str
    function: Space
    recipe: str | None
    budget: Budget | None


def recipe(text: str, *, folder: Path | None = None) -> Recipe:
    """A shipped name, a config's `.json`, `module:function` or `file.py:function`; a file lies in `folder`, else here.

    RequestError where there is no such thing, or it gives no valid config.
    """
    here = folder or Path.cwd()
    if text.endswith(".json"):
        path = (here / text).resolve()
        return Recipe(str(path), path.parent.name if path.stem == "best" else path.stem, _from_json(path))
    if usercode.is_reference(text):
        function = usercode.load(text, what="RECIPE", folder=here)
        config = usercode.call(function, what=f"recipe {text!r}")
        if not isinstance(config, TrialConfig):
            raise RequestError(
                f"recipe {text!r} must return a TrialConfig, but returned {type(config).__name__}; return one"
            )
        return Recipe(usercode.absolute(text, here), text.rpartition(":")[2], config)
    if text not in RECIPES:
        raise _unknown("recipe", text, list(RECIPES), forms="a config's .json, module:function or file.py:function")
    return Recipe(text, text, RECIPES[text]())


def space(text: str, *, folder: Path | None = None) -> FoundSpace:
    """A shipped name, `module:function` or `file.py:function`; a file lies in `folder`, else here.

    The function is called as `space(trial, base)`. RequestError where there is no such thing.
    """
    here = folder or Path.cwd()
    if usercode.is_reference(text):
        function = usercode.load(text, what="SPACE", folder=here)
        _check_signature(function, text)
        name, label = usercode.absolute(text, here), text.rpartition(":")[2]
        return FoundSpace(name, label, function, default_recipe(function), default_budget(function))
    if text not in SPACES:
        raise _unknown("space", text, list(SPACES), forms="module:function or file.py:function")
    function = SPACES[text]
    return FoundSpace(text, text, function, default_recipe(function), default_budget(function))


def space_and_recipe(space_text: str, recipe_text: str | None) -> tuple[FoundSpace, Recipe]:
    """SPACE, and the recipe it varies: the one that is named, else the space's own. RequestError where it has none."""
    found = space(space_text)
    wanted = recipe_text if recipe_text is not None else found.recipe
    if wanted is None:
        raise RequestError(f"space {space_text!r} names no recipe of its own; give one with --recipe (`pretune list`)")
    return found, recipe(wanted)


def default_recipe(function: Callable[..., Any]) -> str | None:
    """The recipe that a space names for itself: its module's or its own `default_recipe`."""
    own = getattr(function, "default_recipe", None)
    return own if isinstance(own, str) else None


def default_budget(function: Callable[..., Any]) -> Budget | None:
    """What a space wants its weak trials stopped by: its own `default_budget`."""
    own = getattr(function, "default_budget", None)
    return own if own in get_args(Budget) else None


def _check_signature(function: Callable[..., Any], text: str) -> None:
    try:
        inspect.signature(function).bind(object(), object())
    except TypeError as error:
        raise RequestError(
            f"space {text!r} must take (trial, base), but {error}; give it these two parameters"
        ) from error


def _from_json(path: Path) -> TrialConfig:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RequestError(
            f"recipe {path}: there is no such file; give a config's .json, such as a sweep's best.json"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} must be JSON, but is not ({error}); give a config's .json") from error
    if not isinstance(values, dict):
        raise RequestError(
            f"recipe {path} must be an object of settings, but is {type(values).__name__}; give a config's .json"
        )
    try:
        return overrides.validated(values)
    except RequestError as error:
        raise RequestError(f"recipe {path}: {error}") from error


def _unknown(what: str, text: str, known: Sequence[str], *, forms: str) -> RequestError:
    return RequestError(f"{what} {text!r} is neither a shipped name nor {forms}; {did_you_mean(text, known)}")
