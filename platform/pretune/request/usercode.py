"""A request's references to code of one's own: made absolute, loaded and checked.

`trainers.usercode` does the loading; here its complaints become a request's. What is wrong in the code is shown with
its own line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pretune.core.errors import RequestError, exit_place
from pretune.core.messages import describe, did_you_mean, in_words
from trainers import usercode
from trainers.config import TrialConfig
from trainers.storage import is_uri
from trainers.usercode import Group, is_reference, parameters, plugins, where

__all__ = [
    "absolute",
    "call",
    "checked",
    "completed",
    "is_reference",
    "load",
    "parameters",
    "part",
    "plugin",
    "plugins",
    "reference",
    "where",
    "with_absolute_kinds",
]

Result = TypeVar("Result")
INIT = ("model.backbone.init", "model.backbone.init.path")
"""Where weights to start from are named."""


def load(text: str, *, what: str, folder: Path) -> Callable[..., Any]:
    """The function that `text` names; a relative file lies in `folder`, which also goes on the import path.

    RequestError where file, module or function is missing, with the user's own traceback where importing it fails, and
    with the line where importing it ends the whole program.
    """
    usercode.put_on_path(folder)
    try:
        function = usercode.load(absolute(text, folder)).thing
    except ValueError as error:
        raise RequestError(f"{what} {text!r}: {error}") from error
    except SystemExit as error:
        raise RequestError(
            f"{what} {text!r} ends the whole program when it is loaded, in {exit_place(error)}; take that line out, or "
            "put it below: if __name__ == '__main__':"
        ) from error
    if not callable(function):
        raise RequestError(f"{what} {text!r} must be a function, but is {function!r}; name a function")
    return function  # type: ignore[no-any-return]


def absolute(text: str, folder: Path) -> str:
    """`file.py:function` with its whole path, so that it means the same from anywhere; other names unchanged."""
    return usercode.anchored(text, folder)


def plugin(group: Group, name: str) -> str | None:
    """The reference behind the name that an installed package gave what it offers; None where none did."""
    found = plugins(group).get(name)
    return None if found is None else found.reference


def with_absolute_kinds(path: str, value: Any, folder: Path) -> Any:
    """A value that was typed for `path`, with each `kind`, and weights to start from, meaning the same from anywhere.

    A file has its whole path, and the name of an installed package's term becomes the reference behind it.
    """
    if isinstance(value, Mapping):
        return {key: with_absolute_kinds(f"{path}.{key}", item, folder) for key, item in value.items()}
    steps = path.split(".")
    if path in INIT and isinstance(value, str):
        return str(folder / Path(value).expanduser()) if not is_uri(value) else value
    if steps[-1] != "kind" or not isinstance(value, str):
        return value
    if steps[0] == "objective" and len(steps) == 3 and not is_reference(value):
        return plugin("pretune.terms", value) or value
    return absolute(value, folder)


def part(text: str, *, folder: Path) -> tuple[Any, str]:
    """A term, backbone or view operation, and its reference. RequestError where there is none."""
    reference = text if is_reference(text) else plugin("pretune.terms", text)
    if reference is None:
        known = list(plugins("pretune.terms"))
        remedy = did_you_mean(text, known) if known else "no package that is installed offers one"
        raise RequestError(f"PART {text!r} must be {usercode.FORMS}, timm:NAME, or a package's term; {remedy}")
    return load(reference, what="PART", folder=folder), absolute(reference, folder)


def completed(values: Mapping[str, Any]) -> TrialConfig:
    """`values` as a config with its own parts found and checked, as `checked`."""
    try:
        return checked(TrialConfig.model_validate(values), Path.cwd())
    except ValidationError as error:
        raise RequestError(describe(error, TrialConfig)) from error


def checked(config: TrialConfig, folder: Path, *, workers: int = 1) -> TrialConfig:
    """`config` with its own parts found from anywhere, a relative file lying in `folder`, with their hashes, and with
    settings that they take. Imports torch only if they do. RequestError in words where something is wrong.
    """
    usercode.put_on_path(folder)
    try:
        complete = config.completed(folder)
        complete.check_own(workers)
    except ValueError as error:
        raise RequestError(in_words(error)) from error
    return complete


def reference(function: Callable[..., Any], *, what: str) -> str:
    """The text by which `load` finds `function` again: `file.py:function`, or `module:function` of a package's module.

    RequestError where there is none: a sweep could not be resumed with a function that was typed into a notebook or the
    running script, a lambda, or one within another function.
    """
    name = str(getattr(function, "__qualname__", ""))
    module = sys.modules.get(str(getattr(function, "__module__", None)))
    if module is None or module.__name__ == "__main__" or getattr(module, name, None) is not function:
        plain = name.rpartition(".")[2]
        example = plain if plain.isidentifier() else "mine"
        raise RequestError(
            f"{what} must be found again when the sweep is resumed, but {name or repr(function)} lies in no file that "
            f"can be imported; save it to one (in a notebook: %%writefile mine.py) and give 'mine.py:{example}'"
        )
    file, of_a_package = getattr(module, "__file__", None), "." in module.__name__ or hasattr(module, "__path__")
    return usercode.reference_to(function) if of_a_package or file is None else f"{Path(file).resolve()}:{name}"


def call(function: Callable[..., Result], *arguments: Any, what: str) -> Result:
    """`function(*arguments)`; what it raises becomes a RequestError: a ValueError's message, else its own traceback."""
    try:
        return function(*arguments)
    except ValidationError as error:
        raise RequestError(f"{what}: {describe(error, TrialConfig)}") from error
    except ValueError as error:
        raise RequestError(f"{what}: {error}") from error
    except SystemExit as error:
        raise RequestError(f"{what} ends the whole program, in {exit_place(error)}; let it return") from error
    except Exception as error:
        raise RequestError(f"{what} failed:\n{usercode.own_traceback(error, ours={__file__})}") from error
