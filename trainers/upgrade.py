"""What other versions wrote: settings by the names they had, and keys that this version does not know.

`RENAMES` is the whole list of changed names. What is stored (a journal, a checkpoint, a config's .json) said what it
meant when it was written, so old names in it are brought up to date as it is read. What is typed today, in `--set` or
in Python, is answered with the new name instead: a name that means two things is one too many.

A setting that is added later must have a default that does what was done before it: a stored config has no key for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

Known = TypeVar("Known")


class Rename(NamedTuple):
    """A setting that has another name since version `since`. `holder` is the path of the object that has it, a `*` any
    item. `kinds`: only where that object is of one of these kinds.
    """

    holder: str
    old: str
    new: str
    since: str
    kinds: tuple[str, ...] = ()

    def applies(self, kind: object) -> bool:
        """Whether it is meant in an object of this kind; of a kind that is not known (None), too."""
        return not self.kinds or kind is None or kind in self.kinds

    def answer(self, place: str = "") -> str:
        """To who types the old name; `place` is the path up to it, with its last dot."""
        which = f" for {', '.join(self.kinds)}" if self.kinds else ""
        return f"{place}{self.old} is called {place}{self.new}{which} since {self.since}; use that name"


RENAMES = (
    Rename("views.*", "flip", "flip_probability", "0.2"),
    Rename("views.*", "jitter", "jitter_probability", "0.2"),
    Rename("views.*", "grayscale", "grayscale_probability", "0.2"),
    Rename("views.*", "blur", "blur_probability", "0.2"),
    Rename("views.*", "solarize", "solarize_probability", "0.2"),
    Rename("optimizer", "momentum", "beta1", "0.2", kinds=("adam", "adamw")),
    Rename("objective.*.kernel", "sharpness", "gamma", "0.2", kinds=("rbf", "rbf_log", "laplace")),
)


# --- what is stored ---------------------------------------------------------------------------------------------------


def upgrade_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A stored TrialConfig's values under today's names, as a copy. What has them already stays as it is."""
    upgraded = deepcopy(dict(values))
    for rename in RENAMES:
        for holder in _objects(upgraded, rename.holder.split(".")):
            # Without a kind in it the object is of its class's first kind, which no rename means.
            if _is_old(rename, holder, holder.get("kind", "")):
                holder[rename.new] = holder.pop(rename.old)
    return upgraded


def upgrade_changes(changes: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Stored changes by dotted path (see `trainers.changes`) under today's names; `base` is the config's values that
    they change, under any names.
    """
    return {
        upgrade_path(path, kind_at(path, changes, base)): upgrade_value(path, value) for path, value in changes.items()
    }


def upgrade_path(path: str, kind: object) -> str:
    """`path` under today's name; `kind` is that of the object that holds its last step, None where it is not known."""
    rename = renamed(path, kind)
    return path if rename is None else f"{path.rpartition('.')[0]}.{rename.new}"


def upgrade_value(path: str, value: Any) -> Any:
    """A stored value of `path`: where it is an object or a list, what is inside under today's names."""
    if not isinstance(value, dict | list):
        return value
    nested: Any = value
    for step in reversed(path.split(".")):
        nested = {step: nested}
    upgraded: Any = upgrade_config(nested)
    for step in path.split("."):
        upgraded = upgraded[step]
    return upgraded


def kind_at(path: str, changes: Mapping[str, Any], base: Mapping[str, Any]) -> object:
    """The kind of the object that holds the last step of `path` once `changes` are made to `base`, None without one."""
    holder = path.rpartition(".")[0]
    if f"{holder}.kind" in changes:
        return changes[f"{holder}.kind"]
    whole = changes.get(holder)
    first = whole if isinstance(whole, dict) else next(_objects(base, holder.split(".")), {})
    return first.get("kind")


# --- what is typed ----------------------------------------------------------------------------------------------------


def renamed(path: str, kind: object) -> Rename | None:
    """The rename of the last step of `path`, None where it has none; `kind` as for `upgrade_path`."""
    *holder, name = path.split(".")
    for rename in RENAMES:
        pattern = rename.holder.split(".")
        same = len(pattern) == len(holder) and all(
            part in ("*", step) for part, step in zip(pattern, holder, strict=True)
        )
        if same and name == rename.old and rename.applies(kind):
            return rename
    return None


def refuse_old_names(holder: str, values: Any, *, kind: object = "") -> Any:
    """`values` as they are, for the validator of a class whose objects lie at `holder`; `kind` is theirs by default.

    ValueError with the new name where one of them is an old one.
    """
    if isinstance(values, dict):
        for rename in RENAMES:
            if rename.holder == holder and _is_old(rename, values, values.get("kind", kind)):
                raise ValueError(rename.answer())
    return values


# --- what is not known ------------------------------------------------------------------------------------------------


def understood(validate: Callable[[Any], Known], values: dict[str, Any]) -> tuple[Known, dict[str, Any]]:
    """What `validate`, a pydantic model's or adapter's, makes of stored values without the keys that it does not know;
    and these keys, by dotted path. `values` stays as it was.

    ValidationError where something else is wrong.
    """
    values, unknown = deepcopy(values), dict[str, Any]()
    while True:
        try:
            return validate(values), unknown
        except ValidationError as error:
            found = drop_unknown(values, error)
            if not found:
                raise
            unknown |= found


def drop_unknown(values: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """Takes the keys that `error`, raised for `values`, calls unknown out of them; returns them by dotted path."""
    dropped: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        if problem["type"] != "extra_forbidden":
            continue
        holder: Any = values
        path: list[str] = []
        for step in problem["loc"][:-1]:
            # The location also names which member of a union was chosen, as a rule by its kind: no step of values.
            if isinstance(holder, dict) and (holder.get("kind") == step or step not in holder):
                continue
            holder = holder[step]
            path.append(str(step))
        key = problem["loc"][-1]
        dropped[".".join([*path, str(key)])] = holder.pop(key)
    return dropped


# --- parts ------------------------------------------------------------------------------------------------------------


def _is_old(rename: Rename, holder: Mapping[str, Any], kind: object) -> bool:
    return rename.old in holder and rename.new not in holder and rename.applies(kind)


def _objects(values: Any, steps: list[str]) -> Iterator[dict[str, Any]]:
    """All objects at the path `steps`, with a `*` for any item of a list or an object."""
    if not steps:
        if isinstance(values, dict):
            yield values
        return
    first, rest = steps[0], steps[1:]
    if isinstance(values, list | tuple):
        items = [item for index, item in enumerate(values) if first in ("*", str(index))]
    elif isinstance(values, dict):
        items = list(values.values()) if first == "*" else [values[first]] if first in values else []
    else:
        items = []
    for item in items:
        yield from _objects(item, rest)
