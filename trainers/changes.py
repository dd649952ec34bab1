"""A changed copy of a config, by dotted path: what `--set`, `--factor` and search spaces are made of.

Paths are as everywhere: `optimizer.learning_rate`; `views.0.hue` for one view, `views.*.hue` for all;
`objective.<name>.weight`. `objective.<name>.kind` adds a term. A new `kind` leaves out the inherited keys that it does
not know or whose value it refuses, and all but the weight where one of the two is a part of one's own, whose keys only
its code knows; `left_out` names them. A path through something absent (`model.teacher.momentum` without a teacher)
creates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from trainers.arrival import arriving
from trainers.config import Config, TrialConfig
from trainers.upgrade import kind_at, renamed
from trainers.usercode import is_reference

Settings = TypeVar("Settings", bound=Config)
Keys = tuple[str, ...]


def with_changes(config: TrialConfig, changes: Mapping[str, Any]) -> TrialConfig:
    """A copy of `config` with the value at each path replaced, checked as a whole.

    Values are what JSON can say; a whole object replaces a whole object. ValueError where a path leads nowhere or has
    an old name, LostError (one too) where config or values hold what JSON cannot say, pydantic's ValidationError where
    the result is not a valid config.
    """
    changed, _ = _changed(config, changes)
    return changed


def left_out(config: TrialConfig, changes: Mapping[str, Any]) -> dict[str, list[str]]:
    """By the path of each new `kind` in `changes`, the paths of inherited keys that `with_changes` leaves out for it.

    Errors as of `with_changes`.
    """
    _, dropped = _changed(config, changes)
    found: dict[str, list[str]] = {}
    for keys in dropped:
        kind = next(path for path in changes if _matches(path, (*keys[:-1], "kind")))
        found.setdefault(kind, []).append(".".join(keys))
    return found


def _changed(config: TrialConfig, changes: Mapping[str, Any]) -> tuple[TrialConfig, list[Keys]]:
    """The changed copy, and the inherited keys that new kinds have no room for."""
    values = arriving(config).model_dump(mode="json")
    _refuse_old_names(changes, values)
    chosen: set[Keys] = set()
    rekinded: list[Keys] = []
    dropped: list[Keys] = []
    for path, value in changes.items():
        for keys in _expand(values, tuple(path.split(".")), path):
            holder = _holder(values, keys, path)
            if keys[-1] == "kind" and isinstance(holder, dict) and holder.get("kind") != value:
                rekinded.append(keys[:-1])
                if is_reference(value) or is_reference(holder.get("kind")):
                    for inherited in [key for key in holder if key not in ("kind", "weight")]:
                        if (*keys[:-1], inherited) not in chosen:
                            del holder[inherited]
                            dropped.append((*keys[:-1], inherited))
            _put(holder, keys[-1], value, path)
            chosen.add(keys)
    while True:
        try:
            return arriving(TrialConfig.model_validate(values)), dropped
        except ValidationError as error:
            foreign = _drop_foreign_keys(values, error, rekinded, chosen)
            if not foreign:
                raise
            dropped += foreign


def with_fields(config: Settings, **fields: Any) -> Settings:
    """A checked copy of a config, or of a part of one, with these fields replaced by values or configs."""
    return type(config)(**{**dict(config), **fields})


def value_at(config: TrialConfig, path: str) -> Any:
    """The JSON value at `path` (a list of values where it has a `*`), for comparing two configs there."""
    values = config.model_dump(mode="json")
    found = [_get(values, keys) for keys in _expand(values, tuple(path.split(".")), path)]
    return found if "*" in path.split(".") else found[0]


def _refuse_old_names(changes: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for path in changes:
        rename = renamed(path, kind_at(path, changes, values))
        if rename is not None:
            raise ValueError(rename.answer(path.removesuffix(rename.old)))


def _get(values: Any, keys: Keys) -> Any:
    for key in keys:
        if isinstance(values, list):
            values = values[int(key)] if key.isdigit() and int(key) < len(values) else None
        else:
            values = values.get(key) if isinstance(values, dict) else None
    return values


def _expand(values: Any, keys: Keys, path: str) -> list[Keys]:
    """`keys` once for each item that a `*` in it stands for."""
    if "*" not in keys:
        return [keys]
    position = keys.index("*")
    holder = _get(values, keys[:position])
    if not isinstance(holder, list | dict) or not holder:
        place = ".".join(keys[:position])
        raise ValueError(f"{path}: '*' means all items of a list or mapping, but {place!r} is none; name a key")
    items = [str(index) for index in range(len(holder))] if isinstance(holder, list) else list(holder)
    one_each = [(*keys[:position], item, *keys[position + 1 :]) for item in items]
    return [longer for one in one_each for longer in _expand(values, one, path)]


def _holder(values: Any, keys: Keys, path: str) -> Any:
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


def _put(holder: Any, key: str, value: Any, path: str) -> None:
    if isinstance(holder, list):
        holder[_position(holder, key, path)] = value
    elif isinstance(holder, dict):
        holder[key] = value
    else:
        raise _is_a_value(path, path.split(".")[:-1], holder, key)


def _is_a_value(path: str, place: Sequence[str], value: Any, key: str) -> ValueError:
    return ValueError(f"{path}: {'.'.join(place)!r} is the value {value!r} and has no {key!r}; shorten the path")


def _position(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ValueError(f"{path}: {key!r} must be a position from 0 to {len(items) - 1}, or '*' for all")
    return int(key)


def _drop_foreign_keys(values: Any, error: ValidationError, rekinded: Sequence[Keys], chosen: set[Keys]) -> list[Keys]:
    """Takes out keys that were inherited and that a changed `kind` does not know or whose value it refuses; returns
    them.
    """
    dropped: list[Keys] = []
    for problem in error.errors(include_url=False):
        location = _without_tags(values, problem["loc"])
        for holder in rekinded:
            keys = location[: len(holder) + 1]
            place = _get(values, holder)
            inherited = len(keys) > len(holder) and not any(one[: len(keys)] == keys for one in chosen)
            if inherited and keys[:-1] == holder and isinstance(place, dict) and keys[-1] in place:
                del place[keys[-1]]
                dropped.append(keys)
    return dropped


def _without_tags(values: Any, location: Sequence[str | int]) -> Keys:
    """Where in `values` pydantic's `location` is: that also names which member of a union was chosen, at any depth."""
    keys: list[str] = []
    for position, step in enumerate(location):
        last = position == len(location) - 1
        if isinstance(values, dict) and not last and (values.get("kind") == step or step not in values):
            continue
        keys.append(str(step))
        values = _get(values, (str(step),))
    return tuple(keys)


def _matches(path: str, keys: Keys) -> bool:
    """Whether `path`, in which a `*` is any key, is that of `keys`."""
    steps = path.split(".")
    return len(steps) == len(keys) and all(step in ("*", key) for step, key in zip(steps, keys, strict=True))
