"""A user's own function, by `module:function` or `file.py:function`. What is wrong in it is shown with its own line."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import ValidationError

from pretune.core.errors import RequestError
from pretune.core.messages import describe, did_you_mean
from trainers.config import TrialConfig

Result = TypeVar("Result")


def is_reference(text: str) -> bool:
    """Whether `text` has the form of a user's function rather than of a shipped name."""
    return ":" in text


def load(text: str, *, what: str, folder: Path) -> Callable[..., Any]:
    """The function that `text` names; a relative file lies in `folder`, which also goes on the import path.

    RequestError where file, module or function is missing, and with the user's own traceback where importing it fails.
    """
    place, _, name = text.rpartition(":")
    if not place or not name.isidentifier():
        raise RequestError(f"{what} {text!r} must be module:function or file.py:function, for example spaces.py:mine")
    module = _load_file(place, what=what, folder=folder) if place.endswith(".py") else _load_module(place, what, folder)
    if not hasattr(module, name):
        functions = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise RequestError(f"{what} {text!r}: {place} has no function {name!r}; {did_you_mean(name, functions)}")
    function = getattr(module, name)
    if not callable(function):
        raise RequestError(f"{what} {text!r} must be a function, but {name} is {function!r}; name a function")
    return function  # type: ignore[no-any-return]


def absolute(text: str, folder: Path) -> str:
    """`file.py:function` with its whole path, so that it means the same from anywhere; other names unchanged."""
    place, colon, name = text.rpartition(":")
    return f"{(folder / place).resolve()}{colon}{name}" if place.endswith(".py") else text


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
    of_a_package = "." in module.__name__ or hasattr(module, "__path__")
    file = getattr(module, "__file__", None)
    return f"{module.__name__}:{name}" if of_a_package or file is None else f"{Path(file).resolve()}:{name}"


def call(function: Callable[..., Result], *arguments: Any, what: str) -> Result:
    """`function(*arguments)`; what it raises becomes a RequestError: a ValueError's message, else its own traceback."""
    try:
        return function(*arguments)
    except ValidationError as error:
        raise RequestError(f"{what}: {describe(error, TrialConfig)}") from error
    except ValueError as error:
        raise RequestError(f"{what}: {error}") from error
    except Exception as error:
        raise RequestError(f"{what} failed:\n{_own_traceback(error)}") from error


def _load_file(place: str, *, what: str, folder: Path) -> ModuleType:
    path = (folder / place).resolve()
    if not path.is_file():
        raise RequestError(f"{what} {place!r}: there is no file {path}; give a path relative to {folder}")
    # Registered under a name that shadows nothing: dataclasses and pydantic look their module up.
    name = f"_pretune_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError(f"{what} {place!r}: Python cannot load {path}; it must be a Python source file")
    module = importlib.util.module_from_spec(spec)
    _put_on_path(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RequestError(f"{what} {place!r} cannot be loaded:\n{_own_traceback(error)}") from error
    return module


def _load_module(place: str, what: str, folder: Path) -> ModuleType:
    _put_on_path(folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # The module itself (or a package above it) is missing; another name means a broken import inside it.
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise RequestError(
                f"{what} {place!r}: there is no module {error.name!r}; install it, or give file.py:function"
            ) from error
        raise RequestError(f"{what} {place!r} cannot be loaded:\n{_own_traceback(error)}") from error
    except Exception as error:
        raise RequestError(f"{what} {place!r} cannot be loaded:\n{_own_traceback(error)}") from error


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _own_traceback(error: BaseException) -> str:
    """The traceback without our frames and the import machinery's: it starts in the user's file."""
    report = traceback.TracebackException.from_exception(error, limit=None)
    own = [frame for frame in report.stack if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    own = [frame for frame in own if not Path(frame.filename).is_relative_to(Path(importlib.__file__).parent)]
    report.stack = traceback.StackSummary.from_list(own)
    report.__cause__, report.__context__ = None, None
    return "".join(report.format()).rstrip()
