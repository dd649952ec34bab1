"""JSON as people type and edit it: what Python's reader passes over in silence, or breaks at, is said."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

DEEPEST = 50
"""Objects and lists within each other. Settings have six or seven; at some hundreds Python gives up."""


class NoJSONError(ValueError):
    """A text that is no JSON at all."""


def parsed(text: str) -> Any:
    """What `text` says.

    Raises:
        NoJSONError: it is no JSON.
        ValueError: it is, but an object has a key twice, it is nested too deeply, or a number has too many digits.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise NoJSONError(str(error)) from error
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """ValueError where objects and lists lie too deep within each other."""
    level = _within([value])
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"objects and lists may lie at most {DEEPEST} deep within each other; take some away"


def _within(value: Any) -> list[Any]:
    """The objects and lists that lie directly in one."""
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict | list)]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        told = " and ".join(_short(value) for key, value in pairs if key == twice[0])
        raise ValueError(f"an object must have each key once, but one has {twice[0]!r} with {told}; keep one of them")
    return dict(pairs)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
