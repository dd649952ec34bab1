"""What of a config arrives where its trial runs: what JSON says of it, and nothing else.

A config travels as JSON to another process. Whatever JSON cannot say would silently be something else there: a class
derived from one of ours would be its parent, an attribute that was added gone. `arriving` refuses it by path and class,
before anything starts; a term of a class of one's own becomes the reference by which it is found again.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import cache
from types import FunctionType
from typing import Any

from pydantic import BaseModel

from trainers import usercode
from trainers.config import TrialConfig, as_reference, is_own_instance
from trainers.usercode import LostError

__all__ = ["LostError", "arriving"]


def arriving(config: TrialConfig) -> TrialConfig:
    """`config` as the process that runs it will have it.

    LostError where that is not the same; pydantic's ValidationError where it is no valid config, as a copy with changes
    that were not checked may be.
    """
    given: dict[str, Any] = {}
    objective = config.objective
    if isinstance(objective, Mapping):
        given = {name: term for name, term in objective.items() if is_own_instance(term)}
        if given:
            terms = {name: as_reference(name, term) if name in given else term for name, term in objective.items()}
            config = config.model_copy(update={"objective": terms})
    values = config.model_dump(mode="json", warnings=False, fallback=usercode.plain)
    told = TrialConfig.model_validate(values)
    for path, complaint in _lost("", config, told):
        raise LostError(f"{path or 'the config'} {complaint}")
    return told


def _lost(path: str, given: Any, told: Any) -> Iterator[tuple[str, str]]:
    """Where `given`, which is more than a number or a text, is not what arrives, and how."""
    if isinstance(told, BaseModel):
        if isinstance(given, BaseModel):
            yield from _lost_of_a_class(path, given, told)
        held: Any = given if isinstance(given, Mapping) else vars(given) if isinstance(given, BaseModel) else {}
        held = {**held, **(getattr(given, "model_extra", None) or {})}
        parts = {name: value for name, value in held.items() if not usercode.is_plain(value)}
        if not parts:
            return
        known, extra = type(told).model_fields, told.model_extra or {}
        for name, value in parts.items():
            arrived = getattr(told, name) if name in known else extra.get(name)
            yield from _lost(f"{path}.{name}".lstrip("."), value, arrived)
    elif isinstance(told, Mapping) and isinstance(given, Mapping):
        for name, value in given.items():
            if not usercode.is_plain(value):
                yield from _lost(f"{path}.{name}", value, told.get(name))
    elif isinstance(told, list | tuple) and isinstance(given, list | tuple) and len(told) == len(given):
        for place, (value, other) in enumerate(zip(given, told, strict=True)):
            if not usercode.is_plain(value):
                yield from _lost(f"{path}.{place}", value, other)
    elif not usercode.alike(given, told):
        yield (
            path,
            f"is {given!r} (a {type(given).__name__}), which JSON cannot say: it would arrive as {told!r}; give a "
            "number, text, a list or an object of such",
        )


def _lost_of_a_class(path: str, given: BaseModel, told: BaseModel) -> Iterator[tuple[str, str]]:
    ours = type(told)
    if type(given) is not ours:
        remedy = "set its fields instead, or write a part of your own and name it: kind='mine.py:Name'"
        if is_own_instance(given):
            remedy = f"name it: kind='mine.py:{type(given).__name__}'"
        yield (
            path,
            f"is of class {usercode.where(type(given))}, but only what {ours.__name__} knows of it would arrive where "
            f"the trial runs; {remedy}",
        )
    known = list(ours.model_fields)
    foreign = [name for name in vars(given) if name not in known]
    if foreign:
        yield (
            path,
            f"has {', '.join(foreign)} set on it, which {ours.__name__} does not have and which would not arrive where "
            f"the trial runs; known: {', '.join(known)}{usercode.guess(foreign[0], known)}",
        )
    for member in _replaced(ours):
        yield (
            path,
            f"is of class {ours.__name__}, whose {member} was replaced in this process, but not where the trial runs; "
            "derive a class of your own and name it: kind='mine.py:Name'",
        )


def _replaced(ours: type) -> Iterator[str]:
    """Methods of our classes that are functions of somebody else's."""
    for owner in _of_ours(ours):
        members = tuple(vars(owner).values())
        sound = _SOUND.get(owner, ())
        if len(members) == len(sound) and all(map(operator.is_, members, sound)):
            continue
        replaced = False
        for name, member in vars(owner).items():
            function = member.fget if isinstance(member, property) else member
            home = function.__module__ if isinstance(function, FunctionType) else owner.__module__
            if home != owner.__module__ and not home.startswith("pydantic"):
                replaced = True
                yield name
        if not replaced:
            _SOUND[owner] = members


@cache
def _of_ours(ours: type) -> tuple[type, ...]:
    """The class and those of ours that it comes from."""
    return tuple(owner for owner in ours.__mro__ if owner.__module__.partition(".")[0] == "trainers")


_SOUND: dict[type, tuple[Any, ...]] = {}
"""Our classes' members when they were looked at and all their own: each proposal of a search looks again."""
