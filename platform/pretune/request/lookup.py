"""From what was typed to the object: RECIPE and SPACE. The only place where a name becomes an object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pretune.core.choices import Budget
from pretune.core.errors import RequestError
from pretune.core.messages import did_you_mean, validated
from pretune.request import json_text, usercode
from search_spaces import RECIPES, SPACES
from trainers.config import TrialConfig
from trainers.upgrade import upgrade_config

if TYPE_CHECKING:
    from pretune.core.search import Space


GivenRecipe = str | TrialConfig | Callable[[], TrialConfig]
"""A recipe's name, the function itself, or what it would return."""


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
    """A shipped name, a config's `.json`, `module:function` or `file.py:function` (a file lies in `folder`, else here),
    or the name of what an installed package offers.

    RequestError where there is no such thing, or it gives no valid config.
    """
    here = folder or Path.cwd()
    if text.endswith(".json"):
        path = (here / text).resolve()
        return Recipe(str(path), path.parent.name if path.stem == "best" else path.stem, _from_json(path))
    if text in RECIPES:
        return Recipe(text, text, RECIPES[text]())
    reference = text if usercode.is_reference(text) else usercode.plugin("pretune.recipes", text)
    if reference is None:
        known = [*RECIPES, *usercode.plugins("pretune.recipes")]
        raise _unknown("recipe", text, known, forms="a config's .json, module:function or file.py:function")
    function = usercode.load(reference, what="RECIPE", folder=here)
    config = usercode.call(function, what=f"recipe {text!r}")
    if not isinstance(config, TrialConfig):
        raise RequestError(
            f"recipe {text!r} must return a TrialConfig, but returned {type(config).__name__}; return one"
        )
    return Recipe(usercode.absolute(reference, here), text.rpartition(":")[2], config)


def space(text: str, *, folder: Path | None = None) -> FoundSpace:
    """A shipped name, `module:function` or `file.py:function` (a file lies in `folder`, else here), or the name of what
    an installed package offers.

    The function is called as `space(trial, base)`. RequestError where there is no such thing.
    """
    here = folder or Path.cwd()
    if text in SPACES:
        function = SPACES[text]
        return FoundSpace(text, text, function, default_recipe(function), default_budget(function))
    reference = text if usercode.is_reference(text) else usercode.plugin("pretune.spaces", text)
    if reference is None:
        known = [*SPACES, *usercode.plugins("pretune.spaces")]
        raise _unknown("space", text, known, forms="module:function or file.py:function")
    function = usercode.load(reference, what="SPACE", folder=here)
    _check_signature(function, text)
    name, label = usercode.absolute(reference, here), text.rpartition(":")[2]
    return FoundSpace(name, label, function, default_recipe(function), default_budget(function))


def space_and_recipe(wanted_space: str | Space, wanted_recipe: GivenRecipe | None) -> tuple[FoundSpace, Recipe]:
    """SPACE, and the recipe it varies: the one that is given, else the space's own. RequestError where it has none.

    Python may give both as objects; of a function the name is looked up that finds it again (`usercode.reference`).
    """
    found = space(wanted_space if isinstance(wanted_space, str) else _name_of(wanted_space, SPACES, what="SPACE"))
    if wanted_recipe is None:
        wanted_recipe = found.recipe
    if wanted_recipe is None:
        raise RequestError(
            f"space {wanted_space!r} names no recipe of its own; give one with --recipe (`pretune list`)"
        )
    if isinstance(wanted_recipe, TrialConfig):
        return found, Recipe("", "given", wanted_recipe)  # the journal has it whole: it need not be found again
    if not isinstance(wanted_recipe, str):
        wanted_recipe = _name_of(wanted_recipe, RECIPES, what="RECIPE")
    return found, recipe(wanted_recipe)


def _name_of(given: Callable[..., Any], shipped: Mapping[str, Callable[..., Any]], *, what: str) -> str:
    """The shipped name of a function, or the reference to a user's."""
    names = [name for name, function in shipped.items() if function is given]
    return names[0] if names else usercode.reference(given, what=what)


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
        values = json_text.parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(
            f"recipe {path}: there is no such file; give a config's .json, such as a sweep's best.json"
        ) from error
    except (json_text.NoJSONError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} must be JSON, but is not ({error}); give a config's .json") from error
    except ValueError as error:
        raise RequestError(f"recipe {path}: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(
            f"recipe {path} must be an object of settings, but is {type(values).__name__}; give a config's .json"
        )
    try:
        return validated(TrialConfig, upgrade_config(values))  # an older version may have written it
    except RequestError as error:
        raise RequestError(f"recipe {path}: {error}") from error


def _unknown(what: str, text: str, known: Sequence[str], *, forms: str) -> RequestError:
    return RequestError(f"{what} {text!r} is neither a shipped name nor {forms}; {did_you_mean(text, known)}")
