"""`--set a.b=value`: a changed copy of a config, by path, checked as a whole.

A value is JSON where it parses as JSON and a plain string otherwise. `views.0.size` addresses one view, `views.*.size`
all of them; `objective.<name>.weight` a term, and `objective.<name>.kind=…` adds one. A new `kind` drops the inherited
keys that it does not know. A path through something absent (`model.teacher.momentum` without a teacher) creates it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pretune.messages import RequestError, describe
from trainers.config import TrialConfig

Overrides = Mapping[str, Any]


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as `{"a.b": 1, "c": "x"}`. RequestError where there is no `=` or a path comes twice."""
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
        try:
            overrides[path] = json.loads(text)
        except json.JSONDecodeError:
            overrides[path] = text
    return overrides


def apply(config: TrialConfig, overrides: Overrides) -> TrialConfig:
    """`config` with each path set. RequestError, one line per complaint, where the result is not a valid config."""
    values = config.model_dump(mode="json")
    chosen: set[tuple[str, ...]] = set()
    rekinded: list[tuple[str, ...]] = []
    for path, value in overrides.items():
        for keys in _expand(values, tuple(path.split(".")), path):
            parent = _parent(values, keys, path)
            if keys[-1] == "kind" and isinstance(parent, dict) and parent.get("kind") != value:
                rekinded.append(keys[:-1])
            _put(parent, keys[-1], value, path)
            chosen.add(keys)
    try:
        return TrialConfig.model_validate(values)
    except ValidationError as error:
        if _drop_foreign_keys(values, error, rekinded, chosen):
            return validated(values)
        raise RequestError(describe(error, TrialConfig)) from error


def validated(values: Mapping[str, Any]) -> TrialConfig:
    """`values` as a config; RequestError in words where they are none."""
    try:
        return TrialConfig.model_validate(values)
    except ValidationError as error:
        raise RequestError(describe(error, TrialConfig)) from error


def lookup(config: TrialConfig, path: str) -> Any:
    """The JSON value at `path` (a list of values where it has a `*`), for comparing two configs there."""
    values = config.model_dump(mode="json")
    found = [_get(values, keys) for keys in _expand(values, tuple(path.split(".")), path)]
    return found if "*" in path.split(".") else found[0]


def _get(values: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if isinstance(values, list):
            values = values[int(key)] if key.isdigit() and int(key) < len(values) else None
        else:
            values = values.get(key) if isinstance(values, dict) else None
    return values


def _expand(values: Any, keys: tuple[str, ...], path: str) -> list[tuple[str, ...]]:
    """`keys` once for each item that a `*` in it stands for."""
    if "*" not in keys:
        return [keys]
    position = keys.index("*")
    holder = _get(values, keys[:position])
    if not isinstance(holder, list | dict) or not holder:
        place = ".".join(keys[:position])
        raise RequestError(f"--set {path}: '*' means all items of a list or mapping, but {place!r} is none; name a key")
    items = [str(index) for index in range(len(holder))] if isinstance(holder, list) else list(holder)
    one_each = [(*keys[:position], item, *keys[position + 1 :]) for item in items]
    return [longer for one in one_each for longer in _expand(values, one, path)]


def _parent(values: Any, keys: tuple[str, ...], path: str) -> Any:
    """What holds the last key; objects that are absent on the way are created."""
    for depth, key in enumerate(keys[:-1]):
        if isinstance(values, list):
            values = values[_position(values, key, path)]
        elif isinstance(values, dict):
            if values.get(key) is None:
                values[key] = {}
            values = values[key]
        else:
            raise _is_a_value(path, keys[:depth], values, key)
    return values


def _put(parent: Any, key: str, value: Any, path: str) -> None:
    if isinstance(parent, list):
        parent[_position(parent, key, path)] = value
    elif isinstance(parent, dict):
        parent[key] = value
    else:
        raise _is_a_value(path, path.split(".")[:-1], parent, key)


def _is_a_value(path: str, place: Sequence[str], value: Any, key: str) -> RequestError:
    return RequestError(
        f"--set {path}: {'.'.join(place)!r} is the value {value!r} and has no {key!r}; shorten the path"
    )


def _position(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RequestError(f"--set {path}: {key!r} must be a position from 0 to {len(items) - 1}, or '*' for all")
    return int(key)


def _drop_foreign_keys(
    values: Any, error: ValidationError, rekinded: Sequence[tuple[str, ...]], chosen: set[tuple[str, ...]]
) -> bool:
    """Remove keys that a changed `kind` does not know and that were inherited; True if that changed anything."""
    dropped = False
    for problem in error.errors(include_url=False):
        if problem["type"] != "extra_forbidden":
            continue
        for holder in rekinded:
            keys = (*holder, str(problem["loc"][-1]))
            place = _get(values, holder)
            same = tuple(str(part) for part in problem["loc"][: len(holder)]) == holder
            if same and keys not in chosen and isinstance(place, dict) and keys[-1] in place:
                del place[keys[-1]]
                dropped = True
    return dropped
