"""Parameters as a space asks for them, as the journal keeps them, and as Optuna is told of them.

A space may choose among any values: tuples, lists, None, objects. The journal holds JSON, and Optuna's samplers and its
dashboard numbers, text and None. So a choice travels as its **label**, what JSON can say of it (a tuple as a list, an
object as its text), and to Optuna a label that is a list or an object is its JSON text. The space gets back the very
value that it listed, found by the label's position, which is the same in each process.

To Optuna one name has one kind of distribution and one list of choices for ever. A space whose choices depend on
another parameter has several under one name: Optuna sees them as parameters of their own, `rate`, `rate #2`, in the
order in which the trials of the sweep met them.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FixedTrial
from pydantic import BaseModel

from pretune.core.errors import RequestError

Flat = None | bool | int | float | str
"""What Optuna takes as a choice everywhere."""

# --- labels -----------------------------------------------------------------------------------------------------------


def labels(choices: Sequence[Any]) -> list[Any]:
    """What the journal says for each choice, in their order. Two that differ have labels that differ."""
    found: list[Any] = []
    for position, choice in enumerate(choices):
        told = _label(choice)
        if told is _NO_TEXT:
            told = f"{type(choice).__name__} {position}"
        alike = [earlier for earlier, other in enumerate(found) if flat(other) == flat(told)]
        if any(not _same(choices[earlier], choice) for earlier in alike):
            told = f"{flat(told)} (choice {position})"
        found.append(told)
    return found


def flat(label: Any) -> Flat:
    """A label as Optuna has it."""
    if isinstance(label, float) and not math.isfinite(label):
        return _NOT_FINITE.get(label, "NaN")
    return json.dumps(label) if isinstance(label, list | tuple | dict) else label


_NOT_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}
_NO_TEXT = object()


def _label(choice: Any) -> Any:
    """JSON for one choice; `_NO_TEXT` where it has no text that another process would give it as well."""
    if choice is None or type(choice) in (bool, int):
        return choice
    if type(choice) is float:
        return choice if math.isfinite(choice) else flat(choice)
    if isinstance(choice, Enum):
        return _label(choice.value)
    if isinstance(choice, str):
        return str(choice).encode("utf-8", "backslashreplace").decode()
    if isinstance(choice, PurePath):
        return str(choice)
    if isinstance(choice, BaseModel):
        return choice.model_dump(mode="json")
    if isinstance(choice, Mapping):
        return {str(key): _inside(value) for key, value in choice.items()}
    if isinstance(choice, list | tuple):
        return [_inside(value) for value in choice]
    if isinstance(choice, set | frozenset):  # whose order is another one in each process
        return sorted((_inside(value) for value in choice), key=repr)
    if hasattr(choice, "tolist"):  # NumPy's and torch's numbers and arrays
        return _label(choice.tolist())
    if isinstance(choice, int | float):  # a subclass: its value is what counts
        return _label(int(choice) if isinstance(choice, int) else float(choice))
    if hasattr(choice, "__qualname__"):
        return str(choice.__qualname__)
    text = repr(choice)
    return _NO_TEXT if re.search("0x[0-9a-fA-F]{4,}", text) else text  # an address in memory


def _inside(value: Any) -> Any:
    """The label of a part of a choice."""
    told = _label(value)
    return type(value).__name__ if told is _NO_TEXT else told


def _same(one: Any, other: Any) -> bool:
    """Whether two choices are one value; what does not compare (arrays) is another one."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False


def key(params: Mapping[str, Any]) -> Hashable:
    """Equal for equal parameters, whatever their order, as the journal has them."""
    return frozenset((name, _hashable(label)) for name, label in params.items())


def _hashable(label: Any) -> Hashable:
    if isinstance(label, list | tuple):
        return tuple(map(_hashable, label))
    if isinstance(label, dict):
        return "object", key(label)
    return label if isinstance(label, Hashable) else repr(label)


# --- distributions ----------------------------------------------------------------------------------------------------


def written(distribution: BaseDistribution, told: Sequence[Any] = ()) -> str:
    """A distribution as the journal has it, Optuna's own JSON; `told` are the labels of one of choices."""
    if not isinstance(distribution, CategoricalDistribution):
        return distribution_to_json(distribution)
    return json.dumps({"name": type(distribution).__name__, "attributes": {"choices": list(told)}})


@lru_cache(maxsize=4096)
def parsed(text: str) -> BaseDistribution:
    """What `written` wrote, with its choices as Optuna is told of them. Nobody may change it."""
    values = json.loads(text)
    if values.get("name") == CategoricalDistribution.__name__:
        return CategoricalDistribution([flat(label) for label in values["attributes"]["choices"]])
    return json_to_distribution(text)


def size(distribution: BaseDistribution) -> int | None:
    """How many values it has; None where there is no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return len(set(distribution.choices))
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    assert isinstance(distribution, FloatDistribution)
    if distribution.single():
        return 1
    if distribution.step is None:
        return None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def fits(distribution: BaseDistribution, label: Any) -> bool:
    """Whether a parameter that is drawn from it can have the value that the journal calls `label`."""
    if isinstance(distribution, CategoricalDistribution):
        wanted = flat(label)  # True is no 1 here
        return any(type(wanted) is type(choice) and wanted == choice for choice in distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if (
        isinstance(label, bool)
        or not isinstance(label, int | float)
        or not distribution.low <= label <= distribution.high
    ):
        return False
    if isinstance(distribution, IntDistribution):
        return float(label).is_integer() and (int(label) - distribution.low) % distribution.step == 0
    if distribution.step is None:
        return True
    steps = (label - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-8


class Points:
    """Which points of a space its trials have met, as a tree: each parameter in the order in which it was asked for,
    each of its values a branch. To add a trial costs what its own path costs.
    """

    def __init__(self) -> None:
        self._root = _Point()

    @property
    def exhausted(self) -> bool:
        """Whether the trials are all that a space can give: each value of each parameter was met, on every branch."""
        return self._root.full

    def add(self, params: Mapping[str, Any], drawn: Mapping[str, BaseDistribution]) -> None:
        """A trial with `params`, and what each was drawn from."""
        point, path = self._root, [(self._root, self._root.full)]
        for name, distribution in drawn.items():
            if not point.branches:
                point.size = size(distribution)
            point = point.branches.setdefault(_place(distribution, params[name]), _Point())
            path.append((point, point.full))
        point.met = True
        for (above, _), (below, was_full) in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            above.met = True
            above.full_branches += below.full - was_full


@dataclass(slots=True)
class _Point:
    """The values so far. `size` is how many the next parameter has, None where there is no end of them."""

    size: int | None = None
    branches: dict[Flat, _Point] = field(default_factory=dict)
    full_branches: int = 0
    met: bool = False

    @property
    def full(self) -> bool:
        """Whether nothing is left from here on."""
        return self.met and (not self.branches or self.full_branches == self.size)


def _place(distribution: BaseDistribution, value: Any) -> Flat:
    """A value among those of its distribution, whatever its last digit is."""
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps: float = (value - distribution.low) / distribution.step
        return round(steps)
    return flat(value)


# --- names ------------------------------------------------------------------------------------------------------------


class Names:
    """What Optuna calls the parameters of one sweep: by their names, numbered where one name has several kinds of
    distribution or several lists of choices.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, list[object]] = {}

    def of(self, name: str, distribution: BaseDistribution) -> str:
        """Optuna's name; a kind that was not met before is the next one."""
        kinds = self._kinds.setdefault(name, [])
        kind = _kind(distribution)
        if kind not in kinds:
            kinds.append(kind)
        position = kinds.index(kind)
        return name if position == 0 else f"{name} #{position + 1}"

    def copy(self) -> Names:
        """The same, which may meet other kinds from now on."""
        other = Names()
        other._kinds = {name: list(kinds) for name, kinds in self._kinds.items()}
        return other


def _kind(distribution: BaseDistribution) -> object:
    """What Optuna wants to stay as it is for one name."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return type(distribution), getattr(distribution, "log", False)


# --- trials -----------------------------------------------------------------------------------------------------------


class SpaceTrial(optuna.Trial):
    """The running trial that a space asks: Optuna's own, except that any value may be a choice.

    `told` and `drawn_from` are its parameters as the journal has them, in the order in which they were asked for.
    """

    def __init__(self, trial: optuna.Trial, names: Names, wanted: Mapping[str, Any] | None = None) -> None:
        """`wanted` are labels by name, to be had instead of a draw where the parameter is asked for and can have it."""
        vars(self).update(vars(trial))  # it has begun already: it stays the trial that its study knows
        self._names = names
        self._wanted = wanted or {}
        self._chosen: dict[str, Any] = {}
        self.told: dict[str, Any] = {}
        self.drawn_from: dict[str, str] = {}
        self._drawn: dict[str, BaseDistribution] = {}

    @property
    def params(self) -> dict[str, Any]:
        """What was suggested so far, by the space's own names."""
        return dict(self._chosen)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return dict(self._drawn)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        drawn_from = FloatDistribution(low, high, log=log, step=step)
        if fits(drawn_from, self._wanted.get(name)):
            low = high = float(self._wanted[name])
        value = super().suggest_float(self._alias(name, drawn_from), low, high, step=step, log=log)
        self._keep(name, drawn_from, value, value)
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        drawn_from = IntDistribution(low, high, log=log, step=step)
        if fits(drawn_from, self._wanted.get(name)):
            low = high = int(self._wanted[name])
        value = super().suggest_int(self._alias(name, drawn_from), low, high, step=step, log=log)
        self._keep(name, drawn_from, value, value)
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        choices = tuple(choices)
        told = labels(choices)
        flats = [flat(label) for label in told]
        drawn_from = CategoricalDistribution(flats)
        alias = self._alias(name, drawn_from)
        if name in self._wanted and fits(drawn_from, self._wanted[name]):
            position = flats.index(flat(self._wanted[name]))
        else:
            position = flats.index(super().suggest_categorical(alias, flats))
        value = _given(choices[position])
        self._keep(name, drawn_from, value, told[position], told)
        return value

    def _alias(self, name: str, distribution: BaseDistribution) -> str:
        first = self._drawn.get(name)
        if first is not None and _kind(first) != _kind(distribution):
            raise RequestError(
                f"one trial must draw a parameter from one distribution, but {name!r} is asked for twice, from {first} "
                f"and from {distribution}; give them two names"
            )
        return self._names.of(name, distribution)

    def _keep(
        self, name: str, distribution: BaseDistribution, value: Any, label: Any, told: Sequence[Any] = ()
    ) -> None:
        if name not in self.told:  # asked for again, it keeps its value, whatever its range is now
            self._chosen[name], self.told[name] = value, label
            self._drawn[name], self.drawn_from[name] = distribution, written(distribution, told)


class GivenTrial(FixedTrial):
    """A trial whose parameters are known, for asking a space about them. `params` are those that were asked for so far,
    as of a trial that is drawn.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._asked: dict[str, Any] = {}

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._asked)


class ToldTrial(GivenTrial):
    """A trial whose parameters the journal has told, for asking a space again about them."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value = super().suggest_float(name, low, high, step=step, log=log)
        return float(self._asked.setdefault(name, value))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        value = super().suggest_int(name, low, high, step=step, log=log)
        return int(self._asked.setdefault(name, value))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        choices = tuple(choices)
        flats = [flat(label) for label in labels(choices)]
        if name not in self._params or flat(self._params[name]) not in flats:
            raise ValueError(f"{name!r} is {self._params.get(name)!r}, which is none of {list(choices)}")
        value = _given(choices[flats.index(flat(self._params[name]))])
        self._asked.setdefault(name, value)
        return value


def _given(choice: Any) -> Any:
    """What a space gets: of a list or an object a copy, so that changing it changes no other trial's choices."""
    return copy.deepcopy(choice) if type(choice) in (list, dict, set) else choice
