"""`--set a.b=value`: what was typed as changes of a config, and what is wrong with them in words.

`trainers.changes` says what a path may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretune.core.errors import RequestError
from pretune.core.messages import describe
from pretune.request import json_text
from pretune.request.usercode import with_absolute_kinds
from trainers.changes import left_out, with_changes
from trainers.config import TrialConfig
from trainers.usercode import LostError

Overrides = Mapping[str, Any]


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as `{"a.b": 1, "c": "x"}`; a `kind` that is a file of one's own, with its whole path.

    RequestError where there is no `=`, a path comes twice, or path or value is nested too deeply.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path or not all(path.split(".")):
            raise RequestError(
                f"--set {assignment!r} must have the form a.b=value, for example optimizer.learning_rate=0.1"
            )
        check_path(path, spelled="--set")
        if path in overrides:
            raise RequestError(f"--set {path} is given twice ({overrides[path]!r} and {text!r}); keep one")
        overrides[path] = value(text, path)
    return overrides


def value(text: str, path: str) -> Any:
    """What was typed as the value at `path`: JSON where it parses as JSON, and the text itself otherwise.

    A file of one's own that it names lies in the folder where it was typed. RequestError where it is JSON that says
    something twice, or is nested too deeply.
    """
    try:
        found = json_text.parsed(text)
    except json_text.NoJSONError:
        found = text
    except ValueError as error:
        raise RequestError(f"--set {path}: {error}") from error
    return with_absolute_kinds(path, found, Path.cwd())


def check_path(path: str, *, spelled: str) -> None:
    """RequestError where a dotted path has more steps than settings lie deep."""
    steps = path.count(".") + 1
    if steps > json_text.DEEPEST:
        raise RequestError(
            f"{spelled} {path[:60]}… must have at most {json_text.DEEPEST} steps, but has {steps}; shorten the path"
        )


def apply(config: TrialConfig, overrides: Overrides) -> TrialConfig:
    """`config` with each path set. RequestError, one line per complaint, where the result is not a valid config."""
    try:
        return with_changes(config, overrides)
    except ValidationError as error:
        raise RequestError(describe(error, TrialConfig)) from error
    except LostError as error:
        raise RequestError(str(error)) from error
    except ValueError as error:
        raise RequestError(f"--set {error}") from error


def left_out_by(config: TrialConfig, overrides: Overrides) -> list[str]:
    """In words, what `apply` leaves out since a new `kind` does not have it; the overrides were applied before."""
    return [
        f"{kind}={overrides[kind]} leaves out {', '.join(keys)}, which the kind before it had"
        for kind, keys in left_out(config, overrides).items()
    ]
