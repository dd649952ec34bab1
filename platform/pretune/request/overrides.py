"""`--set a.b=value`: what was typed as changes of a config, and what is wrong with them in words.

`trainers.changes` says what a path may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretune.core.errors import RequestError
from pretune.core.messages import describe
from pretune.request.usercode import with_absolute_kinds
from trainers.changes import with_changes
from trainers.config import TrialConfig

Overrides = Mapping[str, Any]


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as `{"a.b": 1, "c": "x"}`; a `kind` that is a file of one's own, with its whole path.

    RequestError where there is no `=` or a path comes twice.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path or not all(path.split(".")):
            raise RequestError(
                f"--set {assignment!r} must have the form a.b=value, for example optimizer.learning_rate=0.1"
            )
        if path in overrides:
            raise RequestError(f"--set {path} is given twice ({overrides[path]!r} and {text!r}); keep one")
        overrides[path] = value(text, path)
    return overrides


def value(text: str, path: str) -> Any:
    """What was typed as the value at `path`: JSON where it parses as JSON, and the text itself otherwise.

    A file of one's own that it names lies in the folder where it was typed.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = text
    return with_absolute_kinds(path, found, Path.cwd())


def apply(config: TrialConfig, overrides: Overrides) -> TrialConfig:
    """`config` with each path set. RequestError, one line per complaint, where the result is not a valid config."""
    try:
        return with_changes(config, overrides)
    except ValidationError as error:
        raise RequestError(describe(error, TrialConfig)) from error
    except ValueError as error:
        raise RequestError(f"--set {error}") from error


def validated(values: Mapping[str, Any]) -> TrialConfig:
    """`values` as a config; RequestError in words where they are none."""
    try:
        return TrialConfig.model_validate(values)
    except ValidationError as error:
        raise RequestError(describe(error, TrialConfig)) from error
