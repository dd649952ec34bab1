"""Where two configs differ, by dotted path; and of a sweep what was asked beside its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pretune.core import fastest
from pretune.core.experiment import Experiment

ABSENT = "absent"
"""What stands for a setting that one of the two does not have."""


class Difference(NamedTuple):
    """One setting and what it is in the one and in the other."""

    path: str
    first: Any
    second: Any


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """All settings that are not equal; of an object that only one has, or of another `kind`, the whole of it."""
    return list(_below("", first, second))


def request_of(experiment: Experiment) -> dict[str, Any]:
    """What was asked beside the base config: what two sweeps may differ in as well."""
    left_out = {"base", "name", "storage", "points", "warm_start", "fastest"}
    stored = experiment.model_dump(mode="json", exclude=left_out)
    stored["warm_start"] = ", ".join(one.source for one in experiment.warm_start)
    stored["fastest"] = None if experiment.fastest is None else fastest.in_words(experiment.fastest)
    return {name: value for name, value in stored.items() if value not in (None, "")}


def _below(path: str, first: Any, second: Any) -> Iterator[Difference]:
    if first == second and isinstance(first, bool) == isinstance(second, bool):
        return
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.get("kind") == second.get("kind"):
        for key in dict.fromkeys([*first, *second]):
            yield from _below(f"{path}.{key}" if path else key, first.get(key, ABSENT), second.get(key, ABSENT))
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _below(f"{path}.{index}", one, other)
    else:
        yield Difference(path, first, second)
